"""The server, as OpenAI's own client and plain HTTP see it: real requests to a real process."""

import asyncio
import contextlib
import gzip
import json
import os
import signal
import socket
import threading
import time
from types import SimpleNamespace
from typing import Literal

import httpx
import openai
import pytest
from fastapi import Request, Response
from gradio_client import Client, handle_file
from openai._streaming import SSEDecoder
from pydantic import BaseModel, Field

from helpers.__main__ import main
from helpers.errors import SettingsError
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.replies import AnswerPiece
from helpers.serve import protocol
from helpers.serve import server as server_module
from helpers.serve import service as service_module
from helpers.serve.access import Access, Models, key_for, read_key
from helpers.serve.addresses import Pictures
from helpers.serve.answers import Responder
from helpers.serve.completions import ChatWriter
from helpers.serve.protocol import ChatRequest, Refusal, parse_request
from helpers.serve.server import Server, Settings, create_app
from helpers.serve.service import Service
from helpers.shapes.questions import draw_questions
from tests.servers import data_url, message, random_port, serving

KEY = "a key of the tests"
NAME = "shapes"
QUEUE = 8
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)
PAIRS = draw_questions(6, seed=9, kinds=("describe", "count"))


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(fork, internvl2_folder):
    """Return a server's address, its process and its log."""
    with serving(fork, internvl2_folder, "--name", NAME, "--queue", QUEUE) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    """Return OpenAI's client."""
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def expected(internvl2_folder):
    """Return the answers of our own pipeline to the questions of these tests."""
    pipeline = VisionLanguagePipeline(internvl2_folder)
    return [pipeline.ask(question.text, [picture]).text for picture, question in PAIRS]


def ask(client, text, *pictures, **options):
    """Return a chat completion."""
    messages = [message(text, *pictures)]
    return client.chat.completions.create(model=NAME, messages=messages, **options)


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).object == "model"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("another")
    assert error.value.code == "model_not_found"


def test_answers_are_those_of_the_pipeline(client, expected):
    for (picture, question), text in zip(PAIRS, expected, strict=True):
        completion = ask(client, question.text, picture)
        choice = completion.choices[0]
        assert (choice.message.content, choice.finish_reason) == (text, "stop")
        usage = completion.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert completion._request_id


def test_a_stream_is_the_same_text_in_chunks(client, expected):
    picture, question = PAIRS[0]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(ask(client, question.text, picture, **options))
    assert chunks[0].choices[0].delta.role == "assistant"
    *parts, last = chunks
    texts = [chunk.choices[0].delta.content or "" for chunk in parts]
    assert "".join(texts).strip() == expected[0]
    assert [chunk.choices[0].finish_reason for chunk in parts][-1] == "stop"
    assert all(chunk.usage is None for chunk in parts)
    assert last.choices == [] and last.usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(ask(client, question.text, picture, stream=True))
    assert all(chunk.choices for chunk in without)


def test_a_limit_is_told_as_length(client):
    picture, question = PAIRS[0]
    for name in ("max_tokens", "max_completion_tokens"):
        completion = ask(client, question.text, picture, **{name: 2})
        assert completion.choices[0].finish_reason == "length"
        assert completion.usage.completion_tokens == 2


def test_an_end_that_is_the_last_token_allowed_is_a_stop(client):
    picture, question = PAIRS[0]
    completion = ask(client, question.text, picture)
    exact = ask(client, question.text, picture, max_tokens=completion.usage.completion_tokens)
    assert exact.choices[0].finish_reason == "stop"
    shorter = ask(client, question.text, picture, max_tokens=completion.usage.completion_tokens - 1)
    assert shorter.choices[0].finish_reason == "length"


def test_a_stop_string_may_span_chunks(client, expected):
    picture, question = PAIRS[0]
    words = expected[0].split()
    string = f"{words[1][-1]} {words[2][:2]}"  # of two words, which no token holds
    text = expected[0].partition(string)[0]
    assert string in expected[0]
    completion = ask(client, question.text, picture, stop=string)
    assert (completion.choices[0].message.content, completion.choices[0].finish_reason) == (
        text.strip(),
        "stop",
    )
    stream = ask(client, question.text, picture, stop=[string, "never"], stream=True)
    texts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(texts) == text


