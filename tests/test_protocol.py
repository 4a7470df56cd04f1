"""OpenAI's protocol as plain dictionaries: what a request asks for, and what is refused."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from helpers.run.replies import AnswerPiece, Counts
from helpers.serve.protocol import Refusal, parse_request
from helpers.serve.responses import ResponseWriter, parse_response_request

RED = Image.new("RGB", (4, 4), "red")


def opened(address: str) -> Image.Image:
    """Return a picture for an address that the tests use."""
    assert address == "data:red"
    return RED


def parsed(**body):
    """Return what a body asks for."""
    return parse_request({"messages": [{"role": "user", "content": "What?"}]} | body, opened)


def test_a_plain_question():
    request = parsed()
    assert request.messages == [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
    assert (request.options, request.is_streamed, request.detail) == ({}, False, "auto")


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({"temperature": 0}, {}),
        ({"temperature": 0.0, "top_p": 0.5}, {}),
        ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({"temperature": 1e-9}, {"do_sample": True, "temperature": 0.01}),
        (
            {"temperature": 1, "top_p": 0, "top_k": 5, "seed": 3},
            {"do_sample": True, "temperature": 1, "top_p": 0.01, "top_k": 5, "seed": 3},
        ),
        ({"top_k": -1}, {"top_k": 0}),
        ({"max_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_tokens": 3, "max_completion_tokens": 4}, {"max_new_tokens": 4}),
        ({"max_tokens": 200_000}, {"max_new_tokens": 100_000}),
        ({"seed": -1}, {"seed": 2**63 - 1}),
        ({"seed": -(2**63)}, {"seed": 0}),
        ({"stop": "x"}, {"stop_strings": ["x"]}),
        ({"stop": ["x"] * 16}, {"stop_strings": ["x"] * 16}),
        ({"reasoning_effort": "none"}, {"thinking": False}),
        ({"reasoning_effort": "low"}, {"thinking": True}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
            {"thinking": False},
        ),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"schema": {"type": "object"}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": 1}}}},
            {"schema": {"a": 1}},
        ),
    ],
)
def test_options(body, options):
    assert parsed(**body).options == options


def test_parts_and_details():
    part = {"type": "image_url", "image_url": {"url": "data:red", "detail": "low"}}
    content = [part, {"type": "text", "text": "What?"}, part]
    request = parsed(messages=[{"role": "user", "content": content}])
    kinds = [part["type"] for part in request.messages[0]["content"]]
    assert kinds == ["image", "text", "image"] and request.detail == "low"
    high = {"type": "image_url", "image_url": {"url": "data:red", "detail": "high"}}
    request = parsed(messages=[{"role": "user", "content": [*content, high]}])
    assert request.detail == "high"


def test_neighbours_of_one_role_are_joined():
    messages = [
        {"role": "system", "content": "Short."},
        {"role": "developer", "content": "And clear."},
        {"role": "user", "content": "What?"},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": "Here."},
        {"role": "user", "content": "Why?"},
    ]
    texts = [
        (message["role"], "".join(part["text"] for part in message["content"]))
        for message in parsed(messages=messages).messages
    ]
    assert texts == [
        ("system", "Short.\nAnd clear."),
        ("user", "What?\nWhere?"),
        ("assistant", "Here."),
        ("user", "Why?"),
    ]


@pytest.mark.parametrize(
    ("messages", "parameter"),
    [
        ([{"role": "assistant", "content": "A"}, {"role": "user", "content": "B"}], "messages"),
        ([{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}], "messages"),
        ([{"role": "system", "content": "A"}], "messages"),
        ([{"role": role, "content": "A"} for role in ("user", "system", "user")], "messages"),
        (
            [{"role": role, "content": "A"} for role in ("system", "user", "system", "user")],
            "messages",
        ),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": "\ud800"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0].image_url",
        ),
        ([3], "messages[0].role"),
        ("What?", "messages"),
    ],
)
def test_what_is_no_conversation(messages, parameter):
    with pytest.raises(Refusal) as refusal:
        parsed(messages=messages)
    assert (refusal.value.parameter, refusal.value.status) == (parameter, 400)


def test_fields_of_no_effect_are_told():
    assert parsed(store=True, user="me", top_p=1).ignored == ["store", "user"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_completion_tokens", "x"),
        ("max_completion_tokens", float("inf")),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", ""),
        ("top_p", "x"),
        ("top_p", -1),
        ("top_k", -2),
        ("repetition_penalty", 0),
        ("seed", 2**63),
        ("seed", True),
        ("stop", ["x"] * 17),
        ("stop", [""]),
        ("stop", 5),
        ("tools", "x"),
        ("functions", {}),
        ("response_format", {}),
        ("stream_options.include_usage", "x"),
        ("chat_template_kwargs.enable_thinking", 1),
    ],
)
def test_a_value_that_cannot_be_is_named_as_the_client_does(name, value):
    field, _, part = name.partition(".")
    with pytest.raises(Refusal, match=f"^{name} should be .*\\.$") as refusal:
        parsed(**{field: {part: value} if part else value})
    assert (refusal.value.parameter, refusal.value.status) == (name, 400)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("instructions", 5),
        ("max_output_tokens", 0),
        ("text", "x"),
        ("text.format", "x"),
        ("text.format", {}),
        ("reasoning", "x"),
        ("reasoning.effort", 5),
        ("temperature", -1),
    ],
)
def test_a_response_s_value_that_cannot_be_is_named(name, value):
    field, _, part = name.partition(".")
    body = {"input": "What?", field: {part: value} if part else value}
    with pytest.raises(Refusal, match=f"^{name} should be .*\\.$") as refusal:
        parse_response_request(body, opened)
    assert (refusal.value.parameter, refusal.value.status) == (name, 400)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ([{"role": "nobody", "content": "What?"}], "input.role"),
        ([{"role": "user", "content": 5}], "input.content"),
        ([{"role": "assistant", "content": "Red."}], "input"),
        ([], "input"),
    ],
)
def test_an_error_of_messages_names_the_input(value, name):
    with pytest.raises(Refusal, match=f"^{name} should be ") as refusal:
        parse_response_request({"instructions": "Short.", "input": value}, opened)
    assert refusal.value.parameter == name


def test_a_response_is_the_same_question():
    content = [
        {"type": "input_image", "image_url": "data:red"},
        {"type": "input_text", "text": "What?"},
    ]
    body = {
        "instructions": "Short.",
        "input": [{"role": "user", "content": content}],
        "max_output_tokens": 5,
        "store": False,
        "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "string"}}},
    }
    request = parse_response_request(body, opened)
    assert [message["role"] for message in request.messages] == ["system", "user"]
    assert request.options == {"max_new_tokens": 5, "schema": {"type": "string"}}
    assert request.ignored == ["store"]
    with pytest.raises(Refusal, match="previous_response_id"):
        parse_response_request(body | {"previous_response_id": "resp_1"}, opened)


def test_thoughts_of_earlier_answers_are_not_read_again():
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    question = {"role": "user", "content": "What?"}
    request = parse_response_request({"input": [thought, question]}, opened)
    assert [message["role"] for message in request.messages] == ["user"]


@pytest.mark.parametrize("thought", ["", "Hm."])
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_the_events_of_a_response(thought, finish):
    reply = SimpleNamespace(counts=Counts(5, cached=2, answer=4, thought=1), finish=finish)
    writer = ResponseWriter(parsed(), "model")
    pieces = [AnswerPiece(thought, is_thought=True)] * bool(thought) + [AnswerPiece("Red.")]
    events = [*writer.beginning(), *map(writer.piece, pieces), *writer.end(reply)]
    lines = [line for text in events for line in text.splitlines() if line.startswith("data: ")]
    bodies = [json.loads(line.removeprefix("data: ")) for line in lines]
    places = {body["item_id"]: body["output_index"] for body in bodies if "item_id" in body}
    items = [writer.thought_id] * bool(thought) + [writer.item_id]
    assert places == {item: place for place, item in enumerate(items)}
    response = bodies[-1]["response"]
    kinds = ["reasoning"] * bool(thought) + ["message"]
    assert [item["type"] for item in response["output"]] == kinds
    is_whole = finish == "stop"
    assert response["status"] == ("completed" if is_whole else "incomplete")
    reason = None if is_whole else {"reason": "max_output_tokens"}
    assert response["incomplete_details"] == reason
    assert response["usage"]["total_tokens"] == 9
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": 2}
