"""The checkpoints of InternVL 2 to 3.5 that were published, and small tokenizers for them."""

from helpers.models.families import Original, SmallTokenizer
from helpers.models.internvl2.chats import SYSTEM

IMAGE_MARKS = ("<img>", "</img>", "<IMG_CONTEXT>")
_WORDS = (SYSTEM, "system\n", "user\n", "assistant\n")
_QUAD, _REF, _BOX = (f"<{word}> </{word}>".split() for word in ("quad", "ref", "box"))
QWEN2_TOKENIZER = SmallTokenizer("qwen2", _WORDS, (*IMAGE_MARKS, *_QUAD, *_REF, *_BOX))
_INTERNLM2 = SmallTokenizer("internlm2", marks=("<|im_start|>", "<|im_end|>", *IMAGE_MARKS))
_PHI3 = SmallTokenizer("phi3", marks=IMAGE_MARKS)

_MIT_QWEN = "MIT, Qwen2.5 inside Apache-2.0"

ORIGINALS = (
    Original(
        "internvl2-1b",
        "OpenGVLab/InternVL2-1B",
        "MIT, Qwen2 inside Apache-2.0",
        0.94,
        QWEN2_TOKENIZER,
    ),
    Original(
        "internvl2-2b",
        "OpenGVLab/InternVL2-2B",
        "MIT, InternLM2 inside Apache-2.0",
        2.21,
        _INTERNLM2,
    ),
    Original(
        "internvl2-4b",
        "OpenGVLab/InternVL2-4B",
        "MIT, Phi-3 inside MIT",
        4.15,
        _PHI3,
    ),
    Original(
        "internvl2-8b",
        "OpenGVLab/InternVL2-8B",
        "MIT, InternLM2.5 inside Apache-2.0",
        8.08,
        _INTERNLM2,
    ),
    Original("internvl3-1b", "OpenGVLab/InternVL3-1B", _MIT_QWEN, 0.94, QWEN2_TOKENIZER),
    Original("internvl3-2b", "OpenGVLab/InternVL3-2B", _MIT_QWEN, 2.09, QWEN2_TOKENIZER),
    Original("internvl3-8b", "OpenGVLab/InternVL3-8B", _MIT_QWEN, 7.94, QWEN2_TOKENIZER),
    Original("internvl3.5-1b", "OpenGVLab/InternVL3_5-1B", "Apache-2.0", 1.06, QWEN2_TOKENIZER),
    Original("internvl3.5-2b", "OpenGVLab/InternVL3_5-2B", "Apache-2.0", 2.35, QWEN2_TOKENIZER),
    Original("internvl3.5-4b", "OpenGVLab/InternVL3_5-4B", "Apache-2.0", 4.73, QWEN2_TOKENIZER),
    Original("internvl3.5-8b", "OpenGVLab/InternVL3_5-8B", "Apache-2.0", 8.53, QWEN2_TOKENIZER),
)
