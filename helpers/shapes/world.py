"""Draw pictures of coloured shapes, about which questions have exact answers.

A scene is a grid of places; each place is empty or holds one coloured shape, and one place may
carry a short printed word. Everything that a question can ask follows from the scene, so every
answer is exact. What this world does not know: overlapping shapes, sizes, numbers above four, real
words, photographs.

Scenes are divided into splits by their content, not by a seed: a scene or a word that occurs in
the test split cannot occur in training, whatever the seeds are.
"""

import hashlib
import math
import random
import statistics
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 150, 70),
    "blue": (40, 80, 210),
    "yellow": (245, 205, 40),
    "purple": (140, 60, 170),
    "orange": (245, 130, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
# Letters that a reader could take for each other (I and J, O and Q) are left out.
LETTERS = "ABCDEFGHKLMNPRSTUVWXYZ"
WORD_LENGTH = 3
SPLITS = ("train", "validation", "test")

# The names of the places, row by row, of each grid (columns, rows).
PLACES = {
    (1, 1): ("middle",),
    (2, 1): ("left", "right"),
    (1, 2): ("top", "bottom"),
    (2, 2): ("top left", "top right", "bottom left", "bottom right"),
}
CELL = 112  # pixels: the side of one place in a picture drawn at its usual size


@dataclass(frozen=True)
class Item:
    """One coloured shape."""

    shape: str
    colour: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows: `items` by place (row by row, None for an empty place) and a word.

    `style` seeds all that a question cannot ask: exact positions, sizes, shades, background. It
    also says how wide a place is for its height, unless `stretch` does. Where shapes are to have
    room to move, they are `small`.
    """

    grid: tuple[int, int]
    items: tuple[Item | None, ...]
    word: str | None = None
    word_place: int = 0
    style: int = 0
    stretch: float | None = None  # a place's width by its usual width
    small: bool = False

    @property
    def places(self) -> dict[str, Item]:
        """The shapes by the names of their places."""
        pairs = zip(PLACES[self.grid], self.items, strict=True)
        return {place: item for place, item in pairs if item is not None}


def split_of(content: object) -> str:
    """Return the split that a scene's items or a word belongs to: 80, 10 and 10 percent."""
    digest = hashlib.sha256(repr(content).encode()).digest()
    return SPLITS[max(0, digest[0] % 10 - 7)]


def random_word(generator: random.Random, split: str) -> str:
    """Return random letters that belong to `split`."""
    while True:
        word = "".join(generator.choices(LETTERS, k=WORD_LENGTH))
        if split_of(word) == split:
            return word


def random_scene(
    generator: random.Random,
    split: str = "train",
    *,
    grid: tuple[int, int] | None = None,
    odd_one_out: float = 0.35,
    word: float = 0.5,
) -> Scene:
    """Return a random scene of `split`.

    `grid` fixes the grid; otherwise seven of ten scenes are 2 x 2 and the rest are strips.
    `odd_one_out` is the share of 2 x 2 scenes in which one shape is unlike all others, `word` the
    share of scenes that carry a word.
    """
    grids = ((2, 2), (2, 1), (1, 2))
    while True:
        shape = grid or generator.choices(grids, weights=(14, 3, 3))[0]
        places = shape[0] * shape[1]
        if shape == (2, 2) and generator.random() < odd_one_out:
            shapes = _odd_one_out(generator)
        else:
            shapes = [random_item(generator) for _ in range(generator.randint(1, places))]
        items: list[Item | None] = [*shapes, *[None] * (places - len(shapes))]
        generator.shuffle(items)
        scene = Scene(shape, tuple(items), style=generator.getrandbits(32))
        if split_of((scene.grid, scene.items)) != split:
            continue
        if generator.random() < word:
            text, place = random_word(generator, split), generator.randrange(places)
            scene = replace(scene, word=text, word_place=place)
        return scene


def random_item(generator: random.Random) -> Item:
    """Return any shape in any colour."""
    return Item(generator.choice(SHAPES), generator.choice(list(COLOURS)))


def _odd_one_out(generator: random.Random) -> list[Item]:
    """Return three or four items, all equal but one, which differs in colour or in shape."""
    usual = random_item(generator)
    if generator.random() < 0.5:
        odd = replace(usual, colour=generator.choice([c for c in COLOURS if c != usual.colour]))
    else:
        odd = replace(usual, shape=generator.choice([s for s in SHAPES if s != usual.shape]))
    return [odd] + [usual] * generator.randint(2, 3)


# Drawing

STRETCH = (0.92, 1.09)  # a place's width by its usual width, and its usual height by its height
# A word in shares of its place's height: size of the font, middle, height of a capital letter.
WORD_SIZE, WORD_MIDDLE, CAPITAL = (0.36, 0.40), (0.77, 0.80), 0.27


Bounds = tuple[float, float, float, float]  # left, top, right and bottom, in shares of the picture
_Pixels = tuple[int, int, int, int]  # the same in pixels
_SCALE = 2  # drawn twice as large and reduced, which smooths the edges
# Shares of a shape's usual size: with room to move, and with a word below it.
_SMALL, _ABOVE_A_WORD = 0.62, 0.66


@dataclass(frozen=True)
class _Print:
    """A word as it is printed: where its middle is, the height of its letters, its ink."""

    text: str
    middle: tuple[float, float]
    size: float
    ink: tuple[int, ...]
    bold: int


@dataclass(frozen=True)
class _Plan:
    """What is drawn, in pixels of the enlarged picture: prints, and outlines with colours."""

    size: tuple[int, int]  # of the picture as it is returned
    background: tuple[int, ...]
    prints: list[_Print]
    outlines: dict[int, tuple[list[tuple[float, float]], tuple[int, ...]]]  # by place


def draw(
    scene: Scene, *, cell: int = CELL, moved: tuple[int, float, float] | None = None
) -> Image.Image:
    """Draw `scene` as an RGB picture with places of about `cell` pixels a side.

    `moved` is a place whose shape is elsewhere, and how far to the right and down, in shares of
    the shorter side of its place.
    """
    plan = _plan(scene, cell, moved)
    picture = Image.new("RGB", (plan.size[0] * _SCALE, plan.size[1] * _SCALE), plan.background)
    pen = ImageDraw.Draw(picture)
    for word in plan.prints:
        font = ImageFont.load_default(size=word.size)
        options: dict[str, Any] = {"stroke_width": word.bold, "stroke_fill": word.ink}
        pen.text(word.middle, word.text, font=font, fill=word.ink, anchor="mm", **options)
    for points, colour in plan.outlines.values():
        pen.polygon(points, fill=colour)
    return picture.resize(plan.size, Image.Resampling.LANCZOS)


def on_page(picture: Image.Image, times: int, generator: random.Random) -> Image.Image:
    """Return a page so many times as wide and as high, with the picture somewhere on it."""
    width, height = times * picture.width, times * picture.height
    page = Image.new("RGB", (width, height), (250, 250, 250))
    left = generator.randint(0, width - picture.width)
    page.paste(picture, (left, generator.randint(0, height - picture.height)))
    return page


def item_boxes(scene: Scene, *, cell: int = CELL) -> dict[str, Bounds]:
    """Return the smallest box around each shape by the name of its place."""
    plan = _plan(scene, cell, None)
    width, height = (side * _SCALE for side in plan.size)
    boxes = {}
    for index, (points, _) in plan.outlines.items():
        across, down = zip(*points, strict=True)
        box = (min(across) / width, min(down) / height, max(across) / width, max(down) / height)
        boxes[PLACES[scene.grid][index]] = box
    return boxes


def _plan(scene: Scene, cell: int, moved: tuple[int, float, float] | None) -> _Plan:
    style = random.Random(scene.style)
    columns, rows = scene.grid
    stretch = _stretch(scene, style)
    width, height = round(cell * stretch), round(cell / stretch)
    shade = style.randint(225, 255)
    background = tuple(min(255, shade + style.randint(-8, 8)) for _ in range(3))
    plan = _Plan((columns * width, rows * height), background, [], {})
    for index, item in enumerate(scene.items):
        row, column = divmod(index, columns)
        box = (
            column * width * _SCALE,
            row * height * _SCALE,
            (column + 1) * width * _SCALE,
            (row + 1) * height * _SCALE,
        )
        word = scene.word if scene.word_place == index else None
        if word is not None:
            plan.prints.append(_print(word, box, style))
        if item is not None:
            above_a_word = 1.0 if word is None else _ABOVE_A_WORD
            shrink = _SMALL if scene.small else above_a_word
            shift = moved[1:] if moved is not None and moved[0] == index else (0.0, 0.0)
            plan.outlines[index] = _outlined(item, box, style, shrink=shrink, shift=shift)
    return plan


def _stretch(scene: Scene, style: random.Random) -> float:
    """Return a place's width by its usual width, the first number that `style` gives."""
    stretch = style.uniform(*STRETCH)
    return stretch if scene.stretch is None else scene.stretch


def letter_boxes(scene: Scene) -> list[Bounds]:
    """Return where `draw` prints each letter of the word, in places that are not narrow.

    The style moves and sizes a word by a few hundredths of its place.
    """
    if scene.word is None:
        return []
    columns, rows = scene.grid
    row, column = divmod(scene.word_place, columns)
    stretch = _stretch(scene, random.Random(scene.style))
    font = ImageFont.load_default(size=100 * statistics.mean(WORD_SIZE))
    lengths = [font.getlength(letter) / 100 / stretch**2 for letter in scene.word]
    middle = statistics.mean(WORD_MIDDLE)
    x, boxes = 0.5 - sum(lengths) / 2, []
    for length in lengths:
        left, right = (column + x) / columns, (column + x + length) / columns
        top, bottom = ((row + middle + side * CAPITAL) / rows for side in (-0.5, 0.5))
        boxes.append((left, top, right, bottom))
        x += length
    return boxes


def _outlined(
    item: Item,
    box: _Pixels,
    style: random.Random,
    *,
    shrink: float,
    shift: tuple[float, float],
) -> tuple[list[tuple[float, float]], tuple[int, ...]]:
    """Return the corners of a shape in its place, and its colour."""
    left, top, right, bottom = box
    side = min(right - left, bottom - top)
    radius = side * style.uniform(0.29, 0.41) * shrink
    free = side / 2 - radius
    middle = (top + bottom) / 2 if shrink != _ABOVE_A_WORD else top + (bottom - top) * 0.31
    slack = 0.5 if shrink == 1.0 else 0.15
    x = (left + right) / 2 + style.uniform(-slack, slack) * free + shift[0] * side
    y = middle + style.uniform(-slack, slack) * free + shift[1] * side
    colour = tuple(
        max(0, min(255, value + style.randint(-14, 14))) for value in COLOURS[item.colour]
    )
    turn = math.radians(style.uniform(-8, 8))
    points = [
        (x + radius * r * math.cos(a + turn), y + radius * r * math.sin(a + turn))
        for r, a in _OUTLINES[item.shape]
    ]
    return points, colour


def _print(word: str, box: _Pixels, style: random.Random) -> _Print:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    letters = min(height, width / 0.8)  # three of them fit into a place that is narrow
    size = letters * style.uniform(*WORD_SIZE)
    middle = (left + width * style.uniform(0.48, 0.52), top + height * style.uniform(*WORD_MIDDLE))
    ink = tuple(style.randint(0, 45) for _ in range(3))
    # The font's strokes would be less than a pixel in a small tile.
    return _Print(word, middle, size, ink, round(letters * 0.014))


def _outline(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Turn corners given as x and y within -1..1 into (radius, angle)."""
    return [(math.hypot(x, y), math.atan2(y, x)) for x, y in corners]


_OUTLINES = {
    "circle": [(1.0, math.tau * k / 60) for k in range(60)],
    "square": _outline([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
    "triangle": _outline([(0, -1), (0.95, 0.75), (-0.95, 0.75)]),
    "star": [(1.08 if k % 2 == 0 else 0.45, math.tau * (k / 10 - 0.25)) for k in range(10)],
    "cross": _outline(
        [
            *[(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)],
            *[(0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
        ]
    ),
}
