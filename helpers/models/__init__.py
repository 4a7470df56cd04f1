"""One file a family; `load_model` reads a checkpoint of any of them."""

from pathlib import Path

import torch

from helpers.errors import CheckpointError
from helpers.models.base import Processor, VisionLanguageModel
from helpers.models.internvl2 import InternVL2
from helpers.models.llava_mpt import LlavaMpt
from helpers.models.minicpm_v2 import MiniCPMV2
from helpers.models.mllama import Mllama
from helpers.models.mobilevlm import MobileVLM
from helpers.sources.checkpoints import read_config

# model_type in config.json, as the authors wrote it
FAMILIES: dict[str, type[VisionLanguageModel]] = {
    "llava_mpt": LlavaMpt,
    "mobilevlm": MobileVLM,
    "internvl_chat": InternVL2,
    "minicpmv": MiniCPMV2,
    "mllama": Mllama,
}


def family_of(folder: Path) -> type[VisionLanguageModel]:
    """Return the class that reads the checkpoint in `folder`."""
    model_type = read_config(folder).get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise CheckpointError(f"{folder} holds a {model_type!r} model; this reads {known}.")
    return FAMILIES[model_type]


def load_model(folder: Path, dtype: torch.dtype | None = None) -> VisionLanguageModel:
    """Read an original checkpoint, memory-mapped; `dtype` None keeps the files' own type."""
    return family_of(folder).load(folder, dtype)


def load_processor(folder: Path) -> Processor:
    """Return what turns pictures and messages into inputs, without any weights."""
    return family_of(folder).processor_class(folder, read_config(folder))
