"""Training samples: pictures of the bundled world with questions, joined into batches.

What this module does not know: the loss, and any model's weights.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import IterableDataset, get_worker_info

from helpers.inputs.messages import Message, user_message
from helpers.inputs.questions import Question
from helpers.models.exported import ImageInputs
from helpers.models.processors import Processor
from helpers.shapes import clips, world
from helpers.shapes.questions import BOX_KINDS, KINDS, word
from helpers.workshop.locating import IGNORED, sides_of_boxes
from helpers.workshop.naming import shown_words
from helpers.workshop.recipes import Recipe
from helpers.workshop.sharing import PADDING

# What `make_batch` returns: tensors by name, and the image encoder's inputs under `images`.
Batch = dict[str, Any]

CONVERSATIONS = 0.25  # of the samples: several turns
INSTRUCTIONS = 0.3  # of the questions that a word answers: the recipe's instruction behind them
# Batches of pictures that are no square, or that image encoders may cut.
NO_SQUARES = ("strip", "large", "largest", "wide", "page", "clip")
OF_WORDS = ("word", "strip", "page")  # which ask for the word alone
PAGE = 2  # times as wide and as high as its picture, which has the usual number of tokens there
LONGEST_SHAPE = 8  # times as long as it is wide, a place of a `wide` picture
SHORTEST_PLACE, LONGEST_PLACE = 32, 256  # its sides in pixels


def sample_scene(
    generator: random.Random,
    split: str,
    batch: str,
    word_grids: Sequence[tuple[int, int]] = ((1, 1),),
) -> tuple[world.Scene, int]:
    """Return a scene for a batch of the sort `batch` and the size of its places in pixels.

    Pictures to name, small ones and those of one word stay below 64 x 64 pixels, unless a recipe's
    `scales` enlarge them; no image encoder here cuts such pictures into pieces.
    """
    if batch == "large":
        return world.random_scene(generator, split), generator.randint(64, 144)
    if batch == "largest":
        return world.random_scene(generator, split), generator.randint(144, 340)
    if batch == "wide":
        ratio = math.exp(generator.uniform(-1.0, 1.0) * math.log(LONGEST_SHAPE) / 2)
        longer = max(ratio, 1 / ratio)
        size = generator.uniform(SHORTEST_PLACE * longer, min(150, LONGEST_PLACE / longer))
        return replace(world.random_scene(generator, split), stretch=ratio), round(size)
    if batch == "page":
        return world.random_scene(generator, split, word=0.95), generator.randint(64, 144)
    if batch == "strip":
        grid = generator.choice(((2, 1), (1, 2)))
        scene = world.random_scene(generator, split, grid=grid, word=0.95)
        return scene, generator.randint(64, 144)
    if batch == "word":
        grid = generator.choice(word_grids)
        return world.random_scene(generator, split, grid=grid, word=0.95), 60
    return world.random_scene(generator, split, grid=(2, 2), word=0.0), 30


def questions_about(
    scene: world.Scene, generator: random.Random, number: int, shares: Mapping[str, float]
) -> list[Question]:
    """Return up to `number` different questions about `scene`, of kinds with these shares."""
    kinds, weights = list(shares), list(shares.values())
    questions: dict[str, Question] = {}
    for kind in generator.choices(kinds, weights, k=number):
        if (question := (KINDS | BOX_KINDS)[kind](scene, generator)) is not None:
            questions.setdefault(question.text, question)
    return list(questions.values())


def with_instruction(question: Question, instruction: str, generator: random.Random) -> Question:
    """Return the question, some of those that a word answers with the instruction behind them."""
    if not instruction or " " in question.answer or generator.random() >= INSTRUCTIONS:
        return question
    return replace(question, text=f"{question.text}\n{instruction}")


def encode_sample(
    processor: Processor,
    image_inputs: ImageInputs,
    questions: list[Question],
    *,
    turns: bool,
    frames: int = 0,
) -> dict[str, Tensor]:
    """Return one sample, each of its tensors (length): ids, what is learned, and `blocks`.

    It is about one picture, or about a video of so many `frames`. Block 0 is what all questions
    begin with; a token goes with earlier ones of its own block and of block 0. With `turns`, the
    questions are a conversation: one block, or, where a template writes earlier answers otherwise
    than the model did (without its thoughts, say), one for each turn, with all turns before it.
    """

    def first_message(question: Question) -> Message:
        return user_message(question.text, 0 if frames else 1, frames=frames)

    def input_ids(messages: list[Message]) -> list[int]:
        ids: list[int] = processor.input_ids(messages, image_inputs)[0].tolist()
        return ids

    def positions_of(ids: list[int]) -> Tensor:
        positions = processor.position_ids(torch.tensor([ids]), image_inputs)
        return positions.movedim(-2, 0)[0]  # (length), or a row for each dimension

    prompts = [[first_message(question)] for question in questions]
    shared = _shared_length([input_ids(messages) for messages in prompts])
    if turns:
        prompts = _turns(prompts, questions)
    beginning = input_ids(prompts[0])[:shared]
    ids, labels, weights = [*beginning], [IGNORED] * shared, [0.0] * shared
    positions, blocks = [positions_of(ids)], [0] * shared
    block, sequence = 0, beginning
    for messages, question in zip(prompts, questions, strict=True):
        prompt, answer = input_ids(messages), _answer_ids(processor, question)
        if not (turns and block and prompt[: len(sequence)] == sequence):
            block, sequence = block + 1, beginning
        prompt = prompt[len(sequence) :]
        sequence = sequence + prompt + answer
        positions.append(positions_of(sequence)[..., -len(prompt + answer) :])
        ids += prompt + answer
        labels += [IGNORED] * len(prompt) + answer
        # An answer counts by the root of its length, or descriptions would drown the rest.
        weights += [0.0] * len(prompt) + [len(answer) ** -0.5] * len(answer)
        blocks += [block] * len(prompt + answer)
    return {
        "input_ids": torch.tensor(ids),
        "position_ids": torch.cat(positions, dim=-1),
        "labels": torch.tensor(labels),
        "weights": torch.tensor(weights),
        "blocks": torch.tensor(blocks),
    }


def _turns(prompts: list[list[Message]], questions: list[Question]) -> list[list[Message]]:
    """Return what stands before each answer of a conversation that begins with the first prompt."""
    conversations = [prompts[0]]
    for earlier, question in itertools.pairwise(questions):
        answer: Message = {"role": "assistant", "content": earlier.answer}
        conversations.append([*conversations[-1], answer, user_message(question.text)])
    return conversations


def _answer_ids(processor: Processor, question: Question) -> list[int]:
    encoding = processor.tokenizer(question.answer, add_special_tokens=False)
    return [*encoding["input_ids"], processor.stop_token_ids[-1]]


def _shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Return with how many equal tokens all prompts begin."""
    tokens_by_place = zip(*prompts, strict=False)
    equal = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, tokens_by_place)
    return len(list(equal))


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pad samples to one length; padding is a block of its own."""
    length = max(len(sample["input_ids"]) for sample in samples)
    padding = {
        "input_ids": 0,
        "position_ids": 0,
        "labels": IGNORED,
        "weights": 0.0,
        "blocks": PADDING,
    }
    return {
        # Behind the dimensions of positions that have several.
        name: torch.stack([_pad(sample[name], length, value) for sample in samples], dim=-2)
        for name, value in padding.items()
    }


def _pad(values: Tensor, length: int, value: float) -> Tensor:
    return nn.functional.pad(values, (0, length - values.shape[-1]), value=value)


class Batches(IterableDataset[Batch]):
    """Training batches, each drawn from its own step's seed, so that training can resume."""

    def __init__(
        self, processor: Processor, recipe: Recipe, *, start: int, steps: int, seed: int
    ) -> None:
        self.processor, self.recipe = processor, recipe
        self.start, self.steps, self.seed = start, steps, seed

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        first, apart = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in range(self.start + first, self.steps, apart):
            generator = random.Random(f"{self.seed} {step}")
            stages = self.recipe.stages
            stage = next(stage for stage in stages if step < stage.until * self.steps)
            sort = generator.choices(list(stage.batches), list(stage.batches.values()))[0]
            batch = make_batch(self.processor, self.recipe, generator, sort, stage.kinds)
            yield batch | ({"frozen": True} if stage.frozen else {})


