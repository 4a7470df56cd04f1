"""The command line: `python -m helpers convert | ask | evaluate | benchmark | ...`.

Errors that a user can cause are one sentence on the error stream and exit code 1; a wrong command
line is exit code 2; Ctrl-C is exit code 130.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from helpers.errors import SettingsError, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m helpers", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _add(commands, "convert", convert, "convert a checkpoint to OpenVINO")
    command.add_argument("checkpoint", help="a bundled name, a folder, or a hub id")
    command.add_argument("--precision", default="int4", help="fp16, int8, int4 (default), int4-sym")
    command.add_argument("--group-size", type=int, help="weights that share a scale in 4 bits")
    command.add_argument("--ratio", type=float, help="share of the layers in 4 bits, 0 to 1")
    command.add_argument("--output", type=Path, required=True, help="the folder to write")

    command = _add(commands, "ask", ask, "ask about a picture")
    _add_folder(command)
    command.add_argument("--device", default="CPU", help="CPU (default), GPU, NPU, AUTO")
    command.add_argument("--image", action="append", default=[], help="a picture; may be repeated")
    command.add_argument("--question", required=True)
    command.add_argument("--max-new-tokens", type=int, default=128)

    command = _add(commands, "evaluate", evaluate, "count right answers on drawn questions")
    _add_folder(command)
    command.add_argument("--device", default="CPU", help="CPU (default), GPU, NPU, AUTO")
    command.add_argument("--questions", type=int, default=500)
    command.add_argument("--seed", type=int, default=0)

    command = _add(commands, "benchmark", benchmark, "measure what a model costs on this computer")
    command.add_argument("model", help="llava-mpt, mobilevlm, internvl2-1b, ...")
    command.add_argument("--full-size", action="store_true", help="with random weights")
    command.add_argument("--precision", default="int4", help="one or several, as fp16,int8,int4")
    command.add_argument("--against", choices=["pytorch"], help="measure PyTorch as well")
    command.add_argument("--folder", type=Path, help="keep checkpoints and converted models there")
    command.add_argument("--output", type=Path, help="write the figures into this file too")

    command = _add(commands, "demo", demo, "serve the chat page on this computer")
    _add_folder(command)
    command.add_argument("--device", default="CPU", help="CPU (default), GPU, NPU, AUTO")
    command.add_argument("--port", type=int)

    command = _add(commands, "info", info, "say what a converted folder holds")
    _add_folder(command)

    command = _add(commands, "verify", verify, "read every file of a converted folder")
    _add_folder(command)

    command = _add(commands, "clean", clean, "remove what interrupted conversions left")
    command.add_argument("folder", type=Path, help="where they were to be written, or above")
    return parser


def _add(commands, name: str, run, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    return command


def _add_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, help="a folder that `convert` wrote")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _pipeline(options: argparse.Namespace):
    from helpers.run.pipeline import VisionLanguagePipeline

    pipeline = VisionLanguagePipeline(options.folder, options.device)
    if pipeline.notice:
        _say(f"note: {pipeline.notice}")
    return pipeline


# Commands; what is slow to import is imported where it is used, so that --help answers at once.


def convert(options: argparse.Namespace) -> int:
    """Convert a checkpoint and print the bit widths of its parts."""
    from helpers.convert import conversion, folders
    from helpers.graphs import compression
    from helpers.show import plots
    from helpers.sources import hub

    preset = compression.find_preset(
        options.precision, group_size=options.group_size, ratio=options.ratio
    )
    folder = hub.find_checkpoint(options.checkpoint)
    widths = conversion.convert(folder, options.output, preset, report=_say)
    if options.json:
        found = {name: [asdict(width) for width in part] for name, part in widths.items()}
        sizes = folders.folder_bytes(options.output)
        print(json.dumps({"folder": str(options.output), "bytes": sizes, "bit_widths": found}))
    else:
        plots.show_table(compression.table(widths))
    return 0


def ask(options: argparse.Namespace) -> int:
    """Stream the answer to one question."""
    from helpers.inputs.images import open_picture

    pictures = [open_picture(Path(path)) for path in options.image]
    pipeline = _pipeline(options)
    reply = pipeline.ask(options.question, pictures, max_new_tokens=options.max_new_tokens)
    if options.json:
        found = {"text": reply.text, "tokens": len(reply.token_ids), "notice": pipeline.notice}
        seconds = {"first_token": reply.times.first_token, "per_token": reply.times.per_token}
        print(json.dumps(found | {"seconds": seconds}))
        return 0
    for piece in reply:
        print(piece, end="", flush=True)
    print()
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Print the share of right answers by kind."""
    from helpers.measure import evaluation
    from helpers.show import plots

    if options.questions < 1:
        raise SettingsError("Ask at least one question.")
    pipeline = _pipeline(options)
    asked = evaluation.draw_questions(options.questions, seed=options.seed)
    answers = evaluation.answer(
        pipeline, asked, report=lambda done: _say(f"{done} of {len(asked)} questions answered")
    )
    shares = evaluation.accuracy(answers, asked)
    if options.json:
        print(json.dumps({"questions": len(asked), "seed": options.seed, "accuracy": shares}))
    else:
        plots.show_table([{"kind": k, "right": f"{v:.1%}"} for k, v in shares.items()])
    return 0


def benchmark(options: argparse.Namespace) -> int:
    """Print the time, memory and disk that a model takes."""
    from helpers.measure import benchmark as measuring
    from helpers.show import plots

    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = measuring.benchmark(
            options.model,
            folder,
            full_size=options.full_size,
            precisions=options.precision.split(","),
            against=("bfloat16", "float32") if options.against else (),
            report=_say,
        )
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(found))
    else:
        plots.show_table(measuring.table(found))
    return 0


def demo(options: argparse.Namespace) -> int:
    """Serve the chat page until Ctrl-C."""
    from helpers.serve import demo as page

    pipeline = _pipeline(options)
    blocks = page.build_page(pipeline, title=f"Ask {pipeline.name}")
    address = page.open_page(blocks, port=options.port)
    print(json.dumps({"address": address}) if options.json else f"{address} (Ctrl-C ends it)")
    sys.stdout.flush()
    blocks.block_thread()
    return 0


def info(options: argparse.Namespace) -> int:
    """Print what a converted folder was made of, and its sizes."""
    from helpers.convert import folders
    from helpers.show import plots

    manifest = folders.read_manifest(options.folder)
    sizes = folders.folder_bytes(options.folder)
    if options.json:
        print(json.dumps(manifest | {"bytes": sizes}))
        return 0
    print(f"made of {manifest['source']['name']} with", end=" ")
    print(", ".join(f"{name} {number}" for name, number in manifest["versions"].items()))
    rows = [
        {
            "part": name,
            "MB": f"{size / 1e6:.1f}",
            "weights": ", ".join(
                f"{width['type']} {width['share']:.0%}" for width in manifest["bit_widths"][name]
            ),
        }
        for name, size in sizes.items()
    ]
    plots.show_table(rows)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Read every file and compare it with the manifest."""
    from helpers.convert import folders

    names = folders.verify(options.folder, report=_say)
    if options.json:
        print(json.dumps({"folder": str(options.folder), "files": names}))
    else:
        print(f"all {len(names)} files are as they were written")
    return 0


def clean(options: argparse.Namespace) -> int:
    """Remove what interrupted conversions left, and say what it was."""
    from helpers.convert import folders

    removed = [str(path) for path in folders.clean(options.folder)]
    if options.json:
        print(json.dumps({"removed": removed}))
    else:
        print(*removed or ["nothing to remove"], sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
