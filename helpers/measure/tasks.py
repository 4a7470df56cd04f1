"""The tasks of a benchmark, each run in a process of its own, whose memory is watched from here.

What this module does not know: which tasks a model needs.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import openvino as ov
import torch

from helpers.convert.conversion import convert
from helpers.convert.folders import Report, folder_bytes
from helpers.errors import SettingsError, UserError
from helpers.graphs.presets import find_preset
from helpers.inputs.images import draw_lake
from helpers.inputs.messages import user_message
from helpers.measure.evaluation import Model, question_inputs
from helpers.measure.figures import from_json
from helpers.measure.speed import measure as measure_speed
from helpers.models import load_model
from helpers.resources import EVERY, anonymous_memory, freeze_objects, in_words
from helpers.run.caches import StateCache
from helpers.run.pipeline import VisionLanguagePipeline

T = TypeVar("T")
Step = Callable[[], object]  # makes a decode step
QUESTION = "Describe the picture."
TOKENS = 32  # that an answer has, the first one included
ROUNDS = 3
REFUSED = 9  # the exit code of a task whose last line is the sentence of a `UserError`
BLOCK = 2**27  # bytes that are read to measure the memory's bandwidth, more than caches hold


def measure(
    task: str, result: type[T], *, report: Report = lambda line: None, **arguments: object
) -> T:
    """Run a task and return its figures, with its `seconds` and `peak_memory`, as a `result`.

    The memory is what the process allocated at most, without the files that it mapped. Raises
    `SettingsError` for a task that does not end well.
    """
    words = [task, json.dumps(arguments, default=str)]
    command = [sys.executable, "-m", "helpers.measure.tasks", *words]
    started, peak = time.monotonic(), 0
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_memory(process.pid))
            time.sleep(EVERY)
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    if process.returncode == REFUSED:
        raise SettingsError(lines[-1])
    if process.returncode:
        raise SettingsError(
            f"Measuring ended early (exit code {process.returncode}) in {task}; free memory, or "
            "mend what is said above."
        )
    seconds = time.monotonic() - started
    report(f"{task}: {seconds:.0f} s, at most {in_words(peak)} of memory")
    cost = {"seconds": seconds, "peak_memory": peak}
    return from_json(result, json.loads(lines[-1]) | cost)


# The tasks. Each returns what its result has beside seconds and memory.


def bandwidth() -> float:
    """Return how many bytes a second are read from memory by all cores together."""
    numbers = torch.ones(BLOCK // 4, dtype=torch.float32)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - started)
    return BLOCK / median(seconds)


def conversion(checkpoint: str, output: str, precision: str) -> dict[str, Any]:
    """Convert and compress; return seconds, bytes and bit widths by part, and parameters."""
    steps: list[tuple[str, float]] = []

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        steps.append((line, time.monotonic()))

    widths = convert(Path(checkpoint), Path(output), find_preset(precision), report=report)
    starts = [(line.split(":")[0], at) for line, at in steps if ": converting" in line]
    ends = [at for _, at in starts[1:]] + [steps[-1][1]]
    return {
        "seconds_by_part": {
            part: end - start for (part, start), end in zip(starts, ends, strict=True)
        },
        "bytes_by_part": folder_bytes(Path(output)),
        "bit_widths": {
            part: [asdict(width) for width in part_widths] for part, part_widths in widths.items()
        },
    }


def running(folder: str, picture: Sequence[int]) -> dict[str, Any]:
    """Return the seconds of a converted model: image encoder, first token and next ones.

    Then those of a conversation: the first token of a question with a picture, of a second question
    about it, and what it takes to stop while a prompt is read.
    """
    pipeline = VisionLanguagePipeline(Path(folder))
    figures = _speed(pipeline, picture)
    conversation, lake = pipeline.conversation(), draw_lake(*picture)
    first = conversation.ask(QUESTION, [lake], max_new_tokens=2)
    first.wait()
    second = conversation.ask(QUESTION, max_new_tokens=2)
    second.wait()
    stop = threading.Event()
    stopped = pipeline.ask(QUESTION, [lake], stop=stop)
    while stopped.is_running and not stopped.times.image_encoder:  # then the prompt is read
        time.sleep(0.001)
    started = time.perf_counter()
    stop.set()
    stopped.wait()
    return figures | {
        "first_question": first.times.first_token,
        "second_question": second.times.first_token,
        "stop": time.perf_counter() - started,
    }


def read_prompt(
    pipeline: VisionLanguagePipeline, picture: Sequence[int]
) -> tuple[Step, StateCache]:
    """Read a question about a picture of a width and height.

    Return what makes a decode step, always of the same token, and the cache that it writes to.
    """
    prepared = question_inputs(pipeline, draw_lake(*picture), QUESTION)
    model, pictures = pipeline.language_model, prepared.get("pictures")
    cache = model.new_cache()
    model(**prepared, past_key_values=cache)
    token = torch.tensor([[0]])
    return partial(model, input_ids=token, past_key_values=cache, pictures=pictures), cache


def profile(folder: str, picture: Sequence[int]) -> dict[str, Any]:
    """Return the mean seconds of a decode step, and those of its kernels by type of operation."""
    pipeline = VisionLanguagePipeline(Path(folder), properties={"PERF_COUNT": True})
    step, cache = read_prompt(pipeline, picture)
    prompts = cache.request
    step()  # after which the cache is where it stays
    calls = 2 if cache.request is prompts else 1  # that the request has had
    before = _kernels(cache.request)
    started = time.perf_counter()
    for _ in range(TOKENS):
        step()
    seconds = (time.perf_counter() - started) / TOKENS
    after = _kernels(cache.request)
    # The counters are means over all calls, of which the prompt may be one.
    kernels = {
        name: ((TOKENS + calls) * after[name] - calls * before.get(name, 0.0)) / TOKENS
        for name in after
    }
    largest = dict(sorted(kernels.items(), key=lambda item: -item[1])[:5])
    return {"step": seconds, "kernels": sum(kernels.values()), "largest": largest}


def _kernels(request: ov.InferRequest) -> Counter[str]:
    """Return the mean seconds of a request's operations by type."""
    seconds: Counter[str] = Counter()
    for node in request.get_profiling_info():
        seconds[node.node_type] += node.real_time.total_seconds()
    return seconds


