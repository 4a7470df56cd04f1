"""Train a small model of one family on the bundled world: `python -m helpers.workshop.training`.

A sample is one picture with several questions, which share the picture's tokens: each question
sees the picture and itself, at the positions it would have if it were the only one. One sample in
four is a conversation instead, in which later questions also see the earlier turns.

Training has stages. First the image encoder learns to name: each picture token is pulled towards
the embeddings of the words for what it shows, as encoders are trained on captions before they meet
a language model. Then the language model learns to look places up, which it finds hardest, to
compare and to read, and then all kinds of question. Where training begins with parts that know
all that (see `beginnings`), what is new between them learns to name, and the stages are fewer. The
pictures grow: small ones that fit one tile (cheap, and all that is needed for shapes, colours and
places) come before larger ones that are cut into tiles.
"""

import argparse
import contextlib
import itertools
import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from transformers.trainer_utils import set_seed

from helpers.inputs.prompts import user_message
from helpers.models import family_of
from helpers.models.base import Processor, VisionLanguageModel
from helpers.models.clip import VISION_NAMES
from helpers.shapes import world
from helpers.sources.checkpoints import BUNDLED, CARD, original_tensors, read_config
from helpers.workshop.beginnings import start_from
from helpers.workshop.recipes import RECIPES, Recipe

WARM_UP = 200  # steps of rising learning rate
DECAY = 0.2  # of the steps, the last ones: falling learning rate
CONVERSATIONS = 0.25  # of the samples: several turns
INSTRUCTIONS = 0.3  # of the questions that a word answers: the recipe's instruction behind them
NAMING = 0.3  # the weight of the loss of naming, beside that of answers
EMBEDDING_STD = 0.1  # of new embeddings: with small ones, words that are not told apart collapse
ALL_KINDS = {
    "describe": 3,
    "count": 2,
    "colour": 3,
    "shape": 3,
    "where": 2,
    "unusual": 4,
    "word": 2,
}


@dataclass(frozen=True)
class Stage:
    """A part of training up to a share of the steps: how often each sort of batch and question.

    A batch is of pictures to `name`, of a `word` to read, of words on a `strip`, or of `small` or
    `large` pictures.
    """

    until: float
    batches: dict[str, float]
    kinds: dict[str, float]


FROM_NOTHING = (
    Stage(0.06, {"name": 0.7, "word": 0.3}, {}),
    # From what is there to its place, from a place to what is there, which is unlike the others,
    # what is written: each is learned within a thousand steps of little else, and among all kinds
    # hardly at all.
    Stage(0.18, {"small": 1}, {"where": 1}),
    Stage(0.27, {"small": 1}, {"colour": 3, "shape": 3, "describe": 2, "where": 1}),
    Stage(0.34, {"small": 1}, {"unusual": 5, "describe": 2, "colour": 1, "shape": 1, "where": 1}),
    Stage(0.45, {"word": 0.6, "small": 0.15, "large": 0.25}, ALL_KINDS),
    Stage(1.0, {"word": 0.15, "small": 0.3, "large": 0.55}, ALL_KINDS),
)
# Lengths and shares settled while the models that begin with parts were trained. Only reading is
# hardly learned among all kinds; large pictures, what is unusual in them, and letters that a cut
# goes through come last.
FROM_PARTS = (
    Stage(0.08, {"name": 0.7, "word": 0.3}, {}),
    Stage(0.25, {"small": 1}, ALL_KINDS),
    Stage(0.5, {"word": 0.85, "small": 0.1, "large": 0.05}, ALL_KINDS),
    Stage(0.69, {"word": 0.4, "small": 0.1, "large": 0.5}, ALL_KINDS | {"unusual": 6}),
    Stage(
        0.8,
        {"word": 0.1, "small": 0.4, "large": 0.5},
        {"unusual": 10, "describe": 2, "count": 2, "colour": 1, "shape": 1, "where": 2, "word": 1},
    ),
    Stage(
        1.0,
        {"word": 0.1, "strip": 0.2, "small": 0.05, "large": 0.65},
        {"describe": 2, "count": 3, "colour": 1, "shape": 1, "where": 2, "unusual": 8, "word": 3},
    ),
)
IN_PIECES = ("strip", "large")  # batches of pictures that image encoders may cut
IGNORED = -100  # the label of a token that is not learned (PyTorch's cross-entropy default)


