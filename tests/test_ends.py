"""How computations end: Ctrl-C, a loop that is left, a program that is over before its answer."""

import gc
import json
import os
import signal
import threading
import time
import weakref

import pytest
import torch

from helpers.errors import DeviceError
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.worker import Stop, Task, Worker
from tests.tiny import picture, reference_tokens

QUESTION, SECOND = "What is in the picture?", "What colour is the star?"
LONG = 300  # tokens: a second or two of the small model


# Programs

UNREAD = """
import sys
from PIL import Image
from helpers import VisionLanguagePipeline
pipeline = VisionLanguagePipeline(sys.argv[1])
pipeline.processor.__class__.stop_token_ids = [3]
reply = pipeline.ask("Describe the picture.", [Image.open(sys.argv[2])], max_new_tokens=300)
pieces = iter(reply)  # held, as in a loop that goes on
print(next(pieces), flush=True)
"""


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "picture.png"
    picture().save(path)
    return path


def test_a_program_may_end_before_its_answer_is_read(fork, converted, photo):
    result = fork.run("-c", UNREAD, converted, photo)
    assert (result.returncode, result.stderr) == (0, "")


WITHOUT_AN_END = """
import sys, time
from helpers.models.internvl2 import InternVL2Processor
from helpers.run.generation import StatefulLanguageModel
InternVL2Processor.stop_token_ids = [3]
run = StatefulLanguageModel.step
def slow(self, cache, inputs, pictures):
    time.sleep(0.01)
    run(self, cache, inputs, pictures)
StatefulLanguageModel.step = slow
from helpers.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


ONE_THREAD = """
import os, sys
by_setting = sys.argv[2] == "setting"
if hasattr(os, "sched_setaffinity") and not by_setting:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from helpers import VisionLanguagePipeline
properties = {"INFERENCE_NUM_THREADS": 1} if by_setting else {}
pipeline = VisionLanguagePipeline(sys.argv[1], properties=properties)
print(pipeline.ask("What is in the picture?", max_new_tokens=3).token_ids)
"""


@pytest.mark.parametrize("way", ["setting", "processor"])
def test_one_thread_is_enough_for_weights_in_16_bits(fork, converted, way):
    """On a processor with AMX, compiling them ended the process (openvino#33300)."""
    result = fork.run("-c", ONE_THREAD, converted, way)
    assert result.returncode == 0, result.stderr[-300:]
    assert len(json.loads(result.stdout)) == 3


COMPRESSED_BY_ONE_THREAD = """
import os, sys
from dataclasses import replace
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pathlib import Path
from helpers.graphs.presets import Quantization, Weights, find_preset
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.workshop.report import convert_with_samples
smaller = replace(
    find_preset("int4"),
    language_model=Weights("int4-asym", group_size=64, awq=True, samples=2),
    image_encoder=Quantization(samples=2),
)
checkpoint, output = map(Path, sys.argv[1:])
((_, made),) = convert_with_samples(checkpoint, output, [smaller])
print(VisionLanguagePipeline(made).ask("What is in it?", max_new_tokens=3).token_ids)
"""


def test_one_thread_is_enough_to_look_at_samples(fork, checkpoint, tmp_path):
    """What they give the parts is computed with the weights in 16 bits (openvino#33300)."""
    result = fork.run("-c", COMPRESSED_BY_ONE_THREAD, checkpoint, tmp_path / "smaller")
    assert result.returncode == 0, result.stderr[-300:]
    assert len(json.loads(result.stdout)) == 3


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("wait", [0.0, 0.2])
def test_control_c_while_an_answer_streams(fork, converted, photo, wait):
    """The bundled models stop too soon to be interrupted, so this one's answer has no end."""
    command = ("ask", converted, "--image", photo, "--question", QUESTION)
    program = fork.start("-c", WITHOUT_AN_END, *command, "--max-new-tokens", LONG)
    program.wait_for("", "out")  # the answer has begun
    time.sleep(wait)
    os.kill(program.number, signal.SIGINT)
    assert program.wait(60) == 130
    assert program.text("err").splitlines()[-1] == "stopped"


FORKED = """
import os, sys
from helpers import VisionLanguagePipeline
from helpers.errors import DeviceError
pipeline = VisionLanguagePipeline(sys.argv[1])
conversation = pipeline.conversation()
reply = conversation.ask("Describe the picture.", max_new_tokens=300)
message = {"role": "user", "content": "What?"}
child = os.fork()
if not child:
    for ask in (
        lambda: pipeline.ask("What?"),
        lambda: conversation.ask("What?"),
        lambda: pipeline.chat([message]),
        lambda: reply.text,
        lambda: list(reply),
    ):
        try:
            ask()
        except DeviceError as error:
            print(error, flush=True)
    sys.exit(0)
os.waitpid(child, 0)
reply.stop()
print(bool(pipeline.ask("What?", max_new_tokens=3).token_ids))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_a_forked_process_is_told_that_it_cannot_ask(fork, converted):
    result = fork.run("-c", FORKED, converted)
    *sentences, last = result.stdout.splitlines()
    assert (result.returncode, result.stderr, last) == (0, "", "True")
    assert len(sentences) == 5 and len(set(sentences)) == 1
    assert "forked from the one that loaded the model" in sentences[0] and '"spawn"' in sentences[0]


# Conversations


# In a process of its own: other tests make `Core` objects, after which a signal ends the process
# (see helpers.graphs.core).
INTERRUPTED = """
import json, os, signal, sys, threading, time
from PIL import Image
from helpers import VisionLanguagePipeline
from helpers.run.generation import StatefulLanguageModel
pace, run = [0.03], StatefulLanguageModel.step
def slow(self, cache, inputs, pictures):
    time.sleep(pace[0])
    run(self, cache, inputs, pictures)
StatefulLanguageModel.step = slow
pipeline = VisionLanguagePipeline(sys.argv[1], accuracy=True)
conversation = pipeline.conversation()
question, second = "What is in the picture?", "What colour is the star?"
conversation.ask(question, [Image.open(sys.argv[2])], max_new_tokens=2).wait()
reply = conversation.ask(second, max_new_tokens=300)
threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
interrupted = False
try:
    reply.text
except KeyboardInterrupt:
    interrupted = True
pace[0] = 0.0
third = conversation.ask(question, max_new_tokens=8)
answers = [[answer.prompt_ids, answer.token_ids] for answer in (reply, third)]
print(json.dumps([interrupted, *answers]))
"""


@pytest.mark.usefixtures("interruptible")
def test_after_an_interrupt_the_conversation_goes_on_rightly(fork, converted, photo, torch_model):
    """CPython's `Thread.join` takes an interrupted wait for the thread's end (bpo-45274)."""
    result = fork.run("-c", INTERRUPTED, converted, photo)
    assert (result.returncode, result.stderr) == (0, "")
    interrupted, (prompt, tokens), (next_prompt, next_tokens) = json.loads(result.stdout)
    assert interrupted and 0 < len(tokens) < LONG
    assert next_prompt[len(prompt) : len(prompt) + len(tokens)] == tokens
    assert next_tokens == reference_tokens(torch_model, next_prompt, [picture()], 8)


def seconds_until_answered(pipeline) -> float:
    start = time.perf_counter()
    pipeline.ask(SECOND, max_new_tokens=1).wait()
    return time.perf_counter() - start


def test_a_loop_that_is_left_stops_its_answer(pipeline, slowly):
    reply = pipeline.ask(QUESTION, max_new_tokens=LONG)
    for _ in reply:
        break
    assert seconds_until_answered(pipeline) < 1
    assert 1 <= len(reply.token_ids) < LONG


def test_a_reply_that_nobody_holds_is_stopped(pipeline, slowly):
    pipeline.ask(QUESTION, max_new_tokens=LONG)
    gc.collect()
    assert seconds_until_answered(pipeline) < 1


def test_a_caller_s_event_is_not_set_by_us(pipeline, slowly):
    stop = threading.Event()
    for _ in pipeline.ask(QUESTION, max_new_tokens=LONG, stop=stop):
        break
    assert not stop.is_set()


def test_waiting_no_longer_than_asked(pipeline, slowly):
    reply = pipeline.ask(QUESTION, max_new_tokens=LONG)
    begin = time.perf_counter()
    assert not reply.wait(0.2)
    assert 0.15 < time.perf_counter() - begin < 1
    reply.stop()
    assert reply.wait(5) and reply.wait() and reply.wait(0)


def test_a_closed_pipeline_has_ended_its_answers_and_freed_its_models(converted):
    with VisionLanguagePipeline(converted) as pipeline:
        finished = pipeline.ask(QUESTION, [picture()], max_new_tokens=3)
        text, conversation = finished.text, finished.conversation
        running, waiting = (pipeline.ask(QUESTION, max_new_tokens=LONG) for _ in range(2))
        models = [weakref.ref(model) for model in pipeline.parts.values()]
    pipeline.close()  # once more changes nothing
    assert not any(model() for model in models)
    assert (running.finish, waiting.finish) == ("cancelled", "cancelled")
    assert finished.text == text and len(conversation.messages) == 2
    ids, image_inputs = finished.prompt_ids, pipeline.image_inputs([picture()])
    for use in (
        lambda: pipeline.ask(QUESTION),
        lambda: conversation.ask(SECOND),
        lambda: pipeline.encode_images(**image_inputs),
        lambda: pipeline.embed_tokens(torch.tensor([ids])),
    ):
        with pytest.raises(DeviceError, match="is closed; load the folder anew"):
            use()


USES = {
    "ask": lambda _, conversation: conversation.ask(QUESTION).finish,
    "schema": lambda _, conversation: conversation.ask(QUESTION, schema={"type": "object"}).finish,
    "prompt lookup": lambda _, conversation: conversation.ask(QUESTION, prompt_lookup=True).finish,
    "encode_images": lambda pipeline, _: pipeline.encode_images(
        **pipeline.image_inputs([picture()])
    ),
    "embed_tokens": lambda pipeline, _: pipeline.embed_tokens(torch.tensor([[3]])),
    "with_parts": lambda pipeline, _: pipeline.with_parts({}).ask(QUESTION).finish,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_another_thread_closes_while_something_is_asked(converted, monkeypatch, use):
    pipeline = VisionLanguagePipeline(converted)
    conversation, check = pipeline.conversation(), pipeline.check_open

    def checked_too_early():
        check()
        closing = threading.Thread(target=pipeline.close)
        closing.start()
        closing.join()

    monkeypatch.setattr(pipeline, "check_open", checked_too_early)
    try:
        assert use(pipeline, conversation) == "cancelled"
    except DeviceError as error:
        assert "is closed; load the folder anew" in str(error)
    assert not pipeline.parts


def test_threads_that_ask_while_another_closes_have_an_answer_or_an_error_of_ours(converted):
    pipeline, ends = VisionLanguagePipeline(converted), []
    begun = threading.Barrier(5)

    def ask_on(options):
        begun.wait()
        try:
            while True:
                conversation = pipeline.conversation()
                for question in (QUESTION, SECOND):
                    reply = conversation.ask(question, max_new_tokens=3, **options)
                    assert reply.finish in ("stop", "length", "cancelled")
                conversation.take_back(reply)
        except Exception as error:
            ends.append(error)

    options = [
        {},
        {"prompt_lookup": True},
        {"schema": {"type": "integer"}},
        {"images": [picture()]},
    ]
    threads = [threading.Thread(target=ask_on, args=[settings]) for settings in options]
    for thread in threads:
        thread.start()
    begun.wait()
    time.sleep(0.5)
    pipeline.close()
    for thread in threads:
        thread.join(30)
    assert [type(end) for end in ends] == [DeviceError] * len(options), ends


# The worker


def test_a_closed_worker_lets_go_of_what_it_computed_with():
    def compute(requests):
        return requests

    worker, held = Worker(compute), weakref.ref(compute)
    del compute
    worker.close()  # which has begun nothing
    assert held() is None


def test_tasks_are_computed_in_their_order_by_one_thread():
    worker, order = Worker(), []
    tasks = [Task(lambda n=n: order.append((n, threading.get_ident())), Stop()) for n in range(9)]
    for task in tasks:
        worker.submit(task)
    assert all(worker.wait(task) for task in tasks)
    assert [number for number, _ in order] == list(range(9))
    assert len({thread for _, thread in order} - {threading.get_ident()}) == 1
    worker.close()


def test_closing_stops_what_runs_and_drops_what_waits():
    worker, results = Worker(), []
    stop = Stop()

    def until_stopped() -> None:
        while not stop.is_set():
            time.sleep(0.001)
        results.append("stopped")

    running, waiting = Task(until_stopped, stop), Task(lambda: results.append("ran"), Stop())
    worker.submit(running)
    worker.submit(waiting)
    running.started.wait()
    worker.close()
    assert results == ["stopped"] and running.done.is_set() and waiting.done.is_set()
    late = Task(lambda: results.append("late"), Stop())
    worker.submit(late)
    assert worker.wait(late) and results == ["stopped"]


def test_a_task_is_withdrawn_though_its_event_is_set_for_a_moment_only():
    class Pulse(threading.Event):
        def is_set(self) -> bool:
            is_set = super().is_set()
            self.clear()
            return is_set

    worker, end, pulse, calls = Worker(), threading.Event(), Pulse(), []

    def until_end() -> None:
        end.wait()

    waiting = Task(
        lambda: calls.append("work"), Stop(pulse), at_withdrawal=lambda: calls.append("withdrawal")
    )
    running = Task(until_end, Stop())
    worker.submit(running, waiting)
    assert not worker.wait(running, 0.1) and not worker.wait(waiting, 0.1)
    pulse.set()
    assert worker.wait(waiting, 5) and calls == ["withdrawal"]
    end.set()
    worker.close()


def test_an_error_does_not_end_the_worker():
    worker = Worker()
    failing = Task(lambda: 1 / 0, Stop())
    later = Task(lambda: None, Stop())
    worker.submit(failing)
    worker.submit(later)
    assert worker.wait(later) and worker.wait(failing)
    assert isinstance(failing.error, ZeroDivisionError)
    worker.close()


def test_whoever_waits_is_told_what_ended_the_worker_s_thread():
    worker = Worker(at_once=1.5)  # which nothing can be counted by
    first, second = Task(lambda: None, Stop()), Task(lambda: None, Stop())
    worker.submit(first, second)
    for task in (first, second):
        assert worker.wait(task, 5) and isinstance(task.error, ValueError)
    later = Task(lambda: None, Stop())
    worker.submit(later)
    assert worker.wait(later, 5) and isinstance(later.error, ValueError)
    worker.close()


def test_an_error_at_a_task_s_end_reaches_whoever_waits():
    worker = Worker()
    failing, later = Task(lambda: None, Stop(), at_end=lambda: 1 / 0), Task(lambda: None, Stop())
    worker.submit(failing, later)
    assert worker.wait(failing, 5) and worker.wait(later, 5)
    worker.close()


def test_a_pipeline_that_is_gone_takes_its_thread_along():
    class Owner:
        def __init__(self) -> None:
            self.worker = Worker()
            self.worker.close_with(self)

    owner, before = Owner(), threading.active_count()
    task = Task(lambda: None, Stop())
    owner.worker.submit(task)
    owner.worker.wait(task)
    assert threading.active_count() == before + 1
    del owner
    gc.collect()
    assert threading.active_count() == before
