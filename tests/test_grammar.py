"""Answers that follow a JSON schema, with the tokenizer of every family."""

import json

import pytest

from helpers.errors import SettingsError
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes.questions import draw_questions
from tests.bundled import BUNDLED_NAMES
from tests.workers import in_groups

COLOURS = ["red", "green", "blue", "yellow", "purple", "orange"]
SCHEMA = {
    "type": "object",
    "properties": {
        "colours": {"type": "array", "items": {"enum": COLOURS}, "minItems": 1, "maxItems": 3},
        "round": {"type": "boolean"},
        "number": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["colours", "round", "number"],
    "additionalProperties": False,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=in_groups(BUNDLED_NAMES, "grammar"))
def pipeline(request, bundled_folder):
    """Return a bundled model."""
    return VisionLanguagePipeline(bundled_folder(request.param, "int8"), answers_at_once=4)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 3.0, "seed": 2}])
def test_answers_follow_a_schema(pipeline, options):
    replies = [
        pipeline.ask(question.text, [picture], schema=SCHEMA, max_new_tokens=200, **options)
        for picture, question in draw_questions(4, seed=9)
    ]
    for reply in replies:
        value = json.loads(reply.text)
        assert reply.finish == "stop" and value.keys() == SCHEMA["properties"].keys()
        assert set(value["colours"]) <= set(COLOURS) and value["number"] in range(10)
        assert isinstance(value["round"], bool)


def test_a_limit_cuts_an_answer(pipeline):
    reply = pipeline.ask("What?", schema=SCHEMA, max_new_tokens=4)
    assert reply.finish == "length" and reply.text.startswith("{")


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "#/nowhere"}])
def test_a_schema_that_cannot_be_followed_is_told(pipeline, schema):
    with pytest.raises(SettingsError, match="The schema cannot be followed"):
        pipeline.ask("What?", schema=schema)


@pytest.mark.parametrize("schema", [True, "{}", [SCHEMA]])
def test_what_is_no_schema_is_told(pipeline, schema):
    with pytest.raises(SettingsError, match="^A schema is a dict, and this is of type "):
        pipeline.ask("What?", schema=schema)


def test_a_schema_and_beams_do_not_go_together(pipeline):
    with pytest.raises(SettingsError, match="beams"):
        pipeline.ask("What?", schema=SCHEMA, num_beams=2)
