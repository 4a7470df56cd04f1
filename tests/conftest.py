"""Fixtures of several test files: the small random model, as a checkpoint and converted."""

import time
from types import SimpleNamespace

import pytest
import torch

from helpers.convert import conversion
from helpers.graphs import presets
from helpers.models import load_model
from helpers.run.generation import StatefulLanguageModel
from helpers.run.pipeline import VisionLanguagePipeline
from tests.browser import screenshot  # noqa: F401
from tests.tiny import write_tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Return the folder of a small random InternVL2 in its authors' layout."""
    return write_tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def torch_model(checkpoint):
    """Return the small model in PyTorch, computing in 32 bits."""
    return load_model(checkpoint, torch.float32)


@pytest.fixture(scope="session")
def converted(checkpoint, tmp_path_factory):
    """Return the small model as a folder of IR whose weights are the checkpoint's."""
    folder = tmp_path_factory.mktemp("converted") / "internvl2"
    conversion.convert(checkpoint, folder, presets.find_preset("fp16"))
    return folder


@pytest.fixture(scope="session")
def pipeline(converted):
    """Return the converted model on the CPU, computing as PyTorch does."""
    return VisionLanguagePipeline(converted, accuracy=True)


@pytest.fixture
def computed(monkeypatch):
    """Return a list that fills with the number of positions of each step that is computed."""
    steps: list[int] = []
    run = StatefulLanguageModel._run

    def counted(self, cache, inputs, pictures):
        steps.append(inputs["inputs_embeds"].shape[1])
        run(self, cache, inputs, pictures)

    monkeypatch.setattr(StatefulLanguageModel, "_run", counted)
    return steps


@pytest.fixture
def slowly(monkeypatch):
    """Let every step take a moment, its `seconds`, so that there is time to stop it."""
    run, pace = StatefulLanguageModel._run, SimpleNamespace(seconds=0.03)

    def slow(self, cache, inputs, pictures):
        time.sleep(pace.seconds)
        run(self, cache, inputs, pictures)

    monkeypatch.setattr(StatefulLanguageModel, "_run", slow)
    return pace
