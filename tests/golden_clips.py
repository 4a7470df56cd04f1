"""What transformers' own processor makes of videos, for comparison: clips, and how to note them.

It needs torchvision, which is not installed beside the tests. In an environment of its own with
torch, torchvision, transformers (the release of requirements.txt) and Pillow,
`python -m tests.golden_clips FOLDER` writes the golden data anew, where FOLDER holds a tokenizer.
"""

import json
import re
import sys
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

GOLDEN = Path(__file__).parent / "golden" / "qwen3_vl_video"
PROMPT = (
    "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What moves?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
# The sizes of video_preprocessor_config.json that the clips are prepared with, by name.
SIZES = {
    "small": {"shortest_edge": 4096, "longest_edge": 32_768},
    "class": {"shortest_edge": 131_072, "longest_edge": 786_432},
}


@dataclass(frozen=True)
class Clip:
    """A clip to draw: frames, their size and number a second, and the sizes it is read with."""

    frames: int
    width: int
    height: int
    rate: float
    sizes: str = "small"


CLIPS = {
    "nothing is resized": Clip(8, 64, 32, 2),
    "an odd number": Clip(5, 64, 64, 2),
    "25 a second": Clip(60, 64, 32, 25),
    "a short one": Clip(3, 96, 32, 30),
    "slow": Clip(7, 32, 64, 0.7),
    "30000 / 1001": Clip(151, 32, 32, 30000 / 1001),
    "enlarged": Clip(4, 20, 30, 2),
    "made smaller": Clip(10, 150, 100, 4),
    "the class's own sizes": Clip(6, 48, 40, 2, "class"),
}


def draw_clip(clip: Clip) -> list[Image.Image]:
    """Draw a disc that moves over a slanting gradient."""
    frames = []
    for number in range(clip.frames):
        columns = np.linspace(0, 200, clip.width)[None, :].repeat(clip.height, 0)
        rows = np.linspace(0, 250, clip.height)[:, None].repeat(clip.width, 1)
        picture = Image.fromarray(
            np.stack([columns, rows, (columns + rows) / 2], 2).round().astype(np.uint8)
        )
        left, radius = (number * 7) % clip.width, clip.height // 4
        box = (left, radius, left + 2 * radius, 3 * radius)
        ImageDraw.Draw(picture).ellipse(box, fill=(230, 40 + number % 200, 60))
        frames.append(picture)
    return frames


def main(tokenizer_folder: str) -> None:
    """Write what the processor returns: ids and grids as JSON, patches as PNG-compressed arrays."""
    register_operators()
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    GOLDEN.mkdir(parents=True, exist_ok=True)
    results, arrays = {}, {}
    for name, clip in CLIPS.items():
        processor = Qwen3VLProcessor(
            Qwen2VLImageProcessorPil(patch_size=16),
            AutoTokenizer.from_pretrained(tokenizer_folder),
            Qwen3VLVideoProcessor(size=SIZES[clip.sizes]),
        )
        frames = np.stack([np.array(frame) for frame in draw_clip(clip)])
        metadata = {"fps": clip.rate, "total_num_frames": clip.frames, "duration": None}
        output = processor(
            text=[PROMPT], videos=[frames], video_metadata=[metadata], return_tensors="pt"
        )
        values = output["pixel_values_videos"].numpy()
        levels = (values * 127.5 + 127.5).round().astype(np.uint8)
        assert abs(levels / 127.5 - 1 - values).max() < 1e-6  # so bytes hold them whole
        results[name] = {
            "ids": output["input_ids"][0].tolist(),
            "grid": output["video_grid_thw"][0].tolist(),
        }
        arrays[name] = levels
    np.savez_compressed(GOLDEN / "patches.npz", **arrays)
    (GOLDEN / "expected.json").write_text(json.dumps(results) + "\n", encoding="utf-8")


def register_operators() -> None:
    """Declare torchvision's compiled operators, which a build for another torch lacks.

    The processor calls none of them, but without their names torchvision cannot be imported.
    """
    import torch

    folder = Path(str(distribution("torchvision").locate_file("torchvision")))
    source = (folder / "_meta_registrations.py").read_text(encoding="utf-8")
    names = set(re.findall(r'"torchvision::(\w+)"', source))
    names |= set(re.findall(r'register_meta\("(\w+)"', source))
    for name in sorted(names | {"nms"}):
        torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")


if __name__ == "__main__":
    main(sys.argv[1])
