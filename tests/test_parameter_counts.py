"""Full-size models have as many parameters as were published or follow from the authors' code."""

import itertools

import pytest
from torch import nn

from helpers.models.families import families, find_original, without_weights

CLIP_224, CLIP_336 = 303_179_776, 303_507_456
INTERNVIT, SIGLIP, RESAMPLER = 304_012_288, 397_747_744, 29_514_240
# The image encoder, with MiniCPM-V-2's resampler; the projector; the language model.
COUNTS = {
    "liuhaotian/LLaVA-Lightning-MPT-7B-preview": (CLIP_224, 4_198_400, 6_648_672_256),
    "mtgv/MobileVLM-1.7B": (CLIP_336, 18_936_832, 1_364_297_728),
    "mtgv/MobileVLM_V2-1.7B": (CLIP_336, 6_316_032, 1_364_297_728),
    "meta-llama/Llama-3.2-11B-Vision-Instruct": (863_567_379, 31_461_376, 9_775_192_080),
    "openbmb/MiniCPM-V-2": (SIGLIP + RESAMPLER, 0, 3_007_703_808),
    "OpenGVLab/InternVL2-1B": (INTERNVIT, 4_482_816, 629_663_872),
    "OpenGVLab/InternVL2-2B": (INTERNVIT, 12_595_200, 1_889_146_880),
    "OpenGVLab/InternVL2-4B": (INTERNVIT, 22_034_432, 3_820_809_216),
    "OpenGVLab/InternVL2-8B": (INTERNVIT, 33_570_816, 7_737_782_272),
    "OpenGVLab/InternVL3-1B": (INTERNVIT, 4_482_816, 629_697_920),
    "OpenGVLab/InternVL3-2B": (INTERNVIT, 8_662_016, 1_776_283_136),
    "OpenGVLab/InternVL3-8B": (INTERNVIT, 27_540_480, 7_612_820_992),
    "OpenGVLab/InternVL3_5-1B": (INTERNVIT, 5_253_120, 751_632_384),
    "OpenGVLab/InternVL3_5-2B": (INTERNVIT, 12_595_200, 2_031_739_904),
    "OpenGVLab/InternVL3_5-4B": (INTERNVIT, 17_052_672, 4_411_424_256),
    "OpenGVLab/InternVL3_5-8B": (INTERNVIT, 33_570_816, 8_190_735_360),
    # DeepStack's mergers are the image encoder's.
    "Qwen/Qwen3-VL-2B-Instruct": (406_957_056, 0, 1_720_574_976),
    "Qwen/Qwen3-VL-4B-Instruct": (415_347_712, 0, 4_022_468_096),
    "Qwen/Qwen3-VL-8B-Instruct": (576_388_336, 0, 8_190_735_360),
    # Without the layer that guesses ahead.
    "Qwen/Qwen3.5-0.8B": (100_592_896, 0, 752_393_024),
    "Qwen/Qwen3.5-9B": (456_010_480, 0, 8_953_803_264),
    "openbmb/MiniCPM-V-4.6": (522_299_312, 25_967_104, 752_393_024),
    # Without the audio encoder; tables of per-layer embeddings are the language model's.
    "google/gemma-4-E2B-it": (167_364_608, 1_179_648, 4_628_569_344),
    "google/gemma-4-E4B-it": (167_364_608, 1_966_080, 7_463_013_376),
}
# Without CLIP, which is a download of its own.
TOTALS = {
    "liuhaotian/LLaVA-Lightning-MPT-7B-preview": 6_652_870_656,
    "mtgv/MobileVLM-1.7B": 1_383_234_560,
    "meta-llama/Llama-3.2-11B-Vision-Instruct": 10_670_220_835,
    "openbmb/MiniCPM-V-2": 3_434_965_792,
    "OpenGVLab/InternVL2-1B": 938_158_976,
    "OpenGVLab/InternVL2-2B": 2_205_754_368,
    "OpenGVLab/InternVL2-4B": 4_146_855_936,
    "OpenGVLab/InternVL2-8B": 8_075_365_376,
}


def count(module: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) if module else 0


def test_all_originals_are_counted():
    originals = [original for family in families() for original in family.originals]
    assert {original.hub_id for original in originals} == COUNTS.keys()


@pytest.mark.parametrize("hub_id", COUNTS)
def test_parameters(hub_id):
    config = find_original(hub_id).config
    if "mm_vision_select_layer" in config:
        config = config | {"mm_vision_select_layer": -1}  # the last layer is not used, but counted
    model = without_weights(config)
    parts = (model.image_encoder, getattr(model, "projector", None), model.language_model)
    actual = tuple(count(part) for part in parts)
    assert actual == COUNTS[hub_id]
    if hub_id in TOTALS:
        clip = actual[0] if actual[0] in (CLIP_224, CLIP_336) else 0
        assert count(model) - clip == TOTALS[hub_id]
    assert all(tensor.is_meta for tensor in itertools.chain(model.parameters(), model.buffers()))


def test_the_unused_layer_of_clip_is_left_out():
    config = find_original("mtgv/MobileVLM-1.7B").config
    layers = without_weights(config).image_encoder.config.num_hidden_layers
    assert layers == config["vision_config"]["num_hidden_layers"] - 1
