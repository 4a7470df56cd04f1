"""Llama-3.2-Vision: the language model looks at the picture through cross-attention.

No token of the prompt stands for a piece of the picture. Some layers of the language model attend
to the picture's states instead of the text before; their keys and values are computed once for
each picture. Source of the layout: Meta's `llama_models` and transformers' mllama, which reads the
hub's files almost as they are; the numbers come from a checkpoint's `config.json`.

What this module does not know: a batch of the exported language model in which some prompts have
pictures and others do not, or different numbers of them.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, wraps

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    MllamaForCausalLM,
    MllamaImageProcessorPil,
    MllamaTextConfig,
    MllamaVisionConfig,
    MllamaVisionModel,
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import DynamicLayer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.masking_utils import create_causal_mask
from transformers.models.mllama.modeling_mllama import (
    MllamaCrossAttentionDecoderLayer,
    MllamaTextCrossAttention,
)
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from helpers.errors import CheckpointError
from helpers.graphs.tracing import (
    IMAGE_ENCODER,
    LANGUAGE_MODEL,
    Part,
    cache_of,
    decoder_example,
    past_names,
    present_names,
)
from helpers.inputs.prompts import IMAGE, Template
from helpers.models.base import PictureInputs, Processor, VisionLanguageModel, pad_left
from helpers.sources.checkpoints import Rule, read_json

IMAGE_TOKEN = "<|image|>"


class MllamaProcessor(Processor):
    """Up to four tiles of a picture on a canvas that fits its shape, and Llama 3's prompts."""

    def load_tokenizer(self):
        """Return that in `tokenizer.json`; the template has its own `<|begin_of_text|>`."""
        tokenizer = PreTrainedTokenizerFast.from_pretrained(self.folder)
        tokenizer.add_bos_token = False
        if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != self.image_token_id:
            raise CheckpointError(
                f"The tokenizer in {self.folder} does not have {IMAGE_TOKEN} at "
                f"{self.image_token_id}; take the tokenizer files of the same checkpoint."
            )
        return tokenizer

    @property
    def template(self) -> Template:
        """Llama 3's headers; a picture's token stands right before the text."""
        end = "<|eot_id|>"
        return Template(
            "<|begin_of_text|>", _header("user"), end, _header("assistant"), end, IMAGE, IMAGE
        )

    @property
    def image_token_id(self) -> int:
        """The id of `<|image|>`, after which the text sees the picture."""
        return self.config["image_token_index"]

    @property
    def context_length(self) -> int:
        """How many tokens a conversation may have; pictures take none of them."""
        return self.config["text_config"]["max_position_embeddings"]

    @cached_property
    def stop_token_ids(self) -> list[int]:
        """The ends of a text, a message and a turn, as `generation_config.json` has them."""
        path = self.folder / "generation_config.json"
        generation = read_json(path) if path.exists() else {}
        ids = generation.get("eos_token_id", self.config["text_config"]["eos_token_id"])
        return [ids] if isinstance(ids, int) else list(ids)

    @cached_property
    def image_processor(self) -> MllamaImageProcessorPil:
        """transformers' processor that fits a picture into a canvas of tiles."""
        vision = self.config["vision_config"]
        side = vision["image_size"]
        return MllamaImageProcessorPil(
            size={"height": side, "width": side},
            max_image_tiles=vision["max_num_tiles"],
            image_mean=OPENAI_CLIP_MEAN,
            image_std=OPENAI_CLIP_STD,
        )

    def pixels(self, pictures: list[Image.Image]) -> dict[str, Tensor]:
        """Return `pixel_values` (1, pictures, tiles, 3, side, side) and how the tiles lie.

        `aspect_ratio_ids` (1, pictures) are places, from 1, in the list of supported shapes;
        `aspect_ratio_mask` (1, pictures, tiles) is 1 for tiles in use.
        """
        output = self.image_processor([pictures], return_tensors="pt")
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        return {name: torch.as_tensor(output[name]) for name in names}

    def image_strings(self, image_inputs: dict[str, Tensor]) -> list[str]:
        """Return the one token that each picture has."""
        return [IMAGE_TOKEN] * image_inputs["aspect_ratio_ids"].shape[1]

    def picture_positions(self, input_ids: Tensor) -> Tensor:
        """Return False everywhere: no token's embedding is replaced."""
        return torch.zeros_like(input_ids, dtype=torch.bool)

    def prepare(
        self,
        input_ids: Tensor,
        embed_tokens: Callable[[Tensor], Tensor],
        features: "PictureStates | None" = None,
        cross_attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return all that the language model takes; without `features` no layer looks at a picture.

        `cross_attention_mask` (1, length, pictures, tiles) says which tiles each token sees; the
        default is what the places of `<|image|>` in `input_ids` say. Rows of `input_ids`, if
        there are several, have as many pictures each.
        """
        prepared = super().prepare(input_ids, embed_tokens)
        if features is None:
            return prepared
        each = len(features) // len(input_ids)  # all prompts of a batch have as many pictures
        if cross_attention_mask is None:
            masks = [
                self.cross_attention_mask(ids[None], features.tiles[row * each : (row + 1) * each])
                for row, ids in enumerate(input_ids)
            ]
            cross_attention_mask = torch.cat(masks)
        states = torch.cat(list(features)).unflatten(0, (len(input_ids), -1))
        return prepared | {
            "cross_attention_states": states.flatten(1, 2),
            "cross_attention_mask": cross_attention_mask,
        }

    def encode_exported(
        self, run: Callable[[dict[str, Tensor]], dict[str, Tensor]], image_inputs: dict
    ) -> "list[PictureKeysValues]":
        """Return each picture's keys and values."""
        tiles = image_inputs["aspect_ratio_mask"].sum(-1).flatten().tolist()
        outputs = {name: value.chunk(len(tiles), 2) for name, value in run(image_inputs).items()}
        return [
            PictureKeysValues(number, {name: chunks[index] for name, chunks in outputs.items()})
            for index, number in enumerate(tiles)
        ]

    def prepare_exported(
        self,
        input_ids: Tensor,
        embed_tokens: Callable[[Tensor], Tensor],
        features: "Sequence[PictureKeysValues] | None" = None,
        *,
        past: int = 0,
    ) -> dict:
        """Return the prompt, and under `pictures` the keys and values and who sees them.

        Without `features` there are none of them, and `has_picture` is 0.
        """
        prepared = super().prepare_exported(input_ids, embed_tokens, past=past)
        pictures = features or [self._no_picture()]
        if features:
            mask = self.cross_attention_mask(input_ids, [picture.tiles for picture in features])
        else:
            mask = torch.zeros(*input_ids.shape, 0, self.config["vision_config"]["max_num_tiles"])
        # Those of a single picture stay the same objects, so that they are handed over once.
        fixed = dict(pictures[0].keys_values)
        if len(pictures) > 1:
            for name in fixed:
                fixed[name] = torch.cat([one.keys_values[name] for one in pictures], dim=2)
        fixed["has_picture"] = torch.full((1,), float(bool(features)))
        along = {"cross_attention_mask": mask.to(torch.int64)}
        return prepared | {"pictures": PictureInputs(fixed, along)}

    def _no_picture(self) -> "PictureKeysValues":
        text = self.config["text_config"]
        size = text["hidden_size"] // text["num_attention_heads"]
        nothing = torch.zeros(1, text["num_key_value_heads"], 0, size)
        return PictureKeysValues(0, dict.fromkeys(self.kept_inputs, nothing))

    @property
    def kept_inputs(self) -> list[str]:
        """The keys and values of the pictures, which stay the same for all tokens."""
        return cross_names(len(self.config["text_config"]["cross_attention_layers"]))

    def collate(self, prompts: Sequence[dict]) -> dict:
        """Join prepared prompts into a batch; what is of pictures only has one length."""
        apart = ("cross_attention_states", "pictures")
        texts = [{name: x for name, x in prompt.items() if name not in apart} for prompt in prompts]
        batch = super().collate(texts)
        if "cross_attention_states" in prompts[0]:
            states = [prompt["cross_attention_states"] for prompt in prompts]
            batch["cross_attention_states"] = torch.cat(states)
        if "pictures" in prompts[0]:
            pictures = [prompt["pictures"] for prompt in prompts]
            batch["pictures"] = _join(pictures, batch["attention_mask"].shape[1])
        return batch

    def cross_attention_mask(self, input_ids: Tensor, tiles: Sequence[int]) -> Tensor:
        """Return which tiles each token sees, (1, length, pictures, tiles), ones and zeros.

        A token sees the last picture before it, and pictures that stand together with that one.
        `tiles` are the numbers of tiles in use.
        """
        ranges = get_cross_attention_token_mask(input_ids[0].tolist(), self.image_token_id)
        if len(ranges) != len(tiles):
            raise CheckpointError(
                f"The prompt has {len(ranges)} {IMAGE_TOKEN} tokens for {len(tiles)} pictures."
            )
        dense = convert_sparse_cross_attention_mask_to_dense(
            [ranges],
            num_tiles=[list(tiles)],
            max_num_tiles=self.config["vision_config"]["max_num_tiles"],
            length=input_ids.shape[1],
        )
        return torch.from_numpy(dense)


def _join(pictures: Sequence[PictureInputs], length: int) -> PictureInputs:
    """Return what prompts of one batch take, their masks padded on the left to `length`."""
    first = pictures[0]
    fixed = {name: torch.cat([one.fixed[name] for one in pictures]) for name in first.fixed}
    along = {
        name: torch.cat([pad_left(one.along[name], length) for one in pictures])
        for name in first.along
    }
    return PictureInputs(fixed | {"has_picture": first.fixed["has_picture"]}, along)


def _header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


class PictureStates(list):
    """The cross-attention states of each picture (tiles, patches, hidden), unused tiles included.

    `tiles` are the numbers of tiles in use.
    """

    def __init__(self, states: Iterable[Tensor], tiles: Sequence[int]) -> None:
        super().__init__(states)
        self.tiles = list(tiles)


@dataclass(frozen=True)
class PictureKeysValues:
    """What the exported image encoder gives of one picture, and its number of tiles in use.

    Keys and values by name, each (1, heads, tiles * patches, head size), unused tiles included.
    """

    tiles: int
    keys_values: dict[str, Tensor]


class Mllama(VisionLanguageModel):
    """Two image encoders behind one another, a linear layer, and Llama 3 with cross-attention."""

    processor_class = MllamaProcessor

    def build(self, config: dict) -> None:
        """Create the image encoder, the projector and the language model."""
        vision = MllamaVisionConfig(**corrected_vision_fields(config["vision_config"]))
        text = text_config(config["text_config"])
        self.image_encoder = MllamaVisionModel(vision)
        self.projector = nn.Linear(vision.vision_output_dim, text.hidden_size)
        self.language_model = LanguageModel(text)
        self.language_model.patches = self.image_encoder.num_patches

    def rules(self) -> list[Rule]:
        """Return the hub's names, which are transformers' own."""
        return [
            Rule("vision_model.{x}", "image_encoder.{x}"),
            Rule("multi_modal_projector.{x}", "projector.{x}"),
            Rule("language_model.{x}", "language_model.{x}"),
        ]

    def encode_images(
        self, pixel_values: Tensor, aspect_ratio_ids: Tensor, aspect_ratio_mask: Tensor
    ) -> PictureStates:
        """Return for each picture the states that the text attends to, (tiles, patches, hidden)."""
        states = self.image_encoder(pixel_values, aspect_ratio_ids, aspect_ratio_mask)
        states = self.projector(states.last_hidden_state).flatten(0, 1)
        return PictureStates(states, aspect_ratio_mask.sum(-1).flatten().tolist())

    def squares(self, features: PictureStates) -> Tensor:
        """Return the patches of each picture, whose tiles make a square, row by row.

        Before the patches of a tile is a token for the whole tile, which is left out.
        """
        return torch.stack(
            [
                _joined(states[:tiles, 1:])
                for states, tiles in zip(features, features.tiles, strict=True)
            ]
        )

    def prepare(
        self,
        input_ids: Tensor,
        features: PictureStates | None = None,
        cross_attention_mask: Tensor | None = None,
    ) -> dict:
        """Return all that `forward` takes, as `MllamaProcessor.prepare` says."""
        return self.processor.prepare(input_ids, self.embed_tokens, features, cross_attention_mask)

    def image_encoder_part(self) -> Part:
        """Return what turns pictures into the keys and values of every cross-attention layer."""
        vision = self.image_encoder.config
        layers = len(self.language_model.config.cross_attention_layers)
        pictures, tiles, side = 2, vision.max_num_tiles, vision.image_size
        return Part(
            IMAGE_ENCODER,
            CrossAttentionKeysValues(self),
            {
                "pixel_values": torch.zeros(1, pictures, tiles, 3, side, side),
                "aspect_ratio_ids": torch.ones(1, pictures, dtype=torch.int64),
                "aspect_ratio_mask": torch.ones(1, pictures, tiles, dtype=torch.int64),
            },
            outputs=tuple(cross_names(layers)),
            fixed={
                "pixel_values": (0, 2, 3, 4, 5),
                "aspect_ratio_ids": (0,),
                "aspect_ratio_mask": (0, 2),
            },
        )

    def language_model_part(self) -> Part:
        """Return the language model: cross-attention keys and values are inputs of their own."""
        text, tiles = self.language_model.config, self.image_encoder.config.max_num_tiles
        crossing = len(text.cross_attention_layers)
        layers = text.num_hidden_layers - crossing
        heads, head_size = text.num_key_value_heads, text.hidden_size // text.num_attention_heads
        example = decoder_example(text.hidden_size, (layers, heads, head_size))
        batch, new = example["inputs_embeds"].shape[:2]
        keys = torch.zeros(batch, heads, 2 * tiles * self.image_encoder.num_patches, head_size)
        past, present = past_names(layers), present_names(layers)
        return Part(
            LANGUAGE_MODEL,
            DecoderWithPicture(self.language_model, self.image_encoder.num_patches),
            {
                **{name: value for name, value in example.items() if name not in past},
                "cross_attention_mask": torch.ones(batch, new, 2, tiles, dtype=torch.int64),
                "has_picture": torch.ones(1),
                **dict.fromkeys(cross_names(crossing), keys),
                **{name: example[name] for name in past},
            },
            outputs=("logits", *present),
            fixed={
                "inputs_embeds": (2,),
                "cross_attention_mask": (3,),
                "has_picture": (0,),
                **dict.fromkeys(cross_names(crossing), (1, 3)),
                **dict.fromkeys(past, (1, 3)),
            },
            cache=dict(zip(past, present, strict=True)),
        )


def _joined(tiles: Tensor) -> Tensor:
    """Return the patches of tiles (tiles, patches, hidden) that make a square, row by row."""
    rows, side = math.isqrt(tiles.shape[0]), math.isqrt(tiles.shape[1])
    square = tiles.unflatten(1, (side, side)).unflatten(0, (rows, rows))
    return square.transpose(1, 2).flatten(0, 3)


class LanguageModel(MllamaForCausalLM):
    """transformers' language model with a mask by tiles, which `generate` makes longer.

    transformers has that only in the class that has the image encoder too. `patches` is the number
    of patches of a tile.
    """

    patches: int

    # `generate` reads signatures to know what it may hand on.
    @wraps(MllamaForCausalLM.forward)
    def forward(self, *args, cross_attention_mask: Tensor | None = None, **inputs):
        """Return the output; the mask (batch, length, pictures, tiles) is for this call's tokens.

        All else is as `MllamaForCausalLM` has it.
        """
        if cross_attention_mask is not None:
            seen, sees = visible_patches(cross_attention_mask, self.patches)
            inputs |= {
                "cross_attention_mask": seen,
                "full_text_row_masked_out_mask": sees.to(self.dtype),
            }
        return super().forward(*args, **inputs)

    @wraps(MllamaForCausalLM.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *,
        is_first_iteration: bool = False,
        cross_attention_mask: Tensor | None = None,
        cross_attention_states: Tensor | None = None,
        **kwargs,
    ) -> dict:
        """Return the inputs of one call; a new token sees the pictures that the last one saw."""
        prepared = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if cross_attention_mask is None:
            return prepared
        if is_first_iteration:  # later the cache has the keys and values of the pictures
            return prepared | {
                "cross_attention_mask": cross_attention_mask,
                "cross_attention_states": cross_attention_states,
            }
        return prepared | {"cross_attention_mask": cross_attention_mask[:, -1:]}


def text_config(fields: dict) -> MllamaTextConfig:
    """Return the language model's configuration.

    transformers warns of a context shorter than the one that RoPE's frequencies are scaled from;
    a small model may have one, and it changes nothing.
    """
    logger = logging.getLogger("transformers.modeling_rope_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return MllamaTextConfig(**fields)
    finally:
        logger.setLevel(level)


def cross_names(layers: int) -> list[str]:
    """Return the names of the pictures' keys and values for each cross-attention layer."""
    return [f"cross.{n}.{kind}" for n in range(layers) for kind in ("key", "value")]


def visible_patches(cross_attention_mask: Tensor, patches: int) -> tuple[Tensor, Tensor]:
    """Return which patches a token attends to, and whether it sees a picture at all.

    The mask (batch, length, pictures, tiles) becomes (batch, 1, length, all patches), and the
    second result is (batch, 1, length, 1); both are booleans. Tokens before the first picture
    attend to everything, so that their softmax has a sum: the authors' models were trained so,
    and leave out only such tokens' MLP.
    """
    batch, length, pictures, tiles = cross_attention_mask.shape
    seen = cross_attention_mask.bool()[..., None].expand(-1, -1, -1, -1, patches)
    # With every size given: without a picture, none can be computed from the others.
    seen = seen.reshape(batch, 1, length, pictures * tiles * patches)
    sees = cross_attention_mask.sum((2, 3))[:, None, :, None] > 0
    return seen | ~sees, sees


# The vision states that transformers collects one layer late


def corrected_vision_fields(fields: dict) -> dict:
    """Return the vision configuration with which transformers collects the states that Meta does.

    `intermediate_layers_indices` are layers whose inputs are handed to the text. Where
    transformers takes their outputs, each index is one too high.
    """
    if not collects_outputs():
        return fields
    indices = [index - 1 for index in fields["intermediate_layers_indices"]]
    if min(indices, default=0) < 0:
        raise CheckpointError(
            "intermediate_layers_indices in config.json asks for the input of layer 0, which this "
            "release of transformers cannot hand on; install a release that can."
        )
    return fields | {"intermediate_layers_indices": indices}


@cache
def collects_outputs(model_class: type[MllamaVisionModel] = MllamaVisionModel) -> bool:
    """Return whether index i of `intermediate_layers_indices` means the output of layer i.

    Meta's code, and transformers when it first had this model, mean its input. Which one a
    release means is seen from what a tiny random model does.
    """
    config = MllamaVisionConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        intermediate_size=8,
        vision_output_dim=16,
        image_size=28,
        patch_size=14,
        intermediate_layers_indices=[1],
    )
    seen: dict[str, Tensor] = {}

    def record(_, arguments: tuple, named: dict, output: Tensor) -> None:
        seen["input"] = named.get("hidden_states", arguments[0] if arguments else None)
        seen["output"] = output[0] if isinstance(output, tuple) else output

    with torch.device("cpu"), torch.random.fork_rng(), torch.no_grad():
        model = model_class(config).eval()
        model.transformer.layers[1].register_forward_hook(record, with_kwargs=True)
        pixels, ids = torch.randn(1, 1, 4, 3, 28, 28), torch.ones(1, 1, dtype=torch.int64)
        states = model(pixels, ids, torch.ones(1, 1, 4, dtype=torch.int64)).last_hidden_state
    collected = states[0, 0, :, :, config.hidden_size :]
    distance = {
        name: (value.unflatten(1, (4, -1))[0, :, : states.shape[3]] - collected).abs().max()
        for name, value in seen.items()
    }
    return bool(distance["output"] < distance["input"])


# What is exported


class CrossAttentionKeysValues(nn.Module):
    """Pictures to the keys and values of every cross-attention layer, computed once a picture.

    Takes the inputs of `Mllama.encode_images`; returns for each layer keys and values, both
    (1, heads, pictures * tiles * patches, head size).
    """

    def __init__(self, model: Mllama) -> None:
        super().__init__()
        self.image_encoder, self.projector = model.image_encoder, model.projector
        text = model.language_model
        layers = [text.model.layers[index] for index in text.config.cross_attention_layers]
        self.attentions = nn.ModuleList(layer.cross_attn for layer in layers)

    def forward(
        self, pixel_values: Tensor, aspect_ratio_ids: Tensor, aspect_ratio_mask: Tensor
    ) -> tuple[Tensor, ...]:
        """Return key 0, value 0, key 1, value 1, ..."""
        states = self.image_encoder(pixel_values, aspect_ratio_ids, aspect_ratio_mask)
        states = self.projector(states.last_hidden_state).flatten(1, 3)
        return tuple(tensor for layer in self.attentions for tensor in keys_values(layer, states))


def keys_values(attention: MllamaTextCrossAttention, states: Tensor) -> tuple[Tensor, Tensor]:
    """Return a cross-attention layer's keys and values of the pictures' states."""
    shape = (attention.num_key_value_heads, attention.head_dim)
    keys = attention.k_norm(attention.k_proj(states).unflatten(-1, shape))
    values = attention.v_proj(states).unflatten(-1, shape)
    return keys.transpose(1, 2), values.transpose(1, 2)


class DecoderWithPicture(nn.Module):
    """The language model as it is traced: the pictures' keys and values are inputs.

    Takes `inputs_embeds` (batch, new, hidden), `attention_mask` (batch, past + new),
    `position_ids` (batch, new), `cross_attention_mask` (batch, new, pictures, tiles),
    `has_picture` (1,), what `CrossAttentionKeysValues` returns for one prompt or several, whose
    rows (beams, say) follow one another, and the past keys and values of each self-attention
    layer. Returns the last position's logits (batch, 1, vocabulary) and the self-attention layers'
    keys and values.

    `has_picture` is 1, or 0 for a conversation without: then a cross-attention layer adds
    nothing. Masking the keys would not do that, since attention to no keys is not zero. The keys
    and values may then be empty, and the mask has no pictures.
    """

    def __init__(self, decoder: MllamaForCausalLM, patches: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.patches = patches
        self.crossing = sorted(decoder.config.cross_attention_layers)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        cross_attention_mask: Tensor,
        has_picture: Tensor,
        *keys_and_values: Tensor,
    ) -> tuple[Tensor, ...]:
        """Run the decoder on the new positions."""
        pictures = keys_and_values[: 2 * len(self.crossing)]
        past = self._cache(keys_and_values[2 * len(self.crossing) :])
        hidden = self.hidden_states(
            inputs_embeds,
            attention_mask,
            position_ids,
            Sight(cross_attention_mask, self.patches, has_picture),
            dict(zip(self.crossing, zip(pictures[::2], pictures[1::2], strict=True), strict=True)),
            past,
        )
        own = [layer for index, layer in enumerate(past.layers) if index not in self.crossing]
        present = [tensor for layer in own for tensor in (layer.keys, layer.values)]
        return self.decoder.lm_head(hidden[:, -1:]), *present

    def _cache(self, past: Sequence[Tensor]) -> DynamicCache:
        """Return the self-attention layers' cache, with empty places where layers look."""
        cache = cache_of(past)
        for index in self.crossing:
            cache.layers.insert(index, DynamicLayer())
        return cache

    def hidden_states(
        self, embeddings: Tensor, attention_mask, position_ids, sight, pictures, past
    ) -> Tensor:
        """Return the last norm's output, (batch, new, hidden), and fill the cache `past`."""
        text = self.decoder.model
        causal = create_causal_mask(
            config=text.config,
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            past_key_values=past,
            position_ids=position_ids,
        )
        rotary = text.rotary_emb(embeddings, position_ids=position_ids)
        hidden = embeddings
        for index, layer in enumerate(text.layers):
            if index in pictures:
                hidden = sight.look(layer, hidden, *pictures[index])
            else:
                hidden = layer(
                    hidden,
                    attention_mask=causal,
                    position_embeddings=rotary,
                    past_key_values=past,
                )
        return text.norm(hidden)


class Sight:
    """What the tokens of one call see of the pictures."""

    def __init__(self, cross_attention_mask: Tensor, patches: int, has_picture: Tensor) -> None:
        seen, sees = visible_patches(cross_attention_mask, patches)
        self.seen = seen
        self.sees = sees[:, 0]
        self.has_picture = has_picture

    def look(
        self, layer: MllamaCrossAttentionDecoderLayer, hidden: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Return a cross-attention layer's output."""
        seen = self.attend(layer.cross_attn, layer.input_layernorm(hidden), keys, values)
        hidden = hidden + self._with_picture(layer.cross_attn_attn_gate.tanh() * seen)
        thought = self.sees * layer.mlp(layer.post_attention_layernorm(hidden))
        return hidden + self._with_picture(layer.cross_attn_mlp_gate.tanh() * thought)

    def _with_picture(self, added: Tensor) -> Tensor:
        """Return what a layer adds, or nothing: chosen, since attention to no keys is not zero."""
        return torch.where(self.has_picture > 0, added, 0.0)

    def attend(
        self, attention: MllamaTextCrossAttention, hidden: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Return attention over the pictures, (batch, new, hidden).

        Query heads that share a key head, and all tokens of a prompt's rows, become rows of one
        matrix: so the keys of a picture, thousands of them, are never repeated.
        """
        heads, groups = attention.num_key_value_heads, attention.num_key_value_groups
        prompts = keys.shape[0]
        queries = attention.q_proj(hidden).reshape(prompts, -1, heads, groups, attention.head_dim)
        queries = attention.q_norm(queries).transpose(1, 2).flatten(2, 3)
        rows = queries.shape[2]
        mask = self.seen.reshape(prompts, rows // groups, 1, keys.shape[2])
        mask = mask.expand(-1, -1, groups, -1).reshape(prompts, 1, rows, keys.shape[2])
        # Not scaled_dot_product_attention: without a growing cache, OpenVINO's CPU plugin makes it
        # operations that transpose and scale all keys for every token.
        scores = (queries * attention.scaling) @ keys.transpose(2, 3)
        scores = scores + torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        seen = scores.softmax(-1) @ values
        seen = seen.unflatten(2, (-1, groups)).transpose(1, 2)
        return attention.o_proj(seen.reshape(hidden.shape))
