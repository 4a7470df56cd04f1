"""Measuring what a model costs, and checkpoints of random weights in the authors' layouts."""

import json
import os
import re
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from transformers import AutoConfig

from helpers import resources, speed_commands
from helpers.__main__ import main
from helpers.errors import SettingsError
from helpers.graphs.part_names import LANGUAGE_MODEL, PER_LAYER_EMBEDDINGS, TEXT_EMBEDDINGS
from helpers.graphs.presets import find_preset
from helpers.inputs.messages import user_message
from helpers.measure import benchmark, full_size, random_checkpoint, tasks
from helpers.measure.benchmark import computer, figure_rows
from helpers.measure.figures import Figures, Running, from_json
from helpers.measure.full_size import (
    Measurement,
    PeerMeasurement,
    full_size_rows,
    gains,
    history,
    measurements_of_family,
    newest_by_kind,
    processor_kind,
    processor_of,
)
from helpers.measure.peers.comparison import EngineFigures, PeerComparison
from helpers.measure.peers.runners import EngineRound
from helpers.measure.tasks import measure
from helpers.models import families as register
from helpers.models import load_model, minicpm_v2_vision
from helpers.models.families import families, family_of, family_of_original, find_original
from helpers.resources import Growth, anonymous_memory, in_words
from helpers.sources.checkpoints import BUNDLED
from helpers.sources.saving import save_tensors
from helpers.workshop import history as history_module
from helpers.workshop import image_encoders
from helpers.workshop.full_size_page import anchor, full_size_text
from helpers.workshop.history import MARGIN, SlowerError, append
from helpers.workshop.readme import ROOT, full_size_page
from tests.tiny import picture

ORIGINALS = [original.name for family in families() for original in family.originals]
MEASURED = sorted(path.stem for path in (ROOT / "notebooks" / "full-size").glob("*.jsonl"))


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Measure the bundled InternVL2 in INT4 and in PyTorch."""
    return benchmark.benchmark(
        "internvl2-1b", tmp_path_factory.mktemp("measured"), against=["float32"]
    )


@pytest.mark.slow
def test_what_is_measured(figures):
    assert figures.runs.keys() == {"int4", "PyTorch float32"}
    run = figures.runs["int4"]
    assert run.conversion.bytes_by_part.keys() == run.conversion.seconds_by_part.keys()
    bandwidth = run.running.speed.bandwidth
    assert bandwidth > 1e9
    size = run.conversion.bytes_by_part[LANGUAGE_MODEL]
    assert run.floor.seconds * bandwidth == pytest.approx(size)
    for task in (run.conversion, run.running):
        assert 2e7 < task.peak_memory < 4e9 and 0 < task.seconds < 300
    assert len(run.running.rounds) == tasks.ROUNDS
    assert run.running.second_question < run.running.first_question
    assert 0 <= run.running.stop < 1
    assert 0.1 < run.profile.kernels / run.profile.step < 1
    assert "FullyConnected" in str(run.profile.largest)
    assert figures.parameters[LANGUAGE_MODEL] > figures.parameters["others"]


@pytest.mark.slow
def test_figures_are_the_same_from_a_file(figures):
    assert from_json(Figures, json.loads(json.dumps(asdict(figures)))) == figures


@pytest.mark.slow
def test_the_table_and_the_page(figures):
    rows = figure_rows(figures)
    assert [row["model"] for row in rows] == ["int4", "PyTorch float32"]
    assert rows[1]["floor"] == rows[1]["on disk"] == "-"
    text = full_size_text([[Measurement("a1b2c3d", "2026-11-27T09:00:00+00:00", figures)]])
    kind = processor_kind(figures.computer)
    assert (
        "## internvl2-1b\n" in text
        and f"### internvl2-1b on {kind}\n" in text
        and "second question, first token" in text
    )
    assert f"a1b2c3d             2026-11-27  {figures.runs['int4'].floor.times:.2f}" in text


def test_each_section_of_the_page_has_an_address_of_its_own_and_links_lead_there():
    text = full_size_page()
    addresses = [anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    assert len(set(addresses)) == len(addresses)
    assert set(re.findall(r"\(#(.+?)\)", text)) == set(addresses) - {addresses[0]}
    assert set(MEASURED) <= {model for model in ORIGINALS if anchor(model) in addresses}


def test_the_page_says_what_each_precision_stands_for():
    assert f"*int4*: {find_preset('int4')}" in full_size_page()


@pytest.mark.parametrize("name", MEASURED)
def test_at_full_size(name):
    """What was measured keeps to its limits, where they do not depend on the computer's speed."""
    figures = history(ROOT / "notebooks" / "full-size" / f"{name}.jsonl", Measurement)[-1].figures
    conversion, running = figures.runs["int4"].conversion, figures.runs["int4"].running
    size, weights = conversion.bytes, sum(figures.parameters.values())
    assert figures.full_size and conversion.peak_memory <= size + 1.5 * 2**30
    if weights >= 6.5e9:
        shares = {width.type: width.share for width in conversion.bit_widths[LANGUAGE_MODEL]}
        if shares["u8"] < 0.1:
            assert round(size / weights, 2) <= 0.62  # 0.6203 with 1.2 of 8.8 billion at 8 bits
        else:  # much of it in 8 bits: a recurrence, or the head of a large vocabulary
            tables = {TEXT_EMBEDDINGS, PER_LAYER_EMBEDDINGS} & conversion.bytes_by_part.keys()
            if AutoConfig.for_model(**find_original(name).config).tie_word_embeddings:
                tables.discard(TEXT_EMBEDDINGS)  # the head is that table once more
            table_size = sum(conversion.bytes_by_part[table] for table in tables)  # a byte each
            stored = figures.parameters[LANGUAGE_MODEL] - table_size
            expected = stored * (1.01 * shares["u8"] + 0.525 * shares["u4"])  # scales included
            assert conversion.bytes_by_part[LANGUAGE_MODEL] <= expected
    assert running.peak_memory < 24 * 2**30
    assert running.first_question >= 5 * running.second_question and running.stop < 1
    if name == "internvl2-1b":  # as in the original tutorial
        widths = {
            width.type: (width.layers, round(width.share, 2))
            for width in conversion.bit_widths[LANGUAGE_MODEL]
        }
        assert widths == {"u8": (1, 0.28), "u4": (168, 0.72)}


