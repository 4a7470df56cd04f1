"""Configs that are legal and rare: what they say is obeyed as transformers does, or refused."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessorPil,
    LlamaConfig,
    LlamaForCausalLM,
    MllamaConfig,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
)

from helpers.errors import CheckpointError
from helpers.inputs.messages import user_message
from helpers.models import load_model, load_processor
from helpers.models.families import family_of
from helpers.models.mllama import MllamaProcessor
from helpers.sources.checkpoints import BUNDLED, read_json, write_json
from helpers.sources.key_mapping import Rule, load_tensors
from tests import random_qwen3_vl
from tests.golden_checks import GOLDEN, copy_of, relative_error, stateful
from tests.random_models import OPENVINO, PYTORCH
from tests.test_files_of_others import FAMILIES, TIED, WEIGHTS
from tests.test_internvl3 import reference_model, write_transformers
from tests.tiny import picture

NO_WEIGHTS = shutil.ignore_patterns("*.safetensors", "*.md", "accuracy.json", "bundled.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_last_layer_that_the_config_of_the_text_ties(family, tmp_path):
    """As transformers 4 asked for it."""
    FAMILIES[family](tmp_path, TIED)
    config = read_json(tmp_path / "config.json") | {"tie_word_embeddings": False}
    config["text_config"] |= {"tie_word_embeddings": True}
    write_json(tmp_path / "config.json", config)
    model = load_model(tmp_path)
    assert model.language_model.lm_head.weight is model.token_embeddings.weight


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_several_types_compute_in_one(family, tmp_path):
    """As fine-tunes store them: norms, biases and a last layer in 32 bits."""
    FAMILIES[family](tmp_path, 0)
    in_32_bits = ("norm", "bias", "lm_head", "scalar", "A_log")
    tensors = {
        name: tensor if any(word in name for word in in_32_bits) else tensor.to(torch.bfloat16)
        for name, tensor in load_file(tmp_path / WEIGHTS).items()
    }
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    model = load_model(tmp_path)
    inputs = model.image_inputs([picture()])
    ids = model.processor.input_ids([user_message("What?", 1)], inputs)
    logits = model(**model.prepare(ids, model.encode_images(**inputs))).logits
    assert logits.dtype == model.dtype == torch.bfloat16


def test_weights_of_64_bits_become_32():
    module = torch.nn.Linear(2, 2)
    weights = {name: tensor.double() for name, tensor in module.state_dict().items()}
    load_tensors(module, weights, [Rule("{x}", "{x}")])
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}


BASES = {"top": {"rope_theta": 70.0}, "section": {"rope_parameters": {"rope_theta": 70.0}}}


@torch.inference_mode()
@pytest.mark.parametrize("place", BASES)
def test_the_base_of_rotations_at_either_place(place, tmp_path):
    folder = shutil.copytree(GOLDEN / "mobilevlm", tmp_path / "mobilevlm")
    config = read_json(folder / "config.json")
    config = {name: value for name, value in config.items() if "rope" not in name} | BASES[place]
    write_json(folder / "config.json", config)
    model = load_model(folder, torch.float32)
    reference = LlamaForCausalLM(LlamaConfig(**config)).eval()
    reference.load_state_dict(model.language_model.state_dict())
    ids = torch.arange(3, 23)[None]
    expected = reference(input_ids=ids).logits
    assert relative_error(model(**model.prepare(ids)).logits, expected) < PYTORCH


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5", "minicpm_v4_6"])
def test_a_chat_template_as_transformers_4_wrote_it_beside_a_processor(family, tmp_path):
    FAMILIES[family](tmp_path, 0)
    template = family_of(tmp_path).tokenizer.chat_template.replace("|im_start|", "|begin|")
    write_json(tmp_path / "chat_template.json", {"chat_template": template})
    assert load_processor(tmp_path).template.user == "<|begin|>user\n"


@torch.inference_mode()
@pytest.mark.parametrize("taps", [(1, 1, 2), (2, 0, 9)])
def test_layers_that_deepstack_names_twice_or_that_there_are_not(taps, tmp_path):
    dimensions = replace(random_qwen3_vl.Dimensions.drawn(0), vision_layers=3, taps=taps)
    random_qwen3_vl.write_random(tmp_path, 0, dimensions)
    model = load_model(tmp_path)
    (features,) = model.encode_images(**model.image_inputs([picture()]))
    assert len(features.deepstack) == model.processor.deepstack_layers == 2


@pytest.mark.parametrize("is_written", [True, False], ids=["written", "left to the config"])
def test_what_ends_an_answer(is_written, tmp_path):
    FAMILIES["qwen3_vl"](tmp_path, 0)
    path = tmp_path / "generation_config.json"
    write_json(path, {"eos_token_id": [11, 12]}) if is_written else path.unlink(missing_ok=True)
    config = read_json(tmp_path / "config.json")
    config["text_config"]["eos_token_id"] = 13
    write_json(tmp_path / "config.json", config)
    ids = load_processor(tmp_path).stop_token_ids
    assert set(ids) & {11, 12, 13} == ({11, 12} if is_written else {13})


# InternVL


@pytest.fixture
def internvl_folder(tmp_path):
    """Return a folder with the files of InternVL's tokenizer."""
    return shutil.copytree(BUNDLED / "internvl2", tmp_path / "model", ignore=NO_WEIGHTS)


