"""How much of a prompt is computed before a stop event is looked at."""

import threading
import time

import pytest
import torch

from helpers.graphs.core import Stopped
from helpers.run import background
from helpers.run.caches import StateCache
from helpers.run.pieces import GROWTH, LEAST, LONGEST, PieceSizes


def sizes(speed, pieces: int, overhead: float = 0.0) -> list[int]:
    """Return the sizes of pieces that take seconds in proportion, and as much beside."""
    following, result = PieceSizes(), []
    for _ in range(pieces):
        result.append(following.size(0))
        following.note(0, result[-1], overhead + result[-1] / speed)
    return result


def test_pieces_grow_until_they_take_their_time():
    assert sizes(1e6, 3) == [LEAST, GROWTH * LEAST, GROWTH**2 * LEAST]
    assert sizes(500, 4) == [32, 512, 1472, 1472]
    assert 500 * LONGEST - LEAST < 1472 <= 500 * LONGEST


def test_what_each_piece_takes_beside_is_learnt_from_below():
    *_, size = sizes(1000, 12, overhead=0.1)
    assert 0.8 * LONGEST < 0.1 + size / 1000 <= LONGEST


def test_a_slow_model_has_the_least_pieces():
    assert sizes(10, 3) == [LEAST] * 3


def test_the_end_of_a_prompt_says_nothing_unless_it_was_slow():
    pieces = PieceSizes()
    pieces.note(0, 64, 0.1)
    pieces.note(0, 8, 0.001)
    pieces.note(0, 8, 0.3)
    assert pieces.size(0) == 1024
    pieces.note(0, 128, 6.0)
    assert pieces.size(0) == 64


def test_a_longer_past_has_a_size_of_its_own():
    pieces = PieceSizes()
    pieces.note(0, 64, 0.1)
    assert pieces.size(1000) == 1024
    pieces.note(1000, 256, 6.0)
    assert (pieces.size(0), pieces.size(1000), pieces.size(5000)) == (1024, 128, 128)


class Busy:
    """A request that computes for half a second in the background."""

    def __init__(self) -> None:
        self.end = time.monotonic() + 0.5

    def wait_for(self, milliseconds):
        time.sleep(milliseconds / 1000)
        return time.monotonic() > self.end


def test_a_new_cache_waits_until_its_request_is_idle():
    class Request(Busy):
        def reset_state(self):
            self.was_idle = time.monotonic() > self.end

    request = Request()
    background.keep(request)
    StateCache(request)
    assert request.was_idle


@torch.inference_mode()
def test_what_another_conversation_left_is_no_time_of_a_prompt(pipeline, monkeypatch):
    model, pieces, seconds = pipeline.language_model, PieceSizes(), []
    monkeypatch.setattr(pieces, "note", lambda past, number, time: seconds.append(time))
    monkeypatch.setattr(model, "pieces", pieces)
    cache, prompt = model.new_cache(), torch.zeros(1, 20, 128)
    cache.stop, begin = threading.Event(), time.monotonic()
    background.keep(Busy())
    model(inputs_embeds=prompt, past_key_values=cache)
    assert sum(seconds) < 0.5 < time.monotonic() - begin
    background.keep(Busy())
    threading.Timer(0.1, cache.stop.set).start()
    begin = time.monotonic()
    with pytest.raises(Stopped):
        model(inputs_embeds=prompt, past_key_values=cache)
    assert time.monotonic() - begin < 0.4


@torch.inference_mode()
def test_a_prompt_is_cut_as_its_time_says_and_a_token_changes_nothing(pipeline, monkeypatch):
    """Forty positions take a second by the clock that is read here."""
    model, pieces, positions = pipeline.language_model, PieceSizes(), []
    note = pieces.note

    def note_slow(past, number, _):
        positions.append((past, number))
        note(past, number, number / 40)

    monkeypatch.setattr(pieces, "note", note_slow)
    monkeypatch.setattr(model, "pieces", pieces)
    cache = model.new_cache()
    cache.stop = threading.Event()
    model(inputs_embeds=torch.zeros(1, 250, 128), past_key_values=cache)
    assert positions == [(0, 32), (32, 96), (128, 96), (224, 26)]
    model(inputs_embeds=torch.zeros(1, 1, 128), past_key_values=cache)
    assert len(positions) == 4