def slowed(measurement: Measurement, factor: float) -> Measurement:
    """Return a measurement whose tokens in INT4 take so many times as long."""
    run = measurement.figures.runs["int4"]
    floor = replace(run.floor, times=run.floor.times * factor)
    runs = measurement.figures.runs | {"int4": replace(run, floor=floor)}
    return replace(measurement, figures=replace(measurement.figures, runs=runs))


@pytest.fixture
def measurement() -> Measurement:
    return history(ROOT / "notebooks" / "full-size" / "internvl3-1b.jsonl", Measurement)[-1]


def test_a_slower_run_is_refused_and_told(measurement, tmp_path):
    path = tmp_path / "model.jsonl"
    append(path, measurement)
    append(path, slowed(measurement, MARGIN - 0.01))
    with pytest.raises(SlowerError, match=r"internvl3-1b in int4 takes 5\.\d\d times its floor"):
        append(path, slowed(measurement, MARGIN**2))
    assert len(history(path, Measurement)) == 2 and history(path, Measurement)[0] == measurement


def beside(milliseconds: float) -> PeerComparison:
    """Return figures of two engines, of which ours takes so long for a token, the other 20 ms."""
    rounds = {
        name: [EngineRound(None, prompt=1.0, next_token=seconds, prompt_tokens=280)] * 5
        for name, seconds in (("vlm", milliseconds / 1000), ("llama.cpp Q4_0", 0.02))
    }
    engines = {name: EngineFigures("1.0", values, 10**9, 10**8) for name, values in rounds.items()}
    here = replace(computer(), instruction_sets=["AVX2"])
    return PeerComparison(
        "internvl2-1b", "int4", "", here, 2, (448, 448), 32, engines, ["genai is out"]
    )


