"""Drawn bar charts and questions about them, each with its one exact answer.

What this module does not know: charts as they are published; there is one kind, with few bars.
"""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from helpers.inputs.questions import PictureQuestion, Question
from helpers.shapes.world import COLOURS

NAMES = ("Apples", "Pears", "Plums", "Cherries", "Figs", "Limes", "Melons", "Dates")
TITLES = ("Fruit sold in May", "Baskets in the store", "Trees by kind", "Orders this week")
SIZE = (480, 360)
LARGEST = 90  # of the values, which are whole numbers with a distance that can be seen


@dataclass(frozen=True)
class Chart:
    """A bar chart: whole numbers by name; their colours, and whether the bars lie."""

    title: str
    values: dict[str, int]
    colours: tuple[str, ...]
    is_horizontal: bool = False


def random_chart(generator: random.Random) -> Chart:
    """Return a chart of three to five bars, no two of which are of one length."""
    number = generator.randint(3, 5)
    names = generator.sample(NAMES, number)
    values = generator.sample(range(10, LARGEST + 1, 5), number)
    colours = tuple(generator.choices(list(COLOURS), k=number))
    title = generator.choice(TITLES)
    return Chart(title, dict(zip(names, values, strict=True)), colours, generator.random() < 0.5)


def draw_chart(chart: Chart) -> Image.Image:
    """Draw a chart with its title, and beside each bar its name and its value."""
    width, height = SIZE
    picture = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(picture)
    title, small = (ImageFont.load_default(size=size) for size in (22, 17))
    pen.text((width / 2, 22), chart.title, font=title, fill="black", anchor="mm")
    left, top, right, bottom = 100.0, 50.0, width - 50.0, height - 20.0
    if not chart.is_horizontal:
        left, top, right, bottom = 30.0, 70.0, width - 30.0, height - 45.0
    bars = zip(chart.values.items(), chart.colours, strict=True)
    for number, ((name, value), colour) in enumerate(bars):
        share = value / LARGEST
        if chart.is_horizontal:
            place = (bottom - top) / len(chart.values)
            start, end = top + (number + 0.2) * place, top + (number + 0.8) * place
            tip = left + share * (right - left)
            box, middle = (left, start, tip, end), (start + end) / 2
            pen.text((left - 8, middle), name, font=small, fill="black", anchor="rm")
            pen.text((tip + 6, middle), str(value), font=small, fill="black", anchor="lm")
        else:
            place = (right - left) / len(chart.values)
            start, end = left + (number + 0.2) * place, left + (number + 0.8) * place
            tip = bottom - share * (bottom - top)
            box, middle = (start, tip, end, bottom), (start + end) / 2
            pen.text((middle, bottom + 18), name, font=small, fill="black", anchor="mm")
            pen.text((middle, tip - 12), str(value), font=small, fill="black", anchor="mm")
        pen.rectangle(box, fill=COLOURS[colour])
    return picture


def highest(chart: Chart, generator: random.Random) -> Question:
    """Ask for the name with the largest value, or with the smallest."""
    words, pick = generator.choice((("largest", max), ("smallest", min)))
    name = pick(chart.values, key=lambda name: chart.values[name])
    return Question("extreme", f"Which name in the chart has the {words} value?", name)


def value(chart: Chart, generator: random.Random) -> Question:
    """Ask for the value of a name."""
    name = generator.choice(list(chart.values))
    return Question("value", f"What is the value of {name}?", str(chart.values[name]))


def bars(chart: Chart, generator: random.Random) -> Question:
    """Ask how many bars there are."""
    return Question("bars", "How many bars are in the chart?", str(len(chart.values)))


def heading(chart: Chart, generator: random.Random) -> Question:
    """Ask for the title."""
    return Question("title", "What is the title of the chart?", chart.title)


KINDS = (value, highest, heading, bars)


def draw_chart_questions(number: int, *, seed: int) -> list[PictureQuestion]:
    """Return drawn charts, each with one question; the kinds take turns."""
    generator = random.Random(f"charts {seed}")
    pairs = []
    for index in range(number):
        chart = random_chart(generator)
        pairs.append((draw_chart(chart), KINDS[index % len(KINDS)](chart, generator)))
    return pairs
