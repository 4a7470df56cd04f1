"""The commands of `vlm` that answer one person: one question, or one after another.

What is slow to import is imported where it is used.
"""

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import ends
from helpers.command_output import Result, report, show, thoughts
from helpers.command_pipelines import open_pipeline
from helpers.errors import SettingsError, UserError
from helpers.resources import path_of, text_of

if TYPE_CHECKING:
    from helpers.run.replies import Reply


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `Conversation.ask`: a temperature, top-p or top-k means to sample."""
    choices = {name: getattr(options, name) for name in ("temperature", "top_p", "top_k")}
    choices = {name: value for name, value in choices.items() if value is not None}
    return choices | {
        "do_sample": bool(choices),
        "max_new_tokens": options.max_new_tokens,
        "num_beams": options.beams,
        "repetition_penalty": options.repetition_penalty,
        "seed": options.seed,
        "thinking": options.thinking,
        "prompt_lookup": options.prompt_lookup,
    }


def ask(options: argparse.Namespace) -> int:
    """Stream the answer to one question."""
    from helpers.inputs.images import open_picture

    question = (_read_question() if options.question == "-" else options.question).strip()
    pictures = [open_picture(path_of(path)) for path in options.image]
    answer = {"stop_strings": options.stop, **_sampling(options)}
    if options.schema:
        from helpers.run.grammar import read_schema

        answer["schema"] = read_schema(options.schema)
    pipeline = open_pipeline(options, next_tokens_apart=False)
    reply = pipeline.ask(question, pictures, video=_video(options), **answer)
    if not options.json:
        _stream(reply)
        return 0
    data = {"text": reply.text, "tokens": len(reply.token_ids), "notice": pipeline.notice}
    seconds = {"first_token": reply.times.first_token, "per_token": reply.times.per_token}
    data |= {"finish": reply.finish, "thought": reply.thought, "seconds": seconds}
    return show(Result(data), options)


def _video(options: argparse.Namespace) -> Path | tuple[()]:
    return path_of(options.video) if options.video else ()


def _read_question() -> str:
    if sys.stdin.isatty():
        report(f"Type the question, then {END_OF_INPUT}:")
    return text_of(sys.stdin.read())


def _stream(reply: "Reply") -> None:
    """Print an answer as it comes, and the thought before it on the error stream."""
    with thoughts() as show_thought:
        for piece in reply.pieces():
            if piece.is_thought:
                show_thought(piece.text)
            else:
                show_thought("")
                print(piece.text, end="", flush=True)
    print()
    if reply.counts.thought and not reply.text and reply.finish == "length":
        report("The limit of tokens ended the thought; give a larger --max-new-tokens.")


END_OF_INPUT = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"
COMMANDS = ("/image", "/clear", "/quit")
CHAT_HELP = (
    f"/image PATH adds a picture, /clear begins anew, /quit or {END_OF_INPUT} ends; Ctrl-C stops"
)


def chat(options: argparse.Namespace) -> int:
    """Answer one question after another; errors are told, and the conversation goes on."""
    from helpers.inputs.images import open_picture

    pictures, video = [open_picture(path_of(path)) for path in options.image], _video(options)
    pipeline = open_pipeline(options, next_tokens_apart=not options.prompt_lookup)
    conversation = pipeline.conversation()
    report(CHAT_HELP)
    for line in _lines("> "):
        command, argument = (*line.split(maxsplit=1), "")[:2]
        if command == "/quit":
            break
        try:
            if command == "/image":
                pictures.append(open_picture(path_of(argument)))
            elif command == "/clear":
                conversation.clear()
                pictures, video = [], ()
            elif _is_mistyped(command, argument):
                raise SettingsError(f"There is no command {command}; {CHAT_HELP}.")
            else:
                _answer(
                    conversation.ask(text_of(line), pictures, video=video, **_sampling(options))
                )
                pictures, video = [], ()
        except UserError as error:
            report(f"error: {error}")
    return 0


def _is_mistyped(command: str, argument: str) -> bool:
    """Return whether a line is meant as a command, not as a question that begins with a path."""
    is_word = re.fullmatch(r"/[\w-]+", command) is not None
    return is_word and (len(argument.split()) <= 1 or bool(get_close_matches(command, COMMANDS)))


def _answer(reply: "Reply") -> None:
    """Stream an answer; Ctrl-C stops it, and what there is of it stays in the conversation."""
    try:
        _stream(reply)
    except KeyboardInterrupt:
        ends.raise_again()  # SIGTERM is no Ctrl-C, which ends an answer alone
        report("\nstopped")
        reply.wait()


def _lines(prompt: str) -> Iterator[str]:
    """Yield the lines that are typed, those without words left out, until there are no more."""
    with contextlib.suppress(EOFError):
        while True:
            print(prompt, end="", file=sys.stderr, flush=True)
            line = input().strip()
            if line:
                yield line