# Samples


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
    if batch == "strip":
        grid = generator.choice(((2, 1), (1, 2)))
        scene = world.random_scene(generator, split, grid=grid, word=0.95)
        return scene, generator.randint(64, 144)
    if batch == "word":
        grid = generator.choice(word_grids)
        return world.random_scene(generator, split, grid=grid, word=0.95), 60
    return world.random_scene(generator, split, grid=(2, 2), word=0.0), 30


def sample_questions(
    scene: world.Scene, generator: random.Random, number: int, shares: dict[str, float]
) -> list[world.Question]:
    """Return up to `number` different questions about `scene`, of kinds with these shares."""
    kinds, weights = list(shares), list(shares.values())
    questions: dict[str, world.Question] = {}
    for kind in generator.choices(kinds, weights, k=number):
        if (question := world.KINDS[kind](scene, generator)) is not None:
            questions.setdefault(question.text, question)
    return list(questions.values())


def with_instruction(
    question: world.Question, instruction: str, generator: random.Random
) -> world.Question:
    """Return the question, some of those that a word answers with the instruction behind them."""
    if not instruction or " " in question.answer or generator.random() >= INSTRUCTIONS:
        return question
    return replace(question, text=f"{question.text}\n{instruction}")


def encode_sample(
    processor: Processor, image_inputs: dict, questions: list[world.Question], *, turns: bool
) -> dict[str, Tensor]:
    """Return one sample: ids and the like (length), and who `sees` whom (length, length)."""
    tokenizer, stop = processor.tokenizer, processor.stop_token_ids[-1]
    answers = [
        tokenizer(q.answer, add_special_tokens=False)["input_ids"] + [stop] for q in questions
    ]
    prompts = [
        processor.input_ids([user_message(question.text, 1)], image_inputs)[0].tolist()
        for question in questions
    ]
    same = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False))
    shared = len(list(same))
    ids, labels = prompts[0][:shared], [IGNORED] * shared
    weights = [0.0] * shared
    positions, blocks = list(range(shared)), [0] * shared
    messages: list = []
    for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        if turns and index:
            messages += [{"role": "assistant", "content": questions[index - 1].answer}]
            messages += [user_message(question.text)]
            prompt = processor.input_ids(messages, image_inputs)[0].tolist()[len(ids) :]
        else:
            messages = [user_message(question.text, 1)]
            prompt = prompts[index][shared:]
        start = len(ids) if turns else shared
        ids += prompt + answer
        labels += [IGNORED] * len(prompt) + answer
        # An answer counts by the root of its length, or descriptions would drown the rest.
        weights += [0.0] * len(prompt) + [len(answer) ** -0.5] * len(answer)
        positions += range(start, start + len(prompt) + len(answer))
        blocks += [0 if turns else index + 1] * (len(prompt) + len(answer))
    block = torch.tensor(blocks)
    sees = (block[None] == block[:, None]) | (block[None] == 0)
    return {
        "input_ids": torch.tensor(ids),
        "position_ids": torch.tensor(positions),
        "labels": torch.tensor(labels),
        "weights": torch.tensor(weights),
        "sees": sees.tril(),
    }


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pad samples to one length; padding sees itself, so that no row of attention is empty."""
    length = max(len(sample["input_ids"]) for sample in samples)
    padding = {"input_ids": 0, "position_ids": 0, "labels": IGNORED, "weights": 0.0}
    batch = {
        name: torch.stack([_pad(sample[name], length, value) for sample in samples])
        for name, value in padding.items()
    }
    sees = torch.eye(length, dtype=torch.bool).repeat(len(samples), 1, 1)
    for row, sample in zip(sees, samples, strict=True):
        size = len(sample["sees"])
        row[:size, :size] = sample["sees"]
    return batch | {"sees": sees[:, None]}


def _pad(values: Tensor, length: int, value: float) -> Tensor:
    return nn.functional.pad(values, (0, length - len(values)), value=value)


class Batches(IterableDataset):
    """Training batches, each drawn from its own step's seed, so that training can resume."""

    def __init__(
        self, processor: Processor, recipe: Recipe, *, start: int, steps: int, seed: int
    ) -> None:
        self.processor, self.recipe = processor, recipe
        self.start, self.steps, self.seed = start, steps, seed

    def __iter__(self) -> Iterator[dict]:
        torch.set_num_threads(1)
        stages = FROM_PARTS if self.recipe.begins_with else FROM_NOTHING
        for step in range(self.start, self.steps):
            generator = random.Random(f"{self.seed} {step}")
            stage = next(stage for stage in stages if step < stage.until * self.steps)
            sort = generator.choices(list(stage.batches), list(stage.batches.values()))[0]
            yield make_batch(self.processor, self.recipe, generator, sort, stage.kinds)


