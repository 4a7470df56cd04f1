"""What LLaVA-MPT and MobileVLM share: their CLIP towers, placeholders, types and errors."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from helpers.errors import CheckpointError
from helpers.models import load_model, load_processor
from helpers.models.clip import PLACEHOLDER
from tests.golden_checks import (
    GOLDEN,
    assert_close,
    change_config,
    change_tensors,
    change_type,
    copy_of,
    golden_results,
    greedy,
    greedy_with_cache,
    loading_error,
    relative_error,
)

FAMILIES = ("llava_mpt", "mobilevlm", "mobilevlm_v2")
FULL_ID = "openai/clip-vit-large-patch14"
# Measured on these three: features 1.1e-2 and logits 5.1e-2 in bfloat16 (transformers' own MPT
# 4.9e-2; rounding the weights alone 2.6e-2), logits 4.6e-3 with a language model in float16.
BFLOAT16_FEATURES, BFLOAT16_LOGITS, FLOAT16_LOGITS = 1.5e-2, 7e-2, 7e-3


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request):
    """Return a golden `model`, and as `expected` what its authors' code computed."""
    return SimpleNamespace(
        model=load_model(GOLDEN / request.param), expected=golden_results(request.param)
    )


@pytest.fixture(params=FAMILIES)
def copy(request, tmp_path):
    """Return a copy of a golden checkpoint that may be changed."""
    return copy_of(request.param, tmp_path)


# Against the authors' code


@torch.inference_mode()
def test_features_embeddings_logits(golden):
    model, expected = golden.model, golden.expected
    features = model.encode_images(expected["pixel_values"])
    assert_close(features, expected["image_features"])
    prepared = model.prepare(expected["input_ids"], features)
    assert_close(prepared["inputs_embeds"], expected["inputs_embeds"])
    assert_close(model(**prepared).logits, expected["logits"])


def test_greedy_tokens(golden):
    model, expected = golden.model, golden.expected
    prepared = model.prepare(expected["input_ids"], model.encode_images(expected["pixel_values"]))
    tokens = expected["greedy_tokens"].tolist()
    assert greedy(model, prepared, len(tokens)) == tokens
    assert greedy_with_cache(model, prepared, len(tokens)) == tokens


# Placeholders


@torch.inference_mode()
def test_one_placeholder_a_picture_is_as_good_as_one_a_row(golden):
    model, expected = golden.model, golden.expected
    pictures = expected["pixel_values"].repeat(2, 1, 1, 1)
    pictures[1] *= 0.5
    features = model.encode_images(pictures)
    rows = model.processor.tokens_per_picture
    assert features.shape[1] == rows
    short = torch.tensor([[3, PLACEHOLDER, 4, 5, PLACEHOLDER, 6]])
    long = torch.tensor([[3, *[PLACEHOLDER] * rows, 4, 5, *[PLACEHOLDER] * rows, 6]])
    assert torch.equal(
        model.prepare(short, features)["inputs_embeds"],
        model.prepare(long, features)["inputs_embeds"],
    )
    merged = model.prepare(short, features)["inputs_embeds"][0]
    assert torch.equal(merged[1 : rows + 1], features[0])
    assert torch.equal(merged[rows + 3 : -1], features[1])


@torch.inference_mode()
def test_the_way_of_a_pipeline_without_pytorch_weights(golden):
    """A pipeline asks for text embeddings of ids without placeholders, then merges."""
    model, expected = golden.model, golden.expected
    processor = model.processor
    features = model.encode_images(expected["pixel_values"])
    ids = processor.expand(expected["input_ids"], features)
    assert int(processor.text_ids(ids).min()) >= 0
    embeddings = model.embed_tokens(processor.text_ids(ids))
    assert_close(processor.merge(ids, embeddings, features), expected["inputs_embeds"])


@torch.inference_mode()
def test_text_only(golden):
    model = golden.model
    ids = torch.tensor([[5, 6, 7, 8]])
    prepared = model.prepare(ids, None)
    assert torch.equal(prepared["inputs_embeds"], model.embed_tokens(ids))
    assert torch.equal(model(**prepared).logits, model.language_model(input_ids=ids).logits)


@torch.inference_mode()
def test_a_picture_too_many_is_refused(golden):
    model, expected = golden.model, golden.expected
    features = model.encode_images(expected["pixel_values"].repeat(2, 1, 1, 1))
    with pytest.raises(CheckpointError, match="room for"):
        model.prepare(torch.tensor([[5, PLACEHOLDER, 6]]), features)


