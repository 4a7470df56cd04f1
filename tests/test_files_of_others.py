"""What other people's files say, and what is read of it: weights, rotations, pixels, ends."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    Gemma4ImageProcessorPil,
    MiniCPMV4_6ImageProcessorPil,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessorPil,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLImageProcessorPil,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from helpers.convert import conversion
from helpers.errors import CheckpointError
from helpers.graphs.presets import find_preset
from helpers.inputs.messages import user_message
from helpers.models import load_model, load_processor
from helpers.models.reference import load_reference
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.sources.checkpoints import BUNDLED, read_json, write_json
from tests import random_gemma4, random_minicpm_v4_6, random_qwen3_5, random_qwen3_vl
from tests.golden_checks import relative_error
from tests.random_models import OPENVINO, PYTORCH, RandomModels, filled, noise
from tests.test_internvl3 import reference_model, write_original, write_transformers
from tests.tiny import picture, seeded

WEIGHTS = "model.safetensors"
FAMILIES = {
    "qwen3_vl": random_qwen3_vl.write_random,
    "qwen3_5": random_qwen3_5.write_random,
    "gemma4": random_gemma4.write_random,
    "minicpm_v4_6": random_minicpm_v4_6.write_random,
}
TIED = 1  # a seed with which the config ties the last layer to the embeddings


@pytest.fixture
def internvl_folder(tmp_path):
    """Return a folder with the files of InternVL's tokenizer."""
    ignored = shutil.ignore_patterns("*.safetensors", "*.md", "accuracy.json", "bundled.json")
    return shutil.copytree(BUNDLED / "internvl2", tmp_path / "model", ignore=ignored)


# Weights


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_last_layer_that_was_trained_apart_counts(family, tmp_path):
    """Whatever the config says of tied weights, as for transformers."""
    FAMILIES[family](tmp_path, TIED)
    tensors = load_file(tmp_path / WEIGHTS)
    (rows,) = (value for name, value in tensors.items() if name.endswith("embed_tokens.weight"))
    assert "lm_head.weight" not in tensors
    with seeded(3):
        tensors["lm_head.weight"] = 0.15 * torch.randn_like(rows)
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    model, reference = load_model(tmp_path, torch.float32), load_reference(tmp_path, torch.float32)
    ids = model.processor.input_ids([user_message("What is it?")])
    expected = reference(**model.processor.transformers_inputs(ids, {})).logits
    assert relative_error(model(**model.prepare(ids)).logits, expected) < PYTORCH


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_a_model_that_was_saved_without_its_head(family, tmp_path):
    """transformers reads them, too: names of all tensors lack `model.`."""
    FAMILIES[family](tmp_path, TIED)
    before = load_model(tmp_path).state_dict()
    tensors = load_file(tmp_path / WEIGHTS)
    shorter = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    assert shorter.keys().isdisjoint(tensors)
    save_file(shorter, tmp_path / WEIGHTS, metadata={"format": "pt"})
    after = load_model(tmp_path).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before | after)


@pytest.mark.filterwarnings("ignore")  # transformers does not know this model type's config
@pytest.mark.parametrize("is_alone", [False, True], ids=["beside tokenizer.model", "alone"])
def test_minicpms_tokenizer_that_was_saved_again_has_the_same_ids(is_alone, tmp_path):
    """`AutoTokenizer` puts no space in front of a text for this model type, and Llama's does."""
    source = BUNDLED / "minicpm_v2"
    ignored = shutil.ignore_patterns("*.safetensors", *(["tokenizer.model"] if is_alone else []))
    folder = shutil.copytree(source, tmp_path / "model", ignore=ignored)
    saved = AutoTokenizer.from_pretrained(source)
    saved.save_pretrained(folder)
    assert saved.tokenize("What is it?")[:2] == ["Wh", "at"]
    messages = [user_message("What is it? And  now?\n 模型")]
    ids, expected = (load_processor(place).input_ids(messages) for place in (folder, source))
    assert ids.tolist() == expected.tolist()


# Rotations of InternVL's language model