def make_batch(
    processor: Processor,
    recipe: Recipe,
    generator: random.Random,
    sort: str,
    kinds: Mapping[str, float],
) -> Batch:
    """Return a batch of a sort: the image encoder's inputs, what they show, questions."""
    if sort == "clip":
        return _clip_batch(processor, generator, recipe.batches[sort])
    images: list[ImageInputs] = []
    samples: list[dict[str, Tensor]] = []
    scenes: list[world.Scene] = []
    sides: list[Tensor] = []
    scale = 1 if sort in NO_SQUARES else generator.choice(recipe.scales)
    if recipe.budgets and sort in NO_SQUARES:
        page = min(recipe.budgets) * PAGE**2
        processor = processor.within(page if sort == "page" else generator.choice(recipe.budgets))
    while len(images) < recipe.batches[sort]:
        scene, cell = sample_scene(generator, "train", sort, recipe.word_grids)
        cell *= scale
        questions = _questions_about(scene, recipe, generator, sort, kinds)
        if kinds and not questions:
            continue
        images.append(processor.image_inputs([_picture(scene, cell, sort, generator)]))
        scenes.append(scene)
        if recipe.gives_boxes:
            boxes = list(world.item_boxes(scene, cell=cell).values())
            sides.append(sides_of_boxes(boxes, *processor.token_grid(images[-1])))
        if questions:
            turns = generator.random() < CONVERSATIONS
            questions = questions[: recipe.turns] if turns else questions
            samples.append(encode_sample(processor, images[-1], questions, turns=turns))
    batch: Batch = {"images": join_images(images)} | (collate(samples) if samples else {})
    if sort not in NO_SQUARES:
        batch["shown"] = shown_words(processor, scenes, recipe.points)
    return batch | ({"sides": torch.cat(sides)} if sides else {})


