"""The contract that every family keeps, so that nothing else asks which family it has.

A `Processor` knows a checkpoint's pictures, prompts and token ids and has no weights; a pipeline
on OpenVINO needs nothing else. A `VisionLanguageModel` adds the PyTorch modules. Its `parts` say
what is exported.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from helpers.errors import CheckpointError, QuestionError, reason_of
from helpers.graphs.part_names import TEXT_EMBEDDINGS
from helpers.graphs.parts import Part, Traceable, language_model_part
from helpers.inputs.images import open_picture
from helpers.inputs.messages import Frame, Message, user_message
from helpers.inputs.prompts import Template, encode
from helpers.models.exported import ExportedParts, Features, ImageInputs
from helpers.sources.checkpoints import Config, read_config
from helpers.sources.key_mapping import Rule, load_tensors, original_tensors
from helpers.sources.tensors import open_tensors

_SMALL = Image.new("RGB", (8, 8))


class Processor(ABC):
    """Turn pictures and messages into what a model takes; knows no weights."""

    exported_class: type[ExportedParts] = ExportedParts
    most_pictures: int | None = 1  # that a conversation is meant to have; None: as many as fit

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = Path(folder)
        self.config = config

    # What a family says

    @abstractmethod
    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the checkpoint's tokenizer, from its own files and without its code."""

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

    @abstractmethod
    def pixels(self, pictures: list[Image.Image]) -> ImageInputs:
        """Turn RGB pictures into what the image encoder takes."""

    @abstractmethod
    def image_strings(self, image_inputs: ImageInputs) -> Sequence[str | list[int]]:
        """Return for each picture the special tokens that stand for it in a prompt, or ids."""

    # What all families share

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

    def check(self) -> None:
        """Prepare a small picture and a question, so that bad files are found before long work.

        Raises a `CheckpointError` where the tokenizer's files are missing or damaged, and where
        the config does not describe how pictures and prompts are prepared.
        """
        self._try("The tokenizer's files", lambda: self.stop_token_ids)
        self.check_pictures()
        inputs = self.image_inputs([_SMALL])
        self._try("The tokenizer's files", lambda: self.input_ids([user_message("", 1)], inputs))

    def check_pictures(self) -> None:
        """Raise a `CheckpointError` where the config does not say how pictures are prepared."""
        self._try("config.json", lambda: self.image_inputs([_SMALL]))

    def _try(self, files: str, step: Callable[[], object]) -> None:
        try:
            step()
        except CheckpointError:
            raise
        except Exception as error:  # what libraries raise for bad files has nothing in common
            raise CheckpointError(
                f"{files} in {self.folder} cannot be used ({reason_of(error)}); "
                "download the checkpoint again."
            ) from None

    @property
    def stop_token_ids(self) -> list[int]:
        """The tokens that end an answer: the template's and the tokenizer's own."""
        end = self.tokenizer.convert_tokens_to_ids(self.template.assistant_end.strip())
        return sorted({end, self.tokenizer.eos_token_id} - {None})

    def image_inputs(self, pictures: Sequence[Image.Image | str | Path | Frame]) -> ImageInputs:
        """Turn pictures, right way up and RGB, into the image encoder's inputs.

        Raises `QuestionError` for a video's frames where the family reads none.
        """
        images = []
        for picture in pictures:
            if isinstance(picture, Frame):
                raise QuestionError("This model reads no video; give it single pictures.")
            images.append(open_picture(picture))
        return self.pixels(images)

    def input_ids(
        self, messages: Sequence[Message], image_inputs: ImageInputs | None = None
    ) -> Tensor:
        """Return the prompt of `messages` as ids (1, length), with room for the pictures."""
        images = self.image_strings(image_inputs) if image_inputs else []
        return torch.tensor([encode(self.tokenizer, self.template.pieces(messages), images)])

    def picture_positions(self, input_ids: Tensor) -> Tensor:
        """Return where rows of picture features go, as booleans shaped as `input_ids`."""
        return input_ids == self.image_token_id

    @property
    def picture_token_ids(self) -> set[int]:
        """The tokens by which `picture_positions` finds pictures; no answer may hold them."""
        return {self.image_token_id}

    def text_ids(self, input_ids: Tensor) -> Tensor:
        """Return ids that all have embeddings; what is a picture's place only is replaced."""
        return input_ids.clamp(min=0)

    def turn_ids(
        self, message: Message, image_inputs: ImageInputs | None = None, *, first: bool = True
    ) -> list[int]:
        """Return the ids of one user's message up to where the answer starts.

        After the `first` turn there is no system message, and earlier turns keep the ids they have.
        """
        images = self.image_strings(image_inputs) if image_inputs else []
        pieces = self.template.pieces([message], first=first)
        return encode(self.tokenizer, pieces, images, first=first)

    @property
    def end_of_answer_ids(self) -> list[int]:
        """The ids that close an answer which did not end by itself."""
        encoding = self.tokenizer(self.template.assistant_end, add_special_tokens=False)
        return cast(list[int], encoding["input_ids"])

    def prepare(
        self,
        input_ids: Tensor,
        embed_tokens: Callable[[Tensor], Tensor],
        features: Features | None = None,
    ) -> dict[str, Tensor]:
        """Return all that a language model takes for a prompt with these picture features."""
        embeddings = embed_tokens(self.text_ids(input_ids))
        if features is not None:
            embeddings = self.merge(input_ids, embeddings, features)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.int64)
        return {
            "inputs_embeds": embeddings,
            "attention_mask": mask,
            "position_ids": mask.cumsum(1) - 1,
        }

    def merge(self, input_ids: Tensor, embeddings: Tensor, features: Features) -> Tensor:
        """Put the rows of `features` in order at the picture positions of `embeddings`."""
        positions = self.picture_positions(input_ids)
        rows = torch.cat(list(features))
        if int(positions.sum()) != len(rows):
            raise CheckpointError(
                f"The prompt has room for {int(positions.sum())} picture tokens, "
                f"but the image encoder gave {len(rows)}."
            )
        merged = embeddings.clone()
        merged[positions] = rows.to(embeddings.dtype)
        return merged


