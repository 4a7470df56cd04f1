"""Many people on one page for a while: right answers, nobody else's words, no growing memory.

A quarter of a minute in `make test`, three minutes in `make soak`.
"""

import gc
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from gradio_client import Client, handle_file

from helpers.run.pipeline import VisionLanguagePipeline
from helpers.serve.demo import build_page, open_page
from helpers.shapes import questions

AT_ONCE, IN_TURN = 4, 20  # people
MOST_GROWTH = 100 * 2**20  # bytes, after the first third of the time
FOLLOW_UP = "How many shapes are there?"
SETTINGS = (24, False, 0.7, 0.9)  # tokens at most, no sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.queueing"),
]


@dataclass(frozen=True)
class Person:
    """Someone who asks a question about a picture, then `FOLLOW_UP`; both have an answer."""

    picture: Path
    question: str
    answers: tuple[str, str]


@pytest.fixture(scope="module")
def served(bundled_folder):
    """Serve the bundled InternVL2; gives its `page`, the `address` and the `pipeline`."""
    pipeline = VisionLanguagePipeline(bundled_folder("internvl2", "int8"))
    page = build_page(pipeline, title="Many people")
    yield SimpleNamespace(page=page, address=open_page(page), pipeline=pipeline)
    page.close()


@pytest.fixture(scope="module")
def people(served, tmp_path_factory) -> list[Person]:
    """Return people with the answers that they should get."""
    folder = tmp_path_factory.mktemp("pictures")
    persons = []
    for number, (picture, question) in enumerate(questions.draw_questions(IN_TURN, seed=9)):
        path = folder / f"{number}.png"
        picture.save(path)
        conversation = served.pipeline.conversation()
        first = conversation.ask(question.text, [picture], max_new_tokens=SETTINGS[0]).text
        second = conversation.ask(FOLLOW_UP, max_new_tokens=SETTINGS[0]).text
        persons.append(Person(path, question.text, (first.strip(), second.strip())))
    return persons


def visit(address: str, person: Person) -> None:
    """Ask two questions in a window of its own, and check both answers."""
    window = Client(address, verbose=False, analytics_enabled=False)
    chat: list[dict] = []
    for text, expected in zip((person.question, FOLLOW_UP), person.answers, strict=True):
        gallery = [{"image": handle_file(person.picture), "caption": None}]
        chat, _ = window.predict(text, gallery, chat, *SETTINGS, api_name="/ask")
        content = chat[-1]["content"]
        actual = content if isinstance(content, str) else "".join(part["text"] for part in content)
        assert actual.partition("\n\n<small>")[0] == expected
    window.close()


def test_many_people_one_after_another_and_at_once(served, people, request):
    seconds = 180 if request.config.getoption("soak") else 15
    for person in people[: IN_TURN if request.config.getoption("soak") else 4]:
        visit(served.address, person)
    turns, lock = itertools.cycle(people), threading.Lock()
    end, visits = time.monotonic() + seconds, itertools.count()

    def keep_visiting() -> None:
        while time.monotonic() < end:
            with lock:
                person = next(turns)
                next(visits)
            visit(served.address, person)

    memory = psutil.Process().memory_info
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(keep_visiting) for _ in range(AT_ONCE)]
        time.sleep(seconds / 3)
        before = memory().rss
        for future in futures:
            future.result()
    gc.collect()
    assert next(visits) >= 2 * AT_ONCE
    assert memory().rss - before < MOST_GROWTH
