"""Boxes of an answer drawn on its picture.

What this module does not know: how an answer is read.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from helpers.inputs.boxes import Box
from helpers.inputs.images import open_picture

COLOURS = ("#e42536", "#5790fc", "#f89c20", "#964a8b", "#3f7d20")


def draw_boxes(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """Return a copy of the picture with the boxes and their labels on it."""
    picture = open_picture(picture).copy()
    pen, thick = ImageDraw.Draw(picture), max(1, min(picture.size) // 150)
    font = ImageFont.load_default(max(10, min(picture.size) // 25))
    for number, box in enumerate(boxes):
        colour = COLOURS[number % len(COLOURS)]
        corners = box.pixels(*picture.size)
        pen.rectangle(corners, outline=colour, width=thick)
        if box.label:
            place = (corners[0] + 2 * thick, corners[1] + thick)
            pen.rectangle(pen.textbbox(place, box.label, font), fill=colour)
            pen.text(place, box.label, "white", font)
    return picture
