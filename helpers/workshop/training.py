"""Train a small model of one family on the bundled world: `python -m helpers.workshop.training`.

A sample is one picture with several questions, which share the picture's tokens: each question
goes with the picture and itself, at the positions it would have if it were the only one (see
`sharing`). One sample in four is a conversation instead, in which later questions also go with the
earlier turns.

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
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.trainer_utils import set_seed

from helpers.inputs.boxes import same_boxes
from helpers.models.base import VisionLanguageModel
from helpers.models.exported import Features, ImageInputs
from helpers.models.families import family_of
from helpers.shapes import clips, world
from helpers.shapes.questions import BOX_KINDS, sample_questions
from helpers.shapes.tokenizers import corpus
from helpers.sources.checkpoints import BUNDLED, CARD, read_config, write_json
from helpers.sources.saving import in_shards, save_tensors
from helpers.workshop.beginnings import WEIGHT_STD, start_from
from helpers.workshop.locating import IGNORED, locating_loss, new_locator
from helpers.workshop.naming import naming_loss
from helpers.workshop.recipes import RECIPES, Recipe
from helpers.workshop.samples import (
    Batch,
    Batches,
    collate,
    encode_sample,
    join_images,
)
from helpers.workshop.sharing import logits_of_rows, visible_mask

Model = VisionLanguageModel[Any]

SEED = 0  # of the first weights, and of what is drawn to learn from
WARM_UP = 200  # steps of rising learning rate
SAVING, EVALUATION = 100, 500  # after every so many steps
VALIDATION: dict[str, Any] = {"seed": 1, "split": "validation"}  # what is drawn to be asked then
DECAY = 0.2  # of the steps, the last ones: falling learning rate
NAMING = 0.3  # the weight of the loss of naming, beside that of answers
LOCATING = 1.0  # the same of locating
EMBEDDING_STD = 0.1  # of new embeddings: with small ones, words that are not told apart collapse
STATE = "state.pt"  # the file of an unfinished run: weights, optimizer, schedule and step

# What is trained, by its name in that file: each has `state_dict` and `load_state_dict`.
Parts = dict[str, nn.Module | torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler]


def forward(model: Model, batch: Batch, features: Features) -> Tensor:
    """Return the logits (batch, length, vocabulary) of all tokens of a batch."""
    prepared = model.prepare(batch["input_ids"], features)
    blocks, position_ids = batch["blocks"], batch["position_ids"]
    if model.is_recurrent:
        return logits_of_rows(model, prepared["inputs_embeds"], position_ids, blocks)
    masks = model.attention_masks(visible_mask(blocks), position_ids)
    prepared |= {"attention_mask": masks, "position_ids": position_ids}
    logits: Tensor = model(**prepared, use_cache=False).logits
    return logits


def loss_of(model: Model, batch: Batch, locator: nn.Linear) -> Tensor:
    """Return the loss of a batch: that of answers, of naming and of locating, of what it has."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):
        with torch.set_grad_enabled(not batch.get("frozen")):
            features = model.encode_images(**batch["images"])
        logits = forward(model, batch, features) if "labels" in batch else None
    loss = torch.zeros((), device=device)
    if logits is not None:
        loss = loss + answer_loss(logits, batch)
    if "shown" in batch:
        loss = loss + NAMING * naming_loss(model, features, batch["shown"])
    if "sides" in batch:
        loss = loss + LOCATING * locating_loss(locator, torch.cat(list(features)), batch["sides"])
    return loss