@torch.inference_mode()
def test_the_norm_behind_the_image_encoder(internvl_folder):
    vision = {"use_mean_pooling": False, "use_mask_token": True}
    model = reference_model(internvl_folder, "qwen2", tied=False, vision=vision)
    write_transformers(model, internvl_folder, older_names=False)
    checkpoint = load_model(internvl_folder, torch.float32)
    inputs = checkpoint.image_inputs([picture()])
    expected = model.get_image_features(inputs["pixel_values"]).pooler_output
    assert relative_error(checkpoint.encode_images(**inputs), expected) < PYTORCH


def test_what_the_text_of_internvl_leaves_to_its_class(internvl_folder):
    model = reference_model(internvl_folder, "qwen2", tied=False, vision={})
    write_transformers(model, internvl_folder, older_names=False)
    config = read_json(internvl_folder / "config.json")
    del config["text_config"]["max_position_embeddings"]
    write_json(internvl_folder / "config.json", config)
    expected = Qwen2Config().max_position_embeddings
    assert load_processor(internvl_folder).context_length == expected


OTHER_SIZES = {
    "patches": ({"vision_config": {"patch_size": [14, 7]}}, {}, "patches of .14, 7., and only sq"),
    "tiles": ({"vision_config": {"image_size": [56, 84]}}, {}, "of .56, 84., and only squares"),
    "pictures": ({}, {"size": {"height": 28, "width": 28}}, "to be 28 .* config.json is 56, and"),
}


@pytest.mark.parametrize("kind", OTHER_SIZES)
def test_other_sizes_of_internvl_are_refused(kind, internvl_folder):
    fields, pictures, words = OTHER_SIZES[kind]
    model = reference_model(internvl_folder, "qwen2", tied=False, vision={})
    write_transformers(model, internvl_folder, older_names=False)
    for name, changes in (("config.json", fields), ("preprocessor_config.json", pictures)):
        content = read_json(internvl_folder / name)
        for field, value in changes.items():
            content[field] = content.get(field, {}) | value
        write_json(internvl_folder / name, content)
    with pytest.raises(CheckpointError, match=words):
        load_model(internvl_folder)


def test_what_the_authors_config_leaves_to_its_class(internvl_folder):
    config = read_json(internvl_folder / "config.json")
    for field in ("dynamic_image_size", "max_dynamic_patch"):
        del config[field]
    write_json(internvl_folder / "config.json", config)
    processor = load_processor(internvl_folder)
    assert processor.image_inputs([picture()])["tiles"].tolist() == [1]
    assert processor.config["max_dynamic_patch"] == 6
    del config["ps_version"]
    write_json(internvl_folder / "config.json", config)
    with pytest.raises(CheckpointError, match='ps_version in config.json is "v1", and only "v2"'):
        load_model(internvl_folder)


def test_tiles_without_a_thumbnail_are_refused(internvl_folder):
    config = read_json(internvl_folder / "config.json") | {"use_thumbnail": False}
    write_json(internvl_folder / "config.json", config)
    with pytest.raises(CheckpointError, match="use_thumbnail in config.json is false, and"):
        load_model(internvl_folder)


