"""What LLaVA-MPT and MobileVLM share: their CLIP towers, placeholders, types and errors."""

import json
import shutil

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
    copy_of,
    expected,
    greedy,
    greedy_with_cache,
    relative_error,
)

FAMILIES = ("llava_mpt", "mobilevlm", "mobilevlm_v2")
FULL_ID = "openai/clip-vit-large-patch14"
# Measured on these three: features 1.1e-2 and logits 5.1e-2 in bfloat16 (transformers' own MPT
# 4.9e-2; rounding the weights alone 2.6e-2), logits 4.6e-3 with a language model in float16.
BFLOAT16_FEATURES, BFLOAT16_LOGITS, FLOAT16_LOGITS = 1.5e-2, 7e-2, 7e-3


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request):
    """Return a golden model and what its authors' code computed."""
    return load_model(GOLDEN / request.param), expected(request.param)


@pytest.fixture(params=FAMILIES)
def copy(request, tmp_path):
    """Return a copy of a golden checkpoint that may be changed."""
    return copy_of(request.param, tmp_path)


# Against the authors' code


@torch.inference_mode()
def test_features_embeddings_logits(golden):
    model, wanted = golden
    features = model.encode_images(wanted["pixel_values"])
    assert_close(features, wanted["image_features"])
    prepared = model.prepare(wanted["input_ids"], features)
    assert_close(prepared["inputs_embeds"], wanted["inputs_embeds"])
    assert_close(model(**prepared).logits, wanted["logits"])


def test_greedy_tokens(golden):
    model, wanted = golden
    prepared = model.prepare(wanted["input_ids"], model.encode_images(wanted["pixel_values"]))
    tokens = wanted["greedy_tokens"].tolist()
    assert greedy(model, prepared, len(tokens)) == tokens
    assert greedy_with_cache(model, prepared, len(tokens)) == tokens


# Placeholders


@torch.inference_mode()
def test_one_placeholder_a_picture_is_as_good_as_one_a_row(golden):
    model, wanted = golden
    pictures = wanted["pixel_values"].repeat(2, 1, 1, 1)
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
    model, wanted = golden
    processor = model.processor
    features = model.encode_images(wanted["pixel_values"])
    ids = processor.expand(wanted["input_ids"], features)
    assert int(processor.text_ids(ids).min()) >= 0
    embeddings = model.embed_tokens(processor.text_ids(ids))
    assert_close(processor.merge(ids, embeddings, features), wanted["inputs_embeds"])


@torch.inference_mode()
def test_text_only(golden):
    model, _ = golden
    ids = torch.tensor([[5, 6, 7, 8]])
    prepared = model.prepare(ids, None)
    assert torch.equal(prepared["inputs_embeds"], model.embed_tokens(ids))
    assert torch.equal(model(**prepared).logits, model.language_model(input_ids=ids).logits)


@torch.inference_mode()
def test_a_picture_too_many_is_refused(golden):
    model, wanted = golden
    features = model.encode_images(wanted["pixel_values"].repeat(2, 1, 1, 1))
    with pytest.raises(CheckpointError, match="room for"):
        model.prepare(torch.tensor([[5, PLACEHOLDER, 6]]), features)


# Types


@torch.inference_mode()
def test_bfloat16_stays_bfloat16(copy):
    for folder in (copy, copy / "clip"):
        change_tensors(folder, lambda tensors: {n: t.bfloat16() for n, t in tensors.items()})
    model, wanted = load_model(copy), expected(copy.name)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    features = model.encode_images(wanted["pixel_values"])
    prepared = model.prepare(wanted["input_ids"], features)
    assert prepared["inputs_embeds"].dtype == torch.bfloat16
    logits = model(**prepared).logits
    assert relative_error(features, wanted["image_features"]) <= BFLOAT16_FEATURES
    assert relative_error(logits, wanted["logits"]) <= BFLOAT16_LOGITS


@torch.inference_mode()
def test_a_tower_in_float32_beside_16_bits_keeps_its_type(copy):
    """OpenAI published CLIP in float32; the language models are in 16 bits."""
    change_tensors(copy, lambda tensors: {n: t.half() for n, t in tensors.items()})
    model, wanted = load_model(copy), expected(copy.name)
    assert model.dtype == torch.float16
    assert {p.dtype for p in model.image_encoder.parameters()} == {torch.float32}
    assert {p.dtype for p in model.projector.parameters()} == {torch.float32}
    features = model.encode_images(wanted["pixel_values"])
    prepared = model.prepare(wanted["input_ids"], features)
    assert relative_error(model(**prepared).logits, wanted["logits"]) <= FLOAT16_LOGITS
    assert {p.dtype for p in load_model(copy, torch.float32).parameters()} == {torch.float32}


