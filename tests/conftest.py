"""Fixtures of several test files: the small random model, as a checkpoint and converted.

They import what they need, which takes long and which pytest-xdist's first process, that runs no
test, does not need.
"""

import gc
import os
import signal
import sys
import time
from pathlib import Path
from stat import S_IMODE
from types import SimpleNamespace

import pytest
from filelock import FileLock

from tests.browser import browser, new_page, screenshot  # noqa: F401
from tests.disks import mount_memory, unmount
from tests.programs import fork, fork_without_hub  # noqa: F401
from tests.workers import WORKER


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Return the folder of a small random InternVL2 in its authors' layout."""
    from tests.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def torch_model(checkpoint):
    """Return the small model in PyTorch, computing in 32 bits."""
    import torch

    from helpers.models import load_model

    return load_model(checkpoint, torch.float32)


@pytest.fixture(scope="session")
def converted(checkpoint, tmp_path_factory):
    """Return the small model as a folder of IR whose weights are the checkpoint's."""
    from helpers.convert.conversion import convert
    from helpers.graphs.presets import find_preset

    folder = tmp_path_factory.mktemp("converted") / "internvl2"
    convert(checkpoint, folder, find_preset("fp16"))
    return folder


@pytest.fixture(scope="session")
def bundled_folder(tmp_path_factory):
    """Return a function that gives the folder of a bundled model in fp16 or int8.

    All processes of a run share it, so that each is converted once.
    """
    from helpers.convert.conversion import convert
    from helpers.graphs.presets import find_preset
    from helpers.sources.checkpoints import BUNDLED

    place = tmp_path_factory.getbasetemp()
    place = (place.parent if WORKER else place) / "bundled"

    def convert_once(name: str, precision: str) -> Path:
        folder = place / name / precision
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # `convert` keeps a folder that is complete
            convert(BUNDLED / name, folder, find_preset(precision))
        return folder

    return convert_once


@pytest.fixture(scope="session")
def internvl2_folder(bundled_folder) -> Path:
    """Return the folder of the bundled InternVL2 in INT8, of the programs that answer others."""
    return bundled_folder("internvl2", "int8")


@pytest.fixture(scope="session")
def pipeline(converted):
    """Return the converted model on the CPU, computing as PyTorch does."""
    from helpers.run.pipeline import VisionLanguagePipeline

    return VisionLanguagePipeline(converted, accuracy=True)


@pytest.fixture
def interruptible():
    """Let what a test starts be interrupted also where the run itself ignores signals (`nohup`)."""
    if sys.platform == "win32":
        pytest.skip("Windows sends no SIGINT to one process")
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def closed_folder(tmp_path):
    """Return a folder that may not be looked into; the test is an ordinary user's meanwhile."""
    if not hasattr(os, "seteuid"):
        pytest.skip("this system has no such folders")
    user, folder = os.geteuid(), tmp_path / "closed"
    folder.mkdir(mode=0)
    os.seteuid(user or 65534)
    yield folder
    os.seteuid(user)
    folder.chmod(0o700)


@pytest.fixture
def full_disk(tmp_path):
    """Return a folder on a disk that is full, where empty files can still be made."""
    place = tmp_path / "full"
    place.mkdir()
    mount_memory(place, "size=64k")
    with pytest.raises(OSError, match="No space left"):
        (place / "filling").write_bytes(bytes(2**20))
    yield place
    unmount(place)


@pytest.fixture
def computed(monkeypatch):
    """Return a list that fills with the number of positions of each step that is computed."""
    from helpers.run.generation import StatefulLanguageModel

    steps: list[int] = []
    run = StatefulLanguageModel.step

    def counted(self, cache, inputs, pictures):
        steps.append(inputs["inputs_embeds"].shape[1])
        run(self, cache, inputs, pictures)

    monkeypatch.setattr(StatefulLanguageModel, "step", counted)
    return steps


@pytest.fixture
def slowly(monkeypatch):
    """Let every step take a moment, its `seconds`, so that there is time to stop it."""
    from helpers.run.generation import StatefulLanguageModel

    run, pace = StatefulLanguageModel.step, SimpleNamespace(seconds=0.03)

    def slow(self, cache, inputs, pictures):
        time.sleep(pace.seconds)
        run(self, cache, inputs, pictures)

    monkeypatch.setattr(StatefulLanguageModel, "step", slow)
    return pace


@pytest.fixture
def become_ordinary(tmp_path):
    """Return a function that lets the test be an ordinary user, who can enter `tmp_path`."""
    if not hasattr(os, "seteuid"):
        pytest.skip("this system has no such rights")
    user = os.geteuid()
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.stat().st_uid == user:  # one may be everybody's: rights are only added
            folder.chmod(S_IMODE(folder.stat().st_mode) | 0o055)
    yield lambda: os.seteuid(user or 65534)
    os.seteuid(user)


@pytest.fixture
def unfrozen():
    """Let looks for garbage begin with all objects, as in a notebook; see tests/workers.py."""
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.collect()  # or what the test left would stay for ever
    gc.freeze()
