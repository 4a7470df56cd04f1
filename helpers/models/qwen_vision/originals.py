"""What the published checkpoints of these models have in common: marks, words, licence."""

from helpers.models.families import Original, SmallTokenizer
from helpers.models.qwen_vision.processor import PICTURE_MARKS, VIDEO_MARK


def token_ids(size: int) -> dict[str, int]:
    """Return the fields of the config with tokens' ids; the marks are the last tokens."""
    names = ("vision_start_token_id", "image_token_id", "vision_end_token_id", "video_token_id")
    return {name: size - len(names) + number for number, name in enumerate(names)}


# The words of the published chat templates that matter for pictures and text.
_CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- "<|im_start|>" + message.role + "\\n" }}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == "image" %}
{{- "<|vision_start|><|image_pad|><|vision_end|>" }}
{%- elif part.type == "video" %}
{{- "<|vision_start|><|video_pad|><|vision_end|>" }}
{%- else %}
{{- part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|im_start|>assistant\\n" }}
<start of answer>{%- endif %}
"""


def tokenizer_of(
    kind: str, marks: tuple[str, ...] = (), start_of_answer: str = ""
) -> SmallTokenizer:
    """Return a small tokenizer; `marks` come before those of pictures, which stay the last.

    `start_of_answer` is the part of the chat template that writes what an answer begins with.
    """
    return SmallTokenizer(
        kind,
        ("user\n", "assistant\n"),
        (*marks, *PICTURE_MARKS, VIDEO_MARK),
        _CHAT_TEMPLATE.replace("<start of answer>", start_of_answer),
    )


def original(name: str, hub_id: str, parameters: float, tokenizer: SmallTokenizer) -> Original:
    """Return a published checkpoint of so many billion parameters."""
    return Original(
        name,
        hub_id,
        "Apache-2.0",
        parameters,
        tokenizer,
        token_ids=token_ids,
        picture=(1024, 768),
    )
