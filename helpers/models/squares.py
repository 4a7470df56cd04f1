"""Making a picture of any shape a small square, as CLIP takes it.

The pixels are those of CLIP's and LLaVA's own steps. Only a picture of an extreme shape is made
smaller before them, since a square around 30000 x 1 pixels would take gigabytes.
"""

from collections.abc import Sequence

from PIL import Image

LONGEST = 10_000  # pixels; a square of that side takes 400 MB
NARROWEST = 100  # times as long as wide; of a longer one only the middle counts anyway
_BICUBIC = Image.Resampling.BICUBIC


def cropped_square(picture: Image.Image, side: int) -> Image.Image:
    """Return the middle of an RGB picture whose short side becomes `side` pixels."""
    short = min(picture.size)
    # As much on either side, so that the middle stays between the same two pixels.
    left, top = (max(0, length - NARROWEST * short) // 2 for length in picture.size)
    picture = picture.crop((left, top, picture.width - left, picture.height - top))
    width, height = (int(side * length / short) for length in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.resize((width, height), _BICUBIC).crop((left, top, left + side, top + side))


def padded_square(picture: Image.Image, side: int, colour: Sequence[int]) -> Image.Image:
    """Return an RGB picture, `side` pixels long, in the middle of a square of one colour."""
    longest = max(picture.size)
    if longest > LONGEST:
        width, height = (max(1, round(length * LONGEST / longest)) for length in picture.size)
        picture, longest = picture.resize((width, height), _BICUBIC), LONGEST
    square = Image.new("RGB", (longest, longest), tuple(colour))
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    return square.resize((side, side), _BICUBIC)