SCALINGS = {
    "linear": {"type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "dynamic": {"type": "dynamic", "factor": 2.0},  # acts beyond the context only
}


@torch.inference_mode()
@pytest.mark.parametrize("layout", ["original", "hf"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_rope_scaling_as_transformers_4_wrote_it(scaling, layout, internvl_folder):
    model = reference_model(internvl_folder, "qwen2", tied=False, vision={})
    if layout == "original":
        write_original(model, internvl_folder, "qwen2")
    else:
        write_transformers(model, internvl_folder, older_names=False)
    config = read_json(internvl_folder / "config.json")
    text = config["llm_config" if layout == "original" else "text_config"]
    del text["rope_parameters"]
    text |= {"rope_theta": 5000.0, "rope_scaling": SCALINGS[scaling]}
    write_json(internvl_folder / "config.json", config)
    fields = {"rope_type": scaling, "rope_theta": 5000.0, **SCALINGS[scaling]}
    settings = model.config.text_config.to_dict() | {"rope_parameters": fields}
    reference = Qwen2ForCausalLM(Qwen2Config(**settings)).eval()
    reference.model.load_state_dict(model.model.language_model.state_dict())
    reference.lm_head.load_state_dict(model.lm_head.state_dict())
    checkpoint = load_model(internvl_folder, torch.float32)
    ids = checkpoint.processor.input_ids([user_message("What is it, where, and why? " * 8)])
    assert ids.shape[1] > 64
    expected = reference(input_ids=ids).logits
    assert relative_error(checkpoint(**checkpoint.prepare(ids)).logits, expected) < PYTORCH


@torch.inference_mode()
def test_the_projectors_activation(internvl_folder):
    model = reference_model(internvl_folder, "qwen2", tied=False, vision={})
    model.config.projector_hidden_act = "relu"
    model.model.multi_modal_projector.act = torch.nn.ReLU()
    write_transformers(model, internvl_folder, older_names=False)
    checkpoint = load_model(internvl_folder, torch.float32)
    inputs = checkpoint.image_inputs([picture()])
    expected = model.get_image_features(inputs["pixel_values"]).pooler_output
    assert relative_error(checkpoint.encode_images(**inputs), expected) < PYTORCH


@pytest.mark.parametrize(
    ("field", "value"),
    [("vision_feature_layer", -2), ("vision_feature_select_strategy", "full")],
)
def test_other_states_of_the_image_encoder_are_refused(field, value, internvl_folder):
    model = reference_model(internvl_folder, "qwen2", tied=False, vision={})
    setattr(model.config, field, value)
    write_transformers(model, internvl_folder, older_names=False)
    with pytest.raises(
        CheckpointError, match=f"{field} in config.json is {json.dumps(value)}, and only "
    ):
        load_model(internvl_folder)


# Pixels

PIXELS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.7]}
SETTINGS = {
    "mean and deviation": PIXELS,
    "not rescaled": PIXELS | {"do_rescale": False},
    "not normalised": PIXELS | {"do_normalize": False},
    "nearest pixels": PIXELS | {"resample": 0},
}
SIZES = {"shortest_edge": 2000, "longest_edge": 10**6}
GROUPS = {  # transformers' processors, and what is in their files for these models
    "qwen3_vl": (Qwen2VLImageProcessorPil, {"patch_size": 16, "size": SIZES}),
    "qwen3_5": (Qwen2VLImageProcessorPil, {"patch_size": 16, "size": SIZES}),
    "gemma4": (Gemma4ImageProcessorPil, {"max_soft_tokens": 70}),
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", GROUPS)
def test_pixels_are_those_of_the_files_settings(name, settings, tmp_path):
    ignored = shutil.ignore_patterns("*.safetensors", "*.md")
    folder = shutil.copytree(BUNDLED / name, tmp_path / "model", ignore=ignored)
    kind, sizes_in_file = GROUPS[name]
    file_settings = sizes_in_file | SETTINGS[settings]
    write_json(folder / "preprocessor_config.json", file_settings)
    ours = load_processor(folder).image_inputs([noise(133, 71, 9)])["pixel_values"]
    config = read_json(folder / "config.json")["vision_config"]
    fields = ("patch_size", "temporal_patch_size", "pooling_kernel_size")
    sizes = {field: config[field] for field in fields if field in config}
    theirs = kind(**file_settings | sizes)([noise(133, 71, 9)], return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("is_joint", [False, True])
def test_pixels_of_internvl_in_transformers_layout(is_joint, settings, internvl_folder):
    model = reference_model(internvl_folder, "qwen2", tied=False, vision={})
    write_transformers(model, internvl_folder, older_names=False)
    size = {"height": 56, "width": 56}
    file_settings = {"size": size, "min_patches": 1, "max_patches": 2, **SETTINGS[settings]}
    path = internvl_folder / "preprocessor_config.json"
    path.unlink()
    if is_joint:
        write_json(internvl_folder / "processor_config.json", {"image_processor": file_settings})
    else:
        write_json(path, file_settings)
    ours = load_processor(internvl_folder).image_inputs([noise(133, 71, 9)])["pixel_values"]
    kind = GotOcr2ImageProcessorPil(**file_settings, crop_to_patches=True)
    assert torch.equal(ours, kind([noise(133, 71, 9)], return_tensors="pt")["pixel_values"])


def test_pixels_of_minicpm_v_4_6(tmp_path):
    FAMILIES["minicpm_v4_6"](tmp_path, 0)
    file_settings = random_minicpm_v4_6.PREPARATION | PIXELS | {"patch_size": 14}
    write_json(tmp_path / "preprocessor_config.json", file_settings)
    ours = load_processor(tmp_path).image_inputs([noise(133, 71, 9)])["pixel_values"]
    theirs = MiniCPMV4_6ImageProcessorPil(**file_settings)([noise(133, 71, 9)], return_tensors="pt")
    assert relative_error(ours.flatten(), theirs["pixel_values"].flatten()) < PYTORCH


# Llama-3.2-Vision


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    """Return a random Llama-3.2-Vision whose config names its cross-attention in any order."""
    ignored = shutil.ignore_patterns("*.safetensors", "*.md", "accuracy.json", "bundled.json")
    target = tmp_path_factory.mktemp("mllama") / "model"
    folder = shutil.copytree(BUNDLED / "mllama", target, ignore=ignored)
    config = read_json(folder / "config.json")
    config["text_config"] |= {"num_hidden_layers": 5, "cross_attention_layers": [3, 0]}
    config["vision_config"] |= {"num_hidden_layers": 2, "num_global_layers": 1}
    with seeded(4), torch.no_grad():
        model = filled(MllamaForConditionalGeneration(MllamaConfig(**config)))
        for name, parameter in model.named_parameters():
            if "gate" in name:
                parameter.fill_(0.7)
    model.save_pretrained(folder)
    return folder


def test_cross_attention_in_any_order(llama_folder, tmp_path):
    conversion.convert(llama_folder, tmp_path / "fp16", find_preset("fp16"))
    models = RandomModels(
        llama_folder,
        load_reference(llama_folder, torch.float32),
        load_model(llama_folder, torch.float32),
        VisionLanguagePipeline(tmp_path / "fp16", accuracy=True),
    )
    inputs = models.model.image_inputs([noise(60, 40)])
    ids = models.model.processor.input_ids([user_message("What is it?", 1)], inputs)
    with torch.inference_mode():
        features = models.pipeline.encode_images(**inputs)
        prepared = models.pipeline.prepare(ids, features)
        output = models.pipeline.language_model(**prepared)
        for tokens in ([5], [7, 8, 9], []):  # behind the prompt, from the cache
            reference_inputs = models.model.processor.transformers_inputs(ids, inputs)
            expected = models.reference(**reference_inputs).logits[:, -1]
            assert relative_error(output.logits[:, -1], expected) < OPENVINO
            if tokens:
                ids = torch.cat([ids, torch.tensor([tokens])], 1)
                output = models.pipeline.language_model(
                    input_ids=ids[:, -len(tokens) :],
                    past_key_values=output.past_key_values,
                    pictures=prepared["pictures"],
                )


def test_pixels_and_tiles_of_the_files_settings(llama_folder, tmp_path):
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    side = read_json(folder / "config.json")["vision_config"]["image_size"]
    size = {"size": {"height": side, "width": side}}
    for tiles in (4, 2):
        write_json(folder / "preprocessor_config.json", PIXELS | size | {"max_image_tiles": tiles})
        ours = load_processor(folder).image_inputs([noise(133, 71, 9)])
        kind = MllamaImageProcessorPil.from_pretrained(folder)
        theirs = kind([[noise(133, 71, 9)]], return_tensors="pt")
        assert torch.equal(
            ours["pixel_values"][:, :, :tiles], torch.as_tensor(theirs["pixel_values"])
        )
        mask = np.asarray(theirs["aspect_ratio_mask"])
        assert ours["aspect_ratio_mask"].sum() == mask.sum()


# Ends of an answer


def test_an_answer_ends_where_the_folders_files_say(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    FAMILIES["qwen3_vl"](checkpoint, 0)
    (checkpoint / "adapter_config.json").write_text("{}")  # which is merged into the weights
    conversion.convert(checkpoint, tmp_path / "before", find_preset("fp16"))
    pipeline = VisionLanguagePipeline(tmp_path / "before", accuracy=True)
    tokens = pipeline.ask("What is it?", max_new_tokens=8).token_ids
    end = next(place for place in range(1, 8) if tokens[place] not in tokens[:place])
    path = checkpoint / "generation_config.json"
    write_json(path, read_json(path) | {"eos_token_id": [tokens[end], 7]})
    conversion.convert(checkpoint, tmp_path / "after", find_preset("fp16"))
    pipeline = VisionLanguagePipeline(tmp_path / "after", accuracy=True)
    assert pipeline.ask("What is it?", max_new_tokens=8).token_ids == tokens[: end + 1]
    ends = read_json(tmp_path / "after" / "generation_config.json")["eos_token_id"]
    assert set(ends) == {tokens[end], 7, *load_processor(tmp_path / "before").stop_token_ids}
