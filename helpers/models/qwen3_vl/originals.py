"""The checkpoints of Qwen3-VL that were published, and a small tokenizer for them."""

from helpers.models.families import Original, SmallTokenizer
from helpers.models.qwen_vision.processor import PICTURE_MARKS, VIDEO_MARK


def token_ids(size: int) -> dict[str, int]:
    """Return the fields of the config with tokens' ids; the marks are the last tokens."""
    names = ("vision_start_token_id", "image_token_id", "vision_end_token_id", "video_token_id")
    return {name: size - len(names) + number for number, name in enumerate(names)}


# The words of the published chat template that matter for pictures and text.
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
{%- endif %}
"""
TOKENIZER = SmallTokenizer(
    "qwen2", ("user\n", "assistant\n"), (*PICTURE_MARKS, VIDEO_MARK), _CHAT_TEMPLATE
)


def _original(name: str, parameters: float) -> Original:
    return Original(
        f"qwen3-vl-{name.lower()}",
        f"Qwen/Qwen3-VL-{name}-Instruct",
        "Apache-2.0",
        parameters,
        TOKENIZER,
        token_ids=token_ids,
        picture=(1024, 768),
    )


ORIGINALS = (_original("2B", 2.13), _original("4B", 4.44), _original("8B", 8.77))