# Tensors


def test_stray_tensors_are_tolerated(copy):
    change_tensors(
        copy, lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    )
    change_tensors(
        copy / "clip", lambda t: t | {"vision_model.embeddings.position_ids": torch.arange(17)}
    )
    load_model(copy)


def test_problems_are_listed(copy):
    table = "transformer.wte.weight" if copy.name == "llava_mpt" else "model.embed_tokens.weight"
    norm = "transformer.norm_f.weight" if copy.name == "llava_mpt" else "model.norm.weight"

    def spoil(tensors):
        if table in tensors:
            tensors |= {table: tensors[table][:, :-1].clone(), "extra.weight": torch.ones(1)}
        tensors.pop(norm, None)
        return tensors

    change_tensors(copy, spoil)
    change_tensors(
        copy / "clip",
        lambda t: {n: v for n, v in t.items() if n != "vision_model.pre_layrnorm.bias"},
    )
    with pytest.raises(CheckpointError) as caught:
        load_model(copy)
    message = str(caught.value)
    assert "unexpected extra.weight" in message
    assert f"mis-shaped {table}" in message
    assert "norm" in message.split("missing language_model", 1)[1].split(";")[0]
    assert "missing image_encoder.pre_layrnorm.bias" in message


# The tower


def test_the_layers_are_those_up_to_the_selected_state(tmp_path):
    """All hidden states can be selected, and they are those of the whole tower."""
    config = json.loads((GOLDEN / "llava_mpt/clip/config.json").read_text())["vision_config"]
    whole = CLIPVisionModel(CLIPVisionConfig(**config)).eval()
    tensors = load_file(GOLDEN / "llava_mpt/clip/model.safetensors")
    names = set(whole.state_dict())
    prefixed = {n.removeprefix("vision_model."): t for n, t in tensors.items()}
    whole.load_state_dict({n: t for n, t in prefixed.items() if n in names})
    pixels = expected("llava_mpt")["pixel_values"]
    folder = copy_of("llava_mpt", tmp_path)
    with torch.inference_mode():
        states = whole(pixels, output_hidden_states=True).hidden_states
        for select in (-1, -2, -4, -5, 3, 0):
            change_config(folder, mm_vision_select_layer=select)
            model = load_model(folder)
            wanted = states[select] if select else whole.pre_layrnorm(whole.embeddings(pixels))
            assert_close(model.image_encoder(pixels).last_hidden_state, wanted)


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
    alone = {n: t for n, t in tensors.items() if n.startswith("vision_model.")}
    (tower / "model.safetensors").unlink()
    for prefix in ("vision_model.", ""):
        named = {prefix + n.removeprefix("vision_model."): t for n, t in alone.items()}
        torch.save(named, tower / "pytorch_model.bin")
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
    asked = []

    def download(name, *, wanted):
        asked.append((name, list(wanted)))
        return hub

    monkeypatch.setattr("helpers.models.clip.download", download)
    load_processor(folder)
    assert asked == [(FULL_ID, ["config.json"])]
    load_model(folder)
    assert asked[-1] == (FULL_ID, ["config.json", "model*.safetensors*"])


def test_a_config_that_names_the_tower_s_shape_needs_no_tower(copy, monkeypatch):
    """As in a converted folder, whose config.json is the processor's."""
    processor = load_processor(copy)
    (copy / "config.json").write_text(json.dumps(processor.config), encoding="utf-8")
    shutil.rmtree(copy / "clip")
    again = load_processor(copy)
    assert again.tokens_per_picture == processor.tokens_per_picture


def test_a_damaged_tower(copy):
    save_file({}, copy / "clip" / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing image_encoder"):
        load_model(copy)
    (copy / "clip" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_model(copy)


@pytest.mark.parametrize(
    "changes",
    [{"mm_vision_select_feature": "cls_patch"}, {"mm_vision_select_layer": "last"}],
)
def test_configs_that_cannot_be_read(tmp_path, changes):
    with pytest.raises(CheckpointError):
        load_model(copy_of("llava_mpt", tmp_path, **changes))


@torch.inference_mode()
def assert_features(model, name: str) -> None:
    wanted = expected(name)
    assert_close(model.encode_images(wanted["pixel_values"]), wanted["image_features"])
