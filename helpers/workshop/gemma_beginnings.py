"""What the small Gemma 4 begins with.

The functions are of the kinds that `beginnings` has: tensors of a new model by their names in its
modules, from its config; or under the names of its authors, from a trained model.
"""

import math

import torch
from torch import Tensor

from helpers.sources.checkpoints import Config
from helpers.workshop.beginnings import Tensors, qwen2

# Root mean squares in the bundled InternVL2, measured on four pictures with a question each: of
# what attention and the MLP of each layer add, and of one head's queries, keys and values.
ATTENTION_SIZES = (1.6, 3.1, 3.0, 3.3)
MLP_SIZES = (8.5, 1.7, 1.8, 3.6)
QUERY_SIZE, KEY_SIZE, VALUE_SIZE = 1.15, 1.3, 1.3
EMBEDDING_SIZE = 5.0  # times as large: the head has no table of its own, and answers need its size
NEW_SIZE = 0.3  # of what a layer that is new adds at first
# The same in the bundled Qwen3-VL's image encoder, layer by layer: of the states before attention,
# of values, of what attention adds, of the states before the MLP, of what that adds. The last layer
# there adds more than all before it, most of it the same to all patches; here it adds little, since
# what reads it is new, and learns slowly what is small beside that.
VISION_SIZES = (
    (6.0, 1.2, 1.9, 6.1, 3.5),
    (6.2, 1.25, 2.0, 6.6, 1.5),
    (6.8, 1.6, 2.7, 7.6, 1.7),
    (7.8, 2.1, 1.0, 7.9, 1.0),
)
VISION_SCORE_SIZE = 1.5  # of a head's queries, and of its keys
MEAN = 1.0  # of the image encoder's states, small beside their size
SILU_TO_GELU = 1.702  # GELU(x) is nearly x * sigmoid(1.702 x), arXiv:1606.08415


def gemma4_first(config: Config) -> Tensors:
    """Return norms of what no trained model has: it adds little at first.

    Gemma 4 divides scores by nothing.
    """
    text, tensors = config["text_config"], dict[str, Tensor]()
    for layer in range(text["num_hidden_layers"]):
        name = f"language_model.model.layers.{layer}."
        tensors[name + "post_per_layer_input_norm.weight"] = torch.full(
            (text["hidden_size"],), NEW_SIZE
        )
        if layer >= text["num_hidden_layers"] - text["num_kv_shared_layers"]:
            size = _head_size(text, layer)
            tensors[name + "self_attn.q_norm.weight"] = torch.full((size,), size**-0.25)
            for norm in ("post_attention_layernorm", "post_feedforward_layernorm"):
                tensors[f"{name}{norm}.weight"] = torch.full((text["hidden_size"],), NEW_SIZE)
    return tensors


def qwen3_vl_as_gemma4(trained: Tensors, _trained_config: Config, new_config: Config) -> Tensors:
    """Return Qwen3-VL's image encoder; what comes behind it is new.

    Gemma 4's layers have no biases, and norms that leave a state's mean. So the states here have a
    mean that no layer changes, `MEAN`: where Qwen3-VL has a bias, weights read it from there, and
    of a gated MLP the factors, which are to be 1. What a norm divides is multiplied again by its
    usual size.
    """
    vision = new_config["vision_config"]
    old, new = "model.visual.", "model.vision_tower."
    hidden, size = vision["hidden_size"], vision["head_dim"]
    centred = torch.eye(hidden) - 1 / hidden
    patches = trained[old + "patch_embed.proj.weight"].sum(2)  # both frames are the one picture
    across, down = _places(trained, vision["position_embedding_size"])
    tensors = {
        new + "patch_embedder.input_proj.weight": centred @ patches.movedim(1, -1).flatten(1),
        new + "patch_embedder.position_embedding_table": torch.stack(
            [across @ centred + MEAN / 2, down @ centred + MEAN / 2]
        ),
    }
    order = _places_of_axes(size)
    for layer, (before, values, attention, between, mlp) in enumerate(VISION_SIZES):
        block, name = f"{old}blocks.{layer}.", f"{new}encoder.layers.{layer}."
        part = {key.removeprefix(block): value for key, value in trained.items() if block in key}
        qkv = _reading(part, "attn.qkv", "norm1", before).chunk(3)
        for letter, weight in zip("qk", qkv[:2], strict=True):
            heads = torch.unflatten(weight, 0, (-1, size))[:, order]
            scores = torch.full((size,), VISION_SCORE_SIZE * size**-0.25)
            tensors[f"{name}self_attn.{letter}_proj.linear.weight"] = heads.flatten(0, 1)
            tensors[f"{name}self_attn.{letter}_norm.weight"] = scores
        gates = _reading(part, "mlp.linear_fc1", "norm2", between)
        tensors |= {
            name + "self_attn.v_proj.linear.weight": qkv[2],
            name + "self_attn.o_proj.linear.weight": centred @ part["attn.proj.weight"] * values,
            name + "mlp.gate_proj.linear.weight": gates,
            name + "mlp.up_proj.linear.weight": torch.full_like(gates, between / (MEAN * hidden)),
            name + "mlp.down_proj.linear.weight": centred @ part["mlp.linear_fc2.weight"],
            name + "post_attention_layernorm.weight": torch.full((hidden,), attention),
            name + "post_feedforward_layernorm.weight": torch.full((hidden,), mlp),
        }
    return tensors


