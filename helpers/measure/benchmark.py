"""Measure what a model costs: conversion, memory, disk, time, and how far time is from its floor.

To write a token, a language model reads all its weights once; how long that takes at this
computer's memory bandwidth is the least time that a token can take. Each measurement runs in a
process of its own, whose memory is watched from here.

What this module does not know: graphics cards, whose memory is another.
"""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import openvino as ov
import psutil
import torch

from helpers.convert.conversion import convert
from helpers.convert.folders import folder_bytes
from helpers.errors import SettingsError
from helpers.graphs.compression import find_preset
from helpers.graphs.tracing import LANGUAGE_MODEL
from helpers.inputs.images import draw_lake
from helpers.inputs.prompts import user_message
from helpers.measure import evaluation
from helpers.measure.random_checkpoint import write_random
from helpers.models import load_model
from helpers.resources import EVERY, anonymous_memory
from helpers.run.devices import available_devices
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.show.plots import format_table
from helpers.sources import hub
from helpers.sources.checkpoints import bundled_checkpoints

Report = Callable[[str], None]
QUESTION = "Describe the picture."
TOKENS = 32  # that an answer has, the first one included
ROUNDS = 3
BLOCK = 2**27  # bytes that are read to measure the memory's bandwidth, more than caches hold


@dataclass(frozen=True)
class Subject:
    """What a name on the command line means: a bundled checkpoint, an original, its picture."""

    bundled: str
    hub_id: str
    picture: tuple[int, int]  # width and height in pixels of what it usually sees


SUBJECTS = {
    "llava-mpt": Subject("llava_mpt", "liuhaotian/LLaVA-Lightning-MPT-7B-preview", (448, 448)),
    "mobilevlm": Subject("mobilevlm", "mtgv/MobileVLM-1.7B", (448, 448)),
    "minicpm-v-2": Subject("minicpm_v2", "openbmb/MiniCPM-V-2", (448, 448)),
    "llama-3.2-vision": Subject("mllama", "meta-llama/Llama-3.2-11B-Vision-Instruct", (1120, 1120)),
    **{
        f"internvl2-{size}b": Subject("internvl2", f"OpenGVLab/InternVL2-{size}B", (448, 448))
        for size in (1, 2, 4, 8)
    },
}


def find_subject(name: str) -> Subject:
    """Return what `name` stands for; an unknown one is a `SettingsError`."""
    if name not in SUBJECTS:
        raise SettingsError(f"There is no model {name!r} to measure; use {', '.join(SUBJECTS)}.")
    return SUBJECTS[name]


# One measurement, in a process of its own


def measure(task: str, *, report: Report = lambda line: None, **arguments) -> dict:
    """Run a task and return what it says, its `seconds`, and its `peak_memory` in bytes.

    That is the most anonymous memory it had: what it allocated, without the files that it mapped.
    """
    command = [
        sys.executable,
        "-m",
        "helpers.measure.benchmark",
        task,
        json.dumps(arguments, default=str),
    ]
    started, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        while process.poll() is None:
            peak = max(peak, anonymous_memory(process.pid))
            time.sleep(EVERY)
        lines = process.stdout.read().splitlines()
    if process.returncode:
        raise SettingsError(f"Measuring ended early (exit code {process.returncode}) in {task}.")
    report(f"{task}: {time.monotonic() - started:.0f} s, at most {hub.in_words(peak)} of memory")
    return json.loads(lines[-1]) | {"seconds": time.monotonic() - started, "peak_memory": peak}


# Tasks


