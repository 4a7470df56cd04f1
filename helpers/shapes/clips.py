"""Short clips in which one drawn shape moves, and the question about them.

What this module does not know: how a scene is drawn, and files of video.
"""

import random
from dataclasses import dataclass, replace

from PIL import Image

from helpers.inputs.questions import Question
from helpers.inputs.video import Video
from helpers.shapes.world import CELL, Scene, draw, random_scene

FRAMES = 4
RATE = 2  # frames a second
WAY = 0.4  # from the first frame to the last, in shares of a place's shorter side
# To the right and down, for each direction.
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
STILL = 0.1
GRIDS = ((2, 1), (1, 2), (2, 2))  # one place alone has too few scenes for three splits


@dataclass(frozen=True)
class Clip:
    """A scene in which the shape at a place, counted row by row, moves; None: nothing does."""

    scene: Scene
    place: int | None
    direction: str = "right"

    @property
    def answer(self) -> str:
        """What moves, and which way."""
        if self.place is None:
            return "nothing moves"
        way = self.direction if self.direction in ("up", "down") else f"to the {self.direction}"
        return f"the {self.scene.items[self.place]} moves {way}"


def random_clip(generator: random.Random, split: str = "train") -> Clip:
    """Return a clip of a random scene of `split`; in a share of them, `STILL`, nothing moves."""
    grid = generator.choice(GRIDS)
    scene = replace(random_scene(generator, split, grid=grid, word=0.0), small=True)
    places = [index for index, item in enumerate(scene.items) if item is not None]
    if generator.random() < STILL:
        return Clip(scene, None)
    return Clip(scene, generator.choice(places), generator.choice(list(DIRECTIONS)))


def draw_clip(clip: Clip, *, cell: int = CELL) -> Video:
    """Draw the frames of a clip of two seconds, with their times."""
    frames: list[Image.Image] = []
    for number in range(FRAMES):
        share = WAY * (number / (FRAMES - 1) - 0.5)
        right, down = DIRECTIONS[clip.direction]
        moved = None if clip.place is None else (clip.place, share * right, share * down)
        frames.append(draw(clip.scene, cell=cell, moved=moved))
    return Video(frames, [number / RATE for number in range(FRAMES)])


def motion(clip: Clip, generator: random.Random) -> Question:
    """Ask what moves, and which way."""
    text = generator.choice(
        ["What moves, and which way?", "Which shape moves, and in which direction?"]
    )
    return Question("motion", text, clip.answer)


def sample_clips(number: int, *, seed: int, split: str = "test") -> list[tuple[Clip, Question]]:
    """Return clips that are not drawn yet, each with one question."""
    generator = random.Random(f"clips {split} {seed}")
    clips = [random_clip(generator, split) for _ in range(number)]
    return [(clip, motion(clip, generator)) for clip in clips]


def draw_clips(number: int, *, seed: int, split: str = "test") -> list[tuple[Video, Question]]:
    """Return clips of the bundled world, each with one question."""
    clips = sample_clips(number, seed=seed, split=split)
    return [(draw_clip(clip), question) for clip, question in clips]
