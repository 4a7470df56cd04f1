"""The options of each command of `vlm`; texts come from presets and family entries.

What this module does not know: what a command does.
"""

import argparse

from helpers.graphs.presets import ALL_PRESETS, AUTO, FASTEST, PRECISIONS
from helpers.resources import path_of


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Add the folder of a converted model."""
    parser.add_argument("folder", type=path_of, help="a folder that `convert` wrote")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add how a pipeline runs its folder."""
    parser.add_argument("--device", default="CPU", help="CPU (default), GPU, AUTO")
    parser.add_argument(
        "--picture-tokens",
        type=int,
        help="the most tokens of one picture: fewer are quicker, more show smaller things",
    )
    add_untuned(parser)


def add_thinking(parser: argparse.ArgumentParser) -> None:
    """Add whether a model thinks before it answers."""
    parser.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        help="think before answering, or not, where the model can (default: as its template says)",
    )


def add_untuned(parser: argparse.ArgumentParser) -> None:
    """Add the option that leaves out what `tune` chose."""
    parser.add_argument(
        "--untuned", action="store_true", help="with OpenVINO's defaults, whatever `tune` chose"
    )


def add_key(parser: argparse.ArgumentParser, summary: str) -> None:
    """Add the file of a server's key."""
    parser.add_argument(
        "--key-file", type=path_of, help=f"a file with {summary} (or the variable VLM_KEY)"
    )


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """Add what a pipeline is made of."""
    add_folder(parser)
    add_settings(parser)


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Add the options of `convert`."""
    parser.add_argument("checkpoint", help=f"{_bundled_names()}; a folder; or a hub id")
    presets = "; ".join(f"{name}: {preset.why}" for name, preset in ALL_PRESETS.items())
    presets += f"; {AUTO}: the fastest of them, {FASTEST}"
    parser.add_argument("--precision", default="int4", help=f"{presets} (default: int4)")
    parser.add_argument(
        "--image-encoder", help="another of these for the image encoder, such as int8-activations"
    )
    parser.add_argument(
        "--samples",
        help="what int8-activations is calibrated on: a folder of pictures, or a data set of the "
        "hub (default: pictures that are drawn)",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        help="weights that share a scale in 4 bits (default: 128, int4-sym 64)",
    )
    parser.add_argument(
        "--ratio", type=float, help="share of the weights in 4 bits, 0 to 1 (default: 1)"
    )
    parser.add_argument("--output", type=path_of, required=True, help="the folder to write")


def _bundled_names() -> str:
    from helpers.models.families import families

    return ", ".join(family.name for family in families() if family.checkpoint is not None)


def add_answer(parser: argparse.ArgumentParser) -> None:
    """Add what an answer depends on."""
    add_pipeline(parser)
    parser.add_argument("--image", action="append", default=[], help="a picture; may be repeated")
    parser.add_argument(
        "--video", default=(), help="a video's file, an animated picture, or a folder of frames"
    )
    parser.add_argument("--max-new-tokens", type=int, default=128, help="default: 128")
    parser.add_argument("--temperature", type=float, help="sample; 0: the most probable token")
    parser.add_argument(
        "--top-p", type=float, help="sample among the most probable tokens with this share together"
    )
    parser.add_argument(
        "--top-k", type=int, help="sample among so many of the most probable tokens"
    )
    parser.add_argument(
        "--beams", type=int, default=1, help="search with so many beams (default: 1)"
    )
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="1 (default): none")
    parser.add_argument("--seed", type=int, help="makes sampling the same every time")
    parser.add_argument(
        "--prompt-lookup",
        action="store_true",
        help="faster where the answer repeats the prompt, slower where it does not",
    )
    add_thinking(parser)


def add_ask(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ask`."""
    add_answer(parser)
    parser.add_argument(
        "--question", default="-", help="- (default) reads the question from standard input"
    )
    parser.add_argument("--schema", type=path_of, help="a JSON schema that the answer follows")
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        help="a text before which the answer ends; may be repeated",
    )


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate`."""
    add_pipeline(parser)
    parser.add_argument(
        "--questions",
        type=int,
        help="how many (default: 500; of a file: all, else drawn by --seed)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another draws other questions (default: 0)"
    )
    from helpers.measure.data_sets import NAMES
    from helpers.measure.metrics import METRICS

    parser.add_argument(
        "--data",
        type=path_of,
        help=f"questions of your own, lines of JSON with image, question and answers; or {NAMES}",
    )
    parser.add_argument(
        "--pictures", type=path_of, help="where a public set's pictures are (default: beside it)"
    )
    parser.add_argument(
        "--against",
        help="what to agree with: another converted folder, or the checkpoint in PyTorch",
    )
    parser.add_argument("--page", type=path_of, help="an HTML page of the ten most different")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        choices=METRICS,
        help="what is counted; may be repeated (default: exact, relaxed and ANLS, or the set's)",
    )
    parser.add_argument(
        "--instruction", help="stands behind each question (default: none, or what is usual)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, help="default: 64")


def add_prove(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prove`."""
    parser.add_argument("checkpoint", help=f"{_bundled_names()}; a folder; or a hub id")
    parser.add_argument(
        "--precision",
        default="fp16,int4",
        help=f"one or several of {','.join(PRECISIONS)} (default: fp16,int4)",
    )
    parser.add_argument(
        "--output", type=path_of, required=True, help="the HTML page to write, which can be sent"
    )
    parser.add_argument(
        "--questions", type=int, default=20, help="how many of the 20 are asked (default: all)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=24, help="default: 24")
    parser.add_argument(
        "--folder", type=path_of, help="keep converted models there (default: they are removed)"
    )


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark`."""
    from helpers.models.families import families

    names = ", ".join(o.name for family in families() for o in family.originals)
    parser.add_argument("model", help=f"{names}; or a folder that `convert` wrote")
    parser.add_argument(
        "--full-size",
        action="store_true",
        help="first write a checkpoint of the original's size, with random weights, which takes "
        "as much disk, and minutes; without it, the bundled one is measured",
    )
    parser.add_argument(
        "--precision",
        default="int4",
        help=f"one or several of {','.join(PRECISIONS)} (default: int4)",
    )
    parser.add_argument(
        "--against",
        help="measure pytorch as well; of a folder one or several of pytorch,genai,llama.cpp, "
        "which `make peers` installs",
    )
    parser.add_argument(
        "--folder",
        type=path_of,
        help="keep checkpoints and converted models there (default: they are removed)",
    )
    parser.add_argument("--output", type=path_of, help="write the figures into this file too")