def test_a_resent_conversation_goes_on_from_its_cache(client):
    (picture, _), follow_up = PAIRS[0], "How many shapes are there?"
    first = message("What is in the picture?", picture)
    completion = client.chat.completions.create(model=NAME, messages=[first])
    assert completion.usage.prompt_tokens_details.cached_tokens == 0
    answer = completion.choices[0].message.content
    history = [first, {"role": "assistant", "content": answer}]
    second = [*history, {"role": "user", "content": follow_up}]
    completion = client.chat.completions.create(model=NAME, messages=second)
    cached = completion.usage.prompt_tokens_details.cached_tokens
    assert cached > 0.8 * completion.usage.prompt_tokens - 30
    changed = [first, {"role": "assistant", "content": "Nothing."}, second[-1]]
    other = client.chat.completions.create(model=NAME, messages=changed)
    assert other.usage.prompt_tokens_details.cached_tokens == 0
    again = client.chat.completions.create(model=NAME, messages=second)
    assert again.choices[0].message.content == completion.choices[0].message.content


def test_words_of_the_system_reach_the_prompt(client):
    picture, question = PAIRS[0]
    last = message(question.text, picture)
    counts = []
    for words in ("Short.", "Short. " * 20):
        messages = [{"role": "system", "content": words}, last]
        completion = client.chat.completions.create(model=NAME, messages=messages)
        counts.append(completion.usage.prompt_tokens)
    assert counts[1] > counts[0] + 19
    messages[0]["role"] = "developer"
    completion = client.chat.completions.create(model=NAME, messages=messages)
    assert completion.usage.prompt_tokens == counts[1]


def test_sampling_with_a_seed_repeats_itself(client):
    picture, question = PAIRS[0]
    options = {"temperature": 1.9, "seed": 4, "max_tokens": 20}
    texts = {ask(client, question.text, picture, **options).choices[0].message.content} | {
        ask(client, question.text, picture, **options).choices[0].message.content
    }
    assert len(texts) == 1
    others = {
        ask(client, question.text, picture, **options | {"seed": seed}).choices[0].message.content
        for seed in range(5, 9)
    }
    assert others - texts


class Shape(BaseModel):
    """What a client wants to know of a picture."""

    colours: list[Literal["red", "green", "blue", "yellow"]] = Field(max_length=3)
    is_round: bool


def test_an_answer_follows_a_schema(client):
    picture, _ = PAIRS[0]
    completion = client.chat.completions.parse(
        model=NAME,
        messages=[message("What is in the picture?", picture)],
        response_format=Shape,
        max_tokens=200,
        temperature=0.5,
        seed=1,
    )
    assert isinstance(completion.choices[0].message.parsed, Shape)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model=NAME,
            messages=[message("What is in the picture?", picture)],
            response_format=Shape,
            max_tokens=2,
        )


WRONG = {
    "n": ({"n": 2}, "unsupported_parameter"),
    "logprobs": ({"logprobs": True}, "unsupported_parameter"),
    "logit_bias": ({"logit_bias": {"5": 1}}, "unsupported_parameter"),
    "presence_penalty": ({"presence_penalty": 0.5}, "unsupported_parameter"),
    "tool_choice": ({"tool_choice": "required"}, "unsupported_parameter"),
    "stop": ({"stop": 3}, "invalid_value"),
    "temperature": ({"temperature": "hot"}, "invalid_value"),
    "messages[0].content[1]": (
        {"messages": [{"role": "user", "content": [
            {"type": "text", "text": "See"}, {"type": "video_url", "video_url": {"url": "x"}}
        ]}]},
        "unsupported_content",
    ),
    "messages[0].content[0].text": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "invalid_value",
    ),
    "messages": ({"messages": []}, "invalid_value"),
    "messages[0].role": ({"messages": [{"role": "tool", "content": "3"}]}, "invalid_value"),
}  # fmt: skip


