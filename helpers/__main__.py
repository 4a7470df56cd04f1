"""The command line: `vlm convert | ask | chat | serve | ...`.

Errors that a user can cause are one sentence on the error stream and exit code 1; a wrong command
line is exit code 2; Ctrl-C is exit code 130, SIGTERM 143, and a terminal that is closed 129
(SIGHUP). `--debug` shows where an error comes from.
"""

import argparse
import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import helpers
from helpers import ends, interrupts
from helpers.errors import ResourcesError, UserError, ran_out, system_reason

EXAMPLES = {
    "convert": "vlm convert internvl2 --output models/internvl2\n"
    "vlm convert OpenGVLab/InternVL2-1B --precision int8 --output models/1b",
    "ask": "vlm ask models/internvl2 --image notebooks/images/example.png "
    '--question "What do you see?"\n'
    "echo Describe the picture. | vlm ask models/internvl2 --image notebooks/images/example.png",
    "chat": "vlm chat models/internvl2 --image notebooks/images/example.png",
    "evaluate": "vlm evaluate models/internvl2 --questions 100 --seed 1\n"
    "vlm evaluate models/internvl2 --data questions.jsonl --against internvl2 --page page.html",
    "prove": "vlm prove OpenGVLab/InternVL2-1B --output proof.html",
    "benchmark": "vlm benchmark internvl2-1b --full-size --against pytorch\n"
    "vlm benchmark models/internvl2 --against pytorch,genai,llama.cpp",
    "tune": "vlm tune models/1b",
    "demo": "vlm demo models/internvl2",
    "serve": "vlm serve models/internvl2 --port 8000",
    "batch": "vlm batch models/internvl2 --input pictures --output answers.jsonl "
    '--question "What do you see?"',
    "info": "vlm info models/internvl2 --json",
    "verify": "vlm verify models/internvl2",
    "clean": "vlm clean models",
}
TEXTS = ("question", "stop", "instruction", "name")  # options that hold words
TORCH_FOLDER = "torchinductor_"  # begins the name of what PyTorch makes among temporary files
START = """\
to begin with:
vlm convert internvl2 --output models/internvl2
vlm ask models/internvl2 --image notebooks/images/example.png --question "What do you see?"
vlm demo models/internvl2

Exit codes: 0, done; 1, an error that is told in a sentence; 2, a wrong command line; 3, some
rows or questions, or a proof, failed; 130, Ctrl-C; 143, SIGTERM; 129, SIGHUP. `serve` and `demo`,
once they are there, end with 0 then.
"""
SUMMARIES = {
    "convert": "convert a checkpoint to OpenVINO",
    "ask": "ask about a picture",
    "chat": "ask one question after another",
    "evaluate": "count right answers about drawn shapes, or to questions of a file",
    "prove": "compare a checkpoint with transformers' own class and on OpenVINO, on a page",
    "benchmark": "measure what a model costs on this computer",
    "tune": "find the settings of a folder that are fastest on this computer",
    "demo": "serve the chat page on this computer",
    "serve": "answer other programs in OpenAI's protocols",
    "batch": "ask about many pictures; goes on where it was interrupted",
    "info": "say what a converted folder holds",
    "verify": "read every file of a converted folder",
    "clean": "remove what interrupted conversions left",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _spell_out_characters()
    try:
        if sys.flags.optimize > 1:
            raise UserError(
                "Python leaves out docstrings, which transformers reads; unset PYTHONOPTIMIZE, or "
                "start Python without -OO."
            )
        return _run(arguments)
    except UserError as error:
        if "--debug" in arguments:
            _show_traceback(error)
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "helpers":
            raise
        print(f"error: {_without_packages(error.name)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return interrupts.stop(ends.exit_code())
    except (MemoryError, OSError, RuntimeError) as error:
        is_told = (isinstance(error, OSError) and _is_of_output(error)) or _is_of_limits(error)
        if not is_told and not _is_of_account(error):
            raise
        if "--debug" in arguments:
            _show_traceback(error)
        return 1


def _check_working_folder() -> None:
    """Raise a `UserError` where the folder that a program is in is gone; libraries end it then."""
    try:
        Path.cwd()
    except OSError as error:
        raise UserError(
            "The folder that this program was started in is not there any more "
            f"({system_reason(error)}); change to another with cd."
        ) from None


def _run(arguments: Sequence[str]) -> int:
    """Run a command; Ctrl-C is KeyboardInterrupt also where a package makes another error of it."""
    try:
        options = parse(arguments)
        _check_working_folder()
        run: Callable[[argparse.Namespace], int] = options.run
        code = run(options)
        sys.stdout.flush()
    except Exception as error:
        if interrupts.is_cause(error):
            raise KeyboardInterrupt from None
        raise
    return code


def program() -> int:
    """Run the command of this program; once it is over, Ctrl-C changes nothing any more.

    Computations that were stopped are joined while the interpreter ends. Interrupted there, a
    thread inside OpenVINO would end the process with an abort.
    """
    interrupts.handle()
    ends.handle()
    try:
        return main()
    except KeyboardInterrupt:  # a second one, while the first was told
        return ends.exit_code()
    finally:
        ends.leave()


def _spell_out_characters() -> None:
    """Let output hold any character: what the console's encoding lacks is spelled as its number.

    Input that is not of the encoding is kept, so that a question with it can be refused. Output
    that was closed (`>&-`) goes nowhere, and input that was (`<&-`) has ended.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    for stream, errors in (
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
        (sys.stdin, "surrogateescape"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(io.UnsupportedOperation):  # a program has read from it before
                stream.reconfigure(errors=errors)


def _is_of_output(error: OSError) -> bool:
    """Return whether it is standard output that cannot be written, and say so.

    A reader that has gone, such as `head`, needs no word.
    """
    if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO):
        return False
    if error.errno != errno.EPIPE:
        print(f"error: The output cannot be written ({system_reason(error)}).", file=sys.stderr)
    ends.silence(sys.stdout)
    return True


def _is_of_limits(error: Exception) -> bool:
    """Return whether memory or threads ran out, and say so."""
    if not ran_out(error):
        return False
    print(f"error: {ResourcesError(error)}", file=sys.stderr)
    return True


def _is_of_account(error: MemoryError | OSError | RuntimeError) -> bool:
    """Return whether libraries lack a home directory or a temporary folder here, and say so."""
    if not isinstance(error, OSError):
        if "home directory" not in str(error):
            return False
        sentence = "This account has no home directory, which libraries ask for; set HOME to one."
    elif error.filename is None and "temporary directory" in str(error):
        sentence = (
            "No temporary folder can be written; make room on the disk, or set TMPDIR to a folder "
            "that can."
        )
    elif Path(str(error.filename)).name.startswith(TORCH_FOLDER):
        what = f"{error.filename} cannot be used ({system_reason(error)})"
        sentence = f"{what}; set TMPDIR to a folder of your own."
    else:
        return False
    print(f"error: {sentence}", file=sys.stderr)
    return True


def _show_traceback(error: BaseException | None) -> None:
    """Print where an error comes from, those too that it was raised instead of."""
    cause = error
    while cause is not None:
        cause.__suppress_context__ = False
        cause = cause.__context__
    traceback.print_exception(error)


def _without_packages(name: str) -> str:
    folder = Path(helpers.__file__).parent.parent / ".venv"
    python = next((path for path in folder.glob("*/python*") if path.stem == "python"), None)
    cure = f"run {python} -m helpers" if python else "run `make` once, or see the README"
    return f"The Python that runs this, {sys.executable}, has no package {name}; {cure}."


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line, with the function to `run`.

    Only the command that is named gets its options: some of their texts come from packages that
    take seconds to import.
    """
    parser = argparse.ArgumentParser(
        prog="vlm",
        description="From a checkpoint to answers: convert it, ask it about a picture, serve it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=START,
    )
    parser.add_argument("--version", action="version", version=f"vlm {helpers.__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    for command, summary in SUMMARIES.items():
        subparser = subparsers.add_parser(
            command,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"examples:\n{EXAMPLES[command]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if command != "chat":  # which prints answer after answer
            subparser.add_argument("--json", action="store_true", help="print one JSON object")
        subparser.add_argument("--debug", action="store_true", help="show where an error is from")
        if command == name and find_spec("openvino") is None:
            raise ModuleNotFoundError(name="openvino")
        if command == name:
            from helpers import commands

            commands.add_options(command, subparser)
    options = parser.parse_args(arguments)
    _check_texts(options)
    return options


def _check_texts(options: argparse.Namespace) -> None:
    """Raise a `SettingsError` for a text that the locale cannot write; names of files may be so."""
    from helpers.resources import text_of

    for name in TEXTS:
        value = getattr(options, name, None) or []
        for text in [value] if isinstance(value, str) else value:
            text_of(text)


if __name__ == "__main__":
    sys.exit(program())
