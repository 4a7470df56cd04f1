"""Thoughts before answers: asked for, told apart from the answer, and left out of later turns."""

import asyncio
import json
import shutil
from types import SimpleNamespace

import httpx
import openai
import pytest
from gradio_client import Client

from helpers.__main__ import main
from helpers.convert import conversion
from helpers.errors import SettingsError
from helpers.graphs.presets import find_preset
from helpers.inputs.messages import answer_message, user_message
from helpers.models import load_processor
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.replies import Reply
from helpers.serve.access import Access, Models
from helpers.serve.demo import build_page, open_page, thinking_control
from helpers.serve.server import create_app
from helpers.serve.service import Service
from helpers.serve.windows import Window, without_last_turn
from tests import random_gemma4, random_qwen3_5
from tests.scripted import writing
from tests.tiny import picture

THOUGHT, ANSWER = "It is a red circle, STOP.", "The circle is red."
KINDS = ("qwen", "gemma")
OFF = "{%- if enable_thinking is defined and enable_thinking is true %}"
ON = "{%- if enable_thinking is not defined or enable_thinking is true %}"  # of 4B and larger


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return converted folders: Qwen3.5 small and large, and Gemma 4."""
    folders = {}
    for kind, write in (("qwen", random_qwen3_5), ("gemma", random_gemma4)):
        checkpoint = tmp_path_factory.mktemp(kind)
        write.write_random(checkpoint, 0)
        conversion.convert(checkpoint, checkpoint / "converted", find_preset("fp16"))
        folders[kind] = checkpoint / "converted"
    large = tmp_path_factory.mktemp("large") / "converted"
    shutil.copytree(folders["qwen"], large)
    template = large / "chat_template.jinja"
    assert OFF in template.read_text()
    template.write_text(template.read_text().replace(OFF, ON))
    return folders | {"large": large}


@pytest.fixture(scope="module", params=KINDS)
def model(request, folders):
    """Return a pipeline, and the tokens of a thought with its marks and of an answer."""
    folder = folders[request.param]
    pipeline = VisionLanguagePipeline(folder, accuracy=True)
    processor = pipeline.processor
    begin, end = processor.thought_ids
    # Qwen's prompt begins the thought, Gemma's asks the model to.
    words = ids(processor, THOUGHT)
    thought = [*(begin if request.param == "gemma" else []), *words, *end]
    after = ids(processor, "\n\n") if request.param == "qwen" else []
    script = [*thought, *after, *ids(processor, ANSWER), processor.stop_token_ids[0]]
    return SimpleNamespace(
        pipeline=pipeline, processor=processor, thought=thought, script=script, folder=folder
    )


def ids(processor, text: str) -> list[int]:
    """Return the tokens of a text."""
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def decoded(processor, token_ids) -> str:
    """Return tokens as text with its special tokens."""
    return processor.tokenizer.decode(token_ids)


def answered(model, **options) -> Reply:
    """Return the script as an answer; it is computed while it is scripted."""
    with writing(model.script):
        reply = model.pipeline.ask("Why?", **options)
        reply.wait()
    return reply


@pytest.mark.parametrize(("kind", "usual"), [("qwen", False), ("large", True), ("gemma", False)])
def test_the_template_decides_where_nobody_does(folders, kind, usual):
    processor = load_processor(folders[kind])
    question = [user_message("Why?")]
    prompts = [processor.thinking(on).input_ids(question).tolist() for on in (None, True, False)]
    assert prompts[0] == prompts[1 if usual else 2] != prompts[2 if usual else 1]
    assert processor.words.thinks == usual


@pytest.mark.parametrize("kind", ["qwen", "large", "gemma"])
@pytest.mark.parametrize("on", [None, True, False])
def test_prompts_are_those_of_the_folders_template(folders, kind, on):
    """Qwen's is the checkpoint's own; Gemma's is the one that is written for other runtimes."""
    processor = load_processor(folders[kind])
    begin, end = processor.template.thought
    messages = [user_message("Why?"), answer_message("So."), user_message("And?")]
    switch = {} if on is None else {"enable_thinking": on}
    expected = processor.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **switch
    )
    assert decoded(processor, processor.thinking(on).input_ids(messages)[0]) == expected
    answer = answer_message(f"{begin}\n{THOUGHT}\n{end}\n\nSo.")
    ids = processor.thinking(on).input_ids([messages[0], answer, messages[2]])
    assert decoded(processor, ids[0]) == expected


def test_a_thought_is_told_from_the_answer(model):
    reply = answered(model, thinking=True, stop_strings=["STOP"])
    pieces = list(reply.pieces())
    assert (reply.thought, reply.text, reply.finish) == (THOUGHT, ANSWER, "stop")
    assert "".join(piece.text for piece in pieces if piece.is_thought).strip() == THOUGHT
    assert "".join(piece.text for piece in pieces if not piece.is_thought) == ANSWER
    assert reply.token_ids == model.script
    assert (reply.counts.thought, reply.counts.answer) == (len(model.thought), len(model.script))


