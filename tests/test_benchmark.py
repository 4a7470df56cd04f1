"""Measuring what a model costs, and checkpoints of random weights in the authors' layouts."""

import json
import os
import time

import pytest
import torch

from helpers.__main__ import main
from helpers.errors import SettingsError
from helpers.graphs.tracing import LANGUAGE_MODEL
from helpers.inputs.prompts import user_message
from helpers.measure import benchmark, full_size, random_checkpoint
from helpers.measure.benchmark import SUBJECTS, measure, page, table
from helpers.models import load_model
from helpers.resources import Growth, anonymous_memory
from helpers.sources.checkpoints import read_json
from helpers.workshop.readme import ROOT, full_size_page
from tests.tiny import picture

HUB_IDS = sorted({subject.hub_id for subject in SUBJECTS.values()})


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Measure the bundled InternVL2 in INT4 and in PyTorch."""
    return benchmark.benchmark(
        "internvl2-1b", tmp_path_factory.mktemp("measured"), against=["float32"]
    )


@pytest.mark.slow
def test_what_is_measured(figures):
    assert figures["runs"].keys() == {"int4", "PyTorch float32"}
    run = figures["runs"]["int4"]
    assert run["conversion"]["bytes_by_part"].keys() == run["conversion"]["seconds_by_part"].keys()
    speed, size = run["running"]["speed"], run["conversion"]["bytes_by_part"][LANGUAGE_MODEL]
    assert speed["bandwidth"] > 1e9
    assert run["floor"]["seconds"] * speed["bandwidth"] == pytest.approx(size)
    for task in (run["conversion"], run["running"]):
        assert 2e7 < task["peak_memory"] < 4e9 and 0 < task["seconds"] < 300
    assert len(run["running"]["rounds"]) == benchmark.ROUNDS
    assert run["running"]["second_question"] < run["running"]["first_question"]
    assert 0 <= run["running"]["stop"] < 1
    inside = run["profile"]
    assert 0.2 < inside["kernels"] / inside["step"] < 1
    assert "FullyConnected" in str(inside["largest"])
    assert figures["parameters"][LANGUAGE_MODEL] > figures["parameters"]["others"]


@pytest.mark.slow
def test_the_table_and_the_page(figures):
    rows = table(figures)
    assert [row["model"] for row in rows] == ["int4", "PyTorch float32"]
    assert rows[1]["floor"] == rows[1]["on disk"] == "-"
    text = page([figures])
    assert "## internvl2-1b" in text and "A second question's first token" in text


def test_the_page_is_made_from_the_data():
    path = ROOT / "notebooks" / "FULL_SIZE.md"
    assert path.read_text(encoding="utf-8") == full_size_page(), (
        "run: python -m helpers.workshop.readme"
    )


@pytest.mark.parametrize("name", SUBJECTS)
def test_at_full_size(name):
    """What was measured keeps to its limits, where they do not depend on the computer's speed."""
    found = read_json(ROOT / "notebooks" / "full-size" / f"{name}.json")
    written = found["runs"]["int4"]["conversion"]
    size, every = sum(written["bytes_by_part"].values()), sum(found["parameters"].values())
    assert found["full_size"] and written["peak_memory"] <= size + 1.5 * 2**30
    assert every < 6.5e9 or size / every <= 0.62
    ran = found["runs"]["int4"]["running"]
    assert ran["peak_memory"] < 24 * 2**30
    assert ran["first_question"] >= 5 * ran["second_question"] and ran["stop"] < 1
    if name == "internvl2-1b":  # as in the original tutorial
        widths = {
            w["type"]: (w["layers"], round(w["share"], 2))
            for w in written["bit_widths"][LANGUAGE_MODEL]
        }
        assert widths == {"u8": (1, 0.28), "u4": (168, 0.72)}


def test_a_model_that_nobody_knows(capsys):
    assert main(["benchmark", "gpt"]) == 1
    assert capsys.readouterr().err == (
        f"error: There is no model 'gpt' to measure; use {', '.join(SUBJECTS)}.\n"
    )
    assert main(["benchmark", "internvl2-1b", "--precision", "int3"]) == 1
    assert "The precision 'int3' does not exist" in capsys.readouterr().err


def test_a_task_that_fails_is_told(tmp_path):
    with pytest.raises(SettingsError, match=r"Measuring ended early \(exit code 1\) in running"):
        measure("running", folder=tmp_path, picture=(8, 8))


def test_what_does_not_fit_is_left_out(monkeypatch, tmp_path):
    lines = []
    monkeypatch.setattr(benchmark.psutil, "virtual_memory", lambda: _Memory)
    monkeypatch.setattr(benchmark, "measure", lambda *_, **__: {})
    monkeypatch.setattr(benchmark, "computer", dict)
    found = benchmark.benchmark(
        "internvl2-1b", tmp_path, precisions=(), against=["float32"], report=lines.append
    )
    assert not found["runs"] and "PyTorch float32 is left out" in lines[-1]


class _Memory:
    available = 1000


def test_memory_is_counted_without_mapped_files():
    before = anonymous_memory(os.getpid())
    with Growth() as growth:
        kept = torch.ones(50_000_000, dtype=torch.uint8)
        assert anonymous_memory(os.getpid()) - before > 45e6
        time.sleep(0.1)
    assert 45e6 < growth.bytes < 80e6 and len(kept)
    assert anonymous_memory(2**22 + 1) == 0  # no process has this number


# Checkpoints of random weights


@pytest.fixture
def small(monkeypatch):
    """Make every full-size configuration a small one of the same kind."""
    for hub_id in HUB_IDS:
        monkeypatch.setitem(full_size.FULL_SIZE, hub_id, shrunk(full_size.FULL_SIZE[hub_id]))
    monkeypatch.setattr(random_checkpoint, "BLOCK", 2**16)
    monkeypatch.setattr(random_checkpoint, "SHARD", 2e6)


SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "mm_hidden_size"), 128),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size"), 128),
    **dict.fromkeys(("n_heads", "num_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(("n_layers", "num_hidden_layers"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_global_layers"), 2),
    **dict.fromkeys(("short_factor", "long_factor"), [1.0] * 16),
    "vision_output_dim": 128 * 3,
    "cross_attention_layers": [1, 3],
    "intermediate_layers_indices": [1, 2],
    "dim_model_base": 64,
}


def shrunk(config: dict) -> dict:
    """Return a configuration with all its sizes made small."""
    return {
        name: shrunk(value) if isinstance(value, dict) else SIZES.get(name, value)
        for name, value in config.items()
    }


@pytest.mark.parametrize("hub_id", HUB_IDS)
def test_random_weights_are_read_as_an_original(hub_id, small, tmp_path):
    folder = random_checkpoint.write_random(hub_id, tmp_path / "one")
    model = load_model(folder)
    assert model.dtype == torch.bfloat16
    assert load_model(random_checkpoint.write_random(hub_id, folder)).dtype == model.dtype  # kept
    inputs = model.image_inputs([picture()])
    ids = model.processor.input_ids([user_message("What?", 1)], inputs)
    model = load_model(folder, torch.float32)
    with torch.inference_mode():
        logits = model(**model.prepare(ids, model.encode_images(**inputs))).logits
    assert logits.isfinite().all() and logits.std() > 0
    again = random_checkpoint.write_random(hub_id, tmp_path / "two")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    config = json.loads((again / "config.json").read_text(encoding="utf-8"))
    assert config == json.loads((folder / "config.json").read_text(encoding="utf-8"))
