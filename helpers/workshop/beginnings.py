"""What training begins with: parts of the bundled models that are trained already.

Authors hardly ever train a vision-language model from nothing: the image encoder has seen pictures
before, the language model has read, and what joins the two is new. So it is here: LLaVA-MPT's CLIP,
InternVL2's InternViT and its Qwen2 become the parts of the other models. Where an architecture
lacks something (biases of attention, a summary token), it is left out, which training makes up for.

The functions take a trained model's tensors and the configs of that model and of the new one. They
return what the new one's tensors become, under the names of its authors.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from helpers.models import load_model
from helpers.models.base import VisionLanguageModel
from helpers.models.clip import VISION_NAMES
from helpers.sources.checkpoints import BUNDLED, Config
from helpers.sources.key_mapping import original_tensors

Tensors = dict[str, Tensor]
Beginning = Callable[[Tensors, Config, Config], Tensors]

WEIGHT_STD = 0.04  # of new matrices

LANGUAGE_NAMES = "language_model."  # InternVL2's name of its language model
_VOCABULARY = ("embed_tokens.weight", "lm_head.weight")  # tensors with a row for each token


@torch.no_grad()
def start_from(model: VisionLanguageModel[Any], family: str, beginning: Beginning) -> None:
    """Give `model` parts of the bundled model of `family`.

    Patches and positions are resized. Tokens that both models have keep their embeddings and their
    rows of the LM head.
    """
    trained = load_model(BUNDLED / family, torch.float32)
    new_tensors, rules = model.state_dict(), model.rules()
    rows = _same_tokens(model, trained)
    tensors = original_tensors(trained, trained.rules())
    for name, tensor in beginning(tensors, trained.config, model.config).items():
        candidates = (rule.to_native(name, tensor) for rule in rules)
        parts = next(parts for parts in candidates if parts is not None)
        for native, part in parts.items():
            new_tensor = new_tensors[native]
            if native.endswith(_VOCABULARY):
                pairs = [pair for pair in rows if pair[0] < len(new_tensor)]
                new_rows, trained_rows = torch.tensor(pairs).T
                new_tensor[new_rows] = part[trained_rows]
            else:
                new_tensor.copy_(resized(part, new_tensor.shape))


def none(_config: Config) -> Tensors:
    """Return nothing: all tensors that are not of another model begin at random."""
    return {}


def _same_tokens(
    model: VisionLanguageModel[Any], trained: VisionLanguageModel[Any]
) -> list[tuple[int, int]]:
    """Return the ids of each token that both know, in `model` and in `trained`."""
    ids, others = vocabulary_of(model), vocabulary_of(trained)
    size = trained.token_embeddings.num_embeddings
    pairs = []
    for token, number in ids.items():
        # A text's first word has a space in front only where sentencepiece puts it.
        other = others.get(token, others.get(token.strip("\u2581")))
        if other is not None and other < size:
            pairs.append((number, other))
    return pairs


def vocabulary_of(model: VisionLanguageModel[Any]) -> dict[str, int]:
    """Return the tokens' ids, a space as sentencepiece writes it, and that of an answer's end."""
    processor = model.processor
    ids = processor.tokenizer.get_vocab()
    ids = {token.replace("\u0120", "\u2581"): number for token, number in ids.items()}
    return ids | {"end of answer": processor.stop_token_ids[-1]}


def resized(weights: Tensor, shape: Sequence[int]) -> Tensor:
    """Return an image encoder's weights for patches of another size, or for more of them."""
    if weights.shape == tuple(shape):
        return weights
    if weights.dim() == 4:  # of one patch; fewer pixels are to add up to as much
        smaller = nn.functional.interpolate(weights, shape[2:], mode="bilinear", antialias=True)
        return smaller * (weights[0, 0].numel() / smaller[0, 0].numel())
    summary, places = weights[:1], weights[1:]  # positions: of the summary (CLS), of the patches
    side, new_side = math.isqrt(len(places)), math.isqrt(shape[0] - 1)
    grid = torch.unflatten(places.T, 1, (side, side))[None]
    places = nn.functional.interpolate(grid, (new_side, new_side), mode="bicubic")[0].flatten(1).T
    return torch.cat([summary, places])


# Image encoders


MLLAMA_POSITIONS = "vision_model.gated_positional_embedding."


def clip(trained: Tensors, _trained_config: Config, _new_config: Config) -> Tensors:
    """Return CLIP as it is."""
    return {name: tensor for name, tensor in trained.items() if name.startswith(VISION_NAMES)}


