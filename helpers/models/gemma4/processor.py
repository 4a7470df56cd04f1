"""Gemma 4's pictures and prompts."""

from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import Gemma4Config, Gemma4TextConfig, PreTrainedTokenizerBase
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from helpers.errors import CheckpointError
from helpers.inputs.chat_templates import template_of
from helpers.inputs.prompts import IMAGE, SYSTEM_WORDS, Template
from helpers.models.budgets import PicturePieces
from helpers.models.exported import ImageInputs
from helpers.models.gemma4.exported import Gemma4Exported
from helpers.models.processors import Processor, Runtime
from helpers.sources.checkpoints import Config, as_json, pixel_settings, preparation
from helpers.upstream.transformers import new_config, set_bos

PICTURE_MARKS = ("<|image>", "<|image|>", "<image|>")
VIDEO_MARK = "<|video|>"
THOUGHT_MARKS = ("<|think|>", "<|channel>", "<channel|>")  # what asks for one, and those around it
FEWEST_TOKENS = 70  # of the budgets that transformers' image processor has; the others are
TIMES = (1, 2, 4, 8, 16)  # these times as large
USUAL_TOKENS = 280  # the budget for a folder that names none
# The words of the published chat template. A token at the beginning asks for thoughts, which the
# model itself begins.
_ANSWERING = Template(
    "<bos>",
    "<|turn>user\n",
    "<turn|>\n",
    "<|turn>model\n",
    "<turn|>\n",
    image=IMAGE,
    images=IMAGE,
    frame=None,
    system_form=f"<bos><|turn>system\n{SYSTEM_WORDS}<turn|>\n",
    trimmed=True,
    thought=(f"{THOUGHT_MARKS[1]}thought\n", THOUGHT_MARKS[2]),
)
_THINKING = replace(
    _ANSWERING,
    system=f"<bos><|turn>system\n{THOUGHT_MARKS[0]}<turn|>\n",
    system_form=f"<bos><|turn>system\n{THOUGHT_MARKS[0]}{SYSTEM_WORDS}<turn|>\n",
    thinks=True,
)
TEMPLATE = replace(_ANSWERING, otherwise=_THINKING)