@pytest.mark.parametrize("parameter", WRONG)
def test_what_cannot_be_done_is_named(server, parameter):
    fields, code = WRONG[parameter]
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}]} | fields
    response = httpx.post(f"{server.address}/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, parameter, code)
    assert error["message"].endswith(".")


def test_a_conversation_that_does_not_fit_has_its_code(client):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, "red " * 5000)
    assert error.value.code == "context_length_exceeded"


def test_a_limit_beyond_the_context_is_cut(client, expected):
    picture, question = PAIRS[0]
    completion = ask(client, question.text, picture, max_tokens=100_000)
    assert completion.choices[0].message.content == expected[0]


def test_unknown_fields_are_ignored(client, server, expected):
    picture, question = PAIRS[0]
    options = {"store": True, "metadata": {"a": "b"}, "user": "someone", "service_tier": "auto"}
    completion = ask(client, question.text, picture, **options)
    assert completion.choices[0].message.content == expected[0]
    assert "metadata, service_tier, store, user" in server.program.text("err")


def test_two_questions_in_a_row_are_one(client):
    messages = [message("What is", PAIRS[0][0]), {"role": "user", "content": "in the picture?"}]
    completion = client.chat.completions.create(model=NAME, messages=messages)
    assert completion.choices[0].message.content


def test_a_response_is_created_and_streamed(client, expected):
    picture, question = PAIRS[0]
    content = [
        {"type": "input_image", "image_url": data_url(picture), "detail": "auto"},
        {"type": "input_text", "text": question.text},
    ]
    messages = [{"role": "user", "content": content}]
    response = client.responses.create(model=NAME, input=messages)
    assert (response.output_text, response.status) == (expected[0], "completed")
    with client.responses.stream(model=NAME, input=messages) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text.strip() == expected[0]
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] == [
        *range(len(events))
    ]
    assert final.usage.output_tokens == response.usage.output_tokens
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model=NAME, input="And now?", previous_response_id="resp_1")


def answered_within(server, seconds: float) -> float:
    """Return how long a short question waits, behind what may still be computed."""
    begin = time.perf_counter()
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    response = httpx.post(f"{server.address}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200
    waited = time.perf_counter() - begin
    assert waited < seconds
    return waited


ENDLESS = {
    "max_tokens": 1500,
    "temperature": 5,
    "seed": 1,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"schema": {"type": "string", "minLength": 1400}},
    },
}


def test_a_closed_stream_ends_its_computation(client, server):
    stream = ask(client, "Tell me more.", stream=True, extra_body=ENDLESS)
    for _, chunk in zip(range(3), stream, strict=False):
        assert chunk
    stream.close()
    answered_within(server, 1)


def test_a_stream_that_is_closed_at_once_ends_its_computation(client, server):
    ask(client, "Tell me more.", stream=True, extra_body=ENDLESS).close()
    answered_within(server, 1)


def test_a_client_that_times_out_ends_its_computation(server):
    with (
        openai.OpenAI(
            base_url=f"{server.address}/v1", api_key="any", max_retries=0, timeout=0.5
        ) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        ask(client, "Tell me more.", extra_body=ENDLESS)
    answered_within(server, 1)


def test_the_async_client_asks_several_at_once(server, expected):
    async def ask_all():
        client = openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="any", max_retries=0)
        async with client:
            messages = [
                client.chat.completions.create(
                    model=NAME, messages=[message(question.text, picture)]
                )
                for picture, question in PAIRS
            ]
            return await asyncio.gather(*messages)

    answers = asyncio.run(ask_all())
    texts = [answer.choices[0].message.content for answer in answers]
    # Computed together, a token may be rounded to another one (not so in ACCURACY mode).
    assert sum(map(str.__eq__, texts, expected)) >= len(expected) - 1


def test_health_is_told_during_an_answer(client, server):
    stream = ask(client, "Tell me more.", stream=True, extra_body=ENDLESS)
    begin = time.perf_counter()
    assert httpx.get(f"{server.address}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.address}/v1/models").status_code == 200
    assert time.perf_counter() - begin < 1
    stream.close()


