"""Files for OpenVINO GenAI and Model Server: what they say, and who has them."""

from dataclasses import replace

import pytest

from helpers.convert import conversion
from helpers.convert.runtime_files import GRAPH
from helpers.graphs.presets import find_preset
from helpers.inputs.chat_templates import jinja_of, template_of
from helpers.inputs.messages import answer_message, user_message
from helpers.models import load_processor
from helpers.models.gemma4 import processor as gemma4
from helpers.sources.checkpoints import BUNDLED
from tests.bundled import BUNDLED_NAMES

MESSAGES = [user_message("What is it?"), answer_message("A star."), user_message("Where?")]
SYSTEM = {"role": "system", "content": "Short."}


@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_a_chat_template_writes_our_prompts(name):
    processor = load_processor(BUNDLED / name)
    tokenizer, template = processor.tokenizer, processor.template
    tokenizer.chat_template = jinja_of(template, "<picture>")

    def written(messages: list) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    assert written(MESSAGES) == template.render(MESSAGES)
    if template.system_form is not None:
        assert written([SYSTEM, *MESSAGES]) == template.render([SYSTEM, *MESSAGES])
    pictured = [user_message("What is it?", 1)]
    assert written(pictured) == template.render(pictured).replace("<image>", "<picture>")


@pytest.mark.parametrize("is_usual", [False, True])
@pytest.mark.parametrize("on", [None, True, False])
@pytest.mark.parametrize("answer", ["A star.", "<|channel>thought\nOh<channel|>A star.", "\nA"])
def test_a_chat_template_with_a_switch(on, is_usual, answer):
    """Of Gemma 4, and of one whose model thinks unless it is told not to."""
    template = gemma4.TEMPLATE
    if is_usual:
        template = replace(template.otherwise, otherwise=template)
    tokenizer = load_processor(BUNDLED / "internvl2").tokenizer
    tokenizer.chat_template = jinja_of(template, "<picture>")
    switch = {} if on is None else {"enable_thinking": on}
    messages = [user_message("What is it?"), answer_message(answer), user_message("Where?")]
    for prompt in (messages, [SYSTEM, *messages]):
        text = tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True, **switch
        )
        assert text == template.thinking(on).render(prompt)
        assert ("<|think|>" in text) == (is_usual if on is None else on)


@pytest.mark.parametrize("name", ["internvl2", "qwen3_vl"])
def test_a_chat_template_is_read_as_it_was_written(name):
    processor = load_processor(BUNDLED / name)
    tokenizer, template = processor.tokenizer, processor.template
    tokenizer.chat_template = jinja_of(template, "<picture>")
    again = template_of(tokenizer, "<picture>", frame=template.frame)
    assert again.render([SYSTEM, *MESSAGES]) == template.render([SYSTEM, *MESSAGES])


def test_a_family_that_they_do_not_know_has_none(tmp_path):
    conversion.convert(BUNDLED / "mobilevlm", tmp_path / "made", find_preset("int8"))
    assert not (tmp_path / "made" / GRAPH).exists()
    assert not load_processor(BUNDLED / "mobilevlm").runtime.loads
