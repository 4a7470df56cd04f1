"""A small InternVL2 with random weights: a whole model for tests that need no right answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from helpers.inputs.questions import Question
from helpers.run.pieces import PieceSizes
from helpers.shapes import world
from helpers.shapes.questions import sample_questions
from helpers.workshop import training
from helpers.workshop.recipes import RECIPES

TOKENS_PER_TILE = 4
CONTEXT = 512


def tiny_config() -> dict:
    """Return the bundled model's config, shrunk: two layers, and tiles of 32 pixels."""
    config = RECIPES["internvl2"].config | {"force_image_size": 32}
    config["llm_config"] |= {
        "num_hidden_layers": 2,
        "intermediate_size": 256,
        "max_position_embeddings": CONTEXT,
    }
    config["vision_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "image_size": 32,
    }
    return config


def write_tiny(folder: Path) -> Path:
    """Write the small model as a checkpoint into `folder` / internvl2, and return that."""
    texts = [text for _, question in questions(70) for text in (question.text, question.answer)]
    run = folder / "run"
    recipe = RECIPES["internvl2"]
    recipe.write_files(run, texts * 3, tiny_config())
    with seeded(0):
        model = training.new_model(run)
        for name, parameter in model.named_parameters():
            # Larger than where training starts, so that answers differ from question to question.
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.5 if "embed" in name else 0.12)
    training.save(model, run, folder / "internvl2", recipe)
    return folder / "internvl2"


def questions(number: int, seed: int = 0) -> list[tuple[world.Scene, Question]]:
    return list(sample_questions(number, seed=seed, split="train"))


def picture(number: int = 0) -> Image.Image:
    """Return one of the bundled world's pictures, of several tiles."""
    return world.draw(questions(number + 1)[number][0], cell=48)


@torch.inference_mode()
def reference_tokens(model, ids: list[int], pictures=(), length: int = 10) -> list[int]:
    """Return PyTorch's greedy tokens after a prompt about pictures."""
    inputs = model.image_inputs(pictures) if pictures else None
    features = model.encode_images(**inputs) if inputs else None
    stop = model.processor.stop_token_ids
    output = model.language_model.generate(
        **model.prepare(torch.tensor([ids]), features),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=stop[0],
    )
    return output[0].tolist()


def equal_pieces(size: int) -> PieceSizes:
    """Return what computes prompts in pieces of one size, however long they take."""
    pieces = PieceSizes()
    pieces.size, pieces.note = lambda past: size, lambda past, positions, seconds: None
    return pieces


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make random numbers the same every time, and leave other tests' as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