def add_tune(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tune`."""
    add_folder(parser)
    parser.add_argument(
        "--seconds",
        type=float,
        help="how long it may take (default: a minute for each GB of weights, from one to five; "
        "2.5 times as long without AVX-512)",
    )


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demo`."""
    add_pipeline(parser)
    parser.add_argument("--port", type=int, help="default: a free one from 7860 on")


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve`."""
    parser.add_argument(
        "folders", type=path_of, nargs="+", metavar="folder", help="what `convert` wrote"
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        help="what clients call the model; once for each folder (default: the folder's name)",
    )
    parser.add_argument("--device", default="CPU", help="CPU (default), GPU, AUTO")
    parser.add_argument(
        "--picture-tokens", type=int, help="the most tokens of one picture, unless a client says"
    )
    add_thinking(parser)
    add_untuned(parser)
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument(
        "--queue",
        type=int,
        default=32,
        help="so many requests wait or are answered, and the next is refused (default: 32)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        type=lambda text: text.removeprefix("[").removesuffix("]"),  # as addresses have IPv6
        help="another address to serve than this computer's own, which needs a key",
    )
    add_key(parser, "the key that clients send")
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of this origin ask, such as http://localhost:3000; may be repeated",
    )
    parser.add_argument(
        "--allow-picture-host",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch pictures by https from this host; may be repeated (default: none)",
    )


def _batch_size(text: str) -> int:
    """Return how many rows are computed together, 0 where that is to be measured."""
    if text == "auto":
        return 0
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of rows; give 1 or more, or auto to have it measured."
        )
    return int(text)


def add_batch(parser: argparse.ArgumentParser) -> None:
    """Add the options of `batch`."""
    parser.add_argument(
        "folder", type=path_of, nargs="?", help="what `convert` wrote, unless a --server has it"
    )
    add_settings(parser)
    parser.set_defaults(device=None)  # so that one that a --server would ignore is told
    parser.add_argument(
        "--input",
        type=path_of,
        required=True,
        help="a folder of pictures; a JSONL file with image and question; OpenAI's batch file",
    )
    parser.add_argument(
        "--output", type=path_of, required=True, help="the JSONL file of answers, begun or new"
    )
    parser.add_argument(
        "--question", action="append", default=[], help="asked about each picture; may be repeated"
    )
    parser.add_argument("--schema", type=path_of, help="a JSON schema that each answer follows")
    add_thinking(parser)
    parser.add_argument("--max-new-tokens", type=int, default=128, help="default: 128")
    parser.add_argument(
        "--retry-errors", action="store_true", help="try the rows again that have an error"
    )
    parser.add_argument(
        "--batch-size",
        type=_batch_size,
        metavar="N",
        help="rows that are computed together; auto: the fastest number here (default: 8)",
    )
    parser.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="URL",
        help="let a running `vlm serve` answer; may be repeated, and rows go to all of them",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="let the computers of a Ray cluster answer; auto: one that runs here",
    )
    parser.add_argument("--model", help="the name of the model, where a server has several")
    add_key(parser, "the servers' key")


def add_clean(parser: argparse.ArgumentParser) -> None:
    """Add the options of `clean`."""
    parser.add_argument(
        "folder",
        type=path_of,
        help="what an interrupted conversion was to write, or a folder above it",
    )
