"""Patches of other packages: each test fails when its patch is not needed any more, and may go."""

import contextlib
import importlib
import inspect
import io
import os
import subprocess
import sys

import nncf
import numpy as np
import openvino as ov
import pytest
import torch
from openvino.frontend.pytorch import patch_model
from torch import nn
from transformers import MllamaTextConfig, MllamaVisionConfig, MllamaVisionModel

from helpers.convert.runtime_files import TOKENIZER
from helpers.graphs.core import core
from helpers.sources.checkpoints import BUNDLED
from helpers.upstream import converter, telemetry, transformers
from helpers.upstream import nncf as nncf_patches
from helpers.upstream.patching import replaced

NNCF_BACKEND = "nncf.quantization.algorithms.weight_compression.openvino_backend"
NNCF_MODELS = "nncf.openvino.optimized_functions.models"


class Owner:
    name = "before"


def test_what_is_replaced_comes_back_also_after_an_error():
    with pytest.raises(ValueError, match="no"), replaced(Owner, name="meanwhile"):
        assert Owner.name == "meanwhile"
        raise ValueError("no")
    assert Owner.name == "before"


def test_what_another_release_lacks_is_left_out():
    with replaced(Owner, other="meanwhile"):
        assert not hasattr(Owner, "other")
    assert not hasattr(Owner, "other")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("openvino_telemetry.utils.sender", "TelemetrySender"),
        ("openvino_telemetry.utils.opt_in_checker", "OptInChecker"),
        ("rich.console", "_is_jupyter"),
        (NNCF_MODELS, "_infer_ov_model"),
        (NNCF_MODELS, "clear_ov_model_cache"),
        (NNCF_BACKEND, "disable_results_caching"),
    ],
)
def test_what_is_patched_is_there(module, name):
    """Where it is not, the patch does nothing: look for what took its place, or let it go."""
    assert hasattr(importlib.import_module(module), name)


def test_telemetry_is_not_sent_and_has_no_switch_of_its_own():
    telemetry.switch_off()
    sender = importlib.import_module("openvino_telemetry.utils.sender").TelemetrySender
    assert sender.send(None, None, "a message") is None  # theirs needs a sender and a backend
    assert not any("telemetry" in name for name in inspect.signature(ov.convert_model).parameters)


CONVERTING = """
import helpers, torch, openvino
openvino.convert_model(torch.nn.Linear(2, 2), example_input=torch.zeros(1, 2))
from openvino_telemetry import Telemetry
Telemetry().send_event("a", "b", "c")
assert not Telemetry().consent
"""


def test_telemetry_writes_nothing_into_the_home_folder(tmp_path):
    places = {name: str(tmp_path) for name in ("HOME", "LOCALAPPDATA", "USERPROFILE")}
    result = subprocess.run(
        [sys.executable, "-c", CONVERTING],
        env=os.environ | places,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert not (tmp_path / "intel").exists() and not (tmp_path / "Intel Corporation").exists()


def test_openvino_still_makes_a_core_for_each_call():
    assert "Core()" in inspect.getsource(inspect.unwrap(ov.compile_model))


def test_openvino_s_compile_model_takes_what_it_took(tmp_path):
    layer = nn.Linear(2, 3)
    graph = ov.convert_model(layer, example_input=torch.zeros(1, 2))
    ov.save_model(graph, tmp_path / "layer.xml", compress_to_fp16=False)
    expected = layer(torch.ones(1, 2)).detach().numpy()
    exact = {"EXECUTION_MODE_HINT": "ACCURACY"}
    for model in (graph, tmp_path / "layer.xml", str(tmp_path / "layer.xml")):
        for arguments in ((), ("CPU",), ("CPU", exact)):
            compiled = ov.compile_model(model, *arguments)
            np.testing.assert_allclose(compiled(np.ones((1, 2), "f"))[0], expected, atol=0.02)


EXTENSION = """
import sys
from helpers.convert.runtime_files import TOKENIZER
from helpers.graphs.core import core
core()
import openvino as ov
import openvino_tokenizers
print(ov.compile_model(sys.argv[1], "CPU")(["a word"])["input_ids"].shape[0])
"""


def test_openvino_s_compile_model_knows_extensions_imported_since(converted):
    command = [sys.executable, "-c", EXTENSION, str(converted / TOKENIZER)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "1\n"), result.stderr


def test_nncf_still_makes_a_core_for_each_model():
    engine = importlib.import_module("nncf.openvino.engine")
    assert "ov.Core()" in inspect.getsource(engine)


def test_nncf_still_draws_progress_without_a_switch():
    assert "progress" not in str(inspect.signature(nncf.compress_weights)).lower()


def test_nncf_still_compiles_for_every_layer():
    backend = importlib.import_module(NNCF_BACKEND)
    assert "disable_results_caching(" in inspect.getsource(backend)


def test_without_nncf_s_functions_its_own_are_used(monkeypatch):
    monkeypatch.delattr(importlib.import_module(NNCF_MODELS), "_infer_ov_model")
    with (
        nncf_patches.compiled_once(),
        nncf_patches.one_core(core()),
        nncf_patches.quiet(),
    ):
        assert ov.Core() is core()
    assert ov.Core() is not core()


def test_weights_in_16_bits_come_back():
    module = nn.LayerNorm(4).to(torch.bfloat16)
    with converter.weights_in_16_bits(module):
        assert module.weight.dtype == torch.float32  # which is why they are put back
    assert module.weight.dtype == torch.bfloat16


def test_without_the_converter_s_functions_all_is_traced_as_it_is(monkeypatch):
    module, compute = nn.LayerNorm(4).to(torch.bfloat16), nn.functional.scaled_dot_product_attention
    monkeypatch.delattr(patch_model, "__make_16bit_traceable")
    with converter.weights_in_16_bits(module):
        assert module.weight.dtype == torch.bfloat16
    monkeypatch.delattr(patch_model, "_create_function_wrapper")
    with converter.recorded_attention():
        assert nn.functional.scaled_dot_product_attention is compute


def test_attention_is_still_computed_while_it_is_traced():
    """OpenVINO's converter runs a module to trace it; attention is the slow part of that."""
    calls = []

    class Attention(nn.Module):
        def forward(self, queries, mask):
            calls.append(1)
            return nn.functional.scaled_dot_product_attention(queries, queries, queries, mask)

    example = (torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 2))
    with contextlib.redirect_stdout(io.StringIO()):
        ov.convert_model(Attention(), example_input=example)
    assert calls


