"""A folder of Gemma 4: what OpenVINO GenAI reads it by, its tables, and the memory of steps.

GenAI itself runs in an environment of its own (`test_genai.py`).
"""

import json
import os
import sys
import weakref
from types import SimpleNamespace

import openvino as ov
import pytest
import torch

from helpers.convert import conversion
from helpers.errors import SettingsError
from helpers.graphs.compression import compress
from helpers.graphs.core import core
from helpers.graphs.finite_weights import WeightsError, check_numbers
from helpers.graphs.part_names import FILES_WITH_PER_LAYER_EMBEDDINGS, PER_LAYER_EMBEDDINGS
from helpers.graphs.presets import FP16, INT8, Weights, find_preset
from helpers.graphs.tables import Table, table_model
from helpers.inputs.messages import user_message
from helpers.resources import anonymous_memory, instruction_sets, return_freed_memory
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.sources.checkpoints import read_json
from tests.random_gemma4 import write_random
from tests.random_models import noise

SEED = 1  # heads that share keys, and a single sharing layer of each kind
PICTURE, TEXT, PER_LAYER, WORDS = FILES_WITH_PER_LAYER_EMBEDDINGS.values()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the `path` of a converted random checkpoint, and the `config` that it had."""
    checkpoint = tmp_path_factory.mktemp("gemma4")
    model = write_random(checkpoint, SEED)
    conversion.convert(checkpoint, checkpoint / "converted", find_preset("int8"))
    return SimpleNamespace(path=checkpoint / "converted", config=model.config)


def expected_ports(config) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    text = config.text_config
    hidden, layers = text.hidden_size, text.num_hidden_layers
    row = f"f32[?,?,{layers},{text.hidden_size_per_layer_input}]"
    pixels = 3 * config.vision_config.patch_size**2
    return {
        PICTURE: (
            {"pixel_values": f"f32[?,?,{pixels}]", "image_position_ids": "i64[?,?,2]"},
            {"last_hidden_state": f"f32[?,?,{hidden}]"},
        ),
        TEXT: ({"input": "i64[?,?]"}, {"inputs_embeds": f"f32[?,?,{hidden}]"}),
        PER_LAYER: ({"input_ids": "i64[?,?]"}, {"per_layer_inputs": row}),
        WORDS: (
            {
                "inputs_embeds": f"f32[?,?,{hidden}]",
                "per_layer_inputs": row,
                "attention_mask": "i64[?,?]",
                "position_ids": "i64[?,?]",
                "beam_idx": "i32[?]",
            },
            {"logits": f"f32[?,..1,{text.vocab_size}]"},
        ),
    }


@pytest.mark.parametrize("file", [PICTURE, TEXT, PER_LAYER, WORDS])
def test_names_types_and_shapes(folder, file):
    model = core().read_model(folder.path / file)
    ports = tuple(
        {port.any_name: f"{port.element_type.to_string()}{port.partial_shape}" for port in side}
        for side in (model.inputs, model.outputs)
    )
    assert ports == expected_ports(folder.config)[file]


def test_every_layer_of_the_file_has_the_operation_that_all_runtimes_know(folder):
    model = core().read_model(folder.path / WORDS)
    text = folder.config.text_config
    kinds = [node.get_type_name() for node in model.get_ops()]
    assert kinds.count("ScaledDotProductAttention") == text.num_hidden_layers
    assert kinds.count("Softmax") == 0
    for node in model.get_ops():
        if node.get_type_name() == "ScaledDotProductAttention":  # no head made a position
            assert node.get_input_partial_shape(0)[1].get_length() == text.num_attention_heads
    owners = text.num_hidden_layers - text.num_kv_shared_layers
    assert len(model.get_variables()) == 2 * owners


def test_the_small_files(folder):
    names = {path.name for path in folder.path.iterdir()}
    assert {"openvino_tokenizer.xml", "openvino_detokenizer.xml", "chat_template.jinja"} <= names
    pictures = read_json(folder.path / "preprocessor_config.json")
    assert pictures == {
        "patch_size": 4,
        "pooling_kernel_size": 3,
        "max_soft_tokens": 280,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
    }
    tokenizer = VisionLanguagePipeline(folder.path).processor.tokenizer
    stop = tokenizer.convert_tokens_to_ids(["<eos>", "<turn|>"])
    assert read_json(folder.path / "generation_config.json")["eos_token_id"] == stop


# The table of per-layer embeddings


def looked_up(model: ov.Model, ids: torch.Tensor) -> torch.Tensor:
    options = {"EXECUTION_MODE_HINT": "ACCURACY"}
    return torch.from_numpy(core().compile_model(model, "CPU", options)(ids.numpy())[0])


@pytest.mark.parametrize(
    ("weights", "most"),
    [
        (FP16, 0.0),
        (INT8, 1 / 255),
        (Weights("int4-asym", group_size=32), 1 / 15),
        (Weights("int4-sym", group_size=32), 1 / 15),
        (Weights("int4-asym", group_size=-1), 1 / 15),
        (Weights("int4-sym", group_size=-1), 1 / 15),
        (Weights("int4-asym", ratio=0.0), 1 / 255),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_a_table_is_looked_up(weights, most, kind, monkeypatch):
    """What is rounded is off by half a step of its group's range, and by its scale's 16 bits."""
    monkeypatch.setattr("helpers.graphs.rounding._BLOCK", 300)  # several blocks
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randn(23, 96, generator=generator).to(kind)
    table = Table("rows", rows, (3, 32), "out", factor=4.0, replaced={7: 2, 9: 2})
    ids = torch.tensor([[0, 7, 22], [9, 5, 5]])
    expected = 4 * rows.float()[torch.tensor([[0, 2, 22], [2, 5, 5]])].unflatten(-1, (3, 32))
    model = compress(table_model(table), weights)
    actual = looked_up(model, ids)
    assert actual.shape == (2, 3, 3, 32)
    span = 4 * (rows.float().max() - rows.float().min())
    assert (actual - expected).abs().max() <= most * span * 0.6 + 1e-7
    assert most == 0 or not torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("weights", "step"),
    [
        (INT8, 12 / 255),
        (Weights("int4-asym", group_size=-1), 12 / 15),
        (Weights("int4-sym", group_size=-1), 12 / 16),
    ],
    ids=str,
)
def test_rows_of_one_sign_of_zeros_and_of_both_ends(weights, step, monkeypatch):
    monkeypatch.setattr("helpers.graphs.rounding._BLOCK", 20)  # less than a row
    ends = torch.tensor([[5.0, 6.0], [-5.0, -6.0], [0.0, 0.0], [-6.0, 6.0]])
    rows = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * torch.linspace(0, 1, 32)
    model = compress(table_model(Table("rows", rows, (32,), "out")), weights)
    actual = looked_up(model, torch.arange(len(rows))[None])[0]
    assert (actual - rows).abs().max() <= step * 1.01


def test_a_table_as_nncf_rounds_it():
    """In 8 bits it has the same numbers as if NNCF had rounded it, but for the last one of 16."""
    rows = torch.randn(40, 64, generator=torch.Generator().manual_seed(SEED))
    ids = torch.arange(40)[None]
    ours = looked_up(compress(table_model(Table("rows", rows, (64,), "out")), INT8), ids)
    model = table_model(Table("rows", rows, (64,), "out"))
    for node in model.get_ops():
        node.set_friendly_name(f"{node.get_friendly_name()} of another kind")
    theirs = looked_up(compress(model, INT8), ids)
    assert (ours - theirs).abs().max() < 2e-2 * rows.abs().max()


def test_a_table_that_cannot_be():
    rows = torch.zeros(4, 48)
    for size in (32, 128):
        weights = Weights("int4-asym", group_size=size)
        with pytest.raises(SettingsError, match="does not divide the width of every row"):
            compress(table_model(Table("rows", rows, (48,), "out")), weights)
    for number in ("nan", "inf", "-inf"):
        rows[2, 3] = float(number)
        with pytest.raises(WeightsError, match="NaN or infinite"):
            table_model(Table("rows", rows, (48,), "out"))


def test_several_tensors_with_infinite_numbers_are_counted():
    module = torch.nn.Linear(2, 2)
    for tensor in module.parameters():
        tensor.data.fill_(float("inf"))
    with pytest.raises(WeightsError, match=r"^weight \(and 1 more\) of the checkpoint holds"):
        check_numbers(module, "the checkpoint")


def test_a_table_lives_as_long_as_its_model():
    rows = torch.zeros(4, 48)
    reference, model = weakref.ref(rows), table_model(Table("rows", rows, (48,), "out"))
    del rows
    assert reference() is not None
    del model
    assert reference() is None


@pytest.mark.skipif(sys.platform != "linux", reason="mapped files are told apart on Linux")
def test_a_table_stays_on_disk(tmp_path):
    """A table of 64 MB that is compiled and looked up in takes none of them (1.1 MB in one run)."""
    rows = torch.zeros(2**14, 2**12)
    rows[:, 0] = torch.arange(2**14) / 2**14
    model = compress(table_model(Table(PER_LAYER_EMBEDDINGS, rows, (2**12,), "out")), INT8)
    path = conversion.save_part(model, tmp_path, PER_LAYER_EMBEDDINGS, file=PER_LAYER)
    del model, rows
    looked_up(core().read_model(path), torch.zeros(1, 1, dtype=torch.int64))
    return_freed_memory()
    before = anonymous_memory(os.getpid())
    result = looked_up(core().read_model(path), torch.arange(0, 2**14, 16)[None, :100])
    assert result.shape == (1, 100, 2**12)
    del result
    return_freed_memory()
    assert anonymous_memory(os.getpid()) - before < 16e6


def test_a_cache_of_compiled_parts_holds_no_table(folder, tmp_path):
    """It would be written again, half of the parameters, and be read instead of the mapped file."""
    tables = [(folder.path / name).with_suffix(".bin") for name in (TEXT, PER_LAYER)]
    for _ in range(2):  # written, then read
        pipeline = VisionLanguagePipeline(folder.path, properties={"CACHE_DIR": str(tmp_path)})
        assert pipeline.ask("Who?", max_new_tokens=2).token_ids
    sizes = sorted(path.stat().st_size for path in tmp_path.iterdir())
    assert len(sizes) == len(FILES_WITH_PER_LAYER_EMBEDDINGS)
    assert sizes[1] < min(path.stat().st_size for path in tables)  # the two smallest are theirs


# Processors


CAPPED = """
import json, sys
from helpers.graphs.part_names import LANGUAGE_MODEL
from tests.test_gemma4_folder import exact_answers, exact_pipeline
pipeline = exact_pipeline(sys.argv[1])
nodes = pipeline.parts[LANGUAGE_MODEL].get_runtime_model().get_ops()
kinds = [str(node.get_rt_info()["primitiveType"].astype(str)) for node in nodes]
print(json.dumps([exact_answers(pipeline), kinds]))
"""


def exact_pipeline(folder) -> VisionLanguagePipeline:
    properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    properties |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    return VisionLanguagePipeline(folder, properties=properties, picture_tokens=70)


def exact_answers(pipeline: VisionLanguagePipeline) -> list[list[int]]:
    cases = [], [noise(90, 60)]
    return [pipeline.ask("Who?" * 20, case, max_new_tokens=12).token_ids for case in cases]


@pytest.mark.slow
@pytest.mark.skipif("AVX-512" not in instruction_sets(), reason="no test here has it")
def test_a_processor_without_avx512(folder, fork):
    """As far as oneDNN can be told to be on one: nothing ends the process, the tokens are equal."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    program = fork.run("-c", CAPPED, folder.path, environment=environment)
    assert program.returncode == 0, program.stderr
    answers, kinds = json.loads(program.stdout.splitlines()[-1])
    assert answers == exact_answers(exact_pipeline(folder.path))
    assert not [kind for kind in kinds if kind.startswith(("brgemm_avx512", "brgemm_amx"))]


# Steps


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives freed memory back when asked")
@torch.inference_mode()
def test_steps_take_no_memory(folder):
    """Layers that share keys are computed in few lengths, so that none is compiled for each.

    In one run 1000 steps took 10 MB; as the file has them, each took 5 MB.
    """
    pipeline = VisionLanguagePipeline(folder.path, properties={"INFERENCE_NUM_THREADS": 1})
    ids = pipeline.processor.input_ids([user_message("What is it?")])
    output = pipeline.language_model(**pipeline.prepare(ids))

    def kept_after(steps: int) -> int:
        nonlocal output
        for _ in range(steps):
            token, cache = torch.tensor([[5]]), output.past_key_values
            output = pipeline.language_model(input_ids=token, past_key_values=cache)
        return_freed_memory()
        return anonymous_memory(os.getpid())

    first = kept_after(20)
    assert kept_after(80) - first < 40e6
