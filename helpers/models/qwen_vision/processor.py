"""Pictures, videos and prompts of models with this image encoder."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from helpers.errors import CheckpointError, PictureError
from helpers.inputs.chat_templates import template_of
from helpers.inputs.images import open_picture
from helpers.inputs.prompts import IMAGE, SYSTEM_WORDS, Template
from helpers.inputs.video import Video
from helpers.models.budgets import PicturePieces
from helpers.models.exported import Features, ImageInputs
from helpers.models.processors import Processor, Runtime
from helpers.models.qwen_vision.exported import PictureTokens, QwenVisionExported
from helpers.models.qwen_vision.places import Grid, single_frames, token_positions
from helpers.models.qwen_vision.videos import VideoSettings, video_inputs
from helpers.sources.checkpoints import Config, pixel_settings, preparation
from helpers.upstream.transformers import new_config

PICTURE_MARKS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
VIDEO_MARK = "<|video_pad|>"
THOUGHT_MARKS = ("<think>", "</think>")
# preprocessor_config.json of the published checkpoints, for a folder without it
SHIPPED: Config = {
    "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
FRAMES_OF_A_STEP = 2  # of a video, which become one frame of tokens
LONGEST_RATIO = 200  # of a picture's sides (smart_resize of transformers' Qwen2VL processor)
# ChatML, the words of the published chat template
CHATML = Template(
    "",
    "<|im_start|>user\n",
    "<|im_end|>\n",
    "<|im_start|>assistant\n",
    "<|im_end|>\n",
    image=IMAGE,
    images=IMAGE,
    frame=None,
    system_form=f"<|im_start|>system\n{SYSTEM_WORDS}<|im_end|>\n",
)


class QwenVisionProcessor(Processor):
    """Pictures as patches at their own size, positions in three dimensions, ChatML.

    `settings_class` is transformers' config of the whole model.
    """

    settings_class: type[PreTrainedConfig]
    exported_class = QwenVisionExported
    exported: QwenVisionExported
    most_pictures = None
    usual_picture_tokens = 1024  # a megapixel; the files allow 16 times as much

    @cached_property
    def settings(self) -> Any:
        """The config as transformers reads it; a `CheckpointError` for steps of other lengths."""
        settings: Any = new_config(self.settings_class, **self.config)
        if (frames := settings.vision_config.temporal_patch_size) != FRAMES_OF_A_STEP:
            raise CheckpointError(
                f"temporal_patch_size in {self.folder / 'config.json'} is {frames}, and only "
                f"{FRAMES_OF_A_STEP} is read here; use a checkpoint of the published kind."
            )
        return settings

    @property
    def vision(self) -> Any:
        """The image encoder's part of the config."""
        return self.settings.vision_config

    @property
    def runtime(self) -> Runtime:
        """How patches are cut and which pixels they have, also where the folder's files lack it."""
        least, most = self._files_pixels
        settings = {
            "patch_size": self.vision.patch_size,
            "temporal_patch_size": self.vision.temporal_patch_size,
            "merge_size": self.vision.spatial_merge_size,
            "image_mean": self._picture_settings["image_mean"],
            "image_std": self._picture_settings["image_std"],
            "size": {"shortest_edge": least, "longest_edge": most},
        }
        return Runtime(image_text="".join(PICTURE_MARKS), pictures=settings)

    # Prompts

    @cached_property
    def template(self) -> Template:
        """The words of the tokenizer's chat template, or those of the published one."""
        tokenizer = self.with_chat_template(self.load_tokenizer())
        if tokenizer.chat_template is None:
            return CHATML
        return template_of(tokenizer, "".join(PICTURE_MARKS), frame=None, thought=THOUGHT_MARKS)

    @property
    def image_token_id(self) -> int:
        """The id of `<|image_pad|>`."""
        return cast(int, self.settings.image_token_id)

    @property
    def context_length(self) -> int:
        """The context of the language model."""
        return cast(int, self.settings.text_config.max_position_embeddings)

    def picture_positions(self, input_ids: Tensor) -> Tensor:
        """Return where rows of features go: those of pictures and of videos."""
        ids = torch.tensor(sorted(self.picture_token_ids), device=input_ids.device)
        return torch.isin(input_ids, ids)

    @property
    def picture_token_ids(self) -> set[int]:
        """The ids of `<|image_pad|>` and `<|video_pad|>`."""
        return {self.settings.image_token_id, self.settings.video_token_id}

    def transformers_inputs(self, input_ids: Tensor, image_inputs: ImageInputs) -> ImageInputs:
        """Return what transformers' own class takes: 1 for each token of a picture, too."""
        inputs = super().transformers_inputs(input_ids, image_inputs)
        return inputs | {"mm_token_type_ids": (input_ids == self.image_token_id).int()}

    def image_strings(self, image_inputs: ImageInputs) -> list[str]:
        """Return a picture's marks with a token for every row; a video has its times between."""
        begin, pad, end = PICTURE_MARKS
        grids = image_inputs["image_grid_thw"].tolist()
        times = image_inputs.get("times", [[]] * len(grids))
        strings = []
        for (_, rows, columns), steps in zip(grids, times, strict=True):
            tokens = rows * columns // self.vision.spatial_merge_size**2
            content = pad * tokens
            if steps:
                # The marks of the whole video are the template's, those of steps its own. So does
                # transformers since its fifth version; before, the steps stood without the former.
                content = "".join(
                    f"<{seconds:.1f} seconds>{begin}{VIDEO_MARK * tokens}{end}" for seconds in steps
                )
            strings.append(begin + content + end)
        return strings

    # Positions

    def token_grid(self, image_inputs: ImageInputs) -> tuple[int, int]:
        """Return in how many rows and columns the tokens of one picture lie."""
        ((_, rows, columns),) = single_frames(image_inputs["image_grid_thw"])
        merge = self.vision.spatial_merge_size
        return rows // merge, columns // merge

    def position_ids(self, input_ids: Tensor, image_inputs: ImageInputs | None = None) -> Tensor:
        """Return the positions (3, batch, length) of a prompt's tokens."""
        grids = single_frames(image_inputs["image_grid_thw"]) if image_inputs else []
        return self.positions_around(input_ids, grids)

    def positions_around(self, input_ids: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Return the positions (3, batch, length) of tokens around pictures of these grids."""
        is_picture = self.picture_positions(input_ids).cpu()
        merge = self.vision.spatial_merge_size
        needed = sum(rows * columns // merge**2 for _, rows, columns in grids)
        if int(is_picture.sum()) != needed:
            raise CheckpointError(
                f"The prompt has room for {int(is_picture.sum())} picture tokens, "
                f"but its pictures have {needed}."
            )
        return token_positions(is_picture, grids, merge).to(input_ids.device)

    def prepare(
        self,
        input_ids: Tensor,
        embed_tokens: Callable[[Tensor], Tensor],
        features: Features | None = None,
    ) -> dict[str, Tensor]:
        """Return what a language model in PyTorch takes."""
        prepared = super().prepare(input_ids, embed_tokens, features)
        grids = [picture.grid for picture in cast(Sequence[PictureTokens], features or ())]
        return prepared | {"position_ids": self.positions_around(input_ids, grids)}

    # Pictures and videos

    @property
    def pixels_per_token(self) -> int:
        """How many pixels of a picture become one token."""
        return int((self.vision.patch_size * self.vision.spatial_merge_size) ** 2)

    @property
    def pieces(self) -> PicturePieces:
        """Squares of pixels that become one token each."""
        return PicturePieces("token", 1, self._files_pixels[1] // self.pixels_per_token)

    @property
    def _most_pixels(self) -> int | None:
        """How many pixels the budget of tokens allows a picture."""
        budget = self.picture_tokens
        return None if budget is None else budget * self.pixels_per_token

    @property
    def _picture_settings(self) -> Config:
        return SHIPPED | preparation(self.folder)

    @property
    def _files_pixels(self) -> tuple[int, int]:
        """The fewest and the most pixels of a picture by the folder's files."""
        settings = self._picture_settings
        least = settings.get("min_pixels") or settings["size"]["shortest_edge"]
        most = settings.get("max_pixels") or settings["size"]["longest_edge"]
        return least, most

    @property
    def image_processor(self) -> Qwen2VLImageProcessorPil:
        """transformers' processor with the folder's settings, within the budget of tokens."""
        settings, (least, most) = self._picture_settings, self._files_pixels
        most = min(most, self._most_pixels or most)
        return Qwen2VLImageProcessorPil(
            size={"shortest_edge": min(least, most), "longest_edge": most},
            **pixel_settings(settings),
            patch_size=self.vision.patch_size,
            temporal_patch_size=self.vision.temporal_patch_size,
            merge_size=self.vision.spatial_merge_size,
        )

    @property
    def video_settings(self) -> VideoSettings:
        """Which frames of a video are read, and in which size."""
        file = "video_preprocessor_config.json"
        settings = preparation(self.folder, "video_processor", file)
        unit = self.vision.patch_size * self.vision.spatial_merge_size
        return VideoSettings.of(settings, unit, self._most_pixels)

    def choose_frames(self, number: int, rate: float) -> list[int]:
        """Return which of a video's frames are read: two a second, within the limits."""
        return self.video_settings.choose(number, rate)

    def pixels(self, pictures: list[Image.Image]) -> ImageInputs:
        """Return `pixel_values` (patches, values) and `image_grid_thw` (pictures, 3)."""
        for picture in pictures:
            _check_shape(picture)
        pictures = [self._within_budget(picture) for picture in pictures]
        output = cast(Any, self.image_processor)(pictures, return_tensors="pt")
        return {name: output[name] for name in ("pixel_values", "image_grid_thw")}

    def _within_budget(self, picture: Image.Image) -> Image.Image:
        """Return a picture, or one that is less stretched, where its budget is one row of tokens.

        A side has at least one token, so that a stretched picture would have more than allowed.
        """
        budget, unit = self.picture_tokens, math.isqrt(self.pixels_per_token)
        if budget is None or max(picture.size) <= budget * min(picture.size):
            return picture
        longer, shorter = budget * unit, unit
        is_wide = picture.width > picture.height
        size = (longer, shorter) if is_wide else (shorter, longer)
        return picture.resize(size, Image.Resampling.BICUBIC)

    def image_inputs(self, pictures: Sequence[Image.Image | str | Path | Video]) -> ImageInputs:
        """Return the inputs of pictures and videos; with a video, the `times` of its steps too."""
        if not any(isinstance(picture, Video) for picture in pictures):
            return super().image_inputs(pictures)
        parts = [self._timed_inputs(picture) for picture in pictures]
        return {
            "pixel_values": torch.cat([part["pixel_values"] for part in parts]),
            "image_grid_thw": torch.cat([part["image_grid_thw"] for part in parts]),
            "times": list(itertools.chain.from_iterable(part["times"] for part in parts)),
        }

    def _timed_inputs(self, picture: Image.Image | str | Path | Video) -> ImageInputs:
        """Return the inputs of one picture or video and `times`, of which a picture has none."""
        if not isinstance(picture, Video):
            return super().image_inputs([picture]) | {"times": [[]]}
        _check_shape(open_picture(picture.frames[0]))
        return video_inputs(self.image_processor, self.video_settings, picture)


def _check_shape(picture: Image.Image) -> None:
    """Raise a `PictureError` for a shape that the authors' processor refuses too."""
    if max(picture.size) > LONGEST_RATIO * min(picture.size):
        raise PictureError(
            f"A picture of {picture.width} x {picture.height} pixels is too long and narrow: this "
            f"model reads none that is more than {LONGEST_RATIO} times as long as it is wide; cut "
            "it into pieces."
        )
