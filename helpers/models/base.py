"""The contract that every family keeps, so that nothing else asks which family it has.

A `Processor` knows a checkpoint's pictures, prompts and token ids and has no weights; a pipeline
on OpenVINO needs nothing else. A `VisionLanguageModel` adds the PyTorch modules. Its `parts` say
what is exported.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Self, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from helpers.errors import CheckpointError, UserError, check_resources, reason_of
from helpers.graphs.part_names import TEXT_EMBEDDINGS
from helpers.graphs.parts import Part, Traceable, language_model_part
from helpers.graphs.tables import Table
from helpers.inputs.video import Video
from helpers.models.checks import check_pictures
from helpers.models.embeddings import ScaledEmbedding
from helpers.models.exported import Features, ImageInputs
from helpers.models.processors import Processor
from helpers.sources.checkpoints import Config, read_config
from helpers.sources.key_mapping import Rule, load_tensors, original_tensors
from helpers.sources.tensors import open_tensors


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


@contextmanager
def describing_a_model(folder: Path) -> Iterator[None]:
    """Raise a `CheckpointError` for whatever goes wrong while a folder's config is read."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # what transformers raises for bad values has nothing in common
        check_resources(error)
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe a model that can be built "
            f"({reason_of(error)}); download it again."
        ) from None