def test_iterating_gives_the_answer_alone(model):
    assert "".join(answered(model, thinking=True)) == ANSWER


def test_a_limit_within_the_thought_leaves_no_answer(model):
    reply = answered(model, thinking=True, max_new_tokens=len(model.thought) - 2)
    assert (reply.text, reply.finish) == ("", "length")
    assert reply.thought and THOUGHT.startswith(reply.thought)
    assert reply.counts.thought == reply.counts.answer == len(model.thought) - 2


def test_a_stop_string_counts_in_the_answer(model):
    reply = answered(model, thinking=True, stop_strings=["circle"])
    assert (reply.thought, reply.text, reply.finish) == (THOUGHT, "The", "stop")


def test_a_schema_holds_behind_the_thought(model):
    schema = {"type": "object", "properties": {"red": {"type": "boolean"}}, "required": ["red"]}
    schema["additionalProperties"] = False
    reply = answered(model, thinking=True, schema=schema, max_new_tokens=60)
    plain = answered(model, thinking=False, schema=schema, max_new_tokens=60)
    assert reply.thought == THOUGHT and not plain.thought
    for answer in (reply.text, plain.text):
        assert isinstance(json.loads(answer)["red"], bool)


def test_a_schema_s_answer_does_not_end_within_its_thought(model):
    *words, end = model.thought
    stop = model.processor.stop_token_ids[0]
    with writing([*words, stop, end, stop]):
        reply = model.pipeline.ask("Why?", thinking=True, schema={"type": "boolean"})
        reply.wait()
    assert reply.text in ("true", "false") and reply.finish == "stop"
    with writing([*words, stop, end, stop]):  # where nothing is asked of the answer it may end
        free = model.pipeline.ask("Why?", thinking=True)
        free.wait()
    assert (free.thought, free.text, free.finish) == (THOUGHT, "", "stop")


def test_later_turns_are_as_if_nothing_had_been_thought(model):
    """And their states are those of a conversation that is computed anew, thinking or not."""
    conversation = model.pipeline.conversation()
    with writing(model.script):
        first = conversation.ask("Why?", thinking=True)
        first.wait()
    history = [user_message("Why?"), answer_message(ANSWER)]
    for thinking in (True, False, True):
        reply = conversation.ask("And this?", thinking=thinking, max_new_tokens=6)
        anew = model.pipeline.conversation(history).ask(
            "And this?", thinking=thinking, max_new_tokens=6
        )
        assert (reply.prompt_ids, reply.token_ids) == (anew.prompt_ids, anew.token_ids)
        is_alike = model.processor.thinking(thinking).words.begins_as(first.request.processor.words)
        assert (reply.counts.cached > 0) == (is_alike and conversation.turns[0] is first.request)
        conversation.take_back(reply)


def test_a_question_is_taken_back_after_the_switch(model):
    """The page gives the pictures with each question; the model gets them once."""
    window, prompts = Window(model.pipeline), []
    for text, thinking in (("Why?", False), ("And this?", True), ("And this?", True)):
        if prompts[1:]:
            assert window.take_back()[0] == text
        reply = window.ask(text, [picture()], {"thinking": thinking, "max_new_tokens": 2})
        reply.wait()
        prompts.append(list(reply.prompt_ids))
    assert prompts[1] == prompts[2]


def test_what_has_no_switch_is_told(folders, bundled_folder):
    pipeline = VisionLanguagePipeline(bundled_folder("internvl2", "int8"))
    with pytest.raises(SettingsError, match="never thinks"):
        pipeline.ask("Why?", thinking=True)
    assert pipeline.ask("Why?", thinking=False, max_new_tokens=1).token_ids
    with pytest.raises(SettingsError, match="True or False"):
        pipeline.ask("Why?", thinking="maybe")


# The command line


