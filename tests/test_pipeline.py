"""Conversations with the small model: what is asked, answered, remembered and refused."""

import itertools
import re
import threading
import time
import typing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.convert.conversion import convert
from helpers.convert.folders import read_manifest
from helpers.errors import (
    CheckpointError,
    OutputError,
    PictureError,
    QuestionError,
    SettingsError,
    UserError,
)
from helpers.graphs.core import run_model
from helpers.graphs.presets import find_preset
from helpers.inputs.messages import user_message
from helpers.models import exported, load_model, load_processor
from helpers.models.families import find_checkpoint
from helpers.run import pipeline as pipeline_module
from helpers.run.choosing import Chooser
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.remembered_pictures import RememberedPictures
from helpers.run.replies import Counts
from tests.tiny import CONTEXT, TOKENS_PER_TILE, equal_pieces, picture, reference_tokens

NEW_TOKENS = 10
QUESTION, SECOND = "What is in the picture?", "What colour is the star?"


def ask(conversation, text=QUESTION, images=(), length=NEW_TOKENS, **options):
    """Ask, wait for the answer, and return the reply."""
    reply = conversation.ask(text, images, max_new_tokens=length, **options)
    reply.wait()
    return reply


def ids_of(pipeline, text: str, pictures=()) -> list[int]:
    inputs = pipeline.image_inputs(pictures) if pictures else None
    return pipeline.processor.input_ids([user_message(text, len(pictures))], inputs)[0].tolist()


# Answers


@pytest.mark.parametrize("number", [0, 1, 3])
def test_an_answer_about_pictures_equals_pytorch(pipeline, torch_model, number):
    pictures = [picture(index) for index in range(number)]
    reply = ask(pipeline.conversation(), images=pictures)
    ids = ids_of(pipeline, QUESTION, pictures)
    assert reply.prompt_ids == ids
    tiles = int(pipeline.image_inputs(pictures)["tiles"].sum()) if pictures else 0
    assert ids.count(pipeline.processor.image_token_id) == tiles * TOKENS_PER_TILE
    assert reply.token_ids == reference_tokens(torch_model, ids, pictures)


@pytest.mark.parametrize("most", [1, 3])
def test_many_tiles_are_computed_in_several_calls(pipeline, monkeypatch, most):
    inputs = pipeline.image_inputs([picture(index) for index in range(4)])
    expected, calls = pipeline.encode_images(**inputs), []

    def noted(request, inputs, stop):
        calls.append(len(inputs["pixel_values"]))
        return run_model(request, inputs, stop)

    monkeypatch.setattr(exported, "MOST_AT_ONCE", most)
    monkeypatch.setattr(pipeline_module, "run_model", noted)
    features = pipeline.encode_images(**inputs)
    tiles = len(inputs["pixel_values"])
    assert max(calls) == most and sum(calls) == tiles > most
    assert torch.allclose(features, expected, atol=1e-4)


def test_the_pieces_are_the_text(pipeline):
    reply = pipeline.ask(QUESTION, [picture()], max_new_tokens=NEW_TOKENS)
    pieces = list(reply)
    assert len(pieces) > 1
    assert "".join(pieces).strip() == reply.text
    tokenizer = pipeline.processor.tokenizer
    assert reply.text == tokenizer.decode(reply.token_ids, skip_special_tokens=True).strip()


def test_iterating_a_second_time_ends(pipeline):
    reply = pipeline.ask(QUESTION, max_new_tokens=NEW_TOKENS)
    assert list(reply)
    assert list(reply) == []
    assert list(reply) == []


def test_times(pipeline):
    reply = ask(pipeline.conversation(), images=[picture()])
    times = reply.times
    assert 0 < times.image_encoder < times.first_token
    assert len(times.next_tokens) == len(reply.token_ids) - 1
    assert min(times.next_tokens) > 0 and times.per_token > 0


def test_beams_answer_once(pipeline):
    reply = pipeline.ask(QUESTION, [picture()], max_new_tokens=NEW_TOKENS, num_beams=3)
    assert list(reply) == [reply.text] and reply.text
    assert reply.times.first_token > reply.times.image_encoder > 0


