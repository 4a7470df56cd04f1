"""What exercises do with a scene or a piece of a picture: draw it, cut it out, and ask a model.

Each trial prints what the model says and returns in a word what came of it.

What this module does not know: which result is right, and what to say to another one.
"""

from collections.abc import Callable, Iterable, Sequence

from PIL import Image

from helpers.errors import SettingsError
from helpers.inputs.boxes import GRID, Box, boxes_in, intersection_over_union
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes.world import COLOURS, PLACES, SHAPES, Item, Scene, draw, item_boxes
from helpers.show.trials import result_of

SAME_BOX = 0.5  # intersection over union from which on two boxes count as one
ENOUGH_SHAPES = 3
LETTERS = 3  # of a word that is read


def checked(scene: Scene) -> Scene:
    """Return a scene that can be drawn; raise `SettingsError` where it cannot."""
    if scene.grid not in list(PLACES):  # a grid that is a list has no hash
        raise SettingsError(f"The grid {scene.grid} does not exist; use {listed(PLACES)}.")
    places = len(PLACES[scene.grid])
    if not isinstance(scene.items, tuple | list):
        raise SettingsError(
            f"The items of the scene are {scene.items!r}; give one for each place, in brackets, as "
            'in world.Scene((2, 1), (world.Item("star", "red"), None)).'
        )
    if len(scene.items) != places:
        raise SettingsError(
            f"The grid has {places} places and the scene {len(scene.items)} items; put None where "
            "nothing is."
        )
    if scene.word and scene.word_place not in range(places):
        raise SettingsError(
            f"The grid has {places} places, counted from 0, and word_place is {scene.word_place}; "
            f"use a number up to {places - 1}."
        )
    for item in scene.items:
        if not isinstance(item, Item | None):
            raise SettingsError(f"{item!r} is no world.Item(shape, colour), and not None either.")
    for item in scene.places.values():
        for value, values in ((item.shape, SHAPES), (item.colour, COLOURS)):
            if value not in values:
                raise SettingsError(f"There is no {value!r} here; use {listed(values)}.")
    return scene


def listed(values: Iterable[object]) -> str:
    """Return values in words."""
    return ", ".join(map(str, values))


def seen_by_model(scene: Scene, pipeline: VisionLanguagePipeline) -> str:
    """Return whether a model names the colour and the shape at every place of a drawn scene."""
    if len(checked(scene).places) < ENOUGH_SHAPES:
        return "few shapes"
    picture, errors = draw(scene), 0
    for place, item in scene.places.items():
        colour = pipeline.ask(f"What colour is the shape at the {place}?", [picture]).text
        shape = pipeline.ask(f"What shape is at the {place}?", [picture]).text
        print(f"{place}: drawn {item}; the model says {colour}, {shape}")
        errors += item.colour not in colour.lower() or item.shape not in shape.lower()
    return "missed" if errors else "seen"


def read_by_model(
    scene: Scene, scene_before: Scene | None, pipeline: VisionLanguagePipeline
) -> str:
    """Return whether a model reads the word that was added to an earlier scene."""
    word = checked(scene).word
    if not word:
        return "no word"
    if len(word) != LETTERS or not (word.isalpha() and word.isupper()):
        return "other letters"
    if scene_before is None:
        return "no scene"
    if scene.items != scene_before.items:
        return "other shapes"
    text = pipeline.ask("What word is written?", [draw(scene)]).text
    print(f"printed {word}; the model reads {text}")
    return "read" if text.strip() == word else "missed"


def located_by_model(scene: Scene, pipeline: VisionLanguagePipeline) -> str:
    """Return whether a model's box of each shape of a drawn scene is near the one it has."""
    items = list(checked(scene).places.values())
    if len(set(items)) < len(items):
        return "twins"
    if len(items) < ENOUGH_SHAPES - 1:
        return "few shapes"
    picture, errors = draw(scene), 0
    for place, corners in item_boxes(scene).items():
        item = scene.places[place]
        boxes = boxes_in(pipeline.ask(f"Give the box of the {item}.", [picture]).text)
        drawn_box = Box(*corners, label=str(item))
        overlap = intersection_over_union(boxes[0], drawn_box) if boxes else 0.0
        print(f"{item}: overlap of the boxes {overlap:.2f}")
        errors += overlap < SAME_BOX
    return "missed" if errors else "located"


# Cutting out


def piece_of_picture(
    cut: Callable[[Image.Image, Sequence[int]], Image.Image],
    pipeline: VisionLanguagePipeline,
    scene: Scene,
) -> str:
    """Return how a function cuts a box out of a picture.

    If it does as it should, cut the first shape of a scene out where a model sees it, and ask the
    model what the piece shows.
    """
    outcome = kind_of_cut(cut)
    if outcome == "cut out":
        picture, item = draw(scene), next(iter(scene.places.values()))
        text = pipeline.ask(f"Where is the {item}? Give its box.", [picture]).text
        print("the answer:", text)
        for box in boxes_in(text)[:1]:
            piece = cut(picture, box.pixels(GRID, GRID))
            words = pipeline.ask("What do you see?", [piece]).text
            print(f"your piece, {piece.width} x {piece.height} pixels: {words}")
    return outcome


def kind_of_cut(cut: Callable[[Image.Image, Sequence[int]], Image.Image]) -> str:
    """Return by which sides a function takes the numbers of a box, which count to `GRID`."""
    width, height, numbers = 240, 120, (100, 250, 300, 750)
    ramp = Image.new("RGB", (width, height))  # each pixel has its place as its colour
    ramp.putdata([(x, y, 0) for y in range(height) for x in range(width)])
    piece = result_of(cut(ramp, numbers))
    if not isinstance(piece, Image.Image):
        raise SettingsError(
            f"The function should return a picture, and returns {type(piece).__name__}."
        )
    if not piece.width * piece.height:
        return "no pixels"
    x, y, *_ = piece.convert("RGB").tobytes()
    corner = (x, y, x + piece.width, y + piece.height)
    kinds = {
        "cut out": (width, height),
        "as pixels": (GRID, GRID),
        "sides exchanged": (height, width),
        "one side": (width, width),
        "the other side": (height, height),
    }
    for kind, sides in kinds.items():
        expected = [number * side / GRID for number, side in zip(numbers, 2 * sides, strict=True)]
        if expected[0] >= width or expected[1] >= height:  # beyond the picture all is black
            expected = [0, 0, expected[2] - expected[0], expected[3] - expected[1]]
        if max(abs(a - b) for a, b in zip(corner, expected, strict=True)) <= 1:
            return "one side" if kind == "the other side" else kind
    return "something else"
