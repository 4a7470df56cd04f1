"""The checkpoints of Gemma 4 that were published and are read here, and a small tokenizer."""

import math
from collections.abc import Sequence

from helpers.models.families import Original, SmallTokenizer
from helpers.models.gemma4.processor import PICTURE_MARKS, THOUGHT_MARKS, VIDEO_MARK


def token_ids(size: int) -> dict[str, int]:
    """Return the fields of the config with tokens' ids; the marks are the last tokens."""
    names = ("boi_token_id", "image_token_id", "eoi_token_id", "video_token_id")
    return {name: size - len(names) + number for number, name in enumerate(names)}


# The published form, without thinking and tools.
CHAT_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
{{- "<|turn>" + ("model" if message.role == "assistant" else message.role) + "\\n" }}
{%- if message.content is string %}
{{- message.content | trim }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == "image" %}
{{- "<|image|>" }}
{%- else %}
{{- part.text | trim }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- "<turn|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|turn>model\\n" }}
{%- endif %}
"""
TOKENIZER = SmallTokenizer(
    "gemma",
    ("user\n", "model\n"),
    ("<|turn>", "<turn|>", *THOUGHT_MARKS, *PICTURE_MARKS, VIDEO_MARK),
    CHAT_TEMPLATE,
)


# What a tensor of a random checkpoint is filled with: factors and bounds that change nothing.
_CONSTANTS = {
    "layer_scalar": 1.0,
    "input_min": -math.inf,
    "output_min": -math.inf,
    "input_max": math.inf,
    "output_max": math.inf,
    "std_bias": 0.0,
    "std_scale": 1.0,
}


def constant_of(name: str, shape: Sequence[int]) -> float | None:
    """Return the number that a tensor of a random checkpoint is filled with; None: random ones.

    Scores of attention are divided by nothing here, so that with norms of ones they would be so
    large that one key takes all; at the root of a head's size they are as elsewhere.
    """
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return float(shape[0] ** -0.25)
    return _CONSTANTS.get(name.rpartition(".")[2])


def _original(name: str, parameters: float) -> Original:
    return Original(
        f"gemma-4-{name.lower()}",
        f"google/gemma-4-{name}-it",
        "Apache-2.0",
        parameters,
        TOKENIZER,
        token_ids=token_ids,
        picture=(1024, 768),
        constant=constant_of,
    )


ORIGINALS = (_original("E2B", 4.8), _original("E4B", 7.6))
