"""What every family's processor does: pictures, prompts and token ids, without weights.

A family says how its pictures are prepared and which words stand around a turn; the rest is shared.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from helpers.errors import (
    CheckpointError,
    ContextError,
    QuestionError,
    SettingsError,
    is_whole,
)
from helpers.inputs.images import open_picture
from helpers.inputs.messages import Message, user_message
from helpers.inputs.prompts import Template, encode
from helpers.inputs.video import Video, spread
from helpers.models.budgets import PicturePieces
from helpers.models.exported import ExportedParts, Features, ImageInputs
from helpers.sources.checkpoints import Config, read_json, stop_tokens
from helpers.upstream.transformers import silence_narrow_pictures

silence_narrow_pictures()

SMALL_PICTURE = Image.new("RGB", (8, 8))
FRAMES = 8  # of a video that a model is given, as in the examples of InternVL's model cards


@dataclass(frozen=True)
class Runtime:
    """Whether OpenVINO GenAI and Model Server know a family, and `why` not.

    `image_text` is what a chat template has for a picture, `pictures` what the file says by which
    they prepare one.
    """

    why: str = ""
    image_text: str = ""
    pictures: dict[str, Any] = field(default_factory=dict)

    @property
    def loads(self) -> bool:
        """Whether they load a folder of the family."""
        return not self.why


class Processor(ABC):
    """Turn pictures and messages into what a model takes; knows no weights."""

    exported_class: type[ExportedParts] = ExportedParts
    # Whether the language model counts masked places between two tokens.
    counts_places = False
    most_pictures: int | None = 1  # that a conversation is meant to have; None: as many as fit
    picture_tokens: int | None = None  # that a picture may become at most; None: its files' limit
    usual_picture_tokens: int | None = None  # the same, where nobody says
    thinks: bool | None = None  # before it answers; None: as the template has it

    def __init__(self, folder: str | Path, config: Config) -> None:
        self.folder = Path(folder)
        self.config = config

    # What a family says

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the checkpoint's tokenizer, from its own files and without its code."""
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(self.folder))

    def with_chat_template(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Return a tokenizer with the template of `chat_template.json`, which processors prefer."""
        path = self.folder / "chat_template.json"  # transformers 4 wrote it
        if path.exists() and isinstance(text := read_json(path).get("chat_template"), str):
            tokenizer.chat_template = text
        return tokenizer

    def has_chat_template(self) -> bool:
        """Return whether the folder's files have a chat template."""
        return self.with_chat_template(self.load_tokenizer()).chat_template is not None

    @property
    @abstractmethod
    def template(self) -> Template:
        """The words around each turn."""

    @property
    @abstractmethod
    def image_token_id(self) -> int:
        """The token that stands where a row of picture features goes."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """How many tokens a conversation may have."""

    def check_room(self, tokens: int, max_new_tokens: int) -> None:
        """Raise a `ContextError` for a prompt of so many tokens without room for the answer."""
        limit = self.context_length
        if tokens + max_new_tokens > limit:
            raise ContextError(
                f"The conversation would need {tokens} tokens and {max_new_tokens} for the answer, "
                f"but the model's context holds {limit}; ask less or start a new one.",
                limit - tokens,
            )

    @abstractmethod
    def pixels(self, pictures: list[Image.Image]) -> ImageInputs:
        """Turn RGB pictures into what the image encoder takes."""

    @abstractmethod
    def image_strings(self, image_inputs: ImageInputs) -> Sequence[str | list[int]]:
        """Return for each picture the special tokens that stand for it in a prompt, or ids."""

    @property
    def runtime(self) -> Runtime:
        """What OpenVINO GenAI and Model Server need of this family, unless they do not know it."""
        return Runtime("OpenVINO GenAI has no class for this family")

    @property
    def pieces(self) -> PicturePieces:
        """Into how many tokens a picture is made by the checkpoint's files, piece by piece.

        Unless a family says more, every picture has as many as a small one.
        """
        ids = self.input_ids([user_message("", 1)], self.image_inputs([SMALL_PICTURE]))
        return PicturePieces("picture", int(self.picture_positions(ids).sum()))

    def token_grid(self, image_inputs: ImageInputs) -> tuple[int, int]:
        """Return in how many rows and columns the tokens of one picture lie: a square, usually."""
        side = math.isqrt(self.pieces.tokens)
        return side, side

    def choose_frames(self, number: int, rate: float) -> list[int]:
        """Return which of a video's `number` frames, `rate` a second, the model looks at."""
        return spread(range(number), FRAMES)

    # What all families share

    def within(self, picture_tokens: int | None) -> Self:
        """Return this processor with another budget of tokens for a picture; None: the same.

        Raises `SettingsError` for fewer than any picture has.
        """
        if picture_tokens is None:
            return self
        least = self.pieces.tokens
        if not is_whole(picture_tokens) or picture_tokens < least:
            raise SettingsError(
                f"picture_tokens is {picture_tokens!r}, but a picture has at least {least} "
                f"token{'s' * (least > 1)} here; give a whole number from {least} on."
            )
        processor = copy.copy(self)
        processor.picture_tokens = int(picture_tokens)
        return processor

    def thinking(self, on: bool | None) -> Self:
        """Return this processor with prompts that ask for a thought, or not; None: the same.

        Raises `SettingsError` where the template has no such switch.
        """
        self.template.thinking(on)  # or it is an error
        processor = copy.copy(self)
        processor.thinks = self.thinks if on is None else on
        return processor

    @property
    def has_switch(self) -> bool:
        """Whether it can be said if the model thinks before it answers."""
        return self.template.otherwise is not None

    @property
    def words(self) -> Template:
        """The words around each turn, which ask for a thought or not."""
        return self.template.thinking(self.thinks)

    @cached_property
    def exported(self) -> ExportedParts:
        """How the exported parts are called."""
        return self.exported_class(self)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer, in which every added token is a special one.

        Some are not in their files (Phi-3's `</s>`, MiniCPM's `<AI>`), and a question that has
        such a word would begin or end a turn.
        """
        tokenizer = self.load_tokenizer()
        plain = [token for token in tokenizer.added_tokens_decoder.values() if not token.special]
        for token in plain:
            token.special = True
        tokenizer.add_tokens(plain, special_tokens=True)
        return tokenizer

    @property
    def stop_token_ids(self) -> list[int]:
        """The tokens that end an answer: the template's, the tokenizer's and the folder's own."""
        end = self.tokenizer.convert_tokens_to_ids(self.template.assistant_end.strip())
        return sorted({end, self.tokenizer.eos_token_id, *self.files_stop_token_ids} - {None})

    @cached_property
    def files_stop_token_ids(self) -> list[int]:
        """The tokens that end an answer by the folder's files; [] for none."""
        return stop_tokens(self.folder, self.config)

    def image_inputs(self, pictures: Sequence[Image.Image | str | Path | Video]) -> ImageInputs:
        """Turn pictures, right way up and RGB, into the image encoder's inputs.

        Raises `QuestionError` for a video where the family reads none.
        """
        images = []
        for picture in pictures:
            if isinstance(picture, Video):
                raise QuestionError("This model reads no video; give it single pictures.")
            images.append(open_picture(picture))
        return self.pixels(images)

    def input_ids(
        self, messages: Sequence[Message], image_inputs: ImageInputs | None = None
    ) -> Tensor:
        """Return the prompt of `messages` as ids (1, length), with room for the pictures."""
        images = self._strings(image_inputs, 0)
        return torch.tensor([encode(self.tokenizer, self.words.pieces(messages), images)])

    def _strings(self, image_inputs: ImageInputs | None, earlier: int) -> list[str | list[int]]:
        strings = self.image_strings(image_inputs) if image_inputs else []
        return [self.with_number(*pair) for pair in enumerate(strings, earlier)]

    def with_number(self, number: int, string: str | list[int]) -> str | list[int]:
        """Return what stands for a conversation's picture of a number, which few families write."""
        return string

    def transformers_inputs(self, input_ids: Tensor, image_inputs: ImageInputs) -> ImageInputs:
        """Return what transformers' own class takes for a prompt with these pictures."""
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)} | image_inputs

    def picture_positions(self, input_ids: Tensor) -> Tensor:
        """Return where rows of picture features go, as booleans shaped as `input_ids`."""
        return input_ids == self.image_token_id

    @property
    def picture_token_ids(self) -> set[int]:
        """The tokens by which `picture_positions` finds pictures; no answer may hold them."""
        return {self.image_token_id}

    def position_ids(self, input_ids: Tensor, image_inputs: ImageInputs | None = None) -> Tensor:
        """Return the positions of a prompt's tokens, shaped as `input_ids`: they are counted.

        A family whose pictures have positions of their own says more.
        """
        return torch.ones_like(input_ids).cumsum(1) - 1

    def text_ids(self, input_ids: Tensor) -> Tensor:
        """Return ids that all have embeddings; what is a picture's place only is replaced."""
        return input_ids.clamp(min=0)

    def turn_ids(
        self,
        message: Message,
        image_inputs: ImageInputs | None = None,
        *,
        first: bool = True,
        earlier_pictures: int = 0,
    ) -> list[int]:
        """Return the ids of one user's message up to where the answer starts.

        After the `first` turn there is no system message, and earlier turns keep the ids they have,
        and their pictures, so many `earlier_pictures`.
        """
        images = self._strings(image_inputs, earlier_pictures)
        pieces = self.words.pieces([message], first=first)
        return encode(self.tokenizer, pieces, images, first=first)

    @property
    def start_of_answer_ids(self) -> list[int]:
        """The ids at the end of a prompt that an answer does not keep once others follow it."""
        return self._ids(self.words.answer_start)

    @property
    def thought_ids(self) -> tuple[list[int], list[int]]:
        """The ids that begin a thought, and those that end it; none where no model thinks."""
        begin, end = self.words.thought or ("", "")
        return self._ids(begin), self._ids(end)

    @property
    def end_of_answer_ids(self) -> list[int]:
        """The ids that close an answer which did not end by itself."""
        return self._ids(self.template.assistant_end)

    def _ids(self, text: str) -> list[int]:
        return cast(list[int], self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prepare(
        self,
        input_ids: Tensor,
        embed_tokens: Callable[[Tensor], Tensor],
        features: Features | None = None,
    ) -> dict[str, Tensor]:
        """Return all that a language model takes for prompts (batch, length) with pictures."""
        embeddings = self.embed(input_ids, embed_tokens, features)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.int64)
        return {
            "inputs_embeds": embeddings,
            "attention_mask": mask,
            "position_ids": mask.cumsum(1) - 1,
        }

    def embed(
        self,
        input_ids: Tensor,
        embed_tokens: Callable[[Tensor], Tensor],
        features: Features | None = None,
    ) -> Tensor:
        """Return the embeddings (batch, length, hidden) of a prompt with these picture features."""
        embeddings = embed_tokens(self.text_ids(input_ids))
        return embeddings if features is None else self.merge(input_ids, embeddings, features)

    def merge(self, input_ids: Tensor, embeddings: Tensor, features: Features) -> Tensor:
        """Put the rows of `features` at the picture positions of `embeddings` (batch, length, ...).

        What a token's row has behind its embedding stays. Raises `CheckpointError` where there are
        more or fewer rows than positions.
        """
        positions = self.picture_positions(input_ids)
        rows = torch.cat(list(features))
        if int(positions.sum()) != len(rows):
            raise CheckpointError(
                f"The prompt has room for {int(positions.sum())} picture tokens, "
                f"but the image encoder gave {len(rows)}."
            )
        merged = embeddings.clone()
        merged[..., : rows.shape[-1]][positions] = rows.to(embeddings.dtype)
        return merged