def test_figures_beside_other_engines_have_a_history_and_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(full_size, "PEERS", tmp_path)
    monkeypatch.setattr(history_module, "PEERS", tmp_path)
    file = tmp_path / "figures.json"
    for milliseconds, code in ((26, 0), (30, 0), (40, 1)):
        file.write_text(json.dumps(asdict(beside(milliseconds))), encoding="utf-8")
        assert history_module.main([str(file)]) == code
    error = capsys.readouterr().err
    assert "A token of internvl2-1b takes 2.00 times that of llama.cpp Q4_0; on " in error
    assert "it took 1.50, and 1.25 times that is allowed." in error
    assert [line.times for line in full_size.peers_of("internvl2-1b")] == [
        {"llama.cpp Q4_0": pytest.approx(1.3)},
        {"llama.cpp Q4_0": pytest.approx(1.5)},
    ]
    page = full_size_text([history(full_size.FOLDER / "internvl2-1b.jsonl", Measurement)])
    processor = computer().processor
    assert f"### internvl2-1b beside other engines, int4 on {processor} (AVX2)\n" in page
    assert "- genai is out\n" in page and "20 ms (0.67)" in page and "1.50" in page
    file.write_text(json.dumps(asdict(replace(beside(26), folder="mine"))), encoding="utf-8")
    assert history_module.main([str(file)]) == 1
    assert "There is no model 'mine' to measure" in capsys.readouterr().err
    assert history_module.main([str(tmp_path / "none.json")]) == 1
    sentence = f"{tmp_path} has no none.json; give what `vlm benchmark --output` wrote."
    assert f"error: {sentence}\n" in capsys.readouterr().err


def test_runs_beside_different_engines_are_in_one_table(tmp_path, monkeypatch):
    """PyTorch is another engine where the processor multiplies 16 bits."""
    monkeypatch.setattr(full_size, "PEERS", tmp_path)
    figures = beside(30)
    engines = dict(zip(("vlm", "PyTorch bfloat16"), figures.engines.values(), strict=True))
    for run in (figures, replace(figures, engines=engines)):
        append(tmp_path / "internvl2-1b.jsonl", PeerMeasurement("a1b2c3d", "2026-11-30", run))
    page = full_size_text([history(full_size.FOLDER / "internvl2-1b.jsonl", Measurement)])
    table = page.split("A token in times of the other engines', run by run")[1].split("```")[1]
    header, _, *lines = table.strip().splitlines()
    assert re.search(r"llama\.cpp Q4_0 +PyTorch bfloat16", header)
    assert [line.split()[2:4] for line in lines] == [["1.50", "-"], ["-", "1.50"]]


def test_what_notebooks_show_of_a_familys_originals():
    """The newest measurement of each original, the small ones first; the ends of them drawn."""
    rows = full_size_rows("internvl2")
    measured = measurements_of_family("internvl2")
    assert {measurement.kind for measurement in measured} == {processor_of("internvl2")}
    assert len(measured) >= 2 and {"fp16", "int8", "int4"} <= {row["in"] for row in rows}
    models = list(dict.fromkeys(row["original"] for row in rows))
    assert models[0] in ("internvl2-1b", "internvl3-1b") and models[-1] == "internvl2-8b"
    figures = history(ROOT / "notebooks" / "full-size" / "internvl2-8b.jsonl", Measurement)[
        -1
    ].figures
    milliseconds = figures.runs["int4"].running.speed.next_token * 1000
    (row,) = (row for row in rows if (row["original"], row["in"]) == ("internvl2-8b", "int4"))
    assert row["next token"] == f"{milliseconds:.0f} ms"
    sizes = {row["in"]: row["size"] for row in rows if row["original"] == "internvl2-8b"}
    assert sizes["PyTorch bfloat16"] == in_words(2 * sum(figures.parameters.values()))
    groups = gains("internvl2")
    assert groups["internvl2-8b, ms a token"]["int4"] == milliseconds
    assert in_words(1e9 * groups["internvl2-8b, gigabytes"]["int8"]) == sizes["int8"]
    assert list(groups) == [
        f"{model}, {unit}"
        for model in (models[0], models[-1])
        for unit in ("gigabytes", "ms a token")
    ]


