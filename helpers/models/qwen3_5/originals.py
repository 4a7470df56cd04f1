"""The checkpoints of Qwen3.5 that were published, and a small tokenizer for them."""

from helpers.models.families import Original, SmallTokenizer
from helpers.models.qwen3_vl.originals import token_ids
from helpers.models.qwen_vision.processor import PICTURE_MARKS, THOUGHT_MARKS, VIDEO_MARK

# The words of the published chat template that matter for pictures, text and thinking: of the small
# models, which think only when they are told to. Thoughts of earlier turns are left out.
CHAT_TEMPLATE = """\
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
{%- if enable_thinking is defined and enable_thinking is true %}
{{- "<think>\\n" }}
{%- else %}
{{- "<think>\\n\\n</think>\\n\\n" }}
{%- endif %}
{%- endif %}
"""
# The marks of pictures stay the last tokens, where `token_ids` has them.
TOKENIZER = SmallTokenizer(
    "qwen3_5",
    ("user\n", "assistant\n"),
    (*THOUGHT_MARKS, *PICTURE_MARKS, VIDEO_MARK),
    CHAT_TEMPLATE,
)


def _original(name: str, parameters: float) -> Original:
    return Original(
        f"qwen3.5-{name.lower()}",
        f"Qwen/Qwen3.5-{name}",
        "Apache-2.0",
        parameters,
        TOKENIZER,
        token_ids=token_ids,
        picture=(1024, 768),
    )


ORIGINALS = (_original("0.8B", 0.853), _original("9B", 9.41))