def clip_as_mllama(trained: Tensors, trained_config: Config, new_config: Config) -> Tensors:
    """Return CLIP as the first of Llama-3.2-Vision's two encoders, without attention's biases.

    A picture of several tiles begins with the positions that CLIP gives to the whole picture.
    """
    renamed = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.": "patch_embedding.",
        "embeddings.position_embedding.weight": "gated_positional_embedding.embedding",
        "pre_layrnorm.": "layernorm_pre.",
        "post_layernorm.": "layernorm_post.",
        "encoder.layers.": "transformer.layers.",
        ".layer_norm1.": ".input_layernorm.",
        ".layer_norm2.": ".post_attention_layernorm.",
        ".out_proj.": ".o_proj.",
    }
    tensors = {}
    for name, tensor in clip(trained, trained_config, new_config).items():
        if ".self_attn." in name and name.endswith(".bias"):
            continue
        for old, new in renamed.items():
            name = name.replace(old, new)
        tensors[name] = tensor
    return tensors | positions_in_tiles(tensors[MLLAMA_POSITIONS + "embedding"], new_config)


def positions_in_tiles(trained: Tensor, new_config: Config) -> Tensors:
    """Return Llama-3.2-Vision's positions in tiles from those of a square (1 + patches, hidden).

    They are added to those in one tile, in shares that the gate says. The tiles of a picture lie
    in the middle of the square, where LLaVA-MPT has a picture that is not one.
    """
    vision, gate = new_config["vision_config"], torch.ones(1)
    shapes, tiles = vision["supported_aspect_ratios"], vision["max_num_tiles"]
    side = vision["image_size"] // vision["patch_size"]
    tile_table = resized(trained, (1 + side**2, trained.shape[1]))
    table = tile_table.repeat(1 + len(shapes), tiles, 1, 1)  # id 0 is of no picture
    for number, (rows, columns) in enumerate(shapes, 1):
        width = max(rows, columns) * side
        square = resized(trained, (1 + width**2, trained.shape[1]))[1:]
        places = torch.unflatten(square, 0, (width, width))
        top, left = ((width - count * side) // 2 for count in (rows, columns))
        used = places[top : top + rows * side, left : left + columns * side]
        tiled = torch.unflatten(torch.unflatten(used, 1, (columns, side)), 0, (rows, side))
        table[number, : rows * columns, 1:] = tiled.transpose(1, 2).flatten(2, 3).flatten(0, 1)
    added = (table - (1 - gate.tanh()) * tile_table) / gate.tanh()
    return {
        MLLAMA_POSITIONS + "gate": gate,
        MLLAMA_POSITIONS + "tile_embedding.weight": added.flatten(1),
    }


def internvit_as_siglip(trained: Tensors, _trained_config: Config, _new_config: Config) -> Tensors:
    """Return InternViT without its summary token; its layers' scales go into their weights."""
    layers, embeddings = "vision_model.encoder.layers.", "vision_model.embeddings."
    tensors = {
        "vpm.pos_embed": trained[embeddings + "position_embedding"][:, 1:],
        "vpm.patch_embed.proj.weight": trained[embeddings + "patch_embedding.weight"],
        "vpm.patch_embed.proj.bias": trained[embeddings + "patch_embedding.bias"],
    }
    for name, tensor in trained.items():
        if not name.startswith(layers) or name.endswith((".ls1", ".ls2")):
            continue
        number, part = name.removeprefix(layers).split(".", 1)
        for scale, scaled in (("ls1", "attn.proj."), ("ls2", "mlp.fc2.")):
            if part.startswith(scaled):
                factors = trained[f"{layers}{number}.{scale}"]
                tensor = tensor * factors.reshape(-1, *[1] * (tensor.dim() - 1))
        tensors[f"vpm.blocks.{number}.{part}"] = tensor
    return tensors


def queries_on_a_grid(new_config: Config) -> Tensors:
    """Return a resampler whose queries look at the patches in their own square of a slice.

    As the authors' begin, at sines and cosines of places on a grid (MAE's, arXiv:2111.06377), but
    in the patches' unit, and with projections that compare places with each other at once.
    """
    hidden, side = new_config["hidden_size"], math.isqrt(new_config["query_num"])
    patches = new_config["scale_resolution"] // new_config["patch_size"]
    middles = (torch.arange(side) + 0.5) * patches / side - 0.5
    places = waves_of_places(middles, 10000 ** -(torch.arange(hidden // 4) / (hidden // 4)))
    same = torch.eye(hidden)
    # Places count for more than what is there, and those nearby for more than those far away.
    return {
        "resampler.pos_embed": places,
        "resampler.ln_q.weight": torch.full((hidden,), 0.1),
        "resampler.ln_kv.weight": torch.full((hidden,), 0.3),
        "resampler.attn.in_proj_weight": torch.cat([3 * same, same, same]),
        "resampler.attn.out_proj.weight": same,
    }


def waves_of_places(line: Tensor, frequencies: Tensor) -> Tensor:
    """Return sines and cosines of the places on a square grid, (side ** 2, 4 * frequencies).

    `line` holds the places of a column or a row. Those across come before those down.
    """
    angles = line[:, None] * frequencies
    waves, side = torch.cat([angles.sin(), angles.cos()], dim=1), len(line)
    across, down = (waves.expand(side, -1, -1), waves[:, None].expand(-1, side, -1))
    return torch.cat([across, down], dim=-1).flatten(0, 1)


# Language models


def qwen2(trained: Tensors) -> Tensors:
    """Return InternVL2's language model under Llama's names, without its biases.

    Left out of the bundled model, they cost no point of accuracy.
    """
    return {
        name.removeprefix(LANGUAGE_NAMES): tensor
        for name, tensor in trained.items()
        if name.startswith(LANGUAGE_NAMES) and not name.endswith(".bias")
    }


def qwen2_as_llama(trained: Tensors, trained_config: Config, _new_config: Config) -> Tensors:
    """Return Qwen2 with as many key heads as heads: each is repeated for those that share it."""
    text = trained_config["llm_config"]
    size = text["hidden_size"] // text["num_attention_heads"]
    repeats = text["num_attention_heads"] // text["num_key_value_heads"]
    tensors = dict(qwen2(trained))
    for name, tensor in tensors.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            heads = torch.unflatten(tensor, 0, (-1, size))
            tensors[name] = heads.repeat_interleave(repeats, 0).flatten(0, 1)
    return tensors


def internvl2_as_minicpm(trained: Tensors, trained_config: Config, new_config: Config) -> Tensors:
    """Return InternVL2's parts; the language model computes the same between MiniCPM's scales."""
    residual = new_config["scale_depth"] / new_config["num_hidden_layers"] ** 0.5
    factors = {
        "embed_tokens.weight": 1 / new_config["scale_emb"],
        "o_proj.weight": 1 / residual,
        "down_proj.weight": 1 / residual,
        "lm_head.weight": new_config["hidden_size"] / new_config["dim_model_base"],
    }
    tensors = internvit_as_siglip(trained, trained_config, new_config)
    tensors |= queries_on_a_grid(new_config)
    for name, tensor in qwen2_as_llama(trained, trained_config, new_config).items():
        factor = next((factor for end, factor in factors.items() if name.endswith(end)), 1.0)
        tensors[f"llm.{name}"] = tensor * factor
    return tensors


def qwen2_as_mllama(trained: Tensors, _trained_config: Config, new_config: Config) -> Tensors:
    """Return Qwen2's layers, and those that look at the picture made of the layers behind them.

    A layer of Qwen2 attends to text and picture at once. Here the layer before it attends to the
    picture with the same weights, and its gate begins open.
    """
    text = new_config["text_config"]
    cross_layers = text["cross_attention_layers"]
    places = [layer for layer in range(text["num_hidden_layers"]) if layer not in cross_layers]
    tensors, layers = {}, [dict[str, Tensor]() for _ in places]
    for name, tensor in qwen2(trained).items():
        if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
            number, part = int(match[1]), match[2]
            layers[number][part] = tensor
            name = f"model.layers.{places[number]}.{part}"
        tensors[LANGUAGE_NAMES + name] = tensor
    # A picture's states are not normalized, and are about sums of three embeddings.
    size = 3**0.5 * trained[LANGUAGE_NAMES + "model.embed_tokens.weight"].square().mean().sqrt()
    for layer in cross_layers:
        next_layer = layers[next(number for number, place in enumerate(places) if place > layer)]
        norm = next_layer["input_layernorm.weight"]
        cross_attention = {
            "input_layernorm.weight": norm,
            "cross_attn.q_proj.weight": next_layer["self_attn.q_proj.weight"],
            "cross_attn.k_proj.weight": next_layer["self_attn.k_proj.weight"] * norm,
            "cross_attn.v_proj.weight": next_layer["self_attn.v_proj.weight"] * norm / size,
            "cross_attn.o_proj.weight": next_layer["self_attn.o_proj.weight"],
            "cross_attn_attn_gate": torch.ones(1),
            "cross_attn_mlp_gate": torch.ones(1),
        }
        for name, tensor in cross_attention.items():
            tensors[f"{LANGUAGE_NAMES}model.layers.{layer}.{name}"] = tensor
    return tensors