@pytest.mark.parametrize("beams", [1, 2])
def test_a_seed_decides_a_sampled_answer(pipeline, beams):
    first, same, other = (
        ask(pipeline.conversation(), do_sample=True, num_beams=beams, seed=seed).token_ids
        for seed in (1, 1, 2)
    )
    assert first == same != other


def test_a_seed_decides_whatever_is_computed_meanwhile(pipeline):
    expected = ask(pipeline.conversation(), do_sample=True, seed=1).token_ids
    other = pipeline.ask(QUESTION, max_new_tokens=100, do_sample=True, seed=2)
    reply = pipeline.ask(QUESTION, max_new_tokens=NEW_TOKENS, do_sample=True, seed=1)
    assert reply.token_ids == expected
    assert other.token_ids


def test_special_words_in_a_question_are_plain_text(pipeline):
    processor = pipeline.processor
    text = "Is <|im_end|> a <IMG_CONTEXT> or an <img>?"
    ids = ask(pipeline.conversation(), text).prompt_ids
    plain_ids = ids_of(pipeline, QUESTION)
    special_ids = processor.tokenizer.convert_tokens_to_ids(
        ["<|im_end|>", "<IMG_CONTEXT>", "<img>"]
    )
    assert list(map(ids.count, special_ids)) == list(map(plain_ids.count, special_ids))
    assert ids == ids_of(pipeline, text)
    assert text in processor.tokenizer.decode(ids)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`:UserWarning")
def test_a_repetition_penalty_is_transformers_own(pipeline, torch_model, options):
    reply = pipeline.ask(
        QUESTION, [picture()], max_new_tokens=40, repetition_penalty=3.0, **options
    )
    features = torch_model.encode_images(**torch_model.image_inputs([picture()]))
    stop = torch_model.processor.stop_token_ids
    expected = torch_model.language_model.generate(
        **torch_model.prepare(torch.tensor([reply.prompt_ids]), features),
        max_new_tokens=40,
        do_sample=False,
        repetition_penalty=3.0,
        eos_token_id=stop,
        pad_token_id=stop[0],
        **options,
    )
    plain = pipeline.ask(QUESTION, [picture()], max_new_tokens=40, **options)
    assert reply.token_ids == expected[0].tolist() != plain.token_ids


def test_a_repetition_penalty_says_nothing(pipeline, recwarn):
    ask(pipeline.conversation(), repetition_penalty=1.4)
    assert not [warning for warning in recwarn if "penalty" in str(warning.message)]


# Conversations


def two_turns(conversation, first_images=(), second_images=()):
    first = ask(conversation, images=first_images)
    return first, ask(conversation, SECOND, second_images)


@pytest.mark.parametrize(("first_number", "second_number"), [(1, 0), (0, 1), (1, 1), (2, 0)])
def test_a_second_turn_equals_pytorch_on_all_that_was_said(
    pipeline, torch_model, first_number, second_number
):
    first_images = [picture(index) for index in range(first_number)]
    second_images = [picture(index + 2) for index in range(second_number)]
    first, second = two_turns(pipeline.conversation(), first_images, second_images)
    start, end = len(first.prompt_ids), len(first.prompt_ids) + len(first.token_ids)
    assert second.prompt_ids[:start] == first.prompt_ids
    assert second.prompt_ids[start:end] == first.token_ids
    end_of_answer = pipeline.processor.end_of_answer_ids
    assert second.prompt_ids[end:][: len(end_of_answer)] == end_of_answer
    expected = reference_tokens(torch_model, second.prompt_ids, first_images + second_images)
    assert second.token_ids == expected


def test_a_second_turn_computes_only_what_is_new(pipeline, computed):
    conversation = pipeline.conversation()
    first = ask(conversation, images=[picture()])
    assert computed == [len(first.prompt_ids)] + [1] * (NEW_TOKENS - 1)
    computed.clear()
    second = ask(conversation, SECOND)
    cached = len(first.prompt_ids) + NEW_TOKENS - 1  # the last token was not fed back yet
    assert computed == [len(second.prompt_ids) - cached] + [1] * (NEW_TOKENS - 1)
    assert computed[0] < len(first.prompt_ids)


def test_a_question_that_is_asked_before_the_answer_is_read_waits_for_it(pipeline):
    conversation = pipeline.conversation()
    first = conversation.ask(QUESTION, [picture()], max_new_tokens=NEW_TOKENS)
    second = conversation.ask(SECOND, max_new_tokens=NEW_TOKENS)
    expected = two_turns(pipeline.conversation(), [picture()])
    assert [first.token_ids, second.token_ids] == [reply.token_ids for reply in expected]


def test_clearing_waits_for_the_answer(pipeline):
    conversation = pipeline.conversation()
    reply = conversation.ask(QUESTION, max_new_tokens=100)
    conversation.clear()
    assert reply.token_ids and conversation.ids == []


def test_a_cleared_conversation_knows_nothing(pipeline):
    conversation = pipeline.conversation()
    first = ask(conversation, images=[picture()])
    ask(conversation, SECOND)
    conversation.clear()
    assert conversation.messages == []
    assert ask(conversation, images=[picture()]).token_ids == first.token_ids


def test_messages_are_remembered(pipeline):
    conversation = pipeline.conversation()
    first, second = two_turns(conversation, [picture()])
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2
    assert conversation.messages[1::2] == [first.message, second.message]
    assert conversation.messages[::2] == [
        question_message(QUESTION, picture()),
        question_message(SECOND),
    ]


def question_message(text: str, *pictures) -> dict:
    """Return a user's message as chat programs have it."""
    parts = [{"type": "image", "image": image} for image in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def test_messages_in_and_out(pipeline, torch_model):
    """A whole conversation is handed over, as programs do that keep it themselves."""
    first = pipeline.chat([question_message(QUESTION, picture())], max_new_tokens=NEW_TOKENS)
    assert first.token_ids == ask(pipeline.conversation(), images=[picture()]).token_ids
    assert first.message == {
        "role": "assistant",
        "content": [{"type": "text", "text": first.text}],
    }
    history = [*first.conversation.messages, question_message(SECOND)]
    second = pipeline.chat(history, max_new_tokens=NEW_TOKENS)
    inputs = pipeline.image_inputs([picture()])
    assert second.prompt_ids == pipeline.processor.input_ids(history, inputs)[0].tolist()
    assert second.token_ids == reference_tokens(torch_model, second.prompt_ids, [picture()])
    third = ask(second.conversation, question_message(QUESTION, picture(1)))
    assert third.counts.cached > len(second.prompt_ids)
    expected = reference_tokens(torch_model, third.prompt_ids, [picture(), picture(1)])
    assert third.token_ids == expected
    assert len(third.conversation.messages) == 6
    second.conversation.take_back(third)
    assert second.conversation.messages == [*history, second.message]


def test_counts(pipeline):
    first, second = two_turns(pipeline.conversation(), [picture()])
    assert first.counts == Counts(len(first.prompt_ids), 0, len(first.token_ids))
    cached = len(first.prompt_ids) + len(first.token_ids) - 1  # the last is not computed on
    assert second.counts == Counts(len(second.prompt_ids), cached, len(second.token_ids))


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "There are no messages"),
        (None, "Messages come in a list, and not as an object of type NoneType; put them in one"),
        ({"role": "user", "content": "a"}, "Messages come in a list.* of type dict;"),
        (iter([{"role": "user", "content": "a"}]), "Messages come in a list"),
        ("a", "Messages come in a list"),
        ([{"role": "assistant", "content": "no"}], "The last message should be a user's"),
        (
            [
                question_message("a", picture()),
                question_message("b", picture()) | {"role": "assistant"},
                question_message("c"),
            ],
            "An assistant's message has words only; put its pictures in a question",
        ),
        ([question_message("a"), question_message("b")], "a user's and an assistant's in turn"),
        ([{"role": "tool", "content": "no"}], "A message needs a role, system, user or assistant"),
        ([{"role": "user", "content": [{"type": "video"}]}], "A message needs a role"),
        ([{"role": "user", "content": [{"type": "text"}]}], "A message needs a role"),
        ([{"role": "user"}], "A message needs a role"),
        ([{"role": "user", "content": " "}], "The question is empty"),
        (
            [{"role": "user", "content": [{"type": "image"}, question_message("a")["content"][0]]}],
            "lacks",
        ),
    ],
)
def test_messages_that_cannot_be(pipeline, messages, sentence):
    with pytest.raises(QuestionError, match=sentence) as caught:
        pipeline.chat(messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("messages", [None, "a", {"role": "user", "content": "a"}, iter([])])
def test_a_conversation_after_what_is_no_list(pipeline, messages):
    with pytest.raises(QuestionError, match="Messages come in a list"):
        pipeline.conversation(messages)


def test_pictures_stand_in_a_message_or_beside_a_text(pipeline):
    with pytest.raises(QuestionError, match="give them there and not beside it"):
        pipeline.ask(question_message(QUESTION), [picture()])


def test_conversations_do_not_mix(pipeline):
    expected = [
        two_turns(pipeline.conversation(), [picture(number)])[1].token_ids for number in (0, 1)
    ]
    assert expected[0] != expected[1]
    conversations = [pipeline.conversation() for _ in expected]
    for number, conversation in enumerate(conversations):
        ask(conversation, images=[picture(number)])
    # These are asked at the same time.
    replies = [
        conversation.ask(SECOND, max_new_tokens=NEW_TOKENS) for conversation in conversations
    ]
    assert [reply.token_ids for reply in replies] == expected


def test_several_threads_may_ask_in_one_conversation(pipeline):
    conversation, texts = pipeline.conversation(), [QUESTION, SECOND] * 4
    ask(conversation, images=[picture()])
    together = threading.Barrier(len(texts))

    def ask_together(text: str) -> list[int]:
        together.wait()
        return ask(conversation, text, length=2).prompt_ids

    with ThreadPoolExecutor(len(texts)) as threads:
        prompts = sorted(threads.map(ask_together, texts), key=len)
    assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(prompts))
    assert len(conversation.turns) == 9 and len(conversation.messages) == 18


def test_after_beams_a_conversation_goes_on(pipeline, torch_model):
    conversation = pipeline.conversation()
    ask(conversation, images=[picture()], num_beams=3)
    second = ask(conversation, SECOND)
    assert second.token_ids == reference_tokens(torch_model, second.prompt_ids, [picture()])


# Taking an answer back


@pytest.mark.parametrize(("first_number", "second_number"), [(1, 0), (0, 1)])
def test_what_is_taken_back_was_never_asked(pipeline, first_number, second_number):
    first_images = [picture(index) for index in range(first_number)]
    second_images = [picture(index + 2) for index in range(second_number)]
    conversation = pipeline.conversation()
    first, second = two_turns(conversation, first_images, second_images)
    conversation.take_back(second)
    assert conversation.messages[1:] == [first.message]
    same = ask(conversation, SECOND, second_images)
    assert (same.prompt_ids, same.token_ids) == (second.prompt_ids, second.token_ids)
    conversation.take_back(same)
    conversation.take_back(first)
    assert (conversation.ids, conversation.features, conversation.messages) == ([], {}, [])


def test_only_the_last_answer_can_be_taken_back(pipeline):
    conversation = pipeline.conversation()
    first, second = two_turns(conversation)
    conversation.take_back(first)
    assert len(conversation.messages) == 4
    conversation.take_back(second)
    conversation.take_back(second)
    assert len(conversation.messages) == 2


def test_an_answer_is_computed_before_it_is_taken_back(pipeline):
    conversation = pipeline.conversation()
    reply = conversation.ask(QUESTION, max_new_tokens=100)
    conversation.take_back(reply)
    assert reply.token_ids and conversation.ids == []


# Stopping


def test_stop_ends_the_answer_and_the_conversation_goes_on(pipeline, torch_model):
    conversation, stop = pipeline.conversation(), threading.Event()
    reply = conversation.ask(QUESTION, [picture()], max_new_tokens=200, stop=stop)
    for number, _ in enumerate(reply):
        if number == 2:
            stop.set()
    assert 3 <= len(reply.token_ids) < 200 and reply.finish == "cancelled"
    second = ask(conversation, SECOND)
    start, end = len(reply.prompt_ids), len(reply.prompt_ids) + len(reply.token_ids)
    assert second.prompt_ids[start:end] == reply.token_ids
    assert second.token_ids == reference_tokens(torch_model, second.prompt_ids, [picture()])


def test_stop_during_the_prompt(pipeline, torch_model, monkeypatch):
    monkeypatch.setattr(pipeline.language_model, "pieces", equal_pieces(16))
    conversation, stop = pipeline.conversation(), threading.Event()
    encode_until = pipeline.encode_until

    def encode_and_stop(_, inputs):
        features = encode_until(None, inputs)
        stop.set()
        return features

    monkeypatch.setattr(pipeline, "encode_until", encode_and_stop)
    monkeypatch.setattr(pipeline, "pictures", RememberedPictures())
    reply = conversation.ask(QUESTION, [picture()], stop=stop)
    assert (reply.text, reply.token_ids, list(reply)) == ("", [], [])
    monkeypatch.undo()
    second = ask(conversation, SECOND)
    assert second.token_ids == reference_tokens(torch_model, second.prompt_ids, [picture()])


def test_whoever_asks_first_is_answered_first(pipeline, slowly):
    replies = [pipeline.ask(QUESTION, max_new_tokens=8) for _ in range(4)]
    places = [next(iter(reply.places()), 0) for reply in replies]
    assert places == [0, 1, 2, 3]
    counts = []  # of answers that are computed by then
    for reply in replies:
        reply.wait()
        counts.append([other.is_running for other in replies].count(False))
    assert counts == sorted(counts) and counts[0] < 4
    assert not list(replies[-1].places())


def test_whoever_waits_may_be_stopped(pipeline, slowly):
    first = pipeline.ask(QUESTION, max_new_tokens=40)
    stop = threading.Event()
    second = pipeline.ask(SECOND, max_new_tokens=8, stop=stop)
    assert next(second.places()) == 1
    stop.set()
    assert second.text == "" and first.is_running
    assert repr(first) == "Reply(running; its .text waits for the answer)"
    assert first.text and repr(first) == f"Reply({first.text!r}, finish='length')"


def test_stopped_beams_answer_with_the_best_so_far(pipeline, monkeypatch):
    model, calls, stop = pipeline.language_model, itertools.count(1), threading.Event()
    step = model.step

    def step_and_stop(*arguments):
        step(*arguments)
        if next(calls) == 5:
            stop.set()

    monkeypatch.setattr(model, "step", step_and_stop)
    reply = pipeline.ask(QUESTION, max_new_tokens=200, num_beams=2, stop=stop)
    assert (len(reply.token_ids), reply.finish) == (5, "cancelled")


def test_the_pieces_of_stopped_beams_end_with_their_answer(pipeline, slowly):
    slowly.seconds, stop = 0.3, threading.Event()
    reply = pipeline.ask(QUESTION, [picture()], stop=stop, num_beams=2, max_new_tokens=200)
    while not reply.times.image_encoder:
        time.sleep(0.01)
    stop.set()
    pieces = list(reply)
    assert not reply.is_running and "".join(pieces) == reply.text


def test_nobody_waits_for_an_image_encoder_after_stopping(pipeline, monkeypatch):
    release, stop = threading.Event(), threading.Event()
    encode_images = pipeline.encode_images

    def encode_later(**inputs):
        release.wait()
        return encode_images(**inputs)

    monkeypatch.setattr(pipeline, "encode_images", encode_later)
    reply = pipeline.ask(QUESTION, [picture()], stop=stop)
    stop.set()
    assert list(reply) == []
    release.set()
    assert reply.text == ""


@pytest.mark.parametrize("turns", [0, 1])
def test_a_question_stopped_before_its_turn_is_remembered(pipeline, torch_model, slowly, turns):
    conversation, stop = pipeline.conversation(), threading.Event()
    pictures = [picture(number) for number in range(turns + 1)]
    for number in range(turns):
        ask(conversation, images=[pictures[number]], length=4)
    other = pipeline.ask(QUESTION, max_new_tokens=40)
    reply = conversation.ask(QUESTION, pictures[-1:], stop=stop)
    stop.set()
    assert (list(reply), reply.is_running, other.is_running) == ([], False, True)
    assert (reply.text, reply.token_ids, reply.finish) == ("", [], "cancelled")
    other.stop()
    assert conversation.messages[-2:] == [question_message(QUESTION, pictures[-1]), reply.message]
    second = ask(conversation, SECOND)
    assert bool(second.counts.cached) == bool(turns)
    before = reply.prompt_ids + pipeline.processor.end_of_answer_ids
    assert second.prompt_ids[: len(before)] == before
    assert second.token_ids == reference_tokens(torch_model, second.prompt_ids, pictures)


def test_a_question_stopped_before_its_turn_is_taken_back(pipeline):
    conversation, stop = pipeline.conversation(), threading.Event()
    first = ask(conversation, images=[picture()])
    stop.set()
    conversation.take_back(conversation.ask(SECOND, [picture(1)], stop=stop))
    assert conversation.messages[1:] == [first.message]
    assert ask(conversation, SECOND).prompt_ids[: len(first.prompt_ids)] == first.prompt_ids


# What goes wrong


@pytest.mark.parametrize("error", [ValueError("a defect"), SettingsError("no")])
def test_an_error_in_the_thread_reaches_whoever_reads(pipeline, monkeypatch, error):
    def fail(*_):
        raise error

    conversation = pipeline.conversation()
    first = ask(conversation)
    monkeypatch.setattr(pipeline, "encode_until", fail)
    monkeypatch.setattr(pipeline, "pictures", RememberedPictures())
    reply = conversation.ask(SECOND, [picture()])
    for read in (list, lambda reply: reply.text, lambda reply: reply.token_ids, list):
        with pytest.raises(type(error), match=str(error)):
            read(reply)
    monkeypatch.undo()
    # The question that failed was never asked.
    assert ask(conversation, SECOND).prompt_ids[: len(first.prompt_ids)] == first.prompt_ids
    assert len(conversation.messages) == 4


def test_an_error_within_an_answer_leaves_nothing_of_it(pipeline, torch_model, monkeypatch):
    choose, calls = Chooser.choose, itertools.count()

    def fail(chooser, *arguments):
        if next(calls) == 3:
            raise ValueError("a defect")
        return choose(chooser, *arguments)

    conversation = pipeline.conversation()
    ask(conversation)
    monkeypatch.setattr(Chooser, "choose", fail)
    with pytest.raises(ValueError, match="a defect"):
        list(conversation.ask("What is there?"))
    monkeypatch.undo()
    reply = ask(conversation, SECOND)
    assert reply.token_ids == reference_tokens(torch_model, reply.prompt_ids)


@pytest.mark.parametrize("text", ["", "  \n", None])
def test_an_empty_question(pipeline, text):
    with pytest.raises(QuestionError, match="The question is empty"):
        pipeline.ask(text)


@pytest.mark.parametrize("question", [5, b"x", ["a"], 0])
def test_what_is_no_question(pipeline, question):
    sentence = f"a text or a user's message, and not of type {type(question).__name__}; give"
    with pytest.raises(QuestionError, match=sentence):
        pipeline.ask(question)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it should be a whole number from 1 to"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; it should be a whole number"),
        ({"max_new_tokens": "many"}, "max_new_tokens is 'many'"),
        ({"num_beams": 99}, "num_beams is 99; it should be a whole number from 1 to 16"),
        ({"num_beams": 1.5}, "num_beams is 1.5; it should be a whole number"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 0.5}, "top_k is 0.5; it should be a whole number"),
        ({"repetition_penalty": -1}, "repetition_penalty is -1"),
        ({"seed": "dice"}, "seed is 'dice'; it should be a whole number from 0"),
        ({"stop": True}, r"stop is True; it should be a threading\.Event\(\)"),
        ({"stop": "x"}, "stop is 'x'"),
        ({"stop": threading.Event}, "stop is <class 'threading.Event'>"),
        ({"picture_tokens": "64"}, "picture_tokens is '64', but a picture has at least"),
        ({"temprature": 1}, "'temprature' does not exist; use .*temperature"),
    ],
)
def test_options_that_cannot_be(pipeline, options, message):
    with pytest.raises(SettingsError, match=message):
        pipeline.ask(QUESTION, do_sample=True, **options)


def test_too_long_is_told_before_anything_is_computed(pipeline, computed):
    conversation = pipeline.conversation()
    with pytest.raises(QuestionError, match=f"the model's context holds {CONTEXT}; ask less"):
        conversation.ask("What? " * CONTEXT, [picture()])
    with pytest.raises(QuestionError, match="and 500 for the answer"):
        conversation.ask(QUESTION, max_new_tokens=500)
    assert computed == [] and conversation.messages == []


def test_exactly_the_context_fits(pipeline):
    room = CONTEXT - len(ids_of(pipeline, QUESTION))
    reply = pipeline.ask(QUESTION, max_new_tokens=room)
    assert len(reply.token_ids) <= room
    with pytest.raises(QuestionError):
        pipeline.ask(QUESTION, max_new_tokens=room + 1)


def test_what_is_no_picture(pipeline, tmp_path):
    path = tmp_path / "words.png"
    path.write_text("no picture", encoding="utf-8")
    with pytest.raises(PictureError, match=r"words\.png"):
        pipeline.ask(QUESTION, [path])


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (VisionLanguagePipeline.__init__, ["folder"]),
        (load_model, ["folder"]),
        (load_processor, ["folder"]),
        (convert, ["checkpoint", "output"]),
    ],
)
def test_a_folder_may_be_a_text(function, names):
    hints = typing.get_type_hints(function)
    assert [hints[name] for name in names] == [str | Path] * len(names)


def test_folders_as_texts(checkpoint, converted):
    assert load_processor(str(checkpoint)).folder == load_model(str(checkpoint)).processor.folder
    assert convert(str(checkpoint), str(converted), find_preset("fp16"))
    assert VisionLanguagePipeline(str(converted)).folder == converted


@pytest.mark.parametrize("content", [b"\x89PNG", bytearray(b"x"), memoryview(b"x")])
def test_bytes_are_no_picture_and_not_several(pipeline, content):
    sentence = f"An object of type {type(content).__name__} is not a picture; .*io.BytesIO makes"
    with pytest.raises(PictureError, match=sentence):
        pipeline.ask(QUESTION, content)


def test_a_folder_without_a_conversion(tmp_path):
    with pytest.raises(OutputError, match="holds no finished conversion"):
        VisionLanguagePipeline(tmp_path)


def test_errors_are_one_sentence(pipeline):
    with pytest.raises(UserError) as caught:
        pipeline.ask("")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", [None, 5, b"models"])
def test_what_is_no_folder(folder):
    with pytest.raises(OutputError, match=f"{folder!r} is no folder; give the path of one"):
        VisionLanguagePipeline(folder)
    with pytest.raises(OutputError, match=f"{folder!r} is no folder; give the path of one"):
        read_manifest(folder)
    with pytest.raises(CheckpointError, match=f"{folder!r} is no folder; give the path of a"):
        load_processor(folder)
    with pytest.raises(CheckpointError, match=f"{folder!r} is no folder and no name"):
        find_checkpoint(folder)


@pytest.mark.parametrize("properties", [[1], "x", {1: 2}, 5])
def test_properties_that_are_no_dict(converted, properties):
    with pytest.raises(SettingsError, match=r"properties is .* should be a dict of OpenVINO's"):
        VisionLanguagePipeline(converted, properties=properties)


@pytest.mark.parametrize("threads", ["abc", "", None, [1], 1.5, object()])
def test_a_number_of_threads_that_cannot_be(converted, threads):
    with pytest.raises(SettingsError, match=r"INFERENCE_NUM_THREADS is .* be a whole number"):
        VisionLanguagePipeline(converted, properties={"INFERENCE_NUM_THREADS": threads})


@pytest.mark.parametrize("number", [0, -1, 1.5, "2", None, True, float("inf")])
def test_a_number_of_answers_at_once_that_cannot_be(converted, number):
    """Nobody would compute any."""
    sentence = re.escape(f"answers_at_once is {number!r}; give a whole number from 1.")
    with pytest.raises(SettingsError, match=sentence):
        VisionLanguagePipeline(converted, answers_at_once=number)


def test_a_number_of_answers_at_once_of_another_kind(converted):
    pipeline = VisionLanguagePipeline(converted, answers_at_once=np.int64(2))
    assert pipeline.ask(QUESTION, max_new_tokens=2).token_ids