def answer_loss(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the cross-entropy of answers by logits (batch, length, vocabulary), as weighed."""
    losses = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        batch["labels"][:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    weights = batch["weights"][:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


@torch.inference_mode()
def exact_shares(model: Model, number: int) -> dict[str, float]:
    """Return the share of exact answers to so many questions of the validation split, by kind.

    An answer is exact if every token is the most probable one given those before it, which is
    what greedy decoding would give.
    """
    recipe = RECIPES[family_of(model.processor.folder).bundled]
    right: dict[str, list[bool]] = {kind: [] for kind in recipe.kinds}
    pairs = list(sample_questions(number, **VALIDATION, kinds=recipe.kinds))
    for start in range(0, number, 50):
        part = pairs[start : start + 50]
        images = [model.image_inputs([world.draw(scene)]) for scene, _ in part]
        samples = [
            encode_sample(model.processor, inputs, [question], turns=False)
            for inputs, (_, question) in zip(images, part, strict=True)
        ]
        best, labels = _best_tokens(model, samples, images)
        for tokens, targets, (_, question) in zip(best, labels, part, strict=True):
            is_answer = targets != IGNORED
            if question.kind in BOX_KINDS:
                text = model.processor.tokenizer.decode(tokens[is_answer])
                right[question.kind].append(same_boxes(text, question.answer))
            else:
                exact = (tokens == targets) | ~is_answer
                right[question.kind].append(bool(exact.all()))
    shares = {kind: sum(values) / max(1, len(values)) for kind, values in right.items()}
    if recipe.clips:
        shares["motion"] = exact_motions(model, number // len(recipe.kinds))
    return shares


@torch.inference_mode()
def exact_motions(model: Model, number: int) -> float:
    """Return the share of so many clips of the validation split about which answers are exact."""
    right = 0
    for video, question in clips.draw_clips(number, **VALIDATION):
        inputs = model.image_inputs([video])
        sample = encode_sample(model.processor, inputs, [question], turns=False, frames=len(video))
        best, labels = _best_tokens(model, [sample], [inputs])
        right += bool(((best == labels) | (labels == IGNORED)).all())
    return right / number


def _best_tokens(
    model: Model, samples: list[dict[str, Tensor]], images: list[ImageInputs]
) -> tuple[Tensor, Tensor]:
    """Return the most probable token at each place (samples, length), and what belongs there."""
    batch = _on_device_of(model, collate(samples) | {"images": join_images(images)})
    logits = forward(model, batch, model.encode_images(**batch["images"]))
    return logits[:, :-1].argmax(-1), batch["labels"][:, 1:]


def _on_device_of(model: Model, batch: Batch) -> Batch:
    """Return a batch's tensors, those in its dicts and lists too, on the model's device."""
    device = next(model.parameters()).device

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: moved(part) for name, part in value.items()}
        if isinstance(value, list):
            return [moved(part) for part in value]
        return value.to(device) if isinstance(value, Tensor) else value

    return {name: moved(value) for name, value in batch.items()}


def train(family: str, *, run: Path, steps: int, workers: int = 1) -> Model:
    """Train a model from random weights, or from where `run` left off.

    Batches are drawn by so many `workers`; they are the same, whatever their number.
    """
    recipe, model = RECIPES[family], _first_model(family, run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    locator = new_locator(model.token_embeddings.embedding_dim).to(device)
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *locator.parameters()],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.02,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP, (steps - step) / (DECAY * steps))
    )
    parts: Parts = {
        "model": model,
        "locator": locator,
        "optimizer": optimizer,
        "schedule": schedule,
    }
    start = _load_state(run / STATE, parts, device)
    data = Batches(model.processor, recipe, start=start, steps=steps, seed=SEED)
    loader = DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4)
    progress = tqdm(loader, initial=start, total=steps, desc=family, mininterval=10)
    for step, batch in enumerate(progress, start + 1):
        # On a processor, the gradient of the fused kernel takes longer than that of its parts.
        with sdpa_kernel(SDPBackend.MATH) if device == "cpu" else contextlib.nullcontext():
            loss = loss_of(model, _on_device_of(model, batch), locator)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if step % SAVING == 0 or step == steps:
            _save_state(run / STATE, parts, step)
        if step % EVALUATION == 0 or step == steps:
            model.eval()
            shares = exact_shares(model, 350).items()
            model.train()
            tqdm.write(
                f"step {step}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares)
            )
    return model.eval()


def _first_model(family: str, run: Path) -> Model:
    """Return the model that training begins with; `run` gets its config if it has none."""
    recipe = RECIPES[family]
    if not (run / "config.json").exists():
        recipe.write_files(run, corpus(kinds=recipe.kinds))
    set_seed(SEED)
    model = new_model(run)
    for other, beginning in recipe.begins_with.items():
        start_from(model, other, beginning)
    for name, tensor in recipe.first_tensors(model.config).items():
        model.state_dict()[name].copy_(tensor)
    return model


def _load_state(path: Path, parts: Parts, device: str) -> int:
    """Bring what is trained to where a run left off, if one did; return the steps so far."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def _save_state(path: Path, parts: Parts, step: int) -> None:
    aside = path.with_suffix(".part")
    torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, aside)
    aside.replace(path)


def new_model(folder: Path) -> Model:
    """Return a model with random weights for the `config.json` in `folder`."""
    family = family_of(folder).model
    config = read_config(folder)
    model = family(config, family.processor_class(folder, config))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=WEIGHT_STD)
    nn.init.normal_(model.token_embeddings.weight, std=EMBEDDING_STD)
    return model


NOTICE = (
    "This small model was trained on drawn shapes and knows nothing else: "
    "about a photograph its answers mean nothing."
)


def save(model: Model, run: Path, folder: Path, recipe: Recipe) -> None:
    """Write a trained model in its authors' layout: float16 weights, configs and tokenizer.

    `bundled.json` beside them says what the model knows, wherever it is converted to.
    """
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("state.*"), dirs_exist_ok=True)
    for files in model.cpu().layout():
        tensors = {name: tensor.to(torch.float16) for name, tensor in files.tensors.items()}
        shards = in_shards(tensors, recipe.shards) if not files.folder else [tensors]
        list(save_tensors(shards, folder / files.folder, files.ending))
    write_json(folder / CARD, {"notice": NOTICE, "licence": "Apache-2.0"})


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
    parser.add_argument("--workers", type=int, default=1, help="how many processes draw batches")
    parser.add_argument("--output", type=Path, help="folder of the checkpoint (default: bundled)")
    arguments = parser.parse_args()
    run = arguments.run or Path("runs") / arguments.family
    started = time.monotonic()
    steps = arguments.steps or RECIPES[arguments.family].steps
    model = train(arguments.family, run=run, steps=steps, workers=arguments.workers)
    recipe = RECIPES[arguments.family]
    save(model, run, arguments.output or BUNDLED / arguments.family, recipe)
    report = {"steps": steps, "minutes": round((time.monotonic() - started) / 60, 1)}
    report["validation"] = exact_shares(model, 700)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
