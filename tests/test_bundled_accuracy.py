"""The bundled checkpoints answer as their cards say, in PyTorch and in every precision."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.models.families import families
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.sources.checkpoints import BUNDLED, read_json
from helpers.sources.hub import checkpoint_bytes
from helpers.workshop import report
from tests.bundled import BUNDLED_NAMES
from tests.workers import in_groups

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
CARDS = {family: read_json(BUNDLED / family / "accuracy.json") for family in BUNDLED_NAMES}


@pytest.fixture(scope="module", params=in_groups(BUNDLED_NAMES, "accuracy"))
def measured(request, tmp_path_factory):
    """Return the `card` and what is measured now, of each `every`th question of the card.

    Eleven is prime to the number of kinds, which take turns.
    """
    folder, every = BUNDLED / request.param, 1 if request.config.getoption("torture") else 11
    place = tmp_path_factory.mktemp("measured")
    figures = report.measure(folder, place=place, every=every)
    return SimpleNamespace(card=CARDS[request.param], every=every, figures=figures, place=place)


@pytest.mark.slow
def test_the_same_questions_are_answered_wrongly_as_the_card_says(measured):
    """An answer of a hundred, or one at all, may differ from one processor to another."""
    for name, figures in measured.figures.items():
        wrong = measured.card["figures"][name]["wrong"]
        expected = {place for place in wrong if place % measured.every == 0}
        differences = expected ^ set(figures["wrong"])
        assert len(differences) <= max(1, measured.card["questions"] / measured.every / 100), name


@pytest.mark.long("torture")
def test_second_questions_are_answered_as_the_card_says(measured):
    pipeline = VisionLanguagePipeline(measured.place / "fp16", accuracy=True)
    figures = report.measure_second_questions(pipeline)
    for name, number in measured.card["second questions"].items():
        assert abs(figures[name] - number) <= 2, name


@pytest.mark.slow
def test_16_bits_answer_as_pytorch_does(measured):
    agreement = measured.figures["fp16"]["agreement"]
    assert agreement["top_token"] >= 0.992 and agreement["divergence"] < 1e-4


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_right_answers(card):
    for name in ("PyTorch", "fp16"):
        shares = card["figures"][name]["accuracy"]
        assert shares["all"] >= 0.95
        wrong = len(card["figures"][name]["wrong"])
        assert shares["all"] == round(1 - wrong / card["questions"], 4)
        for kind, share in shares.items():
            assert share >= (0.80 if kind == "word" else 0.90), (name, kind)
    second = card["second questions"]
    assert second["first"] >= second["second"] - 2 >= 0.9 * second["questions"] - 2


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_compression_costs_little(card):
    right = {name: figures["accuracy"]["all"] for name, figures in card["figures"].items()}
    assert right["int8"] >= right["fp16"] - 0.01
    assert right["int4"] >= right["fp16"] - 0.02
    agreement = card["figures"]["fp16"]["agreement"]
    assert agreement["top_token"] >= 0.998 and agreement["divergence"] < 1e-4


@pytest.mark.parametrize("family", BUNDLED_NAMES)
def test_is_small(family):
    assert checkpoint_bytes(BUNDLED / family) <= 11e6  # Qwen3-VL has four mergers


@pytest.mark.parametrize(
    "family", [family for family in families() if family.checkpoint], ids=lambda family: family.name
)
def test_the_notebook_uses_the_int4_that_is_measured(family):
    (path,) = NOTEBOOKS.glob(f"*-{family.name}.ipynb")
    notebook = path.read_text(encoding="utf-8")
    assert str(report.presets(family.bundled)[-1].language_model) in notebook
