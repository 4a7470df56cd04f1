"""The commands of `vlm`: the options of each, and what each does.

What is slow to import is imported where it is used.
"""

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import accuracy_commands, answer_commands, command_options, speed_commands
from helpers.command_output import SOME_FAILED, Result, report, show
from helpers.command_pipelines import advise, open_pipeline
from helpers.graphs.presets import find_preset, name_of


def convert(options: argparse.Namespace) -> int:
    """Convert a checkpoint and print the bit widths of its parts."""
    from helpers.convert import calibration, conversion, folders
    from helpers.graphs.bit_widths import bit_width_rows
    from helpers.models.families import find_checkpoint

    preset = find_preset(
        options.precision,
        image_encoder=options.image_encoder,
        group_size=options.group_size,
        ratio=options.ratio,
    )
    samples = calibration.samples_for(preset, options.samples)
    folder = find_checkpoint(options.checkpoint)
    widths = conversion.convert(folder, options.output, preset, samples=samples, report=report)
    data = {
        "folder": str(options.output),
        "bytes": folders.folder_bytes(options.output),
        "bit_widths": {part: [*map(dataclasses.asdict, widths[part])] for part in widths},
    }
    return show(Result(data, rows=bit_width_rows(widths)), options)


def demo(options: argparse.Namespace) -> int:
    """Serve the chat page until Ctrl-C."""
    from helpers.serve import demo as page
    from helpers.shapes.questions import draw_questions

    pipeline = open_pipeline(options)
    with tempfile.TemporaryDirectory() as folder:
        # A bundled model has a notice, and knows such pictures only.
        questions = draw_questions(4, seed=0) if pipeline.notice else []
        examples = page.save_examples(Path(folder), questions)
        blocks = page.build_page(pipeline, title=f"Ask {pipeline.name}", examples=examples)
        address = page.open_page(blocks, port=options.port, report=report)
        show(Result({"address": address}, [f"{address} (Ctrl-C ends it)"]), options)
        with contextlib.redirect_stdout(sys.stderr):  # Gradio tells there that it ends
            blocks.block_thread()
    return 0


def serve(options: argparse.Namespace) -> int:
    """Answer programs in OpenAI's protocols until the process is told to end."""
    from helpers.serve import server
    from helpers.serve.access import Access, folders_by_name, key_for
    from helpers.serve.ports import free_port

    access = Access(
        key_for(options.host, options.key_file, report),
        options.allow_origin,
        options.allow_picture_host,
    )
    folders = folders_by_name(options.folders, options.name)
    settings = server.Settings(
        options.host,
        free_port(options.port, options.host, advice="give another with --port"),
        options.queue,
        options.device,
        options.picture_tokens,
        tuned=not options.untuned,
        thinking=options.thinking,
    )
    advise(options, *folders.values())
    data = {"address": settings.address, "models": list(folders)}
    show(Result(data, [f"{settings.address} (Ctrl-C ends it)"]), options)
    server.serve(folders, access, settings, report=report)
    return 0


def batch(options: argparse.Namespace) -> int:
    """Answer many rows; what is in the output file is done already."""
    from helpers.run.grammar import read_schema
    from helpers.serve.answerers import answerer_for
    from helpers.serve.batch import run_job
    from helpers.serve.rows import read_rows

    answer: dict[str, Any] = {"max_new_tokens": options.max_new_tokens}
    if options.thinking is not None:
        answer["thinking"] = options.thinking
    if options.schema:
        answer["schema"] = read_schema(options.schema)
    rows = read_rows(options.input, options.question, report)
    if not any(row.image or row.is_openai for row in rows):
        report("note: no line has an image, so that questions are asked without pictures")
    if options.folder and not options.ray:
        advise(options, options.folder)
    names = ("folder", "device", "picture_tokens", "untuned", "batch_size", "output", "ray")
    names_of_servers = ("server", "model", "key_file")
    settings = {name: getattr(options, name) for name in (*names, *names_of_servers)}
    answerer = answerer_for(answer, report, source=options.input, **settings)
    job = answer | ({"questions": options.question} if options.question else {})
    retry = options.retry_errors
    try:
        progress = run_job(answerer, rows, options.output, job, retry_errors=retry, report=report)
    except KeyboardInterrupt:
        report("the same command goes on from there")
        raise
    data = {"rows": progress.total, "new": progress.new, "failed": progress.failed}
    line = f"{progress.total} rows in {options.output}, {progress.failed} with an error"
    show(Result(data, [line]), options)
    return SOME_FAILED if progress.failed else 0


