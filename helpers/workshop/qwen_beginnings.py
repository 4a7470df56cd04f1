"""What the small Qwen3-VL and Qwen3.5 begin with.

The functions are of the kinds that `beginnings` has: tensors of a new model by their names in its
modules, from its config; or under the names of its authors, from a trained model.
"""

import math

import torch
from torch import Tensor

from helpers.sources.checkpoints import Config
from helpers.workshop.beginnings import WEIGHT_STD, Tensors, waves_of_places

WAVE_LENGTHS = (64, 4)  # in places of the table; the longest is four times a usual side
PLACES_TO_PATCHES = 0.6  # how large the waves are beside the patches: less, and boxes stay coarse


def qwen3_vl_places(config: Config) -> Tensors:
    """Return a table of positions that says where a patch is, from the first step on.

    Rotations tell patches how far they are from each other, and a random table is learned slowly
    beside patches that are forty times as large: boxes fail for want of a place.
    """
    vision = config["vision_config"]
    side, count = math.isqrt(vision["num_position_embeddings"]), vision["hidden_size"] // 4
    longest, shortest = WAVE_LENGTHS
    frequencies = 2 * math.pi / longest * (longest / shortest) ** torch.linspace(0, 1, count)
    waves = waves_of_places(torch.arange(side), frequencies)
    inputs = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    patches = WEIGHT_STD * inputs**0.5  # of pixels about as large as 1
    return {"image_encoder.pos_embed.weight": waves * (PLACES_TO_PATCHES * patches / waves.std())}


DECAYS = (0.02, 0.5)  # exp(A_log) of the first and the last head
DECAY_BIAS = -2.0  # softplus of it is 0.13: the slowest head forgets a picture in 400 tokens


def qwen3_5_states(config: Config) -> Tensors:
    """Return recurrences that remember: a picture is fifty tokens or more before its question.

    The heads forget at different speeds, and the convolution begins with the token alone.
    """
    text = config["text_config"]
    tensors = {}
    for number, kind in enumerate(text["layer_types"]):
        if kind != "linear_attention":
            continue
        heads = text["linear_num_value_heads"]
        keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
        channels = 2 * keys + heads * text["linear_value_head_dim"]
        kernel = torch.zeros(channels, 1, text["linear_conv_kernel_dim"])
        kernel[..., -1] = 1.0
        name = f"language_model.model.layers.{number}.linear_attn."
        tensors[name + "conv1d.weight"] = kernel
        tensors[name + "A_log"] = torch.linspace(*DECAYS, heads).log()
        tensors[name + "dt_bias"] = torch.full((heads,), DECAY_BIAS)
    return tensors


def qwen3_vl_as_qwen3_5(trained: Tensors, _trained_config: Config, new_config: Config) -> Tensors:
    """Return Qwen3-VL without DeepStack; a layer with a recurrence takes its norms and its MLP.

    Qwen3.5 counts the weights of norms from 1. Behind the queries of its attention stand gates,
    which begin half open. Of attention's places a quarter turns, which is learned anew.
    """
    text, tensors = new_config["text_config"], dict[str, Tensor]()
    is_attention = [kind == "full_attention" for kind in text["layer_types"]]
    for name, tensor in trained.items():
        if name.startswith("model.visual.deepstack") or name == "lm_head.weight":
            continue
        if name.startswith("model.language_model.layers."):
            number, part = name.removeprefix("model.language_model.layers.").split(".", 1)
            if part.startswith("self_attn.") and not is_attention[int(number)]:
                continue
        if name.startswith("model.language_model.") and name.endswith("norm.weight"):
            tensor = tensor - 1
        elif name.endswith("q_proj.weight"):
            queries = torch.unflatten(tensor, 0, (-1, text["head_dim"]))
            tensor = torch.cat([queries, torch.zeros_like(queries)], dim=1).flatten(0, 1)
        elif name.endswith("o_proj.weight"):
            tensor = 2 * tensor
        tensors[name] = tensor
    return tensors