# Types


def types_of(module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in module.parameters()}


@torch.inference_mode()
def test_bfloat16_stays_bfloat16(copy):
    for folder in (copy, copy / "clip"):
        change_type(folder, torch.bfloat16)
    model, expected = load_model(copy), golden_results(copy.name)
    assert types_of(model) == {torch.bfloat16}
    features = model.encode_images(expected["pixel_values"])
    prepared = model.prepare(expected["input_ids"], features)
    assert prepared["inputs_embeds"].dtype == torch.bfloat16
    logits = model(**prepared).logits
    assert relative_error(features, expected["image_features"]) <= BFLOAT16_FEATURES
    assert relative_error(logits, expected["logits"]) <= BFLOAT16_LOGITS


@torch.inference_mode()
def test_a_tower_in_float32_beside_16_bits_keeps_its_type(copy):
    """OpenAI published CLIP in float32; the language models are in 16 bits."""
    change_type(copy, torch.float16)
    model, expected = load_model(copy), golden_results(copy.name)
    assert model.dtype == torch.float16
    assert types_of(model.image_encoder) == {torch.float32}
    assert types_of(model.projector) == {torch.float32}
    features = model.encode_images(expected["pixel_values"])
    prepared = model.prepare(expected["input_ids"], features)
    assert relative_error(model(**prepared).logits, expected["logits"]) <= FLOAT16_LOGITS
    assert types_of(load_model(copy, torch.float32)) == {torch.float32}


# Tensors


def test_stray_tensors_are_tolerated(copy):
    strays = {
        copy: {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)},
        copy / "clip": {"vision_model.embeddings.position_ids": torch.arange(17)},
    }
    for folder, stray in strays.items():
        change_tensors(folder, lambda tensors, stray=stray: tensors | stray)
    load_model(copy)


def test_problems_are_listed(copy):
    table = "transformer.wte.weight" if copy.name == "llava_mpt" else "model.embed_tokens.weight"
    norm = "transformer.norm_f.weight" if copy.name == "llava_mpt" else "model.norm.weight"

    def spoil(tensors):
        if table in tensors:
            tensors |= {table: tensors[table][:, :-1].clone(), "extra.weight": torch.ones(1)}
        tensors.pop(norm, None)
        return tensors

    missing = "vision_model.pre_layrnorm.bias"
    change_tensors(
        copy / "clip",
        lambda tensors: {name: tensors[name] for name in tensors if name != missing},
    )
    message = loading_error(copy, spoil)
    assert "unexpected extra.weight" in message
    assert f"mis-shaped {table}" in message
    assert "norm" in message.split("missing language_model", 1)[1].split(";")[0]
    assert "missing image_encoder.pre_layrnorm.bias" in message


# The tower


def test_the_layers_are_those_up_to_the_selected_state(tmp_path):
    """All hidden states can be selected, and they are those of the whole tower."""
    config = json.loads((GOLDEN / "llava_mpt/clip/config.json").read_text())["vision_config"]
    tower = CLIPVisionModel(CLIPVisionConfig(**config)).eval()
    tensors = load_file(GOLDEN / "llava_mpt/clip/model.safetensors")
    names = set(tower.state_dict())
    stripped = {name.removeprefix("vision_model."): tensors[name] for name in tensors}
    tower.load_state_dict({name: stripped[name] for name in stripped if name in names})
    pixels = golden_results("llava_mpt")["pixel_values"]
    folder = copy_of("llava_mpt", tmp_path)
    with torch.inference_mode():
        states = tower(pixels, output_hidden_states=True).hidden_states
        for select in (-1, -2, -4, -5, 3, 0):
            change_config(folder, mm_vision_select_layer=select)
            model = load_model(folder)
            expected = states[select] if select else tower.pre_layrnorm(tower.embeddings(pixels))
            assert_close(model.image_encoder(pixels).last_hidden_state, expected)


@pytest.mark.parametrize("select", [-6, 5])
def test_a_state_that_does_not_exist_is_refused(tmp_path, select):
    folder = copy_of("llava_mpt", tmp_path, mm_vision_select_layer=select)
    with pytest.raises(CheckpointError, match="mm_vision_select_layer"):
        load_model(folder)


