"""InternVL 2 to 3.5: tiles, pixel shuffle, an MLP, and one of several language models.

Source of the layout: the authors' `configuration_internvl_chat.py` and `modeling_internvl_chat.py`
(OpenGVLab/InternVL); the numbers all come from a checkpoint's `config.json`. Folders whose names
end in -HF have transformers' own layout, which is read as the original one that says the same.
"""

from helpers.models.internvl2.chats import CHATS, SYSTEM, Chat
from helpers.models.internvl2.model import (
    FAMILY,
    IMAGE_MEAN,
    IMAGE_STD,
    InternVL2,
    InternVL2Processor,
    pixel_shuffle,
)
from helpers.models.internvl2.originals import IMAGE_MARKS

__all__ = [
    "CHATS",
    "FAMILY",
    "IMAGE_MARKS",
    "IMAGE_MEAN",
    "IMAGE_STD",
    "SYSTEM",
    "Chat",
    "InternVL2",
    "InternVL2Processor",
    "pixel_shuffle",
]