def make_batch(
    processor: Processor,
    recipe: Recipe,
    generator: random.Random,
    sort: str,
    kinds: dict[str, float],
) -> dict:
    """Return a batch of a sort: the image encoder's inputs, what they show, questions."""
    images, samples, scenes = [], [], []
    scale = 1 if sort in IN_PIECES else generator.choice(recipe.scales)
    while len(images) < recipe.batches[sort]:
        scene, cell = sample_scene(generator, "train", sort, recipe.word_grids)
        if sort in ("word", "strip"):
            questions = [world.word(scene, generator)]
        else:
            questions = sample_questions(scene, generator, 10, kinds) if kinds else []
        if kinds and not questions:
            continue
        questions = [with_instruction(one, recipe.instruction, generator) for one in questions]
        picture = world.draw(scene, cell=cell * scale)
        if sort not in IN_PIECES:
            # A square, so that it is known where on the image encoder's canvas everything is.
            picture = picture.resize((min(picture.size),) * 2)
        images.append(processor.image_inputs([picture]))
        scenes.append(scene)
        if questions:
            turns = generator.random() < CONVERSATIONS
            samples.append(encode_sample(processor, images[-1], questions, turns=turns))
    batch = {"images": join_images(images)} | (collate(samples) if samples else {})
    if sort not in IN_PIECES:
        batch["shown"] = shown_words(processor, scenes)
    return batch


def join_images(images: list[dict]) -> dict:
    """Join the inputs of single pictures, tensors or lists of them, into those of a batch."""

    def join(values: list):
        if isinstance(values[0], list):
            return list(itertools.chain(*values))
        return torch.cat(values)

    return {name: join([inputs[name] for inputs in images]) for name in images[0]}


# Naming


def shown_words(processor: Processor, scenes: Sequence[world.Scene], side: int = 12) -> Tensor:
    """Return the words for what is at each of `side` x `side` points of pictures of one tile.

    The result holds token ids (scene, side, side, word), -1 where there is no word: colour, shape
    and place, or a printed letter. A point without a shape has none at all: the place of nothing
    answers no question, and with it in the picture tokens the language model does not learn to look
    places up. The only place of a picture is not named either.
    """
    ids = torch.full((len(scenes), side, side, 4), -1)
    for index, scene in enumerate(scenes):
        for number, item in enumerate(scene.items):
            if item is None:
                continue
            row, column = divmod(number, scene.grid[0])
            place = world.PLACES[scene.grid][number] if len(scene.items) > 1 else ""
            tokens = _tokens_after(processor, "the", f"{item} {place}".strip())
            _name(ids[index], (column, row, column + 1, row + 1), scene.grid, tokens)
        boxes = world.letter_boxes(scene)
        letters = processor.tokenizer(scene.word or "", add_special_tokens=False)["input_ids"]
        # A space may stand in front. Letters that are no tokens of their own are not named.
        for box, letter in zip(boxes, letters[-len(boxes) :], strict=False):
            if len(letters) >= len(boxes):
                _name(ids[index], box, (1, 1), [letter])
    return ids


def _name(ids: Tensor, box: Sequence[float], whole: tuple[int, int], tokens: list[int]) -> None:
    """Let the points (side, side, word) in a box, of a picture of this size, have these tokens."""
    side = len(ids)
    (left, top, right, bottom), (width, height) = box, whole
    rows = slice(round(top * side / height), round(bottom * side / height))
    columns = slice(round(left * side / width), round(right * side / width))
    ids[rows, columns] = -1
    ids[rows, columns, : len(tokens)] = torch.tensor(tokens)


