"""How long people wait: for a second question, and behind an answer that was stopped."""

import random
import threading
import time

import pytest

from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.remembered_pictures import RememberedPictures
from helpers.shapes import world

FIRST, SECOND = "Describe the picture.", "How many shapes are there?"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundled(bundled_folder) -> VisionLanguagePipeline:
    """Return the bundled InternVL2 in INT8, which encodes a picture for each conversation."""
    pipeline = VisionLanguagePipeline(bundled_folder("internvl2", "int8"))
    pipeline.pictures = RememberedPictures(most_bytes=0)
    return pipeline


@pytest.fixture(scope="module")
def tiled(bundled):
    """Return a picture of many tiles, as large as the smallest photographs."""
    picture = world.draw(world.random_scene(random.Random(2), "test", grid=(2, 2)), cell=320)
    assert len(bundled.image_inputs([picture])["pixel_values"]) >= 5
    return picture


def test_a_second_question_is_three_times_faster(bundled, tiled):
    waits = {FIRST: [], SECOND: []}
    for _ in range(10):
        conversation = bundled.conversation()
        for text, pictures in ((FIRST, [tiled]), (SECOND, [])):
            reply = conversation.ask(text, pictures, max_new_tokens=4)
            assert reply.counts.answer
            waits[text].append(reply.times.first_token)
    # What else a computer does makes a wait longer and never shorter.
    assert min(waits[FIRST]) >= 3 * min(waits[SECOND]), waits


def test_another_conversation_about_a_picture_skips_the_image_encoder(bundled, tiled, monkeypatch):
    monkeypatch.setattr(bundled, "pictures", RememberedPictures())
    replies = [bundled.ask(FIRST, [tiled], max_new_tokens=4) for _ in range(3)]
    texts, times = {reply.text for reply in replies}, [r.times.image_encoder for r in replies]
    assert len(texts) == 1 and max(times[1:]) < times[0] / 5, times


def test_an_image_encoder_is_stopped_while_it_runs(bundled_folder):
    """The next answer does not wait for it, and later results are as they were."""
    pipeline = VisionLanguagePipeline(bundled_folder("qwen3_vl", "int8"), picture_tokens=4096)
    large = world.draw(world.random_scene(random.Random(3), "test", grid=(2, 2)), cell=500)
    first = pipeline.ask(FIRST, [large], max_new_tokens=4)
    assert first.counts.answer and first.times.image_encoder > 0.15
    pipeline.pictures = RememberedPictures()
    stop = threading.Event()
    reply = pipeline.ask(FIRST, [large], stop=stop, max_new_tokens=4)
    time.sleep(0.05)
    start = time.perf_counter()
    stop.set()
    assert reply.wait() and (reply.token_ids, reply.finish) == ([], "cancelled")
    assert time.perf_counter() - start < 0.3
    # Its conversation goes on, with the picture.
    follow_up = reply.conversation.ask(FIRST, max_new_tokens=4)
    assert follow_up.counts.prompt > first.counts.prompt
    assert pipeline.ask(FIRST, [large], max_new_tokens=4).text == first.text


def test_a_stopped_answer_lets_the_next_begin_within_a_second(bundled, tiled):
    waits = []
    for pieces in (0, 1, 5):
        stop = threading.Event()
        reply = bundled.ask(FIRST, [tiled], stop=stop, max_new_tokens=100)
        for _, _ in zip(range(pieces), reply, strict=False):
            pass
        stop.set()
        start = time.perf_counter()
        following = bundled.ask(SECOND, [tiled], max_new_tokens=2)
        while list(following.places()):
            pass
        waits.append(time.perf_counter() - start)
        assert following.counts.answer
    assert max(waits) < 1
