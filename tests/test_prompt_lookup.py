"""Tokens that are looked up in the prompt: the answer stays the same, and takes fewer steps."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import one_hot

from helpers.__main__ import main
from helpers.convert import conversion
from helpers.errors import SettingsError
from helpers.graphs.presets import find_preset
from helpers.models import load_processor
from helpers.models.families import families
from helpers.run import prompt_lookup
from helpers.run.batches import Batch
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.prompt_lookup import LONGEST, answer_tokens, draft
from helpers.shapes.questions import draw_questions
from tests import random_minicpm_v4_6
from tests.tiny import picture

BUNDLED = [family for family in families() if family.checkpoint]
COUNTING = [f.bundled for f in BUNDLED if load_processor(f.checkpoint).counts_places]
RECURRENT = ["qwen3_5"]
SKIPPING = [f.bundled for f in BUNDLED if f.bundled not in (*COUNTING, *RECURRENT)]
LIST = "Describe the picture. What is in the picture? How many shapes are there?"


# What is looked up


def test_what_followed_the_longest_of_the_last_tokens_is_the_draft():
    assert draft([1, 2, 3, 9, 8, 7, 6, 5, 1, 2, 3], 4) == [9, 8, 7, 6]
    assert draft([1, 2, 3, 4, 2, 3, 5, 1, 2, 3], 1) == [4]  # of three tokens, not of two
    assert draft([2, 3, 4, 1, 2, 3, 5, 2, 3], 1) == [5]  # where it stood last
    assert draft([3, 4, 9, 3], 4) == [4, 9, 3]  # one token, and what there is behind it
    assert draft([5, 5, 5], 4) == [5]
    assert draft([1, 2, 3], 4) == draft([1], 4) == draft([], 4) == []


@pytest.mark.parametrize(
    ("has_vnni", "steps", "expected"),
    [
        (True, ([12, 13, 14, 15, 16], [17, 0, 0, 0, 0], [20]), [4, 4, 0, 4]),
        (
            False,
            ([12, 13, 14], [0] * 5, [20], [21, 22], [23, 24, 25], [26, 27, 28, 29, 10]),
            [2, 4, 0, 1, 2, 4, 4],
        ),
    ],
)
def test_a_draft_is_as_long_as_pays(monkeypatch, has_vnni, steps, expected):
    """Without VNNI it is as long as the last was right."""
    monkeypatch.setattr(prompt_lookup, "has_vnni", lambda: has_vnni)
    answer = answer_tokens(
        one_hot(torch.tensor([11]), 99),
        SimpleNamespace(length=0, keep=lambda length: None),
        None,
        lambda logits: int(logits.argmax()),
        prompt=[*range(10, 30), 10],
        is_over=lambda: False,
    )
    lengths = [len(next(answer).draft)]
    for tokens in steps:
        lengths.append(len(answer.send(one_hot(torch.tensor(tokens), 99)).draft))
    assert lengths == expected


def test_the_cache_keeps_an_answer_without_its_last_token(monkeypatch):
    """Where a draft's last token is wrong, and where the answer ends within one."""
    monkeypatch.setattr(prompt_lookup, "has_vnni", lambda: True)
    tokens, lengths = [], []
    answer = answer_tokens(
        one_hot(torch.tensor([11]), 99),
        SimpleNamespace(length=21, keep=lengths.append),
        None,
        lambda logits: tokens.append(int(logits.argmax())) or tokens[-1],
        prompt=[*range(10, 30), 10],
        is_over=lambda: len(tokens) == 8,
    )
    next(answer)
    for following in ([12, 13, 14, 0, 0], [11]):
        answer.send(one_hot(torch.tensor(following), 99))
    with pytest.raises(StopIteration):
        answer.send(one_hot(torch.tensor([12, 13, 14, 15, 16]), 99))
    assert tokens == [11, 12, 13, 14, 0, 11, 12, 13] and lengths == [21, 25, 26, 28]


# The logits of several positions


@pytest.fixture(scope="module")
def pipeline(bundled_folder):
    return VisionLanguagePipeline(bundled_folder("internvl2", "int8"), accuracy=True)


def test_the_last_logits_are_those_of_each_position_alone(pipeline):
    model, ids = pipeline.language_model, torch.arange(20, 31)[None]
    cache = model.new_cache()
    alone = [model(input_ids=ids[:, i : i + 1], past_key_values=cache).logits for i in range(11)]
    together = model(input_ids=ids, logits_to_keep=99).logits
    assert together.shape[1] == LONGEST + 1
    assert torch.allclose(together, torch.cat(alone[-LONGEST - 1 :], dim=1), atol=1e-4)
    assert model(input_ids=ids).logits.shape[1] == 1
    assert model(input_ids=ids[:, :2], logits_to_keep=5).logits.shape[1] == 2


