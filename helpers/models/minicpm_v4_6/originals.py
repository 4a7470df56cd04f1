"""The checkpoint of MiniCPM-V 4.6 that was published, and a small tokenizer for it."""

from dataclasses import replace

from helpers.models.minicpm_v4_6.processor import IMAGE_TOKEN, MARKS, VIDEO_TOKEN
from helpers.models.qwen3_5.originals import TOKENIZER as QWEN_TOKENIZER
from helpers.models.qwen_vision.originals import original
from helpers.models.qwen_vision.processor import PICTURE_MARKS, THOUGHT_MARKS


def token_ids(size: int) -> dict[str, int]:
    """Return the fields of the config with tokens' ids; those of pictures are the last tokens."""
    return {"image_token_id": size - 2, "video_token_id": size - 1}


# Qwen3.5's, with other marks of pictures.
TOKENIZER = replace(
    QWEN_TOKENIZER,
    marks=(*THOUGHT_MARKS, *MARKS, IMAGE_TOKEN, VIDEO_TOKEN),
    chat_template=QWEN_TOKENIZER.chat_template.replace("".join(PICTURE_MARKS), IMAGE_TOKEN + "\\n"),
)
ORIGINALS = (
    replace(
        original("minicpm-v-4.6", "openbmb/MiniCPM-V-4.6", 1.301, TOKENIZER), token_ids=token_ids
    ),
)