class VisionLanguageModel(nn.Module, ABC, Generic[P]):
    """A checkpoint's PyTorch modules behind the calls that all families share.

    A family builds its modules in `build` (on the meta device, so that no memory is used) and
    names its tensors in `rules`; those named in `left_out` are not loaded. What a checkpoint can do
    and this cannot is in `unused_parts`, by its words, with how its tensors' names begin. `P` is
    its processor's class. Layers of the language model whose names end with one of
    `sensitive_layers` keep 8 bits where others get 4. Where a model was saved without its head,
    transformers leaves out the `prefix` of all names.
    """

    processor_class: type[Processor]
    left_out: tuple[str, ...] = ("{x}rotary_emb.inv_freq",)
    unused_parts: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    sensitive_layers: tuple[str, ...] = ()
    prefix = ""
    language_model: PreTrainedModel

    def __init__(self, config: Config, processor: P) -> None:
        super().__init__()
        self.config = config
        self.processor = processor
        self.build(config)
        self._refuse_rotations()

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype | None = None) -> Self:
        """Read a checkpoint in its authors' layout; `dtype` None keeps the files' own type.

        Raises `CheckpointError` where the files cannot be used, or do not fit each other.
        """
        folder = Path(folder)
        config = read_config(folder)
        with describing_a_model(folder), torch.device("meta"):
            model = cls(config, cast(P, cls.processor_class(folder, config)))
        check_pictures(model.processor)
        tensors = model.original_tensors(folder)
        load_tensors(model, tensors, model.rules(), ignore=cls.left_out, dtype=dtype)
        return model

    def _refuse_rotations(self) -> None:
        """Raise a `CheckpointError` for LongRoPE unless keys are computed anew where it changes."""
        rotations = getattr(self.language_model.config, "rope_parameters", None) or {}
        of_layers = [value for value in rotations.values() if isinstance(value, dict)]
        is_long = any(group.get("rope_type") == "longrope" for group in (rotations, *of_layers))
        if is_long and self.processor.exported.prefill_again_beyond is None:
            raise CheckpointError(
                "config.json asks for longrope, with which rotations change beyond a length, and "
                "this language model is not read with it; use a checkpoint of the published kind."
            )

    def compute_in_one_type(self) -> None:
        """Give the language model the type that most of its numbers have, and all others theirs.

        Fine-tunes store norms or a last layer in 32 bits beside others in 16, which PyTorch does
        not multiply. transformers gives a whole model the type of its config, so it rounds, too. A
        conversion takes numbers as they are.
        """
        state = self.state_dict(keep_vars=True)
        tensors = {name: value for name, value in state.items() if value.is_floating_point()}
        of_text = {name for name in tensors if name.startswith("language_model.")}
        for names in filter(None, (of_text, tensors.keys() - of_text)):
            sizes: Counter[torch.dtype] = Counter()
            for name in names:
                sizes[tensors[name].dtype] += tensors[name].numel()
            ((usual, _),) = sizes.most_common(1)
            for name in names:
                tensors[name].data = tensors[name].data.to(usual)

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

    @staticmethod
    def reference_config(config: PreTrainedConfig) -> PreTrainedConfig:
        """Return the configuration with which transformers' own class does as the authors' code."""
        return config

    # What all families share

    def original_tensors(self, folder: Path) -> dict[str, Tensor]:
        """Return the checkpoint's tensors by their original names, without `unused_parts`."""
        beginnings = tuple(name for names in self.unused_parts.values() for name in names)
        tensors = self._all_tensors(folder).items()
        return {name: tensor for name, tensor in tensors if not name.startswith(beginnings)}

    @classmethod
    def unused_parts_of(cls, folder: Path) -> list[str]:
        """Return the words for those of `unused_parts` that a checkpoint has tensors of."""
        names = cls._all_tensors(folder) if cls.unused_parts else ()
        return [
            words
            for words, beginnings in cls.unused_parts.items()
            if any(name.startswith(beginnings) for name in names)
        ]

    @classmethod
    def _all_tensors(cls, folder: Path) -> dict[str, Tensor]:
        tensors = open_tensors(folder)
        if any(name.startswith(cls.prefix) for name in tensors):
            return tensors
        return {
            name if name.startswith("lm_head.") else cls.prefix + name: tensor
            for name, tensor in tensors.items()
        }

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

    @property
    def sensitive_weights(self) -> list[Tensor]:
        """The weights of the language model's layers that keep 8 bits where others get 4."""
        layers = self.language_model.named_modules()
        return [m.weight for name, m in layers if name.endswith(self.sensitive_layers)]

    @property
    def is_recurrent(self) -> bool:
        """Whether layers of the language model keep states that tokens change in their order."""
        kinds = getattr(self.language_model.config, "layer_types", None) or ()
        return "linear_attention" in kinds

    def attention_masks(self, visible: Tensor, position_ids: Tensor) -> Any:
        """Return `forward`'s `attention_mask` where a token sees what is `visible` to it.

        `visible` is (batch, 1, length, length) of bools, `position_ids` those of `forward`.
        """
        return visible

    def squares(self, features: Features) -> Tensor:
        """Return the features of pictures that are a square, (pictures, side * side, hidden)."""
        return torch.stack(list(features))

    def image_inputs(self, pictures: Sequence[Image.Image | str | Path | Video]) -> ImageInputs:
        """Turn PIL pictures into the inputs of `encode_images`."""
        return self.processor.image_inputs(pictures)

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings of tokens, (batch, length, hidden)."""
        return cast(Tensor, self.token_embeddings(input_ids))

    @property
    def tables(self) -> dict[str, nn.Embedding]:
        """The tables in which tokens are looked up, by the names of the parts that they are in."""
        return {TEXT_EMBEDDINGS: self.token_embeddings}

    def prepare(self, input_ids: Tensor, features: Features | None = None) -> dict[str, Tensor]:
        """Return all that `forward` takes for prompts (batch, length) with these features."""
        return self.processor.prepare(input_ids, self.embed_tokens, features)

    def parts(self) -> Iterator[Part | Table]:
        """Yield what is exported, one part at a time, so that each can be freed."""
        yield self.image_encoder_part()
        yield self.text_embeddings_part()
        yield self.language_model_part()

    def text_embeddings_part(self) -> Part:
        """Return `embed_tokens` as it is exported."""
        table = self.token_embeddings
        if isinstance(table, ScaledEmbedding):
            module = table.traceable()
        else:
            module = Traceable(self.embed_tokens, table)
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
            cache=[(heads, head_size)] * config.num_hidden_layers,
        )

    def forward(self, **prepared: Any) -> CausalLMOutputWithPast:
        """Return the language model's output (its `logits` and, if asked, its cache)."""
        return cast(CausalLMOutputWithPast, self.language_model(**prepared))