def test_rejected_tokens_leave_no_trace(pipeline):
    model, ids = pipeline.language_model, torch.arange(20, 26)[None]
    expected = model(input_ids=ids).logits
    cache = model.new_cache()

    def last() -> torch.Tensor:
        return model(input_ids=ids[:, 5:], past_key_values=cache).logits

    for start in (0, 2, 4):  # each two tokens, and two others that are rejected
        part = torch.cat([ids[:, start : start + 2], torch.tensor([[90, 91 + start]])], dim=1)
        model(input_ids=part, past_key_values=cache)
        cache.keep(start + 2)
    cache.keep(5)
    assert torch.allclose(
        model(input_ids=ids[:, 5:], past_key_values=cache).logits, expected, atol=1e-4
    )
    cache.keep(5)
    cache.close_holes()
    assert cache.request.query_state()[0].state.shape[2] == cache.length == 5
    assert torch.allclose(
        model(input_ids=ids[:, 5:], past_key_values=cache).logits, expected, atol=1e-4
    )


# Answers


@pytest.fixture
def steps(monkeypatch):
    """Return a list of how many tokens are computed in each step of an answer."""
    sizes = []
    compute = Batch.compute

    def counted(self, rows):
        sizes.extend(1 + len(row.draft or ()) for row in rows)
        return compute(self, rows)

    monkeypatch.setattr(Batch, "compute", counted)
    return sizes


@pytest.mark.slow
@pytest.mark.parametrize("name", SKIPPING)
def test_answers_are_the_same_in_fewer_steps(name, bundled_folder, steps, monkeypatch):
    """Two turns each, since the second goes on with what the first has left; no answer ends early.

    Drafts are looked up, then made of the right tokens and of wrong ones.
    """
    pipeline = VisionLanguagePipeline(bundled_folder(name, "int8"), accuracy=True)
    monkeypatch.setattr(type(pipeline.processor), "stop_token_ids", [-1])
    truth: list[int] = []

    def answers(**options: bool) -> list[list[int]]:
        steps.clear()
        tokens = []
        for image, question in draw_questions(2, seed=3):
            conversation = pipeline.conversation()
            for text, images in ((question.text, [image]), (LIST, [])):
                truth[:] = truths[len(tokens)] if truths else []
                reply = conversation.ask(text, images, max_new_tokens=24, **options)
                tokens.append(reply.token_ids)
                sequences.append(reply.prompt_ids + reply.token_ids)
        return tokens

    def mixed(ids: list[int], most: int) -> list[int]:
        right = truth[len(ids) : len(ids) + LONGEST]
        wrong = [(token + 1) % 50 for token in right]
        return [right, wrong, right[:2] + wrong[2:]][len(ids) % 3]

    truths: list[list[int]] = []
    sequences: list[list[int]] = []
    expected = answers()
    assert steps == [1] * 4 * 23 and len({tuple(answer) for answer in expected}) > 1
    truths = list(sequences)
    assert answers(prompt_lookup=True) == expected
    assert len(steps) < 4 * 23 and max(steps) == LONGEST + 1
    monkeypatch.setattr(prompt_lookup, "draft", mixed)
    assert answers(prompt_lookup=True) == expected
    assert 4 * 23 / LONGEST < len(steps) < 4 * 23 * 0.6


def test_five_families_can_skip_places():
    assert len(SKIPPING) == 5 and COUNTING == ["llava_mpt", "gemma4"]


@pytest.mark.parametrize("name", [*COUNTING, *RECURRENT])
def test_who_counts_places_or_forgets_no_token_says_so(bundled_folder, name):
    folder = bundled_folder(name, "int8")
    with pytest.raises(SettingsError, match="Prompt lookup leaves gaps in the cache"):
        VisionLanguagePipeline(folder).ask("What?", [picture()], prompt_lookup=True)


def test_who_forgets_no_token_says_so(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    random_minicpm_v4_6.write_random(tmp_path / "checkpoint", seed=1)
    conversion.convert(tmp_path / "checkpoint", tmp_path / "model", find_preset("fp16"))
    with pytest.raises(SettingsError, match="Prompt lookup leaves gaps in the cache"):
        VisionLanguagePipeline(tmp_path / "model").ask("What?", prompt_lookup=True)


def test_what_does_not_go_together_is_told(pipeline):
    for options in ({"num_beams": 2}, {"do_sample": True}):
        with pytest.raises(SettingsError, match="takes the most probable tokens"):
            pipeline.ask("What?", prompt_lookup=True, **options)
    with pytest.raises(SettingsError, match="prompt_lookup is 1; it should be True or False"):
        pipeline.ask("What?", prompt_lookup=1)


def test_the_command_line_has_it(bundled_folder, capsys):
    folder = str(bundled_folder("internvl2", "int8"))
    texts = []
    for options in ([], ["--prompt-lookup"]):
        assert main(["ask", folder, "--question", LIST, *options]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0].strip() and texts[0] == texts[1]
