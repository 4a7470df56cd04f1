"""The words around each turn, read from a tokenizer's own chat template.

The template is a Jinja program; what it writes around marks in a short conversation is what a
`Template` holds. What this module does not know: templates whose words depend on what is said.
"""

import json
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from helpers.errors import CheckpointError, reason_of
from helpers.inputs.prompts import IMAGE, SYSTEM_WORDS, Template

_SWITCH = "enable_thinking"  # as the templates of Qwen and of Gemma call it
# Private-use characters, which no template and no vocabulary of words has.
_QUESTION, _ANSWER, _SECOND, _SYSTEM = "\ue000", "\ue001", "\ue002", "\ue003"


def template_of(
    tokenizer: PreTrainedTokenizerBase,
    image_token: str,
    *,
    frame: str | None = Template.frame,
    thought: tuple[str, str] | None = None,
) -> Template:
    """Return the words of a chat template that writes `image_token` for a picture.

    What stands for a `frame` of a video is not in the template, nor are the marks of a `thought`,
    where the model may write one; the template's own `enable_thinking` says whether it does.

    Raises `CheckpointError` for a template that does not write the picture and each text once, as
    one that is for texts only.
    """
    try:
        usual, on, off = (
            _words(tokenizer, image_token, frame, thought, switch)
            for switch in ({}, {_SWITCH: True}, {_SWITCH: False})
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The chat template of {tokenizer.name_or_path}, which should write a picture and each "
            f"text once, cannot be used ({reason_of(error)}); take that of the model which this "
            "was trained from."
        ) from None
    if on == off:
        return usual
    is_usual = usual == on
    on = replace(on, thinks=True)  # also where it is the model that begins the thought
    return replace(on, otherwise=off) if is_usual else replace(off, otherwise=on)


def _words(
    tokenizer: PreTrainedTokenizerBase,
    image_token: str,
    frame: str | None,
    thought: tuple[str, str] | None,
    switch: dict[str, bool],
) -> Template:
    """Return the words of a chat template with a switch of it set; see `template_of`."""
    question = _message("user", {"type": "image"}, {"type": "text", "text": _QUESTION})
    answer = _message("assistant", {"type": "text", "text": _ANSWER})
    second = _message("user", {"type": "text", "text": _SECOND})
    prompt = _render(tokenizer, [question, answer, second], add_generation_prompt=True, **switch)
    beginning, rest = _split(prompt, image_token)
    after_picture, rest = _split(rest, _QUESTION)
    to_answer, rest = _split(rest, _ANSWER)
    to_second, to_next = _split(rest, _SECOND)
    _, answer_end = _split(_render(tokenizer, [question, answer], **switch), _ANSWER)
    user = to_second.removeprefix(answer_end)
    image = IMAGE + after_picture
    start = to_next.removeprefix(to_answer) if to_next.startswith(to_answer) else ""
    begin, end = thought or ("", "")
    return Template(
        beginning.removesuffix(user),
        user,
        "",
        to_answer,
        answer_end,
        image=image,
        images=image,
        frame=frame,
        system_form=_system_form(tokenizer, image_token, user, switch),
        answer_start=start,
        thought=thought,
        thinks=thought is not None and begin in start and end not in start,
    )


def _system_form(
    tokenizer: PreTrainedTokenizerBase, image_token: str, user: str, switch: dict[str, bool]
) -> str | None:
    """Return what stands for a system message before `user`, or None for a template without."""
    question = _message("user", {"type": "image"}, {"type": "text", "text": _QUESTION})
    for content in ([{"type": "text", "text": _SYSTEM}], _SYSTEM):  # some take a text only
        system = {"role": "system", "content": content}
        try:
            beginning, _ = _split(_render(tokenizer, [system, question], **switch), image_token)
        except (TemplateError, TypeError):  # how templates refuse a role, and a list
            continue
        before, mark, after = beginning.removesuffix(user).partition(_SYSTEM)
        if mark:
            return f"{before}{SYSTEM_WORDS}{after}"
    return None


def jinja_of(template: Template, image_text: str) -> str:
    """Return a chat template that writes what a `Template` says, `image_text` for a picture.

    A content may be a text or a list of parts. A system message replaces the authors' words where
    the template has a place for one. `enable_thinking` chooses between a template's two ways.
    """
    other = template.otherwise or template
    on, off = (template, other) if template.thinks else (other, template)
    words, words_of_off = _expressions(on, image_text), _expressions(off, image_text)
    text = _JINJA
    if on != off:
        condition = "is not defined or" if template.thinks else "is defined and"
        text = f"{{%- set thinks = {_SWITCH} {condition} {_SWITCH} is true -%}}\n{text}"
    for name, expression in words.items():
        if expression != words_of_off[name]:
            expression = f"({expression} if thinks else {words_of_off[name]})"
        text = text.replace(f"<{name}>", expression)
    return text


def _expressions(template: Template, image_text: str) -> dict[str, str]:
    """Return the expressions of Jinja that stand in `_JINJA`, by what stands there for them."""
    before, _, after = (template.system_form or SYSTEM_WORDS).partition(SYSTEM_WORDS)
    words = {
        "system": template.system,
        "before": before,
        "after": after,
        "user": template.user,
        "user_end": template.user_end,
        "assistant": template.assistant,
        "before_answer": template.before_answer,
        "answer_start": template.answer_start,
        "assistant_end": template.assistant_end,
        "image": template.image.replace(IMAGE, image_text),
    }
    expressions = {name: json.dumps(text, ensure_ascii=False) for name, text in words.items()}
    without_thought = ""
    if template.thought:  # earlier answers stand in a prompt without theirs
        end = json.dumps(template.thought[1], ensure_ascii=False)
        without_thought = _WITHOUT_THOUGHT.replace("<end>", end)
    trim = " | trim" if template.trimmed else ""
    return expressions | {"without_thought": without_thought, "trim": trim}


_JINJA = """\
{%- macro content(message) -%}
{%- if message.content is string -%}
{{- message.content<trim> -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == "image" -%}
{{- <image> -}}
{%- elif part.type == "text" -%}
{{- part.text<trim> -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if messages[0].role != "system" -%}
{{- <system> -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == "system" -%}
{{- <before> + content(message) + <after> -}}
{%- elif message.role == "user" -%}
{{- <user> + content(message) + <user_end> -}}
{%- else -%}
{%- set answer = content(message) -%}
<without_thought>{{- <assistant> + <before_answer> + answer + <assistant_end> -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- <assistant> + <answer_start> -}}
{%- endif -%}
"""


# In steps, since GenAI's Jinja calls nothing of what a macro returns.
_WITHOUT_THOUGHT = """\
{%- if <end> in answer -%}
{%- set answer = answer.split(<end>)[-1].lstrip("\\n") -%}
{%- endif -%}
"""


def _message(role: str, *parts: dict[str, str]) -> dict[str, Any]:
    return {"role": role, "content": list(parts)}


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any
) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


def _split(text: str, mark: str) -> tuple[str, str]:
    if text.count(mark) != 1:
        raise ValueError(f"{mark if mark.isascii() else 'a text'} {text.count(mark)} times")
    before, after = text.split(mark)
    return before, after
