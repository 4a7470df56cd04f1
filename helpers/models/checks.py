"""Whether a checkpoint's small files say how pictures and prompts are prepared.

Checked before long work is done. What this module does not know: weights, and any family.
"""

from collections.abc import Callable
from typing import TypeVar

from helpers.errors import CheckpointError, check_resources, reason_of
from helpers.inputs.messages import user_message
from helpers.models.processors import SMALL_PICTURE, Processor

T = TypeVar("T")


def check_processor(processor: Processor) -> None:
    """Prepare a small picture and a question.

    Raises a `CheckpointError` where the tokenizer's files are missing or damaged, where the config
    does not describe how pictures and prompts are prepared, and where the two do not fit.
    """
    words, config = "The tokenizer's files", "config.json"
    _attempt(processor, words, lambda: processor.stop_token_ids)
    tokens = _attempt(processor, words, lambda: processor.tokenizer.tokenize("What is it?"))
    if set(tokens) <= set(processor.tokenizer.all_special_tokens):  # made without any file
        raise CheckpointError(
            f"The tokenizer in {processor.folder} has no words, so its files are missing or of "
            "another kind; take tokenizer.json or tokenizer.model of the same checkpoint."
        )
    check_pictures(processor)
    files = "video_preprocessor_config.json or processor_config.json"
    _attempt(processor, files, lambda: processor.choose_frames(8, 1.0))
    inputs = processor.image_inputs([SMALL_PICTURE])
    ids = _attempt(processor, words, lambda: processor.input_ids([user_message("", 1)], inputs))
    marks = _attempt(processor, config, lambda: processor.picture_token_ids)
    if marks.isdisjoint(ids[0].tolist()):
        raise CheckpointError(
            f"config.json in {processor.folder} names a token for pictures that its tokenizer has "
            "not; take all files of the same checkpoint."
        )


def check_pictures(processor: Processor) -> None:
    """Raise a `CheckpointError` where the files do not say how pictures are prepared."""
    files = "config.json, processor_config.json or preprocessor_config.json"
    _attempt(processor, files, lambda: processor.image_inputs([SMALL_PICTURE]))


def _attempt(processor: Processor, files: str, step: Callable[[], T]) -> T:
    try:
        return step()
    except CheckpointError:
        raise
    except Exception as error:  # what libraries raise for bad files has nothing in common
        check_resources(error)
        raise CheckpointError(
            f"{files} in {processor.folder} cannot be used ({reason_of(error)}); "
            "download the checkpoint again."
        ) from None
