"""The budget of tokens for a picture: one setting, which each family turns into its own pieces."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.errors import SettingsError
from helpers.inputs.messages import user_message
from helpers.models import load_processor
from helpers.models.families import families
from helpers.serve.demo import build_page
from tests.tiny import picture

BUNDLED = {
    family.bundled: family.checkpoint for family in families() if family.checkpoint is not None
}
SIZES = ((64, 64), (300, 200), (90, 700), (1500, 1000))


@pytest.fixture(scope="module", params=BUNDLED)
def processor(request):
    """Return the processor of a bundled checkpoint, with the largest budget that it takes."""
    processor = load_processor(BUNDLED[request.param])
    return processor.within(processor.pieces.largest)


def drawn(size: tuple[int, int]) -> Image.Image:
    """Return a picture of random pixels of this size."""
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def tokens_of(processor, size: tuple[int, int]) -> int:
    """Return how many tokens, or vectors that the language model attends to, a picture has."""
    inputs = processor.image_inputs([drawn(size)])
    if "aspect_ratio_mask" in inputs:  # no token stands for a piece of a picture
        return int(inputs["aspect_ratio_mask"].sum()) * processor.pieces.tokens
    ids = processor.input_ids([user_message("What is it?", 1)], inputs)
    return int(processor.picture_positions(ids).sum())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_no_picture_has_more_tokens_than_the_budget(processor, share):
    pieces = processor.pieces
    least, most = pieces.tokens, pieces.total(pieces.most)
    budget = min(round(least + share * (most - least)), 3000)
    within = processor.within(budget)
    for size in SIZES:
        tokens = tokens_of(within, size)
        assert tokens <= budget
        assert tokens <= tokens_of(processor, size)


def test_a_budget_beyond_the_largest_changes_nothing(processor):
    within = processor.within(10**6)
    for size in SIZES:
        expected, inputs = (p.image_inputs([drawn(size)]) for p in (processor, within))
        for name, value in expected.items():
            pairs = zip(value, inputs[name], strict=True)
            assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)


def test_a_larger_budget_is_used(processor):
    pieces = processor.pieces
    if pieces.most == 1:
        assert tokens_of(processor, (1500, 1000)) == pieces.tokens
        return
    budgets = [pieces.tokens, pieces.total(min(pieces.most, 4)), pieces.total(pieces.most)]
    tokens = [tokens_of(processor.within(budget), (1500, 1000)) for budget in budgets]
    assert tokens == sorted(tokens)
    assert tokens[0] < tokens[1] or pieces.tokens == 1


def test_too_small_a_budget_is_told_in_a_sentence(processor):
    least = processor.pieces.tokens
    for budget in (0, -1, least - 1, least + 0.5, "64", [64], True, float("nan"), float("inf")):
        sentence = re.escape(f"picture_tokens is {budget!r}, but a picture has")
        with pytest.raises(SettingsError, match=sentence):
            processor.within(budget)


def test_a_canvas_of_fewer_tiles_has_the_ids_of_the_whole_one():
    processor = load_processor(BUNDLED["mllama"])
    tokens = processor.pieces.tokens
    for size in ((60, 60), (60, 120), (120, 60)):
        expected = processor.image_inputs([drawn(size)])
        tiles = int(expected["aspect_ratio_mask"].sum())
        inputs = processor.within(tiles * tokens).image_inputs([drawn(size)])
        assert tiles < processor.pieces.most
        for name, value in expected.items():
            assert torch.equal(inputs[name], value), name


def test_one_question_has_a_budget_of_its_own(pipeline):
    tokens = pipeline.processor.pieces.tokens
    conversation = pipeline.conversation()
    wide = drawn((900, 300))
    first = conversation.ask("What is it?", wide, picture_tokens=tokens, max_new_tokens=2)
    second = conversation.ask("And this?", wide, max_new_tokens=2)
    assert first.wait() and second.wait()
    counts = [
        int(pipeline.processor.picture_positions(torch.tensor([reply.request.prompt_ids])).sum())
        for reply in (first, second)
    ]
    assert counts[0] == tokens
    assert counts[1] > 2 * tokens
    with pytest.raises(SettingsError, match="picture_tokens"):
        conversation.ask("What?", picture(), picture_tokens=1)


def test_the_command_line_takes_a_budget(fork, converted, tmp_path):
    drawn((900, 300)).save(tmp_path / "wide.png")
    command = ["-m", "helpers", "ask", converted, "--question", "What is it?"]
    command += ["--image", tmp_path / "wide.png", "--max-new-tokens", 2]
    too_small = fork.run(*command, "--picture-tokens", 1)
    assert too_small.returncode == 1
    assert too_small.stderr.count("picture_tokens is 1, but a picture has at least") == 1
    assert "Traceback" not in too_small.stderr
    assert fork.run(*command, "--picture-tokens", 256).returncode == 0


def test_the_page_has_a_control_where_there_is_a_choice(pipeline):
    page = build_page(pipeline, title="A page")
    labels = [getattr(block, "label", None) for block in page.blocks.values()]
    assert "Tokens of a picture at most" in labels
