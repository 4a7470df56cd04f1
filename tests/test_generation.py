"""transformers' `generate()` on the OpenVINO model, token for token as on PyTorch's."""

import threading

import pytest
import torch
from transformers.generation import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from helpers.graphs.core import Stopped
from helpers.inputs.messages import user_message
from helpers.models.exported import collate
from helpers.run import background
from helpers.run.generation import StopOnEvent
from tests.tiny import equal_pieces, picture, seeded

NEW = 12
STRATEGIES = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled": {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "top_k": 50},
    "sampled beams": {"do_sample": True, "num_beams": 3, "temperature": 1.2},
    "penalised": {"do_sample": False, "repetition_penalty": 1.4},
}

# With embeddings only new tokens are penalised, on both sides.
pytestmark = pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`:UserWarning")


@pytest.fixture(params=STRATEGIES.values(), ids=STRATEGIES)
def strategy(request):
    return request.param


@pytest.fixture(scope="module")
def prompts(torch_model):
    """Return prompts of different lengths about a picture, embedded by PyTorch."""
    inputs = torch_model.image_inputs([picture()])
    with torch.inference_mode():
        features = torch_model.encode_images(**inputs)
        texts = ("What is in the picture?", "Where?")
        ids = [torch_model.processor.input_ids([user_message(text, 1)], inputs) for text in texts]
        return [torch_model.prepare(row, features) for row in ids]


@pytest.fixture(scope="module")
def batch(torch_model, prompts):
    collated = collate(prompts)
    assert 0 in collated["attention_mask"][1] and 0 not in collated["attention_mask"][0]
    return collated


def tokens(model, *, new: int = NEW, seed: int = 0, **options) -> list[list[int]]:
    with seeded(seed), torch.inference_mode():
        output = model.language_model.generate(
            max_new_tokens=new, eos_token_id=None, pad_token_id=0, **options
        )
    return output.tolist()


@torch.inference_mode()
def reference_ids(model, text: str) -> torch.Tensor:
    return model.processor.input_ids([user_message(text)])


def test_a_prompt_of_embeddings(pipeline, torch_model, prompts, strategy):
    (actual,) = tokens(pipeline, **prompts[0], **strategy)
    assert [actual] == tokens(torch_model, **prompts[0], **strategy)
    assert len(actual) == NEW and len(set(actual)) > NEW // 2


def test_a_prompt_of_tokens(pipeline, torch_model, strategy):
    ids = reference_ids(pipeline, "Describe the picture.")
    actual = tokens(pipeline, input_ids=ids, **strategy)
    assert actual == tokens(torch_model, input_ids=ids, **strategy)
    assert actual[0][: ids.shape[1]] == ids[0].tolist()


def test_a_batch_padded_on_the_left(pipeline, torch_model, batch, strategy):
    actual = tokens(pipeline, **batch, **strategy)
    assert actual == tokens(torch_model, **batch, **strategy)
    assert actual[0] != actual[1]


def test_padding_changes_no_answer(pipeline, prompts, batch):
    alone = [tokens(pipeline, **prompt)[0] for prompt in prompts]
    assert tokens(pipeline, **batch) == alone


def test_another_seed_samples_other_tokens(pipeline, prompts):
    first, second = (tokens(pipeline, **prompts[0], seed=seed, do_sample=True) for seed in (1, 2))
    assert first != second


class Recorder(BaseStreamer):
    """What a streamer is told, in order: `pieces`; `callback` gets them after each token."""

    def __init__(self, callback=lambda pieces: None) -> None:
        self.pieces: list[list[int]] = []
        self.ended = False
        self.callback = callback

    def put(self, value: torch.Tensor) -> None:
        self.pieces.append(value.flatten().tolist())
        self.callback(self.pieces)

    def end(self) -> None:
        self.ended = True


def test_tokens_are_streamed_one_by_one_in_order(pipeline):
    ids = reference_ids(pipeline, "Where is the red star?")
    streamer = Recorder()
    (actual,) = tokens(pipeline, input_ids=ids, streamer=streamer)
    prompt, *streamed = streamer.pieces
    assert prompt == ids[0].tolist()
    assert streamed == [[token] for token in actual[len(prompt) :]]
    assert streamer.ended


def test_a_stop_event_ends_within_a_token(pipeline):
    stop, ids = threading.Event(), reference_ids(pipeline, "Count the stars.")
    streamer = Recorder(callback=lambda pieces: len(pieces) == 1 + 3 and stop.set())
    (actual,) = tokens(
        pipeline,
        new=50,
        input_ids=ids,
        streamer=streamer,
        stopping_criteria=StoppingCriteriaList([StopOnEvent(stop)]),
    )
    assert 3 <= len(actual) - ids.shape[1] <= 4


class SetAfter(threading.Event):
    """An event that is set once it was looked at so many times: `checks`."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self.checks = checks

    def is_set(self) -> bool:
        self.checks -= 1
        return self.checks < 0


def lengths(cache) -> set[int]:
    """Return how many positions the states of a cache have."""
    return {state.state.shape[2] for state in cache.request.query_state()}


@torch.inference_mode()
def test_a_stop_event_gives_up_a_prompt_that_is_being_computed(pipeline, monkeypatch):
    model = pipeline.language_model
    monkeypatch.setattr(model, "pieces", equal_pieces(16))
    cache = model.new_cache()
    for past in (0, 8):
        if past:
            model(inputs_embeds=torch.zeros(1, past, 128), past_key_values=cache)
        mark, cache.stop = cache.mark(), SetAfter(2)
        with pytest.raises(Stopped):
            model(inputs_embeds=torch.zeros(1, 64, 128), past_key_values=cache)
        assert lengths(cache) == {past + 2 * 16}
        cache.return_to(mark)
        assert lengths(cache) == {past} == {cache.length}
        cache.stop = None


@torch.inference_mode()
@pytest.mark.parametrize("past", [0, 8])
def test_a_piece_that_was_begun_is_finished_in_the_background(pipeline, monkeypatch, past):
    """What stands in the cache before it stays, whatever is asked of the cache meanwhile."""
    model, positions = pipeline.language_model, 4000
    monkeypatch.setattr(model, "pieces", equal_pieces(positions))
    with seeded(0):
        earlier, later = torch.randn(1, 8, 128), torch.randn(1, 6, 128)
    expected, cache = model.new_cache(), model.new_cache()
    start = cache.mark()
    for states in (expected, cache) if past else ():
        model(inputs_embeds=earlier, past_key_values=states)
    mark, cache.stop = cache.mark(), SetAfter(1)
    with pytest.raises(Stopped):
        model(inputs_embeds=torch.zeros(1, positions, 128), past_key_values=cache)
    assert background.has(cache.request) and cache.length == past + positions
    cache.return_to(mark)
    cache.stop = None
    cache.settle()
    assert not background.has(cache.request) and cache.length == past
    assert lengths(cache) <= {past}
    logits = [model(inputs_embeds=later, past_key_values=c).logits for c in (expected, cache)]
    torch.testing.assert_close(*logits)
    cache.stop = SetAfter(1)
    with pytest.raises(Stopped):
        model(inputs_embeds=torch.zeros(1, positions, 128), past_key_values=cache)
    cache.return_to(mark)
    cache.return_to(start)  # an earlier answer is taken back, too
    with pytest.raises(Stopped):
        cache.settle(SetAfter(0))
    cache.settle()
    assert cache.length == 0 and lengths(model.new_cache(cache.request)) == {0}


@torch.inference_mode()
def test_a_prompt_computed_in_pieces_is_the_same(pipeline, monkeypatch):
    model = pipeline.language_model
    monkeypatch.setattr(model, "pieces", equal_pieces(16))
    with seeded(0):
        prompt = torch.randn(2, 40, 128)
    mask = torch.ones(2, 40, dtype=torch.int64)
    mask[1, :20] = 0  # its first piece is padding only
    cache = model.new_cache()
    cache.stop = threading.Event()
    actual = model(inputs_embeds=prompt, attention_mask=mask, past_key_values=cache).logits
    expected = model(inputs_embeds=prompt, attention_mask=mask).logits
    assert cache.get_seq_length() == 40
    torch.testing.assert_close(actual, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_a_cache_handed_back_computes_what_is_new_and_answers_the_same(
    pipeline, torch_model, computed
):
    ids = reference_ids(pipeline, "What colour is the shape at the top?")
    cache = pipeline.language_model.new_cache()
    (first,) = tokens(pipeline, input_ids=ids, past_key_values=cache)
    assert computed == [ids.shape[1]] + [1] * (NEW - 1)
    assert cache.get_seq_length() == len(first) - 1
    more = reference_ids(pipeline, "And now?")[0].tolist()
    sequence = torch.tensor([first + more])
    computed.clear()
    second = tokens(pipeline, input_ids=sequence, past_key_values=cache)
    assert computed == [1 + len(more)] + [1] * (NEW - 1)
    assert second == tokens(pipeline, input_ids=sequence) == tokens(torch_model, input_ids=sequence)


def test_without_a_cache_every_call_starts_anew(pipeline):
    ids = reference_ids(pipeline, "What is unusual?")
    assert tokens(pipeline, input_ids=ids) == tokens(pipeline, input_ids=ids)