def test_a_tower_may_be_a_file_of_its_own(copy):
    """The config and the names of `CLIPVisionModel.save_pretrained`, in a `.bin` as of old."""
    tower = copy / "clip"
    config = json.loads((tower / "config.json").read_text(encoding="utf-8"))
    (tower / "config.json").write_text(json.dumps(config["vision_config"]), encoding="utf-8")
    tensors = load_file(tower / "model.safetensors")
    names = [name for name in tensors if name.startswith("vision_model.")]
    (tower / "model.safetensors").unlink()
    for prefix in ("vision_model.", ""):
        renamed = {prefix + name.removeprefix("vision_model."): tensors[name] for name in names}
        torch.save(renamed, tower / "pytorch_model.bin")
        assert_features(load_model(copy), copy.name)


@pytest.mark.parametrize("place", ["clip-vit-large-patch14", FULL_ID])
def test_a_hub_id_is_looked_for_beside_the_checkpoint(tmp_path, place, monkeypatch):
    monkeypatch.setattr("helpers.models.clip.download", None)  # would be called in vain
    folder = copy_of("llava_mpt", tmp_path, mm_vision_tower=FULL_ID)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    shutil.move(folder / "clip", tmp_path / place)
    assert_features(load_model(folder), "llava_mpt")


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_hub_id_is_looked_for_in_the_cache(tmp_path, monkeypatch, ending):
    folder = copy_of("llava_mpt", tmp_path / "checkpoints", mm_vision_tower=FULL_ID)
    cached = offline_cache(tmp_path / "cache", monkeypatch) / "snapshots" / "0123"
    shutil.move(folder / "clip", cached)
    (cached.parents[1] / "refs").mkdir()
    (cached.parents[1] / "refs" / "main").write_text("0123")
    if ending == "bin":
        torch.save(load_file(cached / "model.safetensors"), cached / "pytorch_model.bin")
        (cached / "model.safetensors").unlink()
    assert_features(load_model(folder), "llava_mpt")


def offline_cache(path, monkeypatch):
    """Make `path` the hub's cache, without a network; return the folder of the tower in it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(path))
    folder = path / f"models--{FULL_ID.replace('/', '--')}"
    (folder / "snapshots").mkdir(parents=True)
    return folder


def test_a_tower_that_is_nowhere(copy, tmp_path, monkeypatch):
    shutil.rmtree(copy / "clip")
    offline_cache(tmp_path / "cache", monkeypatch)
    for name in ("clip", FULL_ID, "no/such/name"):
        change_config(copy, mm_vision_tower=name)
        with pytest.raises(CheckpointError, match="put its folder beside") as caught:
            load_model(copy)
        assert str(caught.value).count(". ") == 0
    for name in ("", None):
        change_config(copy, mm_vision_tower=name)
        with pytest.raises(CheckpointError, match="names no image encoder"):
            load_processor(copy)


def test_only_what_is_needed_is_downloaded(tmp_path, monkeypatch):
    folder = copy_of("llava_mpt", tmp_path / "checkpoints", mm_vision_tower=FULL_ID)
    hub = shutil.move(folder / "clip", tmp_path / "hub")
    downloads = []

    def download(name, *, files):
        downloads.append((name, list(files)))
        return hub

    monkeypatch.setattr("helpers.models.clip.download", download)
    load_processor(folder)
    small = ["config.json", "preprocessor_config.json"]
    assert downloads == [(FULL_ID, small)]
    load_model(folder)
    assert downloads[-1] == (FULL_ID, [*small, "model*.safetensors*"])


def test_a_config_with_the_shape_of_the_tower_needs_no_tower(copy, monkeypatch):
    """As in a converted folder, whose config.json is the processor's."""
    processor = load_processor(copy)
    (copy / "config.json").write_text(json.dumps(processor.config), encoding="utf-8")
    shutil.rmtree(copy / "clip")
    without_tower = load_processor(copy)
    assert without_tower.tokens_per_picture == processor.tokens_per_picture


def test_a_damaged_tower(copy):
    save_file({}, copy / "clip" / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing image_encoder"):
        load_model(copy)
    (copy / "clip" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_model(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_vision_select_feature": "cls_patch"}, '"cls_patch", and only "patch" is read'),
        ({"mm_vision_select_layer": "last"}, "config.json does not describe a model"),
    ],
)
def test_configs_that_cannot_be_read(tmp_path, changes, message):
    folder = copy_of("llava_mpt", tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@torch.inference_mode()
def assert_features(model, name: str) -> None:
    expected = golden_results(name)
    assert_close(model.encode_images(expected["pixel_values"]), expected["image_features"])