def test_what_notebooks_say_of_fewer_bits_is_so():
    """All have the same sentences below the table: half to five sixths, a seventh less, a third."""
    eight_by_sixteen, four_by_eight = [], []
    for family in families():
        if history(full_size.FOLDER / f"{family.originals[0].name}.jsonl", Measurement):
            for measurement in measurements_of_family(family.name):
                runs = measurement.figures.runs.items()
                tokens = {name: run.running.speed.next_token for name, run in runs}
                if {"fp16", "int8"} <= tokens.keys():
                    eight_by_sixteen.append(tokens["int8"] / tokens["fp16"])
                if {"int8", "int4"} <= tokens.keys():
                    four_by_eight.append(tokens["int4"] / tokens["int8"])
    assert len(eight_by_sixteen) > 5 and len(four_by_eight) > 5
    ends = [end(ratios) for ratios in (eight_by_sixteen, four_by_eight) for end in (min, max)]
    assert ends == pytest.approx([1 / 2, 5 / 6, 6 / 7, 4 / 3], abs=0.03)
    questions = (ROOT / "docs" / "workshop.md").read_text(encoding="utf-8")
    assert "INT8 takes half to five sixths of the time" in questions


@pytest.mark.parametrize(
    "models", [("internvl2-1b", "internvl2-8b"), ("internvl2-8b", "internvl2-1b")]
)
def test_small_models_come_first_whatever_their_files_are_called(tmp_path, monkeypatch, models):
    for name, model in zip("ab", models, strict=True):
        shutil.copyfile(full_size.FOLDER / f"{model}.jsonl", tmp_path / f"{name}.jsonl")
    monkeypatch.setattr(full_size, "FOLDER", tmp_path)
    assert [lines[0].model for lines in full_size.histories()] == sorted(models)


def test_another_kind_of_processor_has_a_history_of_its_own(measurement, tmp_path):
    path = tmp_path / "model.jsonl"
    computer = replace(measurement.figures.computer, instruction_sets=["AVX2"])
    other = replace(measurement, figures=replace(measurement.figures, computer=computer))
    for line in (measurement, slowed(other, 3), slowed(measurement, 0.5)):
        append(path, line)
    newest = newest_by_kind(history(path, Measurement))
    assert newest == [slowed(measurement, 0.5), slowed(other, 3)]


def test_every_measured_model_is_an_original():
    assert set(MEASURED) <= set(ORIGINALS) and len(MEASURED) >= 8


def test_a_model_that_nobody_knows(capsys):
    assert main(["benchmark", "gpt"]) == 1
    assert capsys.readouterr().err == (
        f"error: There is no model 'gpt' to measure; use {', '.join(ORIGINALS)}.\n"
    )
    assert main(["benchmark", "internvl2-1b", "--precision", "int3"]) == 1
    assert "The precision 'int3' does not exist" in capsys.readouterr().err


def test_a_task_that_fails_is_told(tmp_path):
    """In the sentence of its process."""
    with pytest.raises(SettingsError, match=r"^\S+ holds no finished conversion; .* makes one\.$"):
        measure("running", Running, folder=tmp_path, picture=(8, 8))


def test_a_task_that_ends_without_a_sentence_is_told(tmp_path, monkeypatch):
    place = tmp_path / "helpers" / "measure"
    place.mkdir(parents=True)
    for name in ("../__init__", "__init__", "tasks"):
        (place / f"{name}.py").write_text("raise SystemExit(4)" if name == "tasks" else "")
    monkeypatch.chdir(tmp_path)  # where `-m` looks first
    with pytest.raises(SettingsError, match=r"Measuring ended early \(exit code 4\) in running"):
        measure("running", Running)


def test_what_does_not_fit_is_left_out(monkeypatch, tmp_path):
    """There is memory for the weights in 16 bits and not in 32."""
    lines = []
    number = sum(benchmark.count_parameters(load_model(BUNDLED / "internvl2")).values())
    monkeypatch.setattr(benchmark, "available_memory", lambda: 2 * number)
    monkeypatch.setattr(benchmark, "measure", lambda *_, dtype, **__: dtype)
    figures = benchmark.benchmark(
        "internvl2-1b",
        tmp_path,
        precisions=(),
        against=["float32", "bfloat16"],
        report=lines.append,
    )
    assert list(figures.runs) == ["PyTorch bfloat16"]
    (line,) = lines
    assert line.startswith(
        f"PyTorch float32 is left out: it takes {in_words(4 * number)} of memory"
    )