def test_a_full_queue_is_told(server):
    body = {"messages": [{"role": "user", "content": "Hello"}], **ENDLESS, "stream": True}
    statuses, end = [], threading.Event()

    def hold() -> None:
        with httpx.stream(
            "POST", f"{server.address}/v1/chat/completions", json=body, timeout=60
        ) as response:
            statuses.append(response)
            end.wait(60)

    threads = [threading.Thread(target=hold) for _ in range(QUEUE + 1)]
    for thread in threads:
        thread.start()
    while len(statuses) <= QUEUE:
        time.sleep(0.01)
    refused = [response for response in statuses if response.status_code == 429]
    assert len(refused) == 1, [r.status_code for r in statuses]
    assert int(refused[0].headers["retry-after"]) > 0
    end.set()
    for thread in threads:
        thread.join()
    answered_within(server, 5)


@pytest.mark.parametrize(
    ("address", "method", "status"),
    [("/v1/nothing", "GET", 404), ("/v1/chat/completions", "GET", 405), ("/nothing", "POST", 404)],
)
def test_unknown_addresses_have_openais_form(server, address, method, status):
    response = httpx.request(method, server.address + address)
    assert response.status_code == status and response.json()["error"]["message"]


def test_what_is_read_may_be_looked_for():
    service = Service(pipeline_without_model(), longest_queue=1)
    addresses = ("/health", "/v1/models", f"/v1/models/{NAME}")
    requests = [
        {"method": method, "url": address}
        for address in (*addresses, "/v1/responses")
        for method in ("HEAD", "POST" if address in addresses else "GET")
    ]
    responses = respond_in_process(Models({NAME: service}), Access(), *requests)
    assert [response.status_code for response in responses] == [200, 405] * 3 + [405, 405]
    methods = [set(response.headers.get("allow", "").split(", ")) for response in responses]
    assert methods == [{""}, {"GET", "HEAD"}] * 3 + [{"POST"}] * 2


def test_several_models_need_a_name():
    models = Models({"small": None, "large": None})
    (response,) = respond_in_process(models, Access(), chat(message("What?")))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "model")
    assert error["message"] == "The request has no model; name one of small, large."


def test_what_a_client_makes_up_is_short_in_the_log_and_in_errors():
    lines, name = [], "a\nGET '/v1/models' 200 " + "b" * 10_000
    fields = {name: 1} | {f"field_{number}": 1 for number in range(30)}
    part = {"role": "user", "content": [{"type": name}]}
    service = Service(pipeline_without_model(), longest_queue=3)
    requests = [chat(message("What?"), **fields), chat(model=name), chat(part)]
    responses = respond_in_process(
        Models({NAME: service}), Access(), *requests, report=lines.append
    )
    assert [response.status_code for response in responses] == [500, 404, 400]
    assert all(len(response.content) < 2000 for response in responses)
    assert all(line.isprintable() and len(line) < 400 for line in lines)
    (line,) = [line for line in lines if line.startswith("fields that change nothing")]
    assert "a\\nGET '/v1/models' 200 bbb" in line and line.endswith(" field_25 and 11 more")


def test_what_is_no_json_is_refused(server):
    address = f"{server.address}/v1/chat/completions"
    json_kind = {"content-type": "application/json"}
    assert httpx.post(address, content=b"{", headers=json_kind).status_code == 400
    assert httpx.post(address, content=b"[" * 100_000, headers=json_kind).status_code == 400
    assert httpx.post(address, content=b"[]", headers=json_kind).status_code == 400
    assert httpx.post(address, data={"model": NAME}).status_code == 415


