"""Questions about a drawn scene, each with its one exact answer.

What this module does not know: how a scene is drawn.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from PIL import Image

from helpers.inputs.boxes import GRID
from helpers.inputs.questions import PictureQuestion, Question, Sample
from helpers.shapes.world import Item, Scene, draw, item_boxes, random_item, random_scene


def describe(scene: Scene, generator: random.Random) -> Question:
    """Ask for all shapes and their places, row by row."""
    text = generator.choice(
        ["Describe the picture.", "What is in the picture?", "What do you see?"]
    )
    parts = [f"{_article(item)} at the {place}" for place, item in scene.places.items()]
    answer = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return Question("describe", text, answer[0].upper() + answer[1:] + ".")


def count(scene: Scene, generator: random.Random) -> Question:
    """Ask how many shapes of a kind, of a colour or at all there are."""
    items = list(scene.places.values())
    target = generator.choice(items) if generator.random() < 0.75 else random_item(generator)
    what, number = generator.choice(
        [
            (f"{target.shape}s".replace("crosss", "crosses"), _count(items, shape=target.shape)),
            (f"{target.colour} shapes", _count(items, colour=target.colour)),
            ("shapes", len(items)),
        ]
    )
    text = generator.choice(
        [f"How many {what} are there?", f"How many {what} do you see?", f"Count the {what}."]
    )
    return Question("count", text, str(number))


def colour(scene: Scene, generator: random.Random) -> Question | None:
    """Ask for the colour of the shape at a place, or of the only shape of its kind."""
    place, item = generator.choice(list(scene.places.items()))
    text = generator.choice([f"What colour is the shape at the {place}?"] * 2 + [None])
    if text is None:
        if _count(scene.places.values(), shape=item.shape) > 1:
            return None
        text = f"What colour is the {item.shape}?"
    return Question("colour", text, item.colour)


def shape(scene: Scene, generator: random.Random) -> Question | None:
    """Ask which shape is at a place, or which shape has a colour that no other has."""
    place, item = generator.choice(list(scene.places.items()))
    text = generator.choice([f"What shape is at the {place}?"] * 2 + [None])
    if text is None:
        if _count(scene.places.values(), colour=item.colour) > 1:
            return None
        text = f"Which shape is {item.colour}?"
    return Question("shape", text, item.shape)


def where(scene: Scene, generator: random.Random) -> Question | None:
    """Ask for the place of a shape that is there exactly once."""
    place, item = generator.choice(list(scene.places.items()))
    if sum(other == item for other in scene.places.values()) > 1:
        return None
    text = generator.choice([f"Where is the {item}?", f"Where do you see the {item}?"])
    return Question("where", text, f"at the {place}")


def unusual(scene: Scene, generator: random.Random) -> Question | None:
    """Ask for the one shape that is unlike all others, which are equal."""
    if len(scene.places) < 3:
        return None
    text = generator.choice(["What is unusual?", "Which shape is unlike the others?"])
    for place, item in scene.places.items():
        others = [other for at, other in scene.places.items() if at != place]
        if len(set(others)) == 1 and others[0] != item:
            return Question("unusual", text, f"the {item} at the {place}")
    return Question("unusual", text, "nothing")


def word(scene: Scene, generator: random.Random) -> Question:
    """Ask for the printed word."""
    text = generator.choice(["What word is written?", "Read the word.", "What does it say?"])
    return Question("word", text, scene.word or "no word")


def box(scene: Scene, generator: random.Random) -> Question | None:
    """Ask for the box around a shape that is there exactly once, as JSON.

    On a grid of `GRID` x `GRID` over the picture, with the words that Qwen3-VL was trained on.
    """
    place, item = generator.choice(list(scene.places.items()))
    if sum(other == item for other in scene.places.values()) > 1:
        return None
    corners = [round(GRID * share) for share in item_boxes(scene)[place]]
    text = generator.choice([f"Where is the {item}? Give its box.", f"Give the box of the {item}."])
    return Question("box", text, json.dumps([{"bbox_2d": corners, "label": str(item)}]))


KINDS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "describe": describe,
    "count": count,
    "colour": colour,
    "shape": shape,
    "where": where,
    "unusual": unusual,
    "word": word,
}

# Kinds that only some models learn; they are asked for by name.
BOX_KINDS = {"box": box}


def _article(item: Item) -> str:
    return f"{'an' if item.colour[0] in 'aeiou' else 'a'} {item}"


def _count(items: Iterable[Item], **properties: str) -> int:
    return sum(
        all(getattr(item, name) == value for name, value in properties.items()) for item in items
    )


def sample_questions(
    number: int, *, seed: int, split: str = "test", kinds: Sequence[str] = tuple(KINDS)
) -> Iterator[tuple[Scene, Question]]:
    """Yield `number` scenes of `split`, each with one question; the `kinds` take turns."""
    generator = random.Random(f"{split} {seed}")
    for index in range(number):
        kind = kinds[index % len(kinds)]
        question = None
        while question is None:
            # Without this, most answers would be "nothing" and half of them "no word".
            odd = 0.7 if kind == "unusual" else 0.35
            words = 0.9 if kind == "word" else 0.5
            scene = random_scene(generator, split, odd_one_out=odd, word=words)
            question = (KINDS | BOX_KINDS)[kind](scene, generator)
        yield scene, question


def draw_questions(
    number: int, *, seed: int, kinds: Sequence[str] = tuple(KINDS)
) -> list[PictureQuestion]:
    """Return pictures of the test split, each with one question; the `kinds` take turns."""
    pairs = sample_questions(number, seed=seed, kinds=kinds)
    return [(draw(scene), question) for scene, question in pairs]


def draw_pairs(number: int, *, seed: int) -> list[tuple[Image.Image, Question, Question]]:
    """Return pictures with two different questions about each; the second's kinds take turns."""
    generator = random.Random(f"pairs {seed}")
    pairs = []
    for scene, second in sample_questions(number, seed=seed):
        first = second
        while first.text == second.text:
            first = KINDS[generator.choice(list(KINDS))](scene, generator) or second
        pairs.append((draw(scene), first, second))
    return pairs


def draw_samples(number: int) -> list[Sample]:
    """Return pictures of the training split, each with a question, for compression to look at."""
    pairs = sample_questions(number, seed=0, split="train")
    return [(draw(scene), question.text) for scene, question in pairs]