def test_the_command_line_keeps_the_thought_apart(model, capsys):
    ask = ["ask", str(model.folder), "--question", "Why?", "--thinking"]
    with writing(model.script):
        assert main(ask) == 0
        output = capsys.readouterr()
        assert output.out == f"{ANSWER}\n" and THOUGHT in output.err
        assert main([*ask, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["thought"], result["text"]) == (THOUGHT, ANSWER)
        assert main([*ask, "--max-new-tokens", "2"]) == 0
        output = capsys.readouterr()
        assert output.out == "\n" and "--max-new-tokens" in output.err


def test_rows_of_a_job_have_their_thoughts(model, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    body = {"messages": [{"role": "user", "content": "Why?"}]}
    lines = [{"custom_id": "1", "body": body | {"chat_template_kwargs": {"enable_thinking": True}}}]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "answers.jsonl"
    with writing(model.script):
        assert (
            main(["batch", str(model.folder), "--input", str(rows), "--output", str(output)]) == 0
        )
    message = json.loads(output.read_text())["response"]["body"]["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (THOUGHT, ANSWER)


# The server


QUESTION = {"model": "model", "messages": [{"role": "user", "content": "Why?"}]}
ASKING = (
    {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}},
    {"reasoning_effort": "high"},
)
REFUSING = (
    {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
    {"reasoning_effort": "none"},
)


def asked(pipeline, ask, **service) -> object:
    """Return what a function gets from OpenAI's client of a server with this pipeline."""
    models = Models({"model": Service(pipeline, longest_queue=4, **service)})
    transport = httpx.ASGITransport(create_app(models, Access()))

    async def answer():
        async with openai.AsyncOpenAI(
            base_url="http://127.0.0.1/v1",
            api_key="any",
            http_client=httpx.AsyncClient(transport=transport),
        ) as client:
            return await ask(client)

    return asyncio.run(answer())


@pytest.mark.parametrize("options", ASKING, ids=["template", "effort"])
def test_the_server_sends_both(model, options):
    async def ask(client):
        reply = await client.chat.completions.create(**QUESTION, **options)
        stream = await client.chat.completions.create(**QUESTION, **options, stream=True)
        return reply, [chunk.choices[0].delta async for chunk in stream]

    with writing(model.script):
        reply, deltas = asked(model.pipeline, ask)
    message = reply.choices[0].message
    assert (message.reasoning_content, message.content) == (THOUGHT, ANSWER)
    assert reply.usage.completion_tokens_details.reasoning_tokens == len(model.thought)
    thoughts = [getattr(delta, "reasoning_content", None) for delta in deltas]
    assert "".join(filter(None, thoughts)).strip() == THOUGHT
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    is_thought = [bool(thought) for thought in thoughts if thought or deltas]
    assert is_thought.index(True) < max(n for n, delta in enumerate(deltas) if delta.content)


@pytest.mark.parametrize("options", [*REFUSING, {}], ids=["template", "effort", "nothing"])
def test_a_client_may_keep_the_model_from_it(model, options):
    async def ask(client):
        return await client.chat.completions.create(**QUESTION, **options, max_tokens=4)

    answer = asked(model.pipeline, ask, thinking=True if options else None)
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    prompt = model.processor.input_ids([user_message("Why?")])
    assert answer.usage.prompt_tokens == prompt.shape[1]


def test_many_clients_send_one_setting_to_all_models(bundled_folder):
    async def ask(client):
        return await client.chat.completions.create(**QUESTION, **ASKING[0], max_tokens=2)

    answer = asked(VisionLanguagePipeline(bundled_folder("internvl2", "int8")), ask)
    assert answer.choices[0].message.content


def test_a_response_has_the_thought_as_an_item(model):
    options = {"model": "model", "input": "Why?", "reasoning": {"effort": "low"}}

    async def ask(client):
        reply = await client.responses.create(**options)
        stream = await client.responses.create(**options, stream=True)
        return reply, [event async for event in stream]

    with writing(model.script):
        reply, events = asked(model.pipeline, ask)
    assert [item.type for item in reply.output] == ["reasoning", "message"]
    assert reply.output[0].content[0].text == THOUGHT and reply.output_text == ANSWER
    assert reply.usage.output_tokens_details.reasoning_tokens == len(model.thought)
    text = {
        kind: "".join(event.delta for event in events if event.type == f"response.{kind}.delta")
        for kind in ("reasoning_text", "output_text")
    }
    assert (text["reasoning_text"].strip(), text["output_text"]) == (THOUGHT, ANSWER)
    added = [e.item.type for e in events if e.type == "response.output_item.added"]
    assert added == ["reasoning", "message"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [item.type for item in events[-1].response.output] == added


# The page


def test_the_page_folds_the_thought(model):
    page = build_page(model.pipeline, title="A page")
    address = open_page(page, report=lambda line: None)
    try:
        client = Client(address, verbose=False, analytics_enabled=False)
        settings = {
            component["label"]: component["parameter_name"]
            for component in client.view_api(return_format="dict")["named_endpoints"]["/ask"][
                "parameters"
            ]
        }
        switch = next(name for label, name in settings.items() if label.startswith("Think"))
        with writing(model.script):
            chat, _ = client.predict("Why?", [], [], **{switch: True}, api_name="/ask")
    finally:
        page.close()
    question, thought, answer = chat
    assert thought["metadata"]["title"] == "Thought" and thought["metadata"]["status"] == "done"
    assert question["role"] == "user"
    assert str(thought["content"]).count(THOUGHT) == str(answer["content"]).count(ANSWER) == 1
    assert THOUGHT not in str(answer["content"])
    assert without_last_turn([*chat, *chat]) == chat


def test_only_what_has_a_switch_shows_it(bundled_folder):
    assert (
        thinking_control(VisionLanguagePipeline(bundled_folder("internvl2", "int8")).processor)
        == []
    )