def bandwidth() -> float:
    """Return how many bytes a second are read from memory by all cores together."""
    numbers = torch.ones(BLOCK // 4, dtype=torch.float32)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - started)
    return BLOCK / median(seconds)


def conversion(checkpoint: str, output: str, precision: str) -> dict:
    """Convert and compress; return seconds, bytes and bit widths by part, and parameters."""
    begun: list[tuple[str, float]] = []

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        begun.append((line, time.monotonic()))

    widths = convert(Path(checkpoint), Path(output), find_preset(precision), report=report)
    starts = [(line.split(":")[0], at) for line, at in begun if ": converting" in line]
    ends = [at for _, at in starts[1:]] + [begun[-1][1]]
    return {
        "seconds_by_part": {
            part: end - start for (part, start), end in zip(starts, ends, strict=True)
        },
        "bytes_by_part": folder_bytes(Path(output)),
        "bit_widths": {part: [asdict(width) for width in found] for part, found in widths.items()},
    }


def running(folder: str, picture: Sequence[int]) -> dict:
    """Return the seconds of a converted model: image encoder, first token and next ones.

    Then those of a conversation: the first token of a question with a picture, of a second question
    about it, and what it takes to stop while a prompt is read.
    """
    pipeline = VisionLanguagePipeline(Path(folder))
    found = _speed(pipeline, picture)
    conversation, drawn = pipeline.conversation(), draw_lake(*picture)
    first = conversation.ask(QUESTION, [drawn], max_new_tokens=2)
    first.counts  # noqa: B018 (waits)
    second = conversation.ask(QUESTION, max_new_tokens=2)
    second.counts  # noqa: B018
    stop = threading.Event()
    stopped = pipeline.ask(QUESTION, [drawn], stop=stop)
    while stopped.is_running and not stopped.times.image_encoder:  # then the prompt is read
        time.sleep(0.001)
    started = time.perf_counter()
    stop.set()
    stopped.counts  # noqa: B018
    return found | {
        "first_question": first.times.first_token,
        "second_question": second.times.first_token,
        "stop": time.perf_counter() - started,
    }


def profile(folder: str, picture: Sequence[int]) -> dict:
    """Return the mean seconds of a decode step, and those of its kernels by type of operation."""
    pipeline = VisionLanguagePipeline(Path(folder), properties={"PERF_COUNT": True})
    inputs = pipeline.image_inputs([draw_lake(*picture)])
    ids = pipeline.processor.input_ids([user_message(QUESTION, 1)], inputs)
    prepared = pipeline.prepare(ids, pipeline.encode_images(**inputs))
    model, pictures = pipeline.language_model, prepared.get("pictures")
    cache = model.new_cache()
    model(**prepared, past_key_values=cache)
    before = _kernels(cache.request)
    started = time.perf_counter()
    for _ in range(TOKENS):
        model(input_ids=torch.tensor([[0]]), past_key_values=cache, pictures=pictures)
    step = (time.perf_counter() - started) / TOKENS
    after = _kernels(cache.request)
    # The counters are means over all calls, of which the prompt was one.
    kernels = {
        name: ((TOKENS + 1) * after[name] - before.get(name, 0.0)) / TOKENS for name in after
    }
    largest = dict(sorted(kernels.items(), key=lambda item: -item[1])[:5])
    return {"step": step, "kernels": sum(kernels.values()), "largest": largest}


def _kernels(request: ov.InferRequest) -> Counter[str]:
    """Return the mean seconds of a request's operations by type."""
    found: Counter[str] = Counter()
    for node in request.get_profiling_info():
        found[node.node_type] += node.real_time.total_seconds()
    return found


def pytorch(checkpoint: str, picture: Sequence[int], dtype: str) -> dict:
    """Return the seconds of the same in PyTorch."""
    return _speed(load_model(Path(checkpoint), getattr(torch, dtype)), picture)


def _speed(model, picture: Sequence[int]) -> dict:
    """Return seconds, round by round: the median of each, and the memory's bandwidth meanwhile.

    On a computer that others use too, both change from one second to the next.
    """
    drawn = draw_lake(*picture)
    evaluation.speed(model, drawn, QUESTION, tokens=2, repeats=1, warm_up=False)
    rounds = []
    for _ in range(ROUNDS):
        one = evaluation.speed(model, drawn, QUESTION, tokens=TOKENS, repeats=1, warm_up=False)
        rounds.append(asdict(one) | {"bandwidth": bandwidth()})
    prompt = model.processor.input_ids([user_message(QUESTION, 1)], model.image_inputs([drawn]))
    speed = {step: median(one[step] for one in rounds) for step in rounds[0]}
    return {"speed": speed, "rounds": rounds, "prompt_tokens": prompt.shape[1]}


TASKS = {task.__name__: task for task in (conversion, running, profile, pytorch)}


# All of a model


def benchmark(
    name: str,
    place: Path,
    *,
    full_size: bool = False,
    precisions: Sequence[str] = ("int4",),
    against: Sequence[str] = (),
    report: Report = lambda line: None,
) -> dict:
    """Measure the model called `name` and return all figures.

    Checkpoints and converted models are written to `place`. `against` are types that PyTorch
    computes in, for the same measurements there; one that does not fit into the memory is left
    out. Raises `SettingsError` for an unknown name or precision.
    """
    subject = find_subject(name)
    for precision in precisions:
        find_preset(precision)
    checkpoint = bundled_checkpoints().get(subject.bundled)
    if full_size:
        checkpoint = write_random(subject.hub_id, place / "checkpoint", report=report)
    elif checkpoint is None:
        raise SettingsError(f"There is no small {name} here yet; measure it with --full-size.")
    parameters = count_parameters(checkpoint)
    found = {"model": name, "full_size": full_size, "picture": subject.picture}
    found |= {"computer": computer(), "parameters": parameters, "runs": {}}
    for precision in precisions:
        output = place / precision
        shutil.rmtree(output, ignore_errors=True)
        written = measure(
            "conversion", report=report, checkpoint=checkpoint, output=output, precision=precision
        )
        run = measure("running", report=report, folder=output, picture=subject.picture)
        size = written["bytes_by_part"][LANGUAGE_MODEL]
        times = median(one["next_token"] * one["bandwidth"] / size for one in run["rounds"])
        floor = {"seconds": size / run["speed"]["bandwidth"], "times": times}
        inside = measure("profile", report=report, folder=output, picture=subject.picture)
        found["runs"][precision] = {
            "conversion": written,
            "running": run,
            "profile": inside,
            "floor": floor,
        }
    for dtype in against:
        size = sum(parameters.values()) * getattr(torch, dtype).itemsize
        if size > psutil.virtual_memory().available:
            report(f"PyTorch {dtype} is left out: it takes {hub.in_words(size)} of memory.")
            continue
        run = measure(
            "pytorch", report=report, checkpoint=checkpoint, picture=subject.picture, dtype=dtype
        )
        found["runs"][f"PyTorch {dtype}"] = {"running": run}
    return found


def count_parameters(checkpoint: Path) -> dict[str, int]:
    """Return the number of weights of the language model and of all else."""
    model = load_model(checkpoint)
    language = sum(weight.numel() for weight in model.language_model.parameters())
    every = sum(weight.numel() for weight in model.parameters())
    return {LANGUAGE_MODEL: language, "others": every - language}


def computer() -> dict:
    """Return what measurements depend on: the processor, its cores, memory, and versions."""
    return {
        "processor": available_devices()["CPU"],
        "cores": psutil.cpu_count(logical=False),
        "memory": psutil.virtual_memory().total,
        "versions": {name: version(name) for name in ("openvino", "nncf", "torch", "transformers")},
    }


def table(found: dict) -> list[dict[str, str]]:
    """Return the figures as rows for `plots.show_table`, a run each."""
    rows = []
    for name, run in found["runs"].items():
        written, speed = run.get("conversion"), run["running"]["speed"]
        row = dict.fromkeys(("convert", "its memory", "on disk"), "-")
        if written:
            row = {
                "convert": f"{written['seconds']:.0f} s",
                "its memory": hub.in_words(written["peak_memory"]),
                "on disk": hub.in_words(sum(written["bytes_by_part"].values())),
            }
        row = {"model": name} | row
        for step in ("image_encoder", "first_token", "next_token"):
            row[step.replace("_", " ")] = f"{speed[step] * 1000:.1f} ms"
        floor = run.get("floor")
        row["floor"] = f"{floor['seconds'] * 1000:.1f} ms" if floor else "-"
        row["times floor"] = f"{floor['times']:.2f}" if floor else "-"
        rows.append(row | {"memory": hub.in_words(run["running"]["peak_memory"])})
    return rows


def page(results: Sequence[dict]) -> str:
    """Return the Markdown page of what was measured at full size."""
    machine = results[0]["computer"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    parts = [
        "# Full size on an ordinary computer\n",
        "<!-- made by: python -m helpers.workshop.readme (a test compares) -->\n",
        f"Measured on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory'] / 2**30:.0f} GiB of memory, with {versions}. The checkpoints have the "
        "originals' sizes and random weights: time, memory and disk do not depend on what weights "
        "have learned.\n",
        "*Memory* is anonymous memory, sampled: what a process allocates, without the files that "
        "it maps. *Floor* is the time that reading the language model's weights once takes at the "
        "memory's bandwidth, measured after each round: no token can take less. "
        f'*First token* is that of the question "{QUESTION}" about a picture, after the image '
        f"encoder; *next token* is the median over {TOKENS}.\n",
    ]
    for found in results:
        width, height = found["picture"]
        billions = sum(found["parameters"].values()) / 1e9
        prompt = next(iter(found["runs"].values()))["running"]["prompt_tokens"]
        parts.append(
            f"## {found['model']}\n\n{billions:.2f} billion parameters; a picture of {width} x "
            f"{height}, {prompt} tokens with the question.\n\n```\n"
            f"{format_table(table(found))}\n```\n"
        )
        for precision, run in found["runs"].items():
            if "conversion" in run:
                parts.append(_sentences(precision, run, found["parameters"]))
    return "\n".join(parts)


def _sentences(precision: str, run: dict, parameters: dict[str, int]) -> str:
    """Return what a table has no place for."""
    written, ran = run["conversion"], run["running"]
    size = sum(written["bytes_by_part"].values())
    each = written["seconds_by_part"][LANGUAGE_MODEL] / (parameters[LANGUAGE_MODEL] / 1e9)
    above = (written["peak_memory"] - size) / 2**30
    widths = ", ".join(
        f"{width['type']} {width['layers']} ({width['share']:.0%})"
        for width in written["bit_widths"][LANGUAGE_MODEL]
    )
    parts = ", ".join(
        f"{part} {hub.in_words(taken)} ({written['seconds_by_part'][part]:.0f} s)"
        for part, taken in written["bytes_by_part"].items()
    )
    return (
        f"{precision}: {parts}. Converting took {above:+.2f} GiB of memory beside the "
        f"result's size, and {each:.1f} s per billion parameters of the language model, "
        f"whose layers by type are {widths}; {size / sum(parameters.values()):.2f} bytes a "
        "parameter on disk. A second question's "
        f"first token came after {ran['second_question'] * 1000:.0f} ms, the first one's after "
        f"{ran['first_question'] * 1000:.0f} ms, and stopping while the prompt was read took "
        f"{ran['stop'] * 1000:.0f} ms. Where a token's time goes: {_profile(run['profile'])}.\n"
    )


def _profile(inside: dict) -> str:
    largest = ", ".join(f"{name} {s * 1000:.1f} ms" for name, s in inside["largest"].items())
    share = inside["kernels"] / inside["step"]
    return (
        f"of {inside['step'] * 1000:.1f} ms with profiling, {share:.0%} in OpenVINO's own kernels "
        f"({largest})"
    )


def main() -> None:
    """Run one task, for `measure`, and print its result as the last line."""
    task, arguments = sys.argv[1:]
    print(json.dumps(TASKS[task](**json.loads(arguments))))


if __name__ == "__main__":
    main()