class Gemma4Processor(Processor):
    """Pictures as patches in their own shape, within one of five budgets of tokens."""

    exported_class = Gemma4Exported
    counts_places = True  # in its windows
    exported: Gemma4Exported
    most_pictures = None

    @cached_property
    def settings(self) -> Gemma4Config:
        """The config as transformers reads it; a `CheckpointError` for a kind not read here."""
        settings = new_config(Gemma4Config, **self.config)
        if settings.vision_config is None:
            raise CheckpointError(
                f"{self.folder} reads no pictures (vision_config is missing in config.json); take "
                "gemma-4-E2B-it or gemma-4-E4B-it."
            )
        text = cast(Gemma4TextConfig, settings.text_config)
        unknown = {
            "use_bidirectional_attention": text.use_bidirectional_attention is not None,
            "enable_moe_block": text.enable_moe_block,
            "hidden_size_per_layer_input": not text.hidden_size_per_layer_input,
        }
        for field in filter(unknown.get, unknown):
            raise CheckpointError(
                f"{field} in {self.folder / 'config.json'} is {as_json(getattr(text, field))}, as "
                "in the larger Gemma 4 models, which are not read here; take gemma-4-E2B-it or "
                "E4B-it."
            )
        if not text.sliding_window:
            raise CheckpointError(
                f"sliding_window in {self.folder / 'config.json'} is "
                f"{as_json(text.sliding_window)}, and a window is at least one token; download the "
                "checkpoint again."
            )
        return settings

    @property
    def text(self) -> Gemma4TextConfig:
        """The language model's part of the config."""
        return cast(Gemma4TextConfig, self.settings.text_config)

    @property
    def vision(self) -> Any:
        """The image encoder's part of the config."""
        return self.settings.vision_config

    @property
    def first_sharing_layer(self) -> int:
        """The first of the layers that have no keys and values of their own."""
        return self.text.num_hidden_layers - self.text.num_kv_shared_layers

    # Prompts

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the folder's own files; the template begins a text itself."""
        tokenizer = super().load_tokenizer()
        set_bos(tokenizer, added=False)
        return tokenizer

    @cached_property
    def template(self) -> Template:
        """The words of the tokenizer's chat template where they are others than the published.

        A template with the published words but without their switch gets it: the model has it.
        """
        tokenizer = self.with_chat_template(self.tokenizer)
        if tokenizer.chat_template is None:
            return TEMPLATE
        words = template_of(tokenizer, PICTURE_MARKS[1], frame=None, thought=TEMPLATE.thought)
        other = words.otherwise and replace(words.otherwise, trimmed=True)
        words = replace(words, trimmed=True, otherwise=other)
        return TEMPLATE if words.writes_as(TEMPLATE) else words

    @property
    def image_token_id(self) -> int:
        """The id of `<|image|>`."""
        return cast(int, self.settings.image_token_id)

    @property
    def marks_without_embeddings(self) -> list[int]:
        """The ids of what stands for pictures, videos and audio, looked up as padding."""
        settings = self.settings
        ids = (settings.image_token_id, settings.video_token_id, settings.audio_token_id)
        return [number for number in ids if number is not None]

    @property
    def context_length(self) -> int:
        """The context of the language model."""
        return int(self.text.max_position_embeddings)

    def text_ids(self, input_ids: Tensor) -> Tensor:
        """Return ids where padding stands at the places of pictures, as in transformers."""
        marks = torch.tensor(self.marks_without_embeddings, device=input_ids.device)
        return input_ids.masked_fill(torch.isin(input_ids, marks), self.text.pad_token_id or 0)

    def image_strings(self, image_inputs: ImageInputs) -> list[str]:
        """Return a picture's marks with one of them for every token."""
        begin, token, end = PICTURE_MARKS
        counts = self.exported.token_counts(image_inputs["image_position_ids"])
        return [begin + token * count + end for count in counts]

    # Pictures

    @cached_property
    def picture_settings(self) -> Config:
        """What the folder says of preparing pictures, in a file of its own or in a joint one."""
        return preparation(self.folder)

    @property
    def usual_picture_tokens(self) -> int:  # type: ignore[override]
        """The budget that the folder's files name."""
        return int(self.picture_settings.get("max_soft_tokens", USUAL_TOKENS))

    @property
    def pieces(self) -> PicturePieces:
        """The five budgets that the model was trained with."""
        return PicturePieces("step", FEWEST_TOKENS, TIMES[-1], choices=TIMES)

    @property
    def image_processor(self) -> Gemma4ImageProcessorPil:
        """transformers' processor, within the budget of tokens or, if none is set, the usual one.

        No picture is too small for a budget: without one, the largest would be the usual case.
        """
        pieces = self.pieces
        budget = self.usual_picture_tokens if self.picture_tokens is None else self.picture_tokens
        return Gemma4ImageProcessorPil(
            patch_size=self.vision.patch_size,
            pooling_kernel_size=self.vision.pooling_kernel_size,
            max_soft_tokens=pieces.total(pieces.within(budget)),
            **pixel_settings(self.picture_settings),
        )

    def pixels(self, pictures: list[Image.Image]) -> ImageInputs:
        """Return `pixel_values` (pictures, patches, values) and `image_position_ids`.

        Those are (pictures, patches, 2), the column and the row of each patch. What fills a
        picture up to the budget's number of patches has the position -1.
        """
        output = cast(Any, self.image_processor)(pictures, return_tensors="pt")
        return {name: output[name] for name in ("pixel_values", "image_position_ids")}

    def token_grid(self, image_inputs: ImageInputs) -> tuple[int, int]:
        """Return in how many rows and columns the tokens of one picture lie."""
        columns, rows = (image_inputs["image_position_ids"][0].amax(0) + 1).tolist()
        side = self.vision.pooling_kernel_size
        return rows // side, columns // side

    @property
    def runtime(self) -> Runtime:
        """How patches are cut, and that pixels are handed over from 0 to 1 if the files say so."""
        pixels = self.image_processor
        settings = {
            "patch_size": self.vision.patch_size,
            "pooling_kernel_size": self.vision.pooling_kernel_size,
            "max_soft_tokens": self.usual_picture_tokens,
            "image_mean": pixels.image_mean if pixels.do_normalize else [0.0] * 3,
            "image_std": pixels.image_std if pixels.do_normalize else [1.0] * 3,
        }
        return Runtime(image_text=PICTURE_MARKS[1], pictures=settings)