def set_bos(tokenizer: Any, *, added: bool) -> None:
    """Set whether `tokenizer` puts BOS in front of a text.

    transformers defines a setter for the property, which mypy does not recognise as one.
    """
    tokenizer.add_bos_token = added


@dataclass(frozen=True)
class WeightFiles:
    """Tensors that the authors keep together: in a folder of the checkpoint, in one format.

    `ending` is safetensors or bin. `config` is that of a folder which has one of its own.
    """

    tensors: dict[str, Tensor]
    folder: str = ""
    ending: str = "safetensors"
    config: Config | None = None


P = TypeVar("P", bound=Processor)


class VisionLanguageModel(nn.Module, ABC, Generic[P]):
    """A checkpoint's PyTorch modules behind the calls that all families share.

    A family builds its modules in `build` (on the meta device, so that no memory is used) and
    names its tensors in `rules`. `P` is its processor's class.
    """

    processor_class: type[Processor]
    language_model: PreTrainedModel

    def __init__(self, config: Config, processor: P) -> None:
        super().__init__()
        self.config = config
        self.processor = processor
        self.build(config)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype | None = None) -> Self:
        """Read a checkpoint in its authors' layout; `dtype` None keeps the files' own type."""
        folder = Path(folder)
        config = read_config(folder)
        try:
            with torch.device("meta"):
                model = cls(config, cast(P, cls.processor_class(folder, config)))
        except CheckpointError:
            raise
        except Exception as error:  # what transformers raises for bad values has nothing in common
            raise CheckpointError(
                f"{folder / 'config.json'} does not describe a model that can be built "
                f"({reason_of(error)}); download it again."
            ) from None
        model.processor.check_pictures()
        load_tensors(model, model.original_tensors(folder), model.rules(), dtype=dtype)
        return model

    # What a family says

    @abstractmethod
    def build(self, config: Config) -> None:
        """Create the modules that `config` describes."""

    @abstractmethod
    def rules(self) -> list[Rule]:
        """Return how the checkpoint's tensors map to the modules."""

    @abstractmethod
    def encode_images(self, *args: Any, **image_inputs: Any) -> Features:
        """Return picture features; iterating gives (tokens, hidden) for each tile or slice."""

    @abstractmethod
    def image_encoder_part(self) -> Part:
        """Return the image encoder with its projector, as it is exported."""

    # What all families share

    def original_tensors(self, folder: Path) -> dict[str, Tensor]:
        """Return the checkpoint's tensors by their original names."""
        return open_tensors(folder)

    def layout(self) -> list[WeightFiles]:
        """Return this model's tensors under their original names, as the authors' files hold them.

        The config of the checkpoint's own folder comes last.
        """
        return [WeightFiles(original_tensors(self, self.rules()), config=self.config)]

    @property
    def token_embeddings(self) -> nn.Embedding:
        """The language model's table of embeddings."""
        return cast(nn.Embedding, self.language_model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """The type of the language model's weights."""
        return self.token_embeddings.weight.dtype

    def image_inputs(self, pictures: Sequence[Image.Image | str | Path | Frame]) -> ImageInputs:
        """Turn PIL pictures into the inputs of `encode_images`."""
        return self.processor.image_inputs(pictures)

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings of tokens, (batch, length, hidden)."""
        return cast(Tensor, self.token_embeddings(input_ids))

    def prepare(self, input_ids: Tensor, features: Features | None = None) -> dict[str, Tensor]:
        """Return all that `forward` takes for a prompt with these picture features."""
        return self.processor.prepare(input_ids, self.embed_tokens, features)

    def parts(self) -> Iterator[Part]:
        """Yield what is exported, one part at a time, so that each can be freed."""
        yield self.image_encoder_part()
        yield self.text_embeddings_part()
        yield self.language_model_part()

    def text_embeddings_part(self) -> Part:
        """Return `embed_tokens` as it is exported."""
        module = Traceable(self.embed_tokens, self.token_embeddings)
        example = {"input": torch.ones(2, 3, dtype=torch.int64)}
        return Part(TEXT_EMBEDDINGS, module, example, outputs=("inputs_embeds",))

    def language_model_part(self) -> Part:
        """Return the language model with its KV cache, as it is exported."""
        config = self.language_model.config
        head_size = getattr(config, "head_dim", None)
        head_size = head_size or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        return language_model_part(
            self.language_model,
            hidden=config.hidden_size,
            cache=(config.num_hidden_layers, heads, head_size),
        )

    def forward(self, **prepared: Any) -> CausalLMOutputWithPast:
        """Return the language model's output (its `logits` and, if asked, its cache)."""
        return cast(CausalLMOutputWithPast, self.language_model(**prepared))