def info(options: argparse.Namespace) -> int:
    """Print what a converted folder was made of, and its sizes."""
    from helpers.convert import folders
    from helpers.convert.places import has_runtime_files
    from helpers.run.tuning import read_tuning, settings_in_words

    manifest = folders.read_manifest(options.folder)
    sizes = folders.folder_bytes(options.folder)
    versions = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    rows = []
    for part, size in sizes.items():
        widths = manifest["bit_widths"][part]
        weights = ", ".join(f"{width['type']} {width['share']:.0%}" for width in widths)
        rows.append({"part": part, "MB": f"{size / 1e6:.1f}", "weights": weights})
    loads = has_runtime_files(manifest["files"])
    reason = "load this folder" if loads else _why_none_loads(options.folder)
    tuning = read_tuning(options.folder)
    lines = [
        f"made of {manifest['source']['name']} with {versions}",
        f"precision: {name_of(manifest['preset']) or 'one of its own, which --json shows'}",
        f"OpenVINO GenAI and Model Server: {reason}",
        *(f"note: {note}" for note in manifest.get("notes", [])),
        *settings_in_words(options.folder, tuning),
    ]
    data = manifest | {"bytes": sizes, "loaded by GenAI": loads}
    data["tuning"] = tuning and dataclasses.asdict(tuning)
    return show(Result(data, lines, rows), options)


def _why_none_loads(folder: Path) -> str:
    from helpers.convert.processors import read_processor  # which takes seconds to import

    return read_processor(folder).runtime.why or "lack files; convert into a new folder"


def verify(options: argparse.Namespace) -> int:
    """Read every file and compare it with the manifest."""
    from helpers.convert import folders

    names = folders.verify(options.folder, report=report)
    line = f"all {len(names)} files are as they were written"
    return show(Result({"folder": str(options.folder), "files": names}, [line]), options)


def clean(options: argparse.Namespace) -> int:
    """Remove what interrupted conversions left, and say what it was."""
    from helpers.convert import folders

    removed: list[str] = []
    try:
        folders.clean(options.folder, report=removed.append)
    except BaseException:  # what is gone is told all the same
        if removed:
            show(Result({"removed": removed}, removed), options)
        raise
    return show(Result({"removed": removed}, removed or ["nothing to remove"]), options)


Add = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], int]
COMMANDS: dict[str, tuple[Add, Run]] = {
    "convert": (command_options.add_convert, convert),
    "ask": (command_options.add_ask, answer_commands.ask),
    "chat": (command_options.add_answer, answer_commands.chat),
    "evaluate": (command_options.add_evaluate, accuracy_commands.evaluate),
    "prove": (command_options.add_prove, accuracy_commands.prove),
    "benchmark": (command_options.add_benchmark, speed_commands.benchmark),
    "tune": (command_options.add_tune, speed_commands.tune),
    "demo": (command_options.add_demo, demo),
    "serve": (command_options.add_serve, serve),
    "batch": (command_options.add_batch, batch),
    "info": (command_options.add_folder, info),
    "verify": (command_options.add_folder, verify),
    "clean": (command_options.add_clean, clean),
}


def add_options(command: str, parser: argparse.ArgumentParser) -> None:
    """Add the options of a command, and the function that runs it."""
    add, run = COMMANDS[command]
    add(parser)
    parser.set_defaults(run=run)
