"""The checkpoints of Qwen3.5 that were published, and a small tokenizer for them."""

from helpers.models.qwen_vision.originals import original, tokenizer_of
from helpers.models.qwen_vision.processor import THOUGHT_MARKS

# The small models think only when they are told to. Thoughts of earlier turns are left out.
_START_OF_ANSWER = """\
{%- if enable_thinking is defined and enable_thinking is true %}
{{- "<think>\\n" }}
{%- else %}
{{- "<think>\\n\\n</think>\\n\\n" }}
{%- endif %}
"""
TOKENIZER = tokenizer_of("qwen3_5", THOUGHT_MARKS, _START_OF_ANSWER)
ORIGINALS = tuple(
    original(f"qwen3.5-{name.lower()}", f"Qwen/Qwen3.5-{name}", parameters, TOKENIZER)
    for name, parameters in (("0.8B", 0.853), ("9B", 9.41))
)