@pytest.mark.parametrize(
    ("groups", "place", "files"),
    [
        ("0::/a/b\n", "a", ("memory.max", "memory.current", "inactive_file")),
        ("0::/a/b\n", "", ("memory.max", "memory.current", "inactive_file")),
        (
            "9:cpu:/a\n4:memory:/a/b\n0::/\n",
            "memory/a",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_the_limit_of_a_container_counts(tmp_path, monkeypatch, groups, place, files):
    """It has 900 bytes, of which 700 are used, 500 of these for files that make room."""
    monkeypatch.setattr(resources, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(resources, "GROUPS_OF_PROCESS", tmp_path / "cgroup")
    free = resources.available_memory()
    assert free > 1e6
    (tmp_path / "cgroup").write_text(groups)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    limit, used, of_files = files
    for name, text in ((limit, "900\n"), (used, "700\n"), ("memory.stat", f"{of_files} 500\n")):
        (tmp_path / place / name).write_text(text)
    assert resources.available_memory() == 700
    (tmp_path / place / limit).write_text("max\n")
    assert resources.available_memory() > 1e6


def test_memory_is_counted_without_mapped_files():
    before = anonymous_memory(os.getpid())
    with Growth() as growth:
        tensor = torch.ones(50_000_000, dtype=torch.uint8)
        assert anonymous_memory(os.getpid()) - before > 45e6
        time.sleep(0.1)
    assert 45e6 < growth.bytes < 80e6 and len(tensor)
    assert anonymous_memory(2**22 + 1) == 0  # no process has this number


# Checkpoints of random weights


@pytest.fixture
def small(monkeypatch, tmp_path_factory):
    """Make every full-size configuration a small one of the same kind."""
    configs = tmp_path_factory.mktemp("originals")
    for name in ORIGINALS:
        config = shrunk(find_original(name).config)
        (configs / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr(register, "CONFIGS", configs)
    encoders = shrunk(minicpm_v2_vision.VISION_ENCODERS)
    monkeypatch.setattr(minicpm_v2_vision, "VISION_ENCODERS", encoders)
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
    "insert_layer_id": 1,
    "dim_model_base": 64,
    # the image encoder of Qwen3-VL and Qwen3.5
    "num_heads": 4,
    "depth": 3,
    "deepstack_visual_indexes": [0, 1, 2],
    "out_hidden_size": 128,
    "num_position_embeddings": 64,
    # Gemma 4: both kinds of layers, those that have keys and those that share them
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 32,
}


def shrunk(config: dict) -> dict:
    """Return a configuration with all its sizes made small."""
    return {
        name: shrunk(value) if isinstance(value, dict) else SIZES.get(name, value)
        for name, value in config.items()
    }


@pytest.mark.parametrize("name", ORIGINALS)
def test_random_weights_are_read_as_an_original(name, small, tmp_path):
    folder = random_checkpoint.write_random(find_original(name), tmp_path / "one")
    model = load_model(folder)
    assert model.dtype == torch.bfloat16
    assert (
        load_model(random_checkpoint.write_random(find_original(name), folder)).dtype == model.dtype
    )  # kept
    inputs = model.image_inputs([picture()])
    ids = model.processor.input_ids([user_message("What?", 1)], inputs)
    model = load_model(folder, torch.float32)
    with torch.inference_mode():
        logits = model(**model.prepare(ids, model.encode_images(**inputs))).logits
    assert logits.isfinite().all() and logits.std() > 0
    again = random_checkpoint.write_random(find_original(name), tmp_path / "two")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    config = json.loads((again / "config.json").read_text(encoding="utf-8"))
    assert config == json.loads((folder / "config.json").read_text(encoding="utf-8"))


def test_random_weights_of_another_original_are_replaced(small, tmp_path):
    """Those of the same place once measured as another model."""
    first, second = find_original("internvl2-1b"), find_original("mobilevlm")
    folder = random_checkpoint.write_random(first, tmp_path / "checkpoint")
    assert not list(tmp_path.rglob("*.bin"))
    random_checkpoint.write_random(second, folder)
    assert family_of(folder) is family_of_original(second)
    expected = random_checkpoint.write_random(second, tmp_path / "expected")
    assert names_in(folder) == names_in(expected)
    config = (folder / "config.json").read_text(encoding="utf-8")
    assert config == (expected / "config.json").read_text(encoding="utf-8")


def names_in(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_random_weights_that_are_not_whole_are_written_again(small, tmp_path, monkeypatch):
    original = find_original("internvl2-1b")
    with monkeypatch.context() as patched:
        patched.setattr(random_checkpoint, "_filled", interrupted)
        with pytest.raises(KeyboardInterrupt):
            random_checkpoint.write_random(original, tmp_path / "checkpoint")
    assert load_model(random_checkpoint.write_random(original, tmp_path / "checkpoint"))


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_checkpoint_of_somebody_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}", encoding="utf-8")
    command = ("benchmark", "internvl2-1b", "--full-size", "--folder", str(tmp_path))
    assert main(command) == 1
    error = f"error: {tmp_path / 'checkpoint'} holds something else; give another folder.\n"
    assert capsys.readouterr().err == error
    assert names_in(tmp_path / "checkpoint") == ["config.json"]


def test_a_disk_that_is_too_small_for_random_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(random_checkpoint, "free_disk", lambda folder: 10**6)
    assert main(["benchmark", "internvl2-1b", "--full-size", "--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "error: The checkpoint of internvl2-1b takes 1.9 GB of disk, and 1.0 MB are free at "
        f"{tmp_path / 'checkpoint'}; give a folder on a larger disk.\n"
    )


def test_a_memory_that_is_too_small_for_random_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(random_checkpoint, "available_memory", lambda: 10**9)
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=0))
    assert main(["benchmark", "internvl2-1b", "--full-size", "--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "error: Writing the checkpoint of internvl2-1b takes 1.9 GB of memory, and 1.0 GB are "
        "free; close other programs, or take a smaller original.\n"
    )
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_folder_for_measuring_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file")
    assert main(["benchmark", "internvl2-1b", "--full-size", "--folder", folder]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("cannot be written (Not a directory); give another folder.")


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_a_disk_that_is_full_while_tensors_are_written(tmp_path, ending):
    with pytest.raises(OSError, match="No such file|does not exist"):
        list(save_tensors([{"x": torch.ones(2)}], Disk(tmp_path / "none"), ending))


class Disk(type(Path())):
    """A folder that does not come to be."""

    def mkdir(self, *_, **__) -> None:
        """Make nothing."""


def test_large_files_do_not_go_where_memory_may_be(monkeypatch, tmp_path):
    monkeypatch.setattr(speed_commands, "LASTING", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "/somewhere")
    assert speed_commands._large_place() is None  # it is what the user says
    monkeypatch.delenv("TMPDIR")
    assert speed_commands._large_place() == str(tmp_path)
    monkeypatch.setattr(speed_commands, "LASTING", str(tmp_path / "none"))
    assert speed_commands._large_place() is None


# An image encoder alone


def test_an_image_encoder_alone_is_measured_and_shown(small, tmp_path, monkeypatch):
    monkeypatch.setattr(full_size, "ENCODERS", tmp_path / "encoders")
    monkeypatch.setattr(image_encoders, "ENCODERS", tmp_path / "encoders")
    monkeypatch.setattr(image_encoders, "ROUNDS", 2)
    place = tmp_path / "made"
    changes = tmp_path / "changes.json"
    changes.write_text('{"vision_config": {"num_hidden_layers": 2}}', encoding="utf-8")
    arguments = ["internvl2-1b", str(place), "--changes", str(changes)]
    assert image_encoders.main(arguments) == 0
    encoder = full_size.encoder_of("internvl2-1b")
    assert {name: len(run.rounds) for name, run in encoder.runs.items()} == {
        "int8": 2,
        "int8-activations": 2,
    }
    assert all(min(run.rounds) > 0 and run.bytes > 1e5 for run in encoder.runs.values())
    rows = full_size.encoder_rows(encoder)
    assert [row["image encoder"] for row in rows] == ["int8", "int8-activations"]
    assert rows[0]["on disk"] == in_words(encoder.runs["int8"].bytes)
    text = full_size_text([history(full_size.FOLDER / "internvl2-1b.jsonl", Measurement)])
    assert "### internvl2-1b, the image encoder alone" in text
    assert "vision_config.num_hidden_layers = 2" in text
    times = sorted(path.stat().st_mtime_ns for path in place.rglob("*.xml"))
    assert image_encoders.main(arguments) == 0  # goes on from what is there
    assert times == sorted(path.stat().st_mtime_ns for path in place.rglob("*.xml"))


def test_an_image_encoder_that_takes_more_than_a_picture_is_refused(small, tmp_path, capsys):
    assert image_encoders.main(["qwen3-vl-2b", str(tmp_path)]) == 1
    assert "takes attention_mask, hidden_states" in capsys.readouterr().err
