"""A picture with a question and its right answer, whoever asks them."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from helpers.inputs.video import Video


@dataclass(frozen=True)
class Question:
    """A question and its one right answer; questions of one `kind` are counted together."""

    kind: str
    text: str
    answer: str


PictureQuestion = tuple[Image.Image, Question]
VisualQuestion = tuple[Image.Image | Video, Question]  # about a picture or a video

# A picture, or where it is, and a question about it; a question without a picture has None.
Sample = tuple[Image.Image | Path | None, str]