@torch.inference_mode()
@pytest.mark.parametrize("form", ["rope_scaling", "rope_parameters"])
def test_frequencies_of_phi3_in_the_fields_of_either_release(form, tmp_path):
    llm = read_json(GOLDEN / "internvl2_phi3" / "config.json")["llm_config"]
    frequencies = llm.pop("rope_scaling") | {"attention_factor": 1.5}
    if form == "rope_parameters":  # as transformers 5 writes them
        del frequencies["type"], llm["rope_theta"]
        frequencies |= {"rope_type": "longrope", "rope_theta": 500.0}
        frequencies |= {"original_max_position_embeddings": 32}
    folder = copy_of(
        "internvl2_phi3", tmp_path, llm_config=llm | {form: frequencies, "sliding_window": 9}
    )
    model = load_model(folder, torch.float32)
    settings = llm | {form: frequencies | {"type": "longrope"}, "sliding_window": 9}
    reference = Phi3ForCausalLM(Phi3Config(**settings)).eval()
    reference.load_state_dict(model.language_model.state_dict())
    compiled = stateful(model)
    for length in (20, 38):  # up to 32 tokens, and beyond
        ids = torch.arange(3, 3 + length)[None]
        expected = reference(input_ids=ids).logits
        embeddings = model.prepare(ids)["inputs_embeds"]
        assert relative_error(model(**model.prepare(ids)).logits, expected) < PYTORCH
        cache = compiled.new_cache()
        for part in embeddings.split(19, dim=1):
            output = compiled(inputs_embeds=part, past_key_values=cache)
        assert relative_error(output.logits[:, -1], expected[:, -1]) < OPENVINO


@pytest.mark.parametrize(
    "window, layers, can_skip",
    [(None, 0, True), (9, 0, False), (9, 28, True)],  # layers from this one on have the window
)
def test_masked_places_count_in_a_window(window, layers, can_skip, internvl_folder):
    config = read_json(internvl_folder / "config.json")
    settings = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": layers}
    config["llm_config"] |= settings
    write_json(internvl_folder / "config.json", config)
    exported = load_processor(internvl_folder).exported
    assert exported.can_skip_places == can_skip


# Pixels of both kinds of files


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma4", "minicpm_v4_6"])
def test_the_file_for_all_kinds_comes_first(family, tmp_path):
    """As for transformers 5, which leaves the other one where an older release wrote it."""
    FAMILIES[family](tmp_path, 0)
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.7], "do_normalize": True}
    write_json(tmp_path / "preprocessor_config.json", pixels)
    expected = load_processor(tmp_path).image_inputs([picture()])["pixel_values"]
    write_json(tmp_path / "processor_config.json", {"image_processor": pixels})
    write_json(tmp_path / "preprocessor_config.json", {"image_mean": [0.1, 0.1, 0.1]})
    assert torch.equal(load_processor(tmp_path).image_inputs([picture()])["pixel_values"], expected)


@pytest.mark.parametrize("is_normalised", [True, False])
def test_pixels_of_gemma_are_the_same_in_a_converted_folder(is_normalised, tmp_path):
    FAMILIES["gemma4"](tmp_path, 0)
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.7]}
    path = tmp_path / "preprocessor_config.json"
    write_json(path, pixels | {"do_normalize": is_normalised})
    processor = load_processor(tmp_path)
    expected = processor.image_inputs([picture()])["pixel_values"]
    write_json(path, read_json(path) | processor.runtime.pictures)  # as a conversion does
    assert torch.equal(load_processor(tmp_path).image_inputs([picture()])["pixel_values"], expected)


# Pixels of CLIP


@pytest.mark.parametrize("name", ["mobilevlm", "llava_mpt"])
def test_pixels_of_the_towers_own_file(name, tmp_path):
    folder = shutil.copytree(GOLDEN / name, tmp_path / name)
    usual = load_processor(folder).image_inputs([picture()])["pixel_values"]
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.7], "resample": 0}
    write_json(folder / "clip" / "preprocessor_config.json", pixels)
    changed = load_processor(folder)
    changed.image_processor.do_pad = False  # whose border is of the mean
    expected = CLIPImageProcessorPil(**pixels | {"resample": 3}, do_resize=False)
    square = changed.square(picture())
    expected = expected([square], do_center_crop=False, return_tensors="pt")["pixel_values"]
    assert torch.equal(changed.image_inputs([picture()])["pixel_values"], expected)
    assert not torch.equal(usual, expected)


