"""Many programs on one server for a while, some of which go away, and bodies of any form.

A quarter of a minute in `make test`, three minutes and 2000 bodies in `make soak`.
"""

import copy
import itertools
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import psutil
import pytest

from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes.questions import draw_questions
from tests.servers import message, serving

AT_ONCE = 4
MOST_GROWTH = 60 * 2**20  # bytes, after the first third of the time
NAME = "shapes"
PAIRS = draw_questions(12, seed=9)
STRANGE = (None, True, -1, 0, 3.5, 10**30, float("1e308"), "", "x", "\x00", "é" * 99, [], {}, [[]])

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(fork, internvl2_folder):
    """Return a server that answers four at once."""
    with serving(fork, internvl2_folder, "--name", NAME) as server:
        yield server


@pytest.fixture(scope="module")
def expected(internvl2_folder) -> list[str]:
    """Return the answers of our own pipeline."""
    pipeline = VisionLanguagePipeline(internvl2_folder, accuracy=True)
    return [pipeline.ask(question.text, [picture]).text for picture, question in PAIRS]


def test_many_programs_at_once_and_some_that_go_away(server, expected, request):
    seconds = 180 if request.config.getoption("soak") else 12
    turns, lock, end = itertools.count(), threading.Lock(), time.monotonic() + seconds
    right: list[bool] = []
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="any", max_retries=0)

    def visit(turn: int) -> None:
        place = turn % len(PAIRS)
        picture, question = PAIRS[place]
        messages = [message(question.text, picture)]
        options: dict[str, Any] = {"model": NAME, "messages": messages}
        if turn % 5 == 4:  # leaves before its answer is there, or in the middle of it
            stream = client.chat.completions.create(**options, stream=True)
            for _, _ in zip(range(turn % 3), stream, strict=False):
                pass
            stream.close()
            return
        completion = client.chat.completions.create(**options)
        right.append(completion.choices[0].message.content == expected[place])

    def keep_visiting() -> None:
        while time.monotonic() < end:
            with lock:
                turn = next(turns)
            visit(turn)

    process = psutil.Process(server.program.number)
    with client, ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(keep_visiting) for _ in range(AT_ONCE)]
        time.sleep(seconds / 3)
        before = process.memory_info().rss
        for future in futures:
            future.result()
    # Answers that are computed together may round otherwise than one after another.
    assert len(right) > 20 and sum(right) >= 0.97 * len(right)
    assert process.memory_info().rss - before < MOST_GROWTH


def places_of(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every value in a body."""
    yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places_of(part, (*path, key))


def mutated(body: dict, generator: random.Random) -> Any:
    """Return a body with one to three values exchanged, left out or repeated."""
    body = copy.deepcopy(body)
    for _ in range(generator.randint(1, 3)):
        paths = [path for path in places_of(body) if path]
        if not paths:
            return generator.choice(STRANGE)
        *above, key = generator.choice(paths)
        holder = body
        for step in above:
            holder = holder[step]
        if generator.random() < 0.2:
            del holder[key]
        elif generator.random() < 0.1 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = generator.choice(STRANGE)
    return body


def test_bodies_of_any_form_are_answered_or_refused(server, request):
    number = 2000 if request.config.getoption("soak") else 150
    generator = random.Random(7)
    picture, question = PAIRS[0]
    chat = {
        "model": NAME,
        "messages": [
            {"role": "system", "content": "Short."},
            message(question.text, picture),
            {"role": "assistant", "content": "A star."},
            {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
        ],
        "max_tokens": 3,
        "temperature": 1,
        "top_p": 0.9,
        "seed": 5,
        "stop": ["x", "y"],
        "stream": False,
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
    }
    response = {
        "model": NAME,
        "instructions": "Short.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Where?"}]}],
        "max_output_tokens": 3,
        "text": {"format": {"type": "text"}},
    }
    bodies = (("chat/completions", chat), ("responses", response))
    statuses: dict[int, int] = {}
    with httpx.Client(base_url=f"{server.address}/v1/", timeout=60) as client:
        for turn in range(number):
            path, body = bodies[turn % 4 == 3]
            answer = client.post(path, json=mutated(body, generator))
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            assert answer.status_code in (200, 400, 404, 413), answer.text
            if answer.status_code != 200:
                assert answer.json()["error"]["message"].strip().endswith(".")
    assert statuses[200] > number / 20 and statuses[400] > number / 10