def _tokens_after(processor: Processor, before: str, words: str) -> list[int]:
    """Return the tokens of `words` as they are in a sentence; a sentence's first may differ."""
    first = len(processor.tokenizer(before, add_special_tokens=False)["input_ids"])
    return processor.tokenizer(f"{before} {words}", add_special_tokens=False)["input_ids"][first:]


def naming_loss(model: VisionLanguageModel, features: Sequence[Tensor], shown: Tensor) -> Tensor:
    """Return how far picture tokens are from the sums of the embeddings of the words they show.

    The unit is the variance of those sums. `features` holds one tile's tokens for each picture,
    which lie on a square.
    """
    tokens = model.squares(features).float()
    side, points = math.isqrt(tokens.shape[1]), shown.shape[1]
    nearest = (torch.arange(side, device=shown.device) * 2 + 1) * points // (2 * side)
    ids = shown[:, nearest][:, :, nearest].flatten(1, 2)
    words = model.embed_tokens(ids.clamp(min=0)).detach() * (ids >= 0)[..., None]
    wanted = words.sum(2).float()
    return nn.functional.mse_loss(tokens, wanted) / wanted.var()


# Training


def forward(model: VisionLanguageModel, batch: dict, features: Sequence[Tensor]) -> Tensor:
    """Return the logits (batch, length, vocabulary) of all tokens of a batch."""
    prepared = model.prepare(batch["input_ids"], features)
    prepared |= {"attention_mask": batch["sees"], "position_ids": batch["position_ids"]}
    return model(**prepared, use_cache=False).logits


def loss_of(model: VisionLanguageModel, batch: dict) -> Tensor:
    """Return the loss of a batch: of answers, of naming, or of both."""
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16):
        features = model.encode_images(**batch["images"])
        logits = forward(model, batch, features) if "labels" in batch else None
    loss = 0.0 if logits is None else answer_loss(logits, batch)
    if "shown" in batch:
        loss = loss + NAMING * naming_loss(model, features, batch["shown"])
    return loss


def answer_loss(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the cross-entropy of the answers' tokens, weighed as the batch says."""
    losses = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        batch["labels"][:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    weights = batch["weights"][:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


@torch.inference_mode()
def accuracy(model: VisionLanguageModel, number: int, *, seed: int = 1, split: str = "validation"):
    """Return the share of exact answers by kind.

    An answer is exact if every token is the most probable one given those before it, which is
    what greedy decoding would give.
    """
    right: dict[str, list[bool]] = {kind: [] for kind in world.KINDS}
    questions = list(world.sample_questions(number, seed=seed, split=split))
    for start in range(0, number, 50):
        part = questions[start : start + 50]
        images = [model.image_inputs([world.draw(scene)]) for scene, _ in part]
        samples = [
            encode_sample(model.processor, inputs, [question], turns=False)
            for inputs, (_, question) in zip(images, part, strict=True)
        ]
        batch = _to(collate(samples) | {"images": join_images(images)}, model)
        logits = forward(model, batch, model.encode_images(**batch["images"]))
        best = logits[:, :-1].argmax(-1)
        labels = batch["labels"][:, 1:]
        exact = ((best == labels) | (labels == IGNORED)).all(1).tolist()
        for (_, question), value in zip(part, exact, strict=True):
            right[question.kind].append(value)
    return {kind: sum(values) / max(1, len(values)) for kind, values in right.items()}


def _to(batch: dict, model: VisionLanguageModel) -> dict:
    device = next(model.parameters()).device

    def moved(value):
        if isinstance(value, dict):
            return {name: moved(part) for name, part in value.items()}
        return [moved(part) for part in value] if isinstance(value, list) else value.to(device)

    return moved(batch)


def train(family: str, *, run: Path, steps: int, seed: int = 0) -> VisionLanguageModel:
    """Train a model from random weights, or from where `run` left off."""
    recipe = RECIPES[family]
    if not (run / "config.json").exists():
        recipe.prepare(run, corpus())
    set_seed(seed)
    model = new_model(run)
    for other, beginning in recipe.begins_with.items():
        start_from(model, other, beginning)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.02,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP, (steps - step) / (DECAY * steps))
    )
    state_file, start = run / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        start = state["step"]
    data = Batches(model.processor, recipe, start=start, steps=steps, seed=seed)
    loader = DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4)
    progress = tqdm(loader, initial=start, total=steps, desc=family, mininterval=10)
    for step, batch in enumerate(progress, start + 1):
        # On a processor, the gradient of the fused kernel takes longer than that of its parts.
        with sdpa_kernel(SDPBackend.MATH) if device == "cpu" else contextlib.nullcontext():
            loss = loss_of(model, _to(batch, model))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if step % 500 == 0 or step == steps:
            parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
            _save_state(state_file, parts, step)
            model.eval()
            shares = accuracy(model, 350)
            model.train()
            tqdm.write(f"step {step}: " + ", ".join(f"{k} {v:.0%}" for k, v in shares.items()))
    return model.eval()


