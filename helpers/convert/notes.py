"""What whoever converts a checkpoint should know of it: each a sentence, told once and kept."""

from pathlib import Path

from helpers.models.families import family_of
from helpers.models.processors import Processor


def notes_on(checkpoint: Path, processor: Processor) -> list[str]:
    """Return sentences on words that a checkpoint lacks, and on parts of it that are left out.

    `processor` is the checkpoint's. Raises `CheckpointError` for a folder that cannot be read here.
    """
    family, notes = family_of(checkpoint), []
    originals_have_template = family.tokenizer is not None and family.tokenizer.chat_template
    if originals_have_template and not processor.has_chat_template():
        notes.append(
            "The checkpoint has no chat template, as base models have none; it is asked in the "
            "words of its family's models that were trained to answer."
        )
    if parts := family.model.unused_parts_of(checkpoint):
        notes.append(f"Left out of the conversion: {', '.join(parts)}.")
    return notes