def test_torch_still_keeps_traced_classes():
    assert hasattr(torch._C, "_jit_clear_class_registry")


def test_transformers_still_warns_of_a_short_context(caplog):
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }
    fields = {"rope_scaling": rope, "max_position_embeddings": 2048}
    with transformers.no_rope_warnings():
        MllamaTextConfig(**fields)
    assert not caplog.records


@torch.no_grad()
def test_transformers_still_collects_the_outputs_of_layers():
    """Index 1 should be the state that goes into layer 1; this release hands on what comes out."""
    config = MllamaVisionConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        intermediate_size=8,
        vision_output_dim=16,
        image_size=28,
        patch_size=14,
        intermediate_layers_indices=[1],
    )
    states: dict[str, torch.Tensor] = {}

    def record(_, arguments, named, output):
        states["input"] = named.get("hidden_states", arguments[0] if arguments else None)
        states["output"] = output[0] if isinstance(output, tuple) else output

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MllamaVisionModel(config).eval()
        model.transformer.layers[1].register_forward_hook(record, with_kwargs=True)
        pixels, ids = torch.randn(1, 1, 4, 3, 28, 28), torch.ones(1, 1, dtype=torch.int64)
        mask = torch.ones(1, 1, 4, dtype=torch.int64)
        result = model(pixels, ids, mask).last_hidden_state
    collected = result[0, 0, :, :, config.hidden_size :]
    distance = {
        name: float((state.unflatten(1, (4, -1))[0, :, : result.shape[3]] - collected).abs().max())
        for name, state in states.items()
    }
    nearest = min(distance, key=distance.__getitem__)
    assert (nearest == "output") == transformers.MLLAMA_COLLECTS_OUTPUTS


# A language model of Qwen3.5 as a user's program runs it, in PyTorch.
LINEAR_ATTENTION = """
import importlib, sys, torch
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5ForCausalLM, Qwen3_5TextConfig
for name in sys.argv[1:]:
    importlib.import_module(name)
sizes = dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 1)
sizes |= dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "intermediate_size"), 16)
sizes |= dict.fromkeys(("num_hidden_layers", "full_attention_interval"), 2)
model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(vocab_size=32, hidden_size=16, **sizes))
model.generate(torch.ones(1, 5, dtype=torch.int64), max_new_tokens=2, pad_token_id=0)
"""


@pytest.mark.parametrize("family", ["qwen3_5", "minicpm_v4_6"])
def test_linear_attention_in_pytorch_says_nothing(fork, family):
    program = fork.run("-c", LINEAR_ATTENTION, f"helpers.models.{family}")
    assert (program.returncode, program.stderr) == (0, "")


def test_transformers_still_advises_faster_packages(fork):
    """For a model of two states: whole prompts and single tokens have two functions each."""
    program = fork.run("-c", LINEAR_ATTENTION)
    assert program.returncode == 0, program.stderr
    assert program.stderr.count("is falling back to its reference PyTorch implementation") == 4


NARROW = """
import sys
from PIL import Image
from helpers.models import load_processor
processor = load_processor(sys.argv[1])
if "loud" in sys.argv:
    import logging
    logging.getLogger("transformers.image_utils").filters.clear()
for size in ((1, 1), (3, 3), (3, 10), (1, 10), (10, 1)):
    processor.image_inputs([Image.new("RGB", size)])
"""


@pytest.mark.parametrize("family", ["internvl2", "gemma4", "qwen3_vl"])
def test_a_narrow_picture_says_nothing(fork, family):
    program = fork.run("-c", NARROW, BUNDLED / family)
    assert (program.returncode, program.stderr) == (0, "")


def test_transformers_still_looks_for_a_narrow_picture_s_channels(fork):
    program = fork.run("-c", NARROW, BUNDLED / "internvl2", "loud")
    assert program.stderr.count("The channel dimension is ambiguous") == 4, program.stderr


def test_the_cache_goes_by_the_name_that_a_layer_has_for_it():
    def today(hidden, past_key_values=None): ...

    def tomorrow(hidden, cache=None, **others): ...

    assert transformers.cache_argument(today, 3) == {"past_key_values": 3}
    assert transformers.cache_argument(tomorrow, 3) == {"cache": 3}
