"""Answers that are computed together are those that are computed one after another."""

import threading

import pytest
import torch

from helpers.inputs.messages import user_message
from helpers.run.batches import Batch, BatchRow
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes.questions import draw_questions
from tests.bundled import BUNDLED_NAMES
from tests.workers import in_groups

PAIRS = draw_questions(9, seed=9)
FOLLOW_UP = "How many shapes are there?"
SAMPLED = {"do_sample": True, "temperature": 1.5, "seed": 3, "max_new_tokens": 20}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=in_groups(BUNDLED_NAMES, "batches"))
def pipelines(request, bundled_folder):
    """Return one pipeline that answers one after another, and one that answers four at once."""
    folder = bundled_folder(request.param, "int8")
    return [
        VisionLanguagePipeline(folder, accuracy=True, answers_at_once=number) for number in (1, 4)
    ]


def test_answers_and_those_that_follow_are_the_same(pipelines):
    texts, cached = [], []
    for pipeline in pipelines:
        replies = [pipeline.ask(question.text, [picture]) for picture, question in PAIRS]
        follow_ups = [reply.conversation.ask(FOLLOW_UP) for reply in replies]
        samples = [reply.conversation.ask("Describe it.", **SAMPLED) for reply in follow_ups]
        texts.append([reply.text for reply in (*replies, *follow_ups, *samples)])
        cached.append([reply.counts.cached for reply in follow_ups])
    assert texts[0] == texts[1] and len(set(texts[0])) > 9
    assert cached[0] == cached[1] and all(cached[0])


def test_one_that_is_stopped_leaves_the_others_as_they_are(pipelines):
    alone, together = pipelines
    stop = threading.Event()
    options = SAMPLED | {"max_new_tokens": 60}
    pairs = PAIRS[:3]
    expected = [alone.ask(q.text, [p], **options).text for p, q in pairs]
    stopped = together.ask("Describe it.", stop=stop, **options | {"max_new_tokens": 900})
    replies = [together.ask(q.text, [p], **options) for p, q in pairs]
    for _, _ in zip(range(4), stopped, strict=False):
        pass
    stop.set()
    assert [reply.text for reply in replies] == expected
    assert stopped.wait(5) and len(stopped.token_ids) < 900


def test_they_take_fewer_steps_than_one_after_another(pipelines):
    """A finished answer leaves, and one that waits takes its place."""
    _, together = pipelines
    sizes = []
    compute = together.batch.compute
    together.worker._compute = lambda rows: sizes.append(len(rows)) or compute(rows)
    lengths = (3, 12, 6, 9, 5, 7)
    replies = [
        together.ask(FOLLOW_UP, schema={"type": "string", "minLength": 200}, max_new_tokens=length)
        for length in lengths
    ]
    assert [len(reply.token_ids) for reply in replies] == list(lengths)
    assert max(sizes) == 4 and sum(sizes) == sum(lengths) - len(lengths)
    together.worker._compute = compute


@torch.inference_mode()
def test_logits_are_those_of_each_alone(pipelines):
    """Of prompts of several lengths, while one leaves, another comes and one has drafts."""
    pipeline = pipelines[1]
    model, batch = pipeline.language_model, Batch(pipeline.language_model)

    def prompt(number: int) -> tuple:
        """Return the cache and the picture inputs of a prompt; every other one has a picture."""
        picture, question = PAIRS[number]
        inputs = pipeline.image_inputs([picture]) if number % 2 else None
        features = pipeline.encode_images(**inputs) if inputs else None
        # Gemma 4's third one is longer than a window of 32, and shorter than two.
        messages = [user_message(question.text * (2 + 3 * number), number % 2)]
        prepared = pipeline.prepare(pipeline.processor.input_ids(messages, inputs), features)
        cache = model.new_cache()
        model(**prepared, past_key_values=cache)
        return cache, prepared.get("pictures")

    together, alone = ([prompt(number) for number in range(4)] for _ in range(2))
    results, expected = [], []
    steps = [(0,), (0, 1, 2), (2, 0), (2, 0, 3, 1), (2, 3, 1), (1,), (0,), (2,)]
    for step, numbers in enumerate(steps):
        for number in {0, 1, 2, 3}.difference(numbers):
            batch.leave(together[number][0])
        draft = (21, 22)  # of one that is never joined
        rows = [
            BatchRow(*together[number], 20 + step + number, draft if number == 3 else None)
            for number in numbers
        ]
        results += batch.compute(rows)
        for row, number in zip(rows, numbers, strict=True):
            tokens = torch.tensor([[row.token, *(row.draft or ())]])
            cache, pictures = alone[number]
            options = {"pictures": pictures, "logits_to_keep": tokens.shape[1]}
            expected.append(model(tokens, past_key_values=cache, **options).logits[0])
    assert [cache.length for cache, _ in together] == [cache.length for cache, _ in alone]
    for logits, reference in zip(results, expected, strict=True):
        assert logits.shape == reference.shape
        assert (logits - reference).abs().max() < 1e-4 * reference.abs().max()
