"""What a conversion brought along from its checkpoint: a processor's files, and a notice.

They are copies, so where one is damaged, the checkpoint is to be converted again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.errors import CheckpointError, OutputError, problem_of
from helpers.models import load_processor
from helpers.models.checks import check_processor
from helpers.models.processors import Processor
from helpers.sources.checkpoints import CARD, read_json


@contextmanager
def _copies() -> Iterator[None]:
    """Turn a `CheckpointError` into an `OutputError` that says to convert again."""
    try:
        yield
    except CheckpointError as error:
        raise OutputError(f"{problem_of(error)}; convert the checkpoint again.") from None


def read_processor(folder: Path) -> Processor:
    """Return what turns pictures and messages into the inputs of a conversion's parts.

    Raises `OutputError` where the files that it is made of, a tokenizer's among them, are damaged.
    """
    with _copies():
        processor = load_processor(folder)
        check_processor(processor)  # which reads all of its files, before the first question
    return processor


def read_notice(folder: Path) -> str:
    """Return what a bundled checkpoint's card says to whoever asks it; "" where there is none."""
    card = folder / CARD
    with _copies():
        return str(read_json(card).get("notice", "")) if card.exists() else ""