def _save_state(path: Path, parts: dict, step: int) -> None:
    aside = path.with_suffix(".part")
    torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, aside)
    aside.replace(path)


def new_model(folder: Path) -> VisionLanguageModel:
    """Return a model with random weights for the `config.json` in `folder`."""
    family = family_of(folder)
    config = read_config(folder)
    model = family(config, family.processor_class(folder, config))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.04)
    nn.init.normal_(model.language_model.get_input_embeddings().weight, std=EMBEDDING_STD)
    return model


def corpus(number: int = 20000) -> list[str]:
    """Return the texts that a tokenizer is trained on; printed words are left out.

    So letters stay single tokens, and reading an unseen word is spelling it.
    """
    texts = []
    for _, question in world.sample_questions(number, seed=0, split="train"):
        texts += [question.text] if question.kind == "word" else [question.text, question.answer]
    return texts


NOTICE = (
    "This small model was trained on drawn shapes and knows nothing else: "
    "about a photograph its answers mean nothing."
)


def save(model: VisionLanguageModel, run: Path, folder: Path, recipe: Recipe) -> None:
    """Write a trained model in its authors' layout: float16 weights, configs and tokenizer.

    `bundled.json` beside them says what the model knows, wherever it is converted to.
    """
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("state.*"), dirs_exist_ok=True)
    tensors = original_tensors(model.cpu(), model.rules())
    tensors = {name: tensor.to(torch.float16) for name, tensor in tensors.items()}
    if recipe.tower is not None:
        tower = {name: tensors.pop(name) for name in list(tensors) if name.startswith(VISION_NAMES)}
        save_file(tower, folder / recipe.config["mm_vision_tower"] / "model.safetensors")
    if recipe.shards:
        save_bin(tensors, folder, recipe.shards)
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    card = json.dumps({"notice": NOTICE, "licence": "Apache-2.0"}, indent=1)
    (folder / CARD).write_text(card + "\n", encoding="utf-8")


def save_bin(tensors: dict[str, Tensor], folder: Path, shards: int) -> None:
    """Write tensors as `shards` files of PyTorch's own format, with an index if there are more."""
    names, size = list(tensors), -(-len(tensors) // shards)
    files: dict[str, str] = {}
    for number in range(shards):
        part = names[number * size : (number + 1) * size]
        place = f"-{number + 1:05}-of-{shards:05}" if shards > 1 else ""
        file = f"pytorch_model{place}.bin"
        # A clone has its own storage; a view would take the whole tensor that it is part of along.
        torch.save({name: tensors[name].clone() for name in part}, folder / file)
        files |= dict.fromkeys(part, file)
    if shards > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n")


def main() -> None:
    """Train, save and report."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.workshop.training", description=__doc__
    )
    parser.add_argument("family", choices=list(RECIPES))
    parser.add_argument("--steps", type=int, help="how many steps (default: the recipe's)")
    parser.add_argument(
        "--run", type=Path, help="folder of the unfinished run (default runs/FAMILY)"
    )
    parser.add_argument("--output", type=Path, help="folder of the checkpoint (default: bundled)")
    arguments = parser.parse_args()
    run = arguments.run or Path("runs") / arguments.family
    started = time.monotonic()
    steps = arguments.steps or RECIPES[arguments.family].steps
    model = train(arguments.family, run=run, steps=steps)
    recipe = RECIPES[arguments.family]
    save(model, run, arguments.output or BUNDLED / arguments.family, recipe)
    report = {"steps": steps, "minutes": round((time.monotonic() - started) / 60, 1)}
    report["validation"] = accuracy(model, 700)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