def pytorch(checkpoint: str, picture: Sequence[int], dtype: str) -> dict[str, Any]:
    """Return the seconds of the same in PyTorch."""
    return _speed(load_model(Path(checkpoint), getattr(torch, dtype)), picture)


def _speed(model: Model, picture: Sequence[int]) -> dict[str, Any]:
    """Return seconds, round by round: the median of each, and the memory's bandwidth meanwhile.

    On a computer that others use too, both change from one second to the next.
    """
    lake = draw_lake(*picture)
    measure_speed(model, lake, QUESTION, tokens=2)
    rounds = []
    for _ in range(ROUNDS):
        speed = measure_speed(model, lake, QUESTION, tokens=TOKENS)
        rounds.append(asdict(speed) | {"bandwidth": bandwidth()})
    prompt = model.processor.input_ids([user_message(QUESTION, 1)], model.image_inputs([lake]))
    medians = {step: median(figures[step] for figures in rounds) for step in rounds[0]}
    return {"speed": medians, "rounds": rounds, "prompt_tokens": prompt.shape[1]}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    task.__name__: task for task in (conversion, running, profile, pytorch)
}


def _end_with_parent() -> None:
    """End this process once the one that started it is gone, killed too: it holds our input."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main() -> None:
    """Run one task, for `measure`, and print its result, or what is wrong, as the last line."""
    task, arguments = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    freeze_objects()
    try:
        print(json.dumps(TASKS[task](**json.loads(arguments))))
    except UserError as error:
        print(" ".join(str(error).split()))
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