# Llama-3.2-Vision


def test_llama_in_transformers_own_names():
    model = load_model(BUNDLED / "mllama")

    def targets(name, tensor):
        return next(p for rule in model.rules() if (p := rule.to_native(name, tensor)) is not None)

    prefixes = {"language_model.model.": "language_model.", "language_model.lm_head.": "lm_head."}
    for name, tensor in load_file(BUNDLED / "mllama" / WEIGHTS).items():
        new_name = name
        for prefix, new in prefixes.items():
            if name.startswith(prefix):
                new_name = new + name.removeprefix(prefix)
        if not new_name.startswith("lm_head"):
            new_name = f"model.{new_name}"
        assert targets(new_name, tensor).keys() == targets(name, tensor).keys()


def test_what_transformers_llama_takes_for_a_text():
    processor = load_processor(BUNDLED / "mllama")
    inputs = processor.transformers_inputs(processor.input_ids([user_message("Who?")]), {})
    assert inputs.keys() == {"input_ids", "attention_mask"}


def test_what_llamas_config_leaves_to_its_classes(tmp_path):
    usual = MllamaConfig()
    processor = MllamaProcessor(tmp_path, {"text_config": {"hidden_size": 64}})
    assert processor.context_length == usual.text_config.max_position_embeddings
    assert processor.image_token_id == usual.image_token_index
    assert processor.pieces.most == usual.vision_config.max_num_tiles
    indices = usual.vision_config.intermediate_layers_indices
    assert processor.config["vision_config"]["intermediate_layers_indices"] == indices
    assert processor.config["text_config"]["hidden_size"] == 64
    for layers, expected in ((9, [3, 8]), (40, usual.text_config.cross_attention_layers)):
        config = MllamaProcessor(tmp_path, {"text_config": {"num_hidden_layers": layers}}).config
        assert config["text_config"]["cross_attention_layers"] == expected


def test_fewer_shapes_than_pictures_get_are_refused(tmp_path):
    folder = shutil.copytree(BUNDLED / "mllama", tmp_path / "model", ignore=NO_WEIGHTS)
    config = read_json(folder / "config.json")
    config["vision_config"] |= {"supported_aspect_ratios": [[1, 1], [2, 1], [1, 2]]}
    write_json(folder / "config.json", config)
    with pytest.raises(CheckpointError, match="names 3 shapes, and 4 tiles lie in 8; use"):
        load_model(folder)


# What no published checkpoint has

REFUSED = {
    "num_channels": ("minicpm_v4_6", "vision_config", 1, "is 1, and pictures have three colours"),
    "in_channels": ("qwen3_vl", "vision_config", 4, "is 4, and pictures have three colours"),
    "temporal_patch_size": ("qwen3_5", "vision_config", 3, "is 3, and only 2 is read here"),
    "window_kernel_size": ("minicpm_v4_6", "vision_config", [4, 4], "only .2, 2. is read here"),
    "merge_kernel_size": ("minicpm_v4_6", None, [1, 4], "only .2, 2. is read here"),
    "merger_times": ("minicpm_v4_6", None, 0, "is 0, and only 1 to 9 is read here"),
    "insert_layer_id": ("minicpm_v4_6", None, 30, "is 30, and only 0 to . is read here"),
    "layer_types": ("qwen3_5", "text_config", ["linear_attention"], "names no full_attention"),
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_no_published_checkpoint_has_is_refused(field, tmp_path):
    family, section, value, words = REFUSED[field]
    FAMILIES[family](tmp_path, 0)
    config = read_json(tmp_path / "config.json")
    (config[section] if section else config)[field] = value
    if field == "layer_types":
        config[section]["num_hidden_layers"] = len(value)
    write_json(tmp_path / "config.json", config)
    with pytest.raises(CheckpointError, match=rf"{field} in .*config\.json.* {words}"):
        load_model(tmp_path)