def _reading(block: Tensors, part: str, norm: str, size: float) -> Tensor:
    """Return the weights of a layer of Qwen3-VL's behind a norm, both with their biases.

    `size` is that of the states that the norm divides.
    """
    weight = block[part + ".weight"]
    constant = block[part + ".bias"] + weight @ block[norm + ".bias"]
    rows = weight * block[norm + ".weight"]
    rows = rows - rows.mean(1, keepdim=True)
    return rows + constant[:, None] * size / (MEAN * weight.shape[1])


def _places(trained: Tensors, number: int) -> tuple[Tensor, Tensor]:
    """Return tables (number, hidden) of columns and rows whose sums are nearest to Qwen3-VL's.

    What lies outside its grid begins where the grid ends.
    """
    visual = "model.visual."
    table = trained[visual + "pos_embed.weight"] + trained[visual + "patch_embed.proj.bias"]
    side = math.isqrt(len(table))
    grid = torch.unflatten(table, 0, (side, side))
    places = torch.arange(number).clamp(max=side - 1)
    half = table.mean(0) / 2
    return (grid.mean(0) - half)[places], (grid.mean(1) - half)[places]


def _places_of_axes(size: int) -> list[int]:
    """Return where the numbers of one of Gemma 4's heads are in one of Qwen3-VL's.

    Numbers half a head apart turn together in Qwen3-VL, first those that turn with the row. Here
    each axis has a half of its own, the column the first.
    """
    half, quarter = size // 2, size // 4
    rows = [*range(quarter), *range(half, half + quarter)]
    return [number + quarter for number in rows] + rows


def internvl2_as_gemma4(trained: Tensors, _trained_config: Config, new_config: Config) -> Tensors:
    """Return InternVL2's layers as those that have keys and values of their own.

    What a norm divides is multiplied again by its usual size. A head of a layer that sees all
    tokens is twice as wide: beside InternVL2's it begins with zeros, and of the pairs that turn
    there are fewer, which keep their speeds.
    """
    text, tensors = new_config["text_config"], dict[str, Tensor]()
    name = "model.language_model."
    ones = torch.ones(text["hidden_size"])
    for old, tensor in qwen2(trained).items():
        if old == "model.embed_tokens.weight":
            scaled = tensor * EMBEDDING_SIZE / text["hidden_size"] ** 0.5
            tensors[name + "embed_tokens.weight"] = scaled
        elif old.startswith("model.layers."):
            number, part = old.removeprefix("model.layers.").split(".", 1)
            tensors |= {
                f"{name}layers.{number}.{key}": value
                for key, value in _in_layer(text, int(number), part, tensor).items()
            }
    for layer, (attention, mlp) in enumerate(zip(ATTENTION_SIZES, MLP_SIZES, strict=True)):
        size, width = _head_size(text, layer), text["head_dim"]
        beside = (width / size) ** 0.5  # of a head's numbers, the others are zeros
        scores = (QUERY_SIZE * KEY_SIZE) ** 0.5 * width**-0.25 * beside
        for norm in ("q_norm", "k_norm"):
            tensors[f"{name}layers.{layer}.self_attn.{norm}.weight"] = torch.full((size,), scores)
        tensors[f"{name}layers.{layer}.post_attention_layernorm.weight"] = attention * ones
        tensors[f"{name}layers.{layer}.post_feedforward_layernorm.weight"] = mlp * ones
    return tensors


def _in_layer(text: Config, layer: int, part: str, tensor: Tensor) -> Tensors:
    """Return what becomes of a tensor of one of InternVL2's layers."""
    size, width = _head_size(text, layer), text["head_dim"]
    if part == "post_attention_layernorm.weight":
        return {"pre_feedforward_layernorm.weight": tensor}
    if part == "mlp.gate_proj.weight":
        tensor = tensor / SILU_TO_GELU
    if part.startswith("self_attn.") and size > width:
        is_output = part.endswith("o_proj.weight")
        heads = torch.unflatten(tensor.T if is_output else tensor, 0, (-1, width))
        wide = heads.new_zeros(len(heads), size, heads.shape[2])
        wide[:, _places_of_pairs(width, size)] = heads
        tensor = wide.flatten(0, 1)
        tensor = tensor.T if is_output else tensor
    if part.endswith("o_proj.weight"):
        tensor = tensor * VALUE_SIZE * (width / size) ** 0.5
    return {part: tensor}


def _places_of_pairs(width: int, size: int) -> list[int]:
    """Return where the numbers of a head of `width` go in one of twice its `size`.

    Numbers half a head apart turn together. Of a wide head the first quarter of pairs turns, every
    second one at the speed of one of InternVL2's: the others of those stand still.
    """
    turning = size // 2 // 4
    pairs = [2 * pair for pair in range(turning // 2)]
    pairs += [turning + pair for pair in range(width // 2 - len(pairs))]
    return pairs + [size // 2 + pair for pair in pairs]


def _head_size(text: Config, layer: int) -> int:
    is_full = text["layer_types"][layer] == "full_attention"
    return int(text["global_head_dim" if is_full else "head_dim"])
