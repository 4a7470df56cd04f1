"""The gated delta rule as a graph: what the plugin makes of it, and what it computes."""

import numpy as np
import openvino as ov
import pytest
import torch
from transformers.models.qwen3_5 import modeling_qwen3_5

from helpers.errors import SettingsError
from helpers.graphs.parts import Part
from helpers.graphs.recurrence import GatedDeltaRule
from helpers.graphs.stateful import make_stateful
from helpers.graphs.tracing import trace

HEADS, KEYS, VALUES = 2, 16, 32
NAMES = ("queries", "keys", "values", "decay", "beta", "matrix")


def inputs_of(length: int, *, batch: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random inputs; decay and beta as a model has them, below 0 and between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(batch, *sizes, generator=generator)

    return {
        "queries": normal(length, HEADS, KEYS),
        "keys": normal(length, HEADS, KEYS),
        "values": normal(length, HEADS, VALUES),
        "decay": -normal(length, HEADS).exp() / 20,
        "beta": normal(length, HEADS).sigmoid(),
        "matrix": torch.zeros(batch, HEADS, KEYS, VALUES),
    }


def model_of(*, numbers: bool) -> ov.Model:
    """Return the graph; the sizes of heads are `numbers` in it, or not."""
    fixed = dict.fromkeys(NAMES[:3], (2, 3)) | {"decay": (2,), "beta": (2,), "matrix": (1, 2, 3)}
    example = inputs_of(4, batch=3)
    part = Part("rule", GatedDeltaRule(), example, ("answers", "last"), fixed if numbers else {})
    return trace(part)


def compiled(model: ov.Model) -> tuple[ov.CompiledModel, list[str]]:
    """Return a model as PyTorch computes, and the kinds of its operations."""
    result = ov.Core().compile_model(model, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    nodes = result.get_runtime_model().get_ops()
    return result, [node.get_rt_info()["layerType"].astype(str) for node in nodes]


def expected_of(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what transformers' rule computes, token by token."""
    return modeling_qwen3_5.torch_recurrent_gated_delta_rule(
        *(inputs[name] for name in NAMES[:3]),
        g=inputs["decay"],
        beta=inputs["beta"],
        initial_state=inputs["matrix"],
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )


def error(actual: np.ndarray, expected: torch.Tensor) -> float:
    return float(np.abs(actual - expected.numpy()).max() / expected.abs().max())


@pytest.mark.parametrize("numbers", [True, False], ids=["fused", "not fused"])
def test_any_cut_of_512_tokens_is_the_same(numbers):
    """Prefill, steps and prefill again; also where the plugin runs the loop as it is."""
    model, kinds = compiled(model_of(numbers=numbers))
    assert kinds.count("GatedDeltaNet") == numbers
    assert ("TensorIterator" in kinds or "Loop" in kinds) != numbers
    inputs = inputs_of(512, batch=2)
    answers, last = expected_of(inputs)
    matrix, pieces, start = inputs["matrix"].numpy(), [], 0
    for length in (200, 1, 1, 1, 309):
        feed = {name: inputs[name][:, start : start + length].numpy() for name in NAMES[:5]}
        output = model(
            {name: np.ascontiguousarray(v) for name, v in feed.items()} | {"matrix": matrix}
        )
        pieces.append(output["answers"].copy())
        matrix, start = output["last"].copy(), start + length
    assert error(np.concatenate(pieces, 1), answers) < 1e-4
    assert error(matrix, last) < 1e-4


def test_a_state_of_a_fixed_size_says_so_in_its_name():
    model = model_of(numbers=True)
    model.input("queries").get_tensor().add_names({"inputs_embeds"})
    message = "matrix has the shape .* something that ends in _state"
    with pytest.raises(SettingsError, match=message):
        make_stateful(model, {"matrix": "last"})
