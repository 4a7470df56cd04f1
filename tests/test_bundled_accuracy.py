"""The bundled checkpoint answers as its card says, in PyTorch and in every precision."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.models.families import families
from helpers.sources.checkpoints import BUNDLED, bundled_checkpoints, read_json
from helpers.sources.hub import weight_bytes
from helpers.workshop import report
from tests.workers import in_groups

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
FAMILIES = sorted(bundled_checkpoints())
# Answers may differ by a question or two from one processor to another.
TOLERANCE = 0.005


@pytest.fixture(scope="module", params=in_groups(FAMILIES, "accuracy"))
def measured(request, bundled_folder):
    """Return the `card` and the same `figures` measured now."""
    folder = BUNDLED / request.param
    for precision in ("fp16", "int8"):
        place = bundled_folder(request.param, precision).parent
    figures = report.measure(folder, place=place)
    return SimpleNamespace(card=read_json(folder / "accuracy.json"), figures=figures)


@pytest.mark.slow
def test_right_answers(measured):
    figures = measured.figures
    for name in ("PyTorch", "fp16"):
        shares = figures[name]["accuracy"]
        assert shares["all"] >= 0.95
        for kind, share in shares.items():
            assert share >= (0.80 if kind == "word" else 0.90), (name, kind)


@pytest.mark.slow
def test_compression_costs_little(measured):
    figures = measured.figures
    right = {name: values["accuracy"]["all"] for name, values in figures.items()}
    assert right["int8"] >= right["fp16"] - 0.01
    assert right["int4"] >= right["fp16"] - 0.02
    assert figures["fp16"]["agreement"]["top_token"] >= 0.998
    assert figures["fp16"]["agreement"]["divergence"] < 1e-4


@pytest.mark.slow
def test_the_card_says_what_is_measured(measured):
    card = measured.card
    for name, figures in measured.figures.items():
        for kind, share in figures["accuracy"].items():
            kinds = len(figures["accuracy"]) - 1
            questions = card["questions"] / (1 if kind == "all" else kinds)
            slack = TOLERANCE if kind == "all" else 1.5 / questions
            assert share == pytest.approx(card["figures"][name]["accuracy"][kind], abs=slack)


@pytest.mark.parametrize("family", FAMILIES)
def test_is_small(family):
    assert weight_bytes(BUNDLED / family) <= 11e6  # Qwen3-VL has four mergers


@pytest.mark.parametrize(
    "family", [family for family in families() if family.checkpoint], ids=lambda family: family.name
)
def test_the_notebook_uses_the_int4_that_is_measured(family):
    (path,) = NOTEBOOKS.glob(f"*-{family.name}.ipynb")
    notebook = path.read_text(encoding="utf-8")
    assert str(report.presets(family.bundled)[-1].language_model) in notebook