def _questions_about(
    scene: world.Scene,
    recipe: Recipe,
    generator: random.Random,
    sort: str,
    kinds: Mapping[str, float],
) -> list[Question]:
    """Return the questions about a scene of a batch of a sort; none where its stage asks none."""
    if sort in OF_WORDS:
        questions = [word(scene, generator)]
    elif kinds:
        questions = questions_about(scene, generator, 10, kinds)
    else:
        questions = []
    return [with_instruction(question, recipe.instruction, generator) for question in questions]


def _picture(scene: world.Scene, cell: int, sort: str, generator: random.Random) -> Image.Image:
    """Draw a scene for a batch of a sort, `cell` pixels for each of its places."""
    picture = world.draw(scene, cell=cell)
    if sort == "page":
        return world.on_page(picture, PAGE, generator)
    if sort in NO_SQUARES:
        return picture
    # A square, so that it is known where on the image encoder's canvas everything is.
    # All of a batch are of one size, since their picture tokens are compared together.
    return picture.resize((cell * scene.grid[0],) * 2)


def _clip_batch(processor: Processor, generator: random.Random, number: int) -> Batch:
    """Return a batch of clips, each with the question what moves."""
    images, samples = [], []
    for _ in range(number):
        clip = clips.random_clip(generator)
        video = clips.draw_clip(clip, cell=generator.randint(48, 128))
        question = clips.motion(clip, generator)
        images.append(processor.image_inputs([video]))
        samples.append(
            encode_sample(processor, images[-1], [question], turns=False, frames=len(video))
        )
    return {"images": join_images(images)} | collate(samples)


def join_images(images: list[ImageInputs]) -> ImageInputs:
    """Join the inputs of single pictures, tensors or lists of them, into those of a batch."""
    return {name: _joined([inputs[name] for inputs in images]) for name in images[0]}


def _joined(values: list[Any]) -> Tensor | list[Tensor]:
    if isinstance(values[0], list):
        return list(itertools.chain(*values))
    return torch.cat(values)
