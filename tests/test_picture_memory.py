"""A picture of any shape takes no more memory than its file's pixels tell, in every family."""

import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from PIL import Image

from tests.picture_memory import BESIDE, CLEAR, PIXEL, views

pytestmark = pytest.mark.skipif(not CLEAR.exists(), reason="Linux tells a process's peak")
FAMILIES = list(views())
REFUSING = ("minicpm-v-2", "minicpm-v-4-6", "qwen3-vl", "qwen3-5")
MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "I;16", "F", "CMYK")


@pytest.fixture(scope="module")
def measure():
    """Return a function that says what a picture takes, in a process that has imported all."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.picture_memory"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def growth(family: str, path) -> tuple[int, str | None]:
        process.stdin.write(json.dumps([family, str(path)]) + "\n")
        process.stdin.flush()
        return tuple(json.loads(process.stdout.readline()))

    yield growth
    process.stdin.close()
    assert process.wait(60) == 0


def drawn(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Return a picture with something in it, which costs no time to draw."""
    width, height = size
    if mode not in ("I;16", "F"):
        noise = Image.effect_noise((max(1, width // 16), max(1, height // 16)), 60)
        return noise.resize(size).convert(mode)
    ramp = np.arange(width, dtype=np.float32) / width
    rows = np.broadcast_to(ramp if mode == "F" else (ramp * 65535).astype(np.uint16), size[::-1])
    return Image.fromarray(np.ascontiguousarray(rows))


def check(measure, family: str, picture: Image.Image, path) -> str | None:
    """Return why a picture is refused, if it is; it may not take more than the bound."""
    save(picture, path)
    refusal = refusal_of(measure, family, picture.size, path)
    path.unlink()
    return refusal


def save(picture: Image.Image, path: Path) -> None:
    picture.save(path, **({"compress_level": 0} if path.suffix == ".png" else {}))


def refusal_of(measure, family: str, size: tuple[int, int], path: Path) -> str | None:
    memory, refusal = measure(family, path)
    assert memory <= PIXEL * size[0] * size[1] + BESIDE, (family, size, path.name, memory)
    assert refusal is None or "too long and narrow" in refusal
    return refusal


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000), (9_999, 3), (101, 1)])
def test_narrow_pictures(measure, tmp_path, family, size):
    """Some families refuse them: slices would be one patch wide, or sides too unlike each other."""
    refusal = check(measure, family, drawn(size), tmp_path / "narrow.png")
    assert (refusal is not None) == (family in REFUSING and max(size) > 1_000)


LARGE = [(60_000, 1_000), (16_000, 4_000), (4_000, 16_000)]


@pytest.fixture(scope="module")
def large_picture(tmp_path_factory):
    """Return a function that gives the file of a large picture, drawn once."""
    folder = tmp_path_factory.mktemp("large")

    @functools.cache
    def file_of(size: tuple[int, int]) -> Path:
        path = folder / f"{size[0]}.png"
        save(drawn(size), path)
        return path

    return file_of


def in_turn() -> list[ParameterSet]:
    """Return large pictures and families: each with one of them, in `make torture` with all."""
    parameters = []
    for number, (size, family) in enumerate(itertools.product(LARGE, FAMILIES)):
        usual = number % len(FAMILIES) % len(LARGE) == LARGE.index(size)
        marks = [] if usual else [pytest.mark.long("torture")]
        parameters.append(pytest.param(size, family, marks=marks))
    return parameters


@pytest.mark.slow
@pytest.mark.parametrize(("size", "family"), in_turn())
def test_large_pictures(measure, large_picture, size, family):
    assert refusal_of(measure, family, size, large_picture(size)) is None


def test_pictures_of_odd_sizes_and_modes(measure, tmp_path, repetitions):
    """Areas and shapes are spread evenly over their magnitudes."""
    random = np.random.default_rng(0)
    for _ in range(repetitions("pictures whose memory is bounded", 20, 500)):
        pixels, shape = np.exp(random.uniform(0, np.log(3e7))), random.uniform(-9, 9)
        width = int(np.clip(np.sqrt(pixels) * np.exp(shape / 2), 1, 99_999))
        height = int(np.clip(pixels / width, 1, 99_999))
        mode, family = random.choice(MODES), random.choice(FAMILIES)
        ending = "tif" if mode in ("F", "CMYK") else "png"
        check(measure, family, drawn((width, height), mode), tmp_path / f"odd.{ending}")
