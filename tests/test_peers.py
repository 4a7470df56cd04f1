"""`vlm benchmark FOLDER --against`: other engines beside ours, each in its own environment."""

import json

import pytest
import torch

from helpers.__main__ import main
from helpers.errors import SettingsError
from helpers.graphs.part_names import LANGUAGE_MODEL
from helpers.measure.peers import comparison, here, llama_build, runners
from helpers.measure.peers.comparison import EngineFigures, compare_engines, lines_of, rows_of
from helpers.measure.peers.jobs import Clock
from helpers.measure.peers.layouts import gguf_layout
from helpers.measure.peers.runners import HERE, EngineRound, Runner
from helpers.measure.random_checkpoint import random_model
from helpers.models import load_model
from helpers.run.tuning import Tuning, key_of, write_tuning
from helpers.sources.checkpoints import BUNDLED

INSTALLED = [name for name in (".venv-genai", ".venv-llama") if runners.python_of(name).exists()]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Measure few tokens, twice."""
    monkeypatch.setattr(comparison, "TOKENS", 4)
    monkeypatch.setattr(comparison, "ROUNDS", 2)


@pytest.fixture
def not_installed(monkeypatch, tmp_path):
    """Have no environment beside this one."""
    python_of = runners.python_of
    monkeypatch.setattr(
        comparison, "python_of", lambda name: python_of(name) if name == HERE else tmp_path / name
    )


@pytest.mark.slow
def test_pytorch_is_measured_and_what_is_missing_is_said(
    bundled_folder, not_installed, capsys, tmp_path
):
    folder, output = bundled_folder("internvl2", "int8"), tmp_path / "figures.json"
    names = "pytorch,genai,llama.cpp"
    command = ["benchmark", str(folder), "--against", names, "--output", str(output)]
    assert main(command) == 0
    text = capsys.readouterr().out
    for name in ("genai", "llama.cpp"):
        assert f"{name} is left out: it is not installed here; `make peers` installs it" in text
    data = json.loads(output.read_text(encoding="utf-8"))
    ours, pytorch = data["engines"].values()
    first, second = data["engines"]
    assert first == "vlm" and second.startswith("PyTorch")
    assert len(ours["rounds"]) == len(pytorch["rounds"]) == 2
    for figures in (ours, pytorch):
        assert figures["memory"] > 5e7
        for of_round in figures["rounds"]:
            assert of_round["prompt_tokens"] == ours["rounds"][0]["prompt_tokens"] > 50
            steps = [of_round[name] for name in comparison.STEPS]
            assert all(0 < seconds < 60 for seconds in steps)


class Steps:
    """A runner without a process: a peer ends in its second round."""

    version, memory = "1.0", (1, 1)

    def __init__(self, environment, module, settings) -> None:
        self.calls = iter([1, 1, 1] if "dtype" not in settings else [1, 1])

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def measure(self):
        for seconds in self.calls:
            return EngineRound(seconds, seconds, seconds, 60)
        raise SettingsError("it was killed")


def test_a_peer_that_ends_in_a_later_round_is_left_out(converted, not_installed, monkeypatch):
    monkeypatch.setattr(comparison, "Runner", Steps)
    result = compare_engines(converted, ["pytorch"])
    assert list(result.engines) == ["vlm"] and len(result.engines["vlm"].rounds) == 2
    (words,) = result.left_out
    assert words.startswith("PyTorch") and words.endswith("is left out: it was killed")


@pytest.mark.parametrize("is_tuned", [True, False])
def test_a_tuned_folder_has_the_threads_that_tune_chose(converted, monkeypatch, tmp_path, is_tuned):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path))
    write_tuning(Tuning(key_of(converted), {LANGUAGE_MODEL: {"INFERENCE_NUM_THREADS": 1}}))
    _, measure = here.start({"folder": converted, "threads": 2, "tuned": is_tuned})
    properties = measure.args[0].properties[LANGUAGE_MODEL]
    assert properties["INFERENCE_NUM_THREADS"] == (1 if is_tuned else 2)


def test_what_is_not_measured_against_is_refused(converted, capsys):
    assert main(["benchmark", str(converted), "--against", "ollama"]) == 1
    assert "There is nothing called 'ollama' to measure against" in capsys.readouterr().err
    assert main(["benchmark", "internvl2-1b", "--against", "genai"]) == 1
    assert "internvl2-1b is measured against pytorch only" in capsys.readouterr().err


def test_a_runner_that_fails_is_told_in_its_last_words(tmp_path):
    with pytest.raises(SettingsError, match="KeyError: 'folder'"):
        Runner(HERE, "here", {})


def test_a_runner_that_was_killed_is_told(converted, monkeypatch):
    """What it said before is no reason."""

    class Killed(Runner):
        def measure(self):
            self._process.kill()
            return super().measure()

    monkeypatch.setattr(comparison, "Runner", Killed)
    sentence = "vlm cannot be measured: its process was killed, as systems do without memory; free"
    with pytest.raises(SettingsError, match=sentence):
        compare_engines(converted, [])


def test_the_table_has_each_engine_s_median_and_its_ratio(monkeypatch):
    engines = {
        "vlm": EngineFigures(
            "1", [EngineRound(0.8, 0.4, s, 280) for s in (0.01, 0.02, 0.9)], 10**9, 1
        ),
        "llama.cpp Q4_0": EngineFigures("2", [EngineRound(None, 1.0, 0.03, 281)] * 3, 5 * 10**8, 2),
    }
    result = comparison.PeerComparison(
        "1b", "int4", "", comparison.computer(), 2, (448, 448), 32, engines, ["genai is left out"]
    )
    rows = {row[""]: row for row in rows_of(result)}
    assert rows["next token"]["vlm"] == "20 ms (1.00)"
    assert rows["next token"]["llama.cpp Q4_0"] == "30 ms (1.50)"
    assert rows["prompt of 280"]["llama.cpp Q4_0"] == "1 s (2.50)"
    assert rows["image encoder"]["llama.cpp Q4_0"] == "-"
    assert rows["memory"]["llama.cpp Q4_0"] == "500.0 MB (0.50)"
    assert lines_of(result)[2:] == ["llama.cpp Q4_0's prompt has 281 tokens", "genai is left out"]


def test_a_clock_tells_the_first_token_from_the_next():
    clock = Clock()
    start = clock.times[0]
    clock.times += [start + 5, start + 6, start + 8, start + 10]
    assert clock.first_and_next == (5, 2)


def test_a_model_is_random_and_otherwise_the_folder_s(converted, checkpoint):
    model, original = random_model(converted, torch.float32), load_model(checkpoint, torch.float32)
    shapes = {name: tensor.shape for name, tensor in original.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        logits = model.language_model(input_ids=ids).logits
        assert logits.isfinite().all()
        assert not torch.allclose(logits, original.language_model(input_ids=ids).logits)


# What llama.cpp is given


def test_a_layout_says_all_sizes(converted, checkpoint):
    layout, config = gguf_layout(converted), load_model(checkpoint).language_model.config
    assert layout["architecture"] == "qwen2"
    sizes = layout["sizes"]
    assert sizes["embedding_length"] == config.hidden_size
    assert sizes["rope_freq_base"] == config.rope_parameters["rope_theta"] > 0
    assert sizes["head_count"] * sizes["key_length"] == config.hidden_size
    rows = sizes["vocab_size"]
    assert layout["tensors"]["lm_head.weight"] == [rows, config.hidden_size]


@pytest.mark.parametrize("name", ["llava_mpt", "minicpm_v2", "mllama", "qwen3_vl"])
def test_a_language_model_that_its_files_do_not_have_is_named(name):
    with pytest.raises(SettingsError, match="llama, qwen2, qwen3 here, and this one is of the"):
        gguf_layout(BUNDLED / name)


def test_llama_is_built_for_what_the_processor_has():
    flags = ["avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni"]
    options = llama_build.arguments(flags).split()
    assert "-DGGML_NATIVE=OFF" in options and "-DGGML_AVX2=ON" in options
    assert "-DGGML_AVX512=OFF" in options  # which needs more of its parts than are there
    assert "-DGGML_AVX_VNNI=ON" in options and "-DGGML_AMX_INT8=OFF" in options
    assert "NATIVE" not in llama_build.arguments([])  # another kind of processor


def test_all_engines_in_one_run(request, bundled_folder):
    """In `make integration` only; llama.cpp where `make peers` has built it."""
    if not request.config.getoption("integration"):
        pytest.skip("in `make integration`")
    assert ".venv-genai" in INSTALLED, "make genai"
    result = compare_engines(bundled_folder("internvl2", "int8"), ["genai", "llama.cpp"])
    assert {"vlm", "GenAI"} <= result.engines.keys()
    assert ("llama.cpp Q4_0" in result.engines) == (".venv-llama" in INSTALLED), result.left_out
    for figures in result.engines.values():
        for of_round in figures.rounds:
            assert 0 < of_round.next_token < 1 and 0 < of_round.prompt < 10