def test_a_body_that_is_compressed_is_refused(server):
    content = gzip.compress(json.dumps({"model": NAME, "messages": []}).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    address = f"{server.address}/v1/chat/completions"
    response = httpx.post(address, content=content, headers=headers)
    assert response.status_code == 415
    sentence = "Send the body as it is, without Content-Encoding."
    assert response.json()["error"]["message"] == sentence
    plain = httpx.post(address, json={}, headers=headers | {"content-encoding": "Identity"})
    assert plain.status_code == 400 and "messages should be" in plain.text


def test_a_page_of_another_site_is_refused(server):
    response = httpx.get(f"{server.address}/v1/models", headers={"host": "evil.example:8000"})
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


def test_a_body_that_is_too_large_is_refused(server):
    body = b'{"messages": "' + b"a" * 31_000_000 + b'"}'
    kind = {"content-type": "application/json"}
    response = httpx.post(f"{server.address}/v1/chat/completions", content=body, headers=kind)
    assert response.status_code == 413


def test_the_log_has_no_question(server, client):
    ask(client, "a question that nobody else should read")
    log = server.program.text("err")
    assert "POST '/v1/chat/completions' 200" in log
    assert "nobody else" not in log and "base64" not in log


def test_a_server_with_a_key_ends_with_success(fork, internvl2_folder):
    environment = os.environ | {"VLM_KEY": KEY}
    with serving(fork, internvl2_folder, environment=environment) as server:
        address = f"{server.address}/v1"
        assert httpx.get(f"{address}/models").status_code == 401
        wrong = {"authorization": f"Bearer {KEY}er"}
        assert httpx.get(f"{address}/models", headers=wrong).status_code == 401
        key = {"authorization": f"Bearer {KEY}", "host": "vlm.example"}
        assert httpx.get(f"{address}/models", headers=key).status_code == 200
        assert httpx.get(f"{address}/models", headers={"api-key": KEY}).status_code == 200
        server.program.wait_for("its page is there", "err")
        assert httpx.get(f"{server.address}/page/int8/config").status_code == 401
        with openai.OpenAI(base_url=address, api_key=KEY, max_retries=0) as client:
            messages = [message("What is in the picture?", PAIRS[0][0])]
            stream = client.chat.completions.create(model="int8", messages=messages, stream=True)
            next(iter(stream))
            os.kill(server.program.number, signal.SIGTERM)
            rest = [chunk.choices[0].finish_reason for chunk in stream]
        assert rest[-1] == "stop"
        assert server.program.wait(35) == 0
        assert KEY not in server.program.text("err")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_ends_while_it_loads(internvl2_folder, fork, number):
    port = random_port()
    program = fork.start("-m", "helpers", "serve", internvl2_folder, "--port", port)
    try:
        status = None
        while status is None:
            assert fork.exit_code(program) is None, program.text("err")
            with contextlib.suppress(httpx.TransportError):
                status = httpx.get(f"http://127.0.0.1:{port}/health").status_code
        os.kill(program.number, number)
        assert program.wait(60) == 0
    finally:
        program.end()
    errors = program.text("err")
    assert status == 503 and "Traceback" not in errors and "page is there" not in errors


@contextlib.contextmanager
def ending_server(service, monkeypatch, capfd):
    """Give a connection to a server with little grace; what it writes then is no error."""
    monkeypatch.setattr(server_module, "GRACE", 0.3)
    lines: list[str] = []
    settings = Settings("127.0.0.1", random_port(), 1)
    app = create_app(Models({NAME: service}), Access(), report=lines.append)
    server = Server(app, settings, lines.append)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        with socket.create_connection(("127.0.0.1", settings.port), 10) as connection:
            yield connection, server
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive() and capfd.readouterr().err == ""
    assert lines[0] == "requests that take longer than 0.3 s are ended: 1" and len(lines) == 2


def all_of(connection: socket.socket) -> bytes:
    """Return what comes until the other side closes."""
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_a_body_that_never_ends_is_told_that_the_server_does(monkeypatch, capfd):
    with ending_server(None, monkeypatch, capfd) as (connection, server):
        connection.sendall(REQUEST % 500 + b"{")
        while not server.server_state.tasks:
            time.sleep(0.01)
        server.should_exit = True
        head, _, body = all_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ") and b"retry-after" in head.lower()
    assert json.loads(body)["error"]["message"] == "The server ends; ask again when it is there."


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_that_never_ends_is_told_that_the_server_does(is_streamed, monkeypatch, capfd):
    end = threading.Event()

    def pieces():
        yield AnswerPiece("a word")
        end.wait(10)

    reply = SimpleNamespace(wait=lambda _: end.wait(0.1), pieces=pieces, stop=end.set)
    service = Service(pipeline_without_model(), longest_queue=1)
    monkeypatch.setattr(service, "start", lambda *_, **__: reply)
    body = json.dumps(chat(message("What?"), stream=is_streamed)["json"]).encode()
    with ending_server(service, monkeypatch, capfd) as (connection, server):
        connection.sendall(REQUEST % len(body) + body)
        text = connection.recv(65_536) if is_streamed else b""
        while not service._running:
            time.sleep(0.01)
        server.should_exit = True
        text += all_of(connection)
    assert text.startswith(b"HTTP/1.1 200 " if is_streamed else b"HTTP/1.1 503 ")
    assert b"The server ends; ask again" in text and b"[DONE]" not in text
    assert end.is_set() and service._running == 0


def test_a_client_that_leaves_within_its_body_is_no_defect():
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive() -> dict:
        return next(messages, {"type": "http.disconnect"})

    async def answer() -> Response:
        headers = [(b"content-type", b"application/json")]
        request = Request({"type": "http", "headers": headers}, receive)
        answers = Responder(Models({NAME: None}), Pictures(), print)
        return await answers.answer(request, parse_request, ChatWriter)

    assert asyncio.run(answer()).status_code == 499


def test_events_are_read_wherever_they_are_cut(server):
    picture, question = PAIRS[0]
    body = {"messages": [message(question.text, picture)], "stream": True, "max_tokens": 4}
    response = httpx.post(f"{server.address}/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    data = response.content

    def read(*parts: bytes) -> list[str]:
        return [event.data for event in SSEDecoder().iter_bytes(iter(parts))]

    events = read(data)
    assert events[-1] == "[DONE]" and len(events) > 5
    for place in range(len(data)):
        assert read(data[:place], data[place:]) == events


def test_a_client_retries_where_it_may_help(server):
    """A full queue says when to come again; a wrong request is not sent again."""
    sent = []

    def count(request: httpx.Request) -> None:
        sent.append(request.url.path)

    hooks = httpx.Client(event_hooks={"request": [count]})
    with (
        openai.OpenAI(
            base_url=f"{server.address}/v1", api_key="any", max_retries=2, http_client=hooks
        ) as client,
        pytest.raises(openai.BadRequestError),
    ):
        client.chat.completions.create(model=NAME, messages=[message("Hello")], n=3)
    assert len(sent) == 1


def pipeline_without_model() -> SimpleNamespace:
    """Return what a service needs where nothing is computed."""
    pieces = SimpleNamespace(tokens=64, largest=64)
    processor = SimpleNamespace(thinking=lambda _: None, has_switch=False, pieces=pieces)
    conversation = SimpleNamespace(ask=lambda *_, **__: None)
    return SimpleNamespace(processor=processor, conversation=lambda _: conversation)


def respond_in_process(
    models: Models, access: Access, *requests: dict, report=lambda line: None
) -> list[httpx.Response]:
    """Return what an application answers to requests that are sent at once."""
    transport = httpx.ASGITransport(create_app(models, access, report=report))

    async def respond() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await asyncio.gather(*(client.request(**request) for request in requests))

    return asyncio.run(respond())


def chat(*messages: dict, **fields) -> dict:
    """Return a request for a chat completion."""
    body = {"messages": list(messages)} | fields
    return {"method": "POST", "url": "/v1/chat/completions", "json": body}


def test_no_picture_is_opened_for_who_is_refused(monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(Pictures, "open", lambda _, address, **__: opened.append(address))
    request = chat(message("What?", PAIRS[0][0]))
    full = Service(pipeline_without_model(), longest_queue=1)
    with full.place():
        (busy,) = respond_in_process(Models({NAME: full}), Access(), request)
    (loading,) = respond_in_process(Models({NAME: None}), Access(), request)
    free = Service(pipeline_without_model(), longest_queue=1)
    unknown, wrong = respond_in_process(
        Models({NAME: free}),
        Access(),
        chat(*request["json"]["messages"], model="b"),
        chat(model=[]),
    )
    statuses = [response.status_code for response in (busy, loading, unknown, wrong)]
    assert statuses == [429, 503, 404, 400] and not opened
    assert free._running == 0


def test_slow_hosts_of_pictures_delay_nobody_else(monkeypatch):
    end = threading.Event()

    def wait(*_: object, **__: object) -> None:
        end.wait(5)
        raise Refusal("The host gave no picture.")

    monkeypatch.setattr(Pictures, "open", wait)
    service = Service(pipeline_without_model(), longest_queue=40)
    slow = [chat(message("What?", PAIRS[0][0]))] * 39
    monkeypatch.setattr(protocol, "_refuse_unsupported", lambda body: body.get("n") and end.set())
    started = time.monotonic()
    responses = respond_in_process(Models({NAME: service}), Access(), *slow, chat(n=2))
    assert {response.status_code for response in responses} == {400}
    assert time.monotonic() - started < 4


def test_a_service_s_lock_is_free_while_pictures_are_hashed(monkeypatch):
    service = Service(pipeline_without_model(), longest_queue=1)
    locked = []
    monkeypatch.setattr(
        service_module, "_digest", lambda *_: locked.append(service._lock.locked()) or b""
    )
    service.start([message("What?")], {})
    service.remember([message("What?")], SimpleNamespace(message={}, conversation=None))
    assert locked == [False, False]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_conversations_are_remembered_beside_the_loop(is_streamed):
    """Hashing a large picture would let all streams stand still."""
    threads: list[threading.Thread] = []
    reply = SimpleNamespace(wait=lambda _: True, pieces=lambda: iter(()), stop=lambda: None)
    service = SimpleNamespace(
        place=contextlib.nullcontext,
        start=lambda *_, **__: reply,
        remember=lambda *_, **__: threads.append(threading.current_thread()),
    )
    writer = SimpleNamespace(whole=lambda _: {}, beginning=list, end=lambda _: ["end"])
    question = ChatRequest(None, [], {}, is_streamed=is_streamed)

    async def receive() -> dict:
        return {"type": "http.request", "body": b"{}"}

    async def answer() -> None:
        headers = [(b"content-type", b"application/json")]
        answers = Responder(Models({NAME: service}), Pictures(), print)
        request = Request({"type": "http", "headers": headers}, receive)
        response = await answers.answer(request, lambda *_: question, lambda *_: writer)
        if is_streamed:
            assert [text async for text in response.body_iterator] == ["end"]

    asyncio.run(answer())
    assert len(threads) == 1 and threads[0] is not threading.main_thread()


def test_a_browser_reads_refusals_and_defects_too(monkeypatch):
    """Of a page that is allowed; before each it asks without the key (CORS)."""
    models, origin = Models({NAME: None}), {"origin": "https://page.example"}
    access = Access(key=KEY, origins=["https://page.example"])
    monkeypatch.setattr(models, "body", lambda name: 1 / 0)
    asking = {"access-control-request-method": "GET"}
    right = {"authorization": f"Bearer {KEY}"}
    responses = respond_in_process(
        models,
        access,
        {"method": "OPTIONS", "url": "/v1/models", "headers": origin | asking},
        {"method": "GET", "url": "/v1/models", "headers": origin | {"api-key": "wrong"}},
        {"method": "GET", "url": "/v1/models", "headers": origin | right},
        {"method": "GET", "url": "/v1/models/b", "headers": origin | right},
    )
    assert [response.status_code for response in responses] == [200, 401, 500, 404]
    for response in responses:
        assert response.headers["access-control-allow-origin"] == "https://page.example"
        assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer secret"},
        {"authorization": "bearer  secret "},
        {"authorization": "BEARER secret"},
        {"authorization": "secret"},
        {"api-key": " secret "},
        {"authorization": "Bearer", "api-key": "secret"},
    ],
)
def test_a_key_as_clients_and_windows_have_it(headers, monkeypatch):
    monkeypatch.setenv("VLM_KEY", "secret ")
    key = read_key(None)
    assert key == "secret"
    Access(key=key).check(headers, "/v1/models")
    for name in headers:
        with pytest.raises(Refusal, match="The key is missing or wrong"):
            Access(key=key).check(headers | {name: "Bearer bearer secret"}, "/v1/models")
    monkeypatch.setenv("VLM_KEY", " ")
    assert read_key(None) is None


@pytest.mark.parametrize("key", ["schl\u00fcssel", "two\nlines", "a\tb", "\u20ac"])
def test_a_key_that_clients_cannot_send_is_told(key, monkeypatch, tmp_path):
    path = tmp_path / "key"
    path.write_text(f"{key}\n", encoding="utf-8")
    monkeypatch.setenv("VLM_KEY", key)
    for place in (path, None):
        with pytest.raises(SettingsError, match="has characters that no client can send") as error:
            read_key(place)
        assert key not in str(error.value)


def test_a_key_file_that_others_may_read_is_told(tmp_path, become_ordinary):
    path = tmp_path / "key"
    path.write_text("secret\n", encoding="utf-8")
    notes = []
    for mode in (0o600, 0o640, 0o604):
        path.chmod(mode)
        assert read_key(path, notes.append) == "secret"
    note = f"note: other users of this computer may read {path}; `chmod 600 {path}` ends that"
    assert notes == [note] * 2
    path.chmod(0)
    become_ordinary()
    with pytest.raises(SettingsError, match=r"key cannot be read \(Permission denied\); give"):
        read_key(path)


@pytest.mark.parametrize(
    "host", [None, "", "evil.example", "127.0.0.1.evil.example:80", "192.168.0.7:8000", "[::2]:80"]
)
def test_without_a_key_this_computer_alone_is_answered(host):
    with pytest.raises(Refusal, match=r"answers requests to 127\.0\.0\.1 only") as refusal:
        Access().check({} if host is None else {"host": host}, "/v1/models")
    assert (refusal.value.status, refusal.value.code) == (403, "wrong_host")
    for host in ("127.0.0.1:8000", "LocalHost", "[::1]:8000"):
        Access().check({"host": host}, "/v1/models")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::"])
def test_other_computers_need_a_key(host, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("VLM_KEY", raising=False)
    assert main(["serve", str(tmp_path), "--host", host]) == 1
    assert capsys.readouterr().err.startswith(f"error: Serving {host} needs a key, which everybody")
    monkeypatch.setenv("VLM_KEY", "secret")
    assert key_for(host, None) == "secret"


# What Open WebUI 0.6 sends: the list of models, a streamed answer to a conversation that is sent
# whole, then questions of its own for a title, for tags and for what might be asked next.
TITLE = """### Task:
Generate a concise title for the chat.
<chat_history>
USER: What is in the picture?
</chat_history>"""


def test_the_requests_of_open_webui(server, expected):
    picture, question = PAIRS[0]
    headers = {"authorization": "Bearer any", "content-type": "application/json"}
    models = httpx.get(f"{server.address}/v1/models", headers=headers).json()
    assert [model["id"] for model in models["data"]] == [NAME]
    body = {
        "stream": True,
        "model": NAME,
        "messages": [message(question.text, picture)],
        "params": {},
        "features": {"web_search": False},
        "metadata": {"chat_id": "1"},
        "stream_options": {"include_usage": True},
    }
    response = httpx.post(f"{server.address}/v1/chat/completions", json=body, headers=headers)
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line[:7] == "data: {"]
    pieces = [part["delta"].get("content") for chunk in chunks for part in chunk["choices"]]
    assert "".join(filter(None, pieces)).strip() == expected[0]
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    for task in ("title_generation", "tags_generation", "follow_up_generation"):
        body = {
            "model": NAME,
            "messages": [{"role": "user", "content": TITLE}],
            "stream": False,
            "max_completion_tokens": 50,
            "metadata": {"task": task, "task_body": {"messages": []}},
        }
        answer = httpx.post(f"{server.address}/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"]


def test_the_page_answers_beside_programs(server, expected, tmp_path):
    server.program.wait_for("its page is there", "err")
    assert httpx.get(f"{server.address}/", follow_redirects=False).status_code == 307
    picture, question = PAIRS[0]
    picture.save(tmp_path / "picture.png")
    window = Client(f"{server.address}/page/{NAME}/", verbose=False, analytics_enabled=False)
    gallery = [{"image": handle_file(tmp_path / "picture.png"), "caption": None}]
    settings = (64, False, 0.7, 0.9)
    chat, _ = window.predict(question.text, gallery, [], *settings, api_name="/ask")
    content = chat[-1]["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    assert text.partition("\n\n<small>")[0] == expected[0]
    window.close()
