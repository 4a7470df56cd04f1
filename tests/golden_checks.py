"""What the families' tests share: golden data, comparisons, changed copies of a checkpoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import openvino as ov
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.convert.conversion import convert_part
from helpers.errors import CheckpointError
from helpers.graphs.parts import Part
from helpers.inputs.messages import user_message
from helpers.models import load_model
from helpers.models.base import VisionLanguageModel
from helpers.run.generation import StatefulLanguageModel
from helpers.run.prefill_again import language_model_of
from helpers.sources.key_mapping import original_tensors

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 3e-6  # of the largest expected value; measured: up to 2.3e-6


def golden_results(name: str) -> dict[str, Tensor]:
    """Return what the authors' own code computed from the golden checkpoint `name`."""
    return load_file(GOLDEN / name / "expected.safetensors")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference in units of the largest expected value."""
    return float((actual.float() - expected.float()).abs().max() / expected.float().abs().max())


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    assert relative_error(actual, expected) <= tolerance


@torch.inference_mode()
def greedy(model, prepared: dict, number: int) -> list[int]:
    """Return `number` greedy tokens, computed anew from growing inputs without a cache."""
    embeddings, tokens = prepared["inputs_embeds"], []
    for _ in range(number):
        mask = torch.ones(embeddings.shape[:2], dtype=torch.int64)
        logits = model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=mask.cumsum(1) - 1
        ).logits
        tokens.append(int(logits[0, -1].argmax()))
        embeddings = torch.cat([embeddings, model.embed_tokens(torch.tensor([tokens[-1:]]))], 1)
    return tokens


def greedy_with_cache(model, prepared: dict, number: int) -> list[int]:
    """Return `number` greedy tokens as transformers' `generate` finds them, with a KV cache."""
    embeddings = prepared["inputs_embeds"]
    return generate(model.language_model, embeddings, max_new_tokens=number)[0].tolist()


ACCURATE = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": 1}


def compiled(part: Part) -> ov.CompiledModel:
    """Convert one part and compile it to compute as PyTorch does."""
    return ov.Core().compile_model(convert_part(part), "CPU", ACCURATE)


def stateful(model) -> StatefulLanguageModel:
    """Return the language model of `model` on OpenVINO, behind transformers' `generate`."""
    embeddings, language_model = model.text_embeddings_part(), model.language_model_part()
    parts = ({"inputs_embeds": compiled(embeddings)}, compiled(language_model))
    return language_model_of(*parts, model.processor.exported)


def generate(language_model, embeddings: Tensor, **options) -> Tensor:
    """Return what `generate` finds without sampling and without a stop token."""
    return language_model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.int64),
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )


def copy_of(name: str, folder: Path, **changes) -> Path:
    """Copy the golden checkpoint `name` into `folder`, with changes to its config."""
    copy = shutil.copytree(GOLDEN / name, folder / name)
    change_config(copy, **changes)
    return copy


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config), encoding="utf-8")


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Apply `change` to the tensors of each weight file in `folder`."""
    for path in [*folder.glob("*.bin"), *folder.glob("model*.safetensors")]:
        if path.suffix == ".bin":
            torch.save(change(torch.load(path, weights_only=True)), path)
        else:
            save_file(change(load_file(path)), path)


def change_type(folder: Path, dtype: torch.dtype) -> None:
    """Write the tensors of each weight file in `folder` anew as `dtype`."""
    change_tensors(
        folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}
    )


def loading_error(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> str:
    """Return what is said of a checkpoint to whose tensors `change` is applied."""
    change_tensors(folder, change)
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    return str(error.value)


def check_original_tensors(model: VisionLanguageModel, name: str) -> None:
    """Compare the tensors of a loaded model, under their original names, with its files'."""
    original = model.original_tensors(GOLDEN / name)
    saved = original_tensors(model, model.rules())
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], original[name]) for name in original)


def conversations() -> dict[str, list[dict]]:
    """Return the messages of the prompts in preprocessing/prompts.json, by their names there."""
    picture = user_message("What is in the picture?", 1)
    answer = {"role": "assistant", "content": "A cat in a box."}
    return {
        "one_turn": [picture],
        "two_turns": [picture, answer, user_message("What colour is it?")],
        "text_only": [user_message("Hello there")],
    }


def golden_prompts(family: str) -> dict[str, str]:
    text = (GOLDEN / "preprocessing" / "prompts.json").read_text(encoding="utf-8")
    return json.loads(text)[family]


def golden_pixels(kind: str) -> list[dict]:
    """Return the figures of preprocessing/tiling.json about the sample pictures."""
    text = (GOLDEN / "preprocessing" / "tiling.json").read_text(encoding="utf-8")
    return json.loads(text)[kind]


def assert_pixels(actual: Tensor, figures: dict) -> None:
    """Compare one normalised picture (3, height, width) with its mean and four of its values."""
    assert list(actual.shape) == figures["shape"]
    height, width = actual.shape[1:]
    rows = [0, height // 2, height - 1, height // 3]
    columns = [0, width // 2, width - 1, 2 * width // 3]
    # The figures are rounded to five places.
    torch.testing.assert_close(
        actual[:, rows, columns].T, torch.tensor(figures["values"]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        actual.mean((1, 2)), torch.tensor(figures["mean"]), atol=1e-5, rtol=0
    )
