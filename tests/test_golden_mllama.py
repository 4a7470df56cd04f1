"""Llama-3.2-Vision against the authors' own results."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from helpers.errors import CheckpointError
from helpers.graphs.tracing import trace
from helpers.models import load_model, load_processor
from helpers.models.exported import collate
from helpers.models.mllama import (
    CrossAttentionKeysValues,
    DecoderWithPicture,
    Mllama,
    MllamaProcessor,
    corrected_vision_fields,
    text_config,
)
from helpers.models.mllama.model import CHAT_TEMPLATE
from helpers.sources.checkpoints import BUNDLED, read_config
from helpers.upstream import transformers as upstream
from tests.golden_checks import (
    GOLDEN,
    TOLERANCE,
    assert_close,
    assert_pixels,
    change_type,
    check_original_tensors,
    conversations,
    copy_of,
    golden_pixels,
    golden_prompts,
    golden_results,
    loading_error,
    relative_error,
)

FAMILY = "mllama"
CASES = range(3)  # 1 x 1, 2 x 2 and 1 x 2 tiles
IMAGE_INPUTS = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
PROMPTS = golden_prompts(FAMILY)
# Measured with bfloat16 copies: 0.015 for states, 0.024 for logits; exported 0.010.
BFLOAT16_TOLERANCE = 0.05


@pytest.fixture(scope="module")
def model() -> Mllama:
    return load_model(GOLDEN / FAMILY)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return golden_results(FAMILY)


def _image_inputs(expected, case: int) -> dict[str, Tensor]:
    return {name: expected[f"{name}.{case}"] for name in IMAGE_INPUTS}


def _features(model, expected, case: int):
    return model.encode_images(**_image_inputs(expected, case))


# The model


@pytest.mark.parametrize("case", CASES)
def test_vision_hidden_and_states(model, expected, case):
    hidden = model.image_encoder(**_image_inputs(expected, case)).last_hidden_state
    assert_close(hidden, expected[f"vision_hidden.{case}"])
    [states] = _features(model, expected, case)
    assert_close(states, expected[f"cross_attention_states.{case}"])


@pytest.mark.parametrize("case", CASES)
def test_logits(model, expected, case):
    mask = expected[f"cross_attention_mask.{case}"]
    features = _features(model, expected, case)
    prepared = model.prepare(expected[f"input_ids.{case}"], features, cross_attention_mask=mask)
    assert_close(model(**prepared).logits, expected[f"logits.{case}"])


@pytest.mark.parametrize("case", CASES)
def test_mask_from_the_prompt(model, expected, case):
    prepared = model.prepare(expected[f"input_ids.{case}"], _features(model, expected, case))
    mask = expected[f"cross_attention_mask.{case}"]
    assert torch.equal(prepared["cross_attention_mask"], mask)


def test_logits_of_text_only(model, expected):
    prepared = model.prepare(expected["text_only.input_ids"])
    assert "cross_attention_mask" not in prepared
    assert_close(model(**prepared).logits, expected["text_only.logits"])


def _greedy(model, ids: Tensor, features, steps: int) -> list[list[int]]:
    start = ids.shape[1]
    for _ in range(steps):
        logits = model(**model.prepare(ids, features)).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids[:, start:].tolist()


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens(model, expected, case):
    features, tokens = _features(model, expected, case), expected[f"greedy_tokens.{case}"]
    actual = _greedy(model, expected[f"input_ids.{case}"], features, tokens.shape[1])
    assert actual == tokens.tolist()


def test_greedy_tokens_of_text_only(model, expected):
    tokens = expected["text_only.greedy_tokens"]
    actual = _greedy(model, expected["text_only.input_ids"], None, tokens.shape[1])
    assert actual == tokens.tolist()


def _in_bfloat16(folder: Path) -> Path:
    copy = copy_of(FAMILY, folder)
    change_type(copy, torch.bfloat16)
    return copy


def test_bfloat16_is_kept(tmp_path, expected):
    model = load_model(_in_bfloat16(tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for case in CASES:
        features = _features(model, expected, case)
        states = expected[f"cross_attention_states.{case}"]
        assert_close(features[0], states, BFLOAT16_TOLERANCE)
        logits = model(**model.prepare(expected[f"input_ids.{case}"], features)).logits
        assert_close(logits, expected[f"logits.{case}"], BFLOAT16_TOLERANCE)


def test_tensors_that_do_not_fit_are_listed(tmp_path):
    def change(tensors):
        del tensors["multi_modal_projector.bias"]
        tensors["vision_model.class_embedding"] = tensors["vision_model.class_embedding"][1:]
        return tensors | {"vision_model.other": torch.zeros(1)}

    message = loading_error(copy_of(FAMILY, tmp_path), change)
    assert "missing projector.bias" in message
    assert "mis-shaped vision_model.class_embedding" in message
    assert "unexpected vision_model.other" in message


def test_saving_gives_the_original_tensors(model):
    check_original_tensors(model, FAMILY)


# The vision states that transformers collects one layer late


@pytest.mark.parametrize(
    ("late", "indices"), [(True, [2, 6, 14, 22, 29]), (False, [3, 7, 15, 23, 30])]
)
def test_indices_are_corrected_where_needed(monkeypatch, late, indices):
    monkeypatch.setattr(upstream, "MLLAMA_COLLECTS_OUTPUTS", late)
    fields = {"intermediate_layers_indices": [3, 7, 15, 23, 30]}
    assert corrected_vision_fields(fields) == {"intermediate_layers_indices": indices}
    assert fields == {"intermediate_layers_indices": [3, 7, 15, 23, 30]}


def test_the_input_of_layer_0_is_refused(monkeypatch):
    monkeypatch.setattr(upstream, "MLLAMA_COLLECTS_OUTPUTS", True)
    with pytest.raises(CheckpointError, match="the input of layer 0"):
        corrected_vision_fields({"intermediate_layers_indices": [0, 2]})


# What is exported


def _empty_past(model) -> list[Tensor]:
    text = model.language_model.config
    layers = text.num_hidden_layers - len(text.cross_attention_layers)
    heads = text.num_key_value_heads
    size = text.hidden_size // text.num_attention_heads
    return [torch.zeros(1, heads, 0, size)] * (2 * layers)


def _export_inputs(model, expected, case: int | None) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return the prompt's inputs, the picture's keys and values, and the expected logits."""
    pictures = CrossAttentionKeysValues(model)(**_image_inputs(expected, case or 0))
    if case is None:
        ids, logits = expected["text_only.input_ids"], expected["text_only.logits"]
        mask = torch.zeros(1, ids.shape[1], 1, 4, dtype=torch.int64)
        pictures = [torch.zeros_like(tensor) for tensor in pictures]
    else:
        ids, logits = expected[f"input_ids.{case}"], expected[f"logits.{case}"]
        mask = expected[f"cross_attention_mask.{case}"]
    prepared = model.prepare(ids)
    inputs = [prepared[name] for name in ("inputs_embeds", "attention_mask", "position_ids")]
    return [*inputs, mask, torch.tensor([float(case is not None)])], list(pictures), logits


def _first(inputs: list[Tensor], length: int) -> list[Tensor]:
    return [tensor[:, :length] for tensor in inputs[:4]] + inputs[4:]


@pytest.mark.parametrize("case", [*CASES, None])
def test_decoder_with_picture_at_every_length(model, expected, case):
    decoder = DecoderWithPicture(model.language_model, model.image_encoder.num_patches)
    inputs, pictures, logits = _export_inputs(model, expected, case)
    rows = [
        decoder(*_first(inputs, length), *pictures, *_empty_past(model))[0]
        for length in range(1, logits.shape[1] + 1)
    ]
    assert_close(torch.cat(rows, dim=1), logits)


@pytest.mark.parametrize("case", [*CASES, None])
def test_greedy_tokens_with_the_cache(model, expected, case):
    decoder = DecoderWithPicture(model.language_model, model.image_encoder.num_patches)
    inputs, pictures, _ = _export_inputs(model, expected, case)
    answer = expected["text_only.greedy_tokens" if case is None else f"greedy_tokens.{case}"]
    mask, has_picture = inputs[3:]
    length, past, tokens = inputs[1].shape[1], _empty_past(model), []
    for _ in range(answer.shape[1]):
        logits, *past = decoder(*inputs, *pictures, *past)
        tokens.append(int(logits.argmax()))
        length += 1
        inputs = [
            model.embed_tokens(torch.tensor([tokens[-1:]])),
            torch.ones(1, length, dtype=torch.int64),
            torch.tensor([[length - 1]]),
            mask[:, -1:],
            has_picture,
        ]
    assert [tokens] == answer.tolist()


def test_masking_is_not_the_same_as_no_picture(model, expected):
    decoder = DecoderWithPicture(model.language_model, model.image_encoder.num_patches)
    inputs, _, logits = _export_inputs(model, expected, None)
    _, pictures, _ = _export_inputs(model, expected, 0)
    masked = decoder(*inputs[:4], torch.ones(1), *pictures, *_empty_past(model))[0]
    assert relative_error(masked, logits[:, -1:]) > 1e-3


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_exported_models(expected, dtype):
    import openvino as ov

    model = load_model(GOLDEN / FAMILY, dtype)
    cases = {case: _export_inputs(load_model(GOLDEN / FAMILY), expected, case) for case in CASES}
    cases[None] = _export_inputs(load_model(GOLDEN / FAMILY), expected, None)
    accurate = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": 1}
    compiled = [
        ov.Core().compile_model(trace(part), "CPU", accurate)
        for part in (model.image_encoder_part(), model.language_model_part())
    ]
    tolerance = TOLERANCE if dtype is None else BFLOAT16_TOLERANCE
    for case, (inputs, zeros, logits) in cases.items():
        pictures = [tensor.numpy() for tensor in zeros]
        if case is not None:
            images = [tensor.numpy() for tensor in _image_inputs(expected, case).values()]
            pictures = list(compiled[0](images).values())
        past = [tensor.numpy() for tensor in _empty_past(model)]
        result = compiled[1]([tensor.numpy() for tensor in inputs] + pictures + past)
        assert_close(torch.from_numpy(result["logits"]), logits[:, -1:], tolerance)


def test_a_short_context_is_no_warning(caplog, capfd):
    config = read_config(GOLDEN / FAMILY)
    fields = config["text_config"] | {"max_position_embeddings": 64}
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    text_config(fields | {"rope_scaling": rope | {"original_max_position_embeddings": 128}})
    assert not caplog.records and capfd.readouterr().err == ""


# Pictures


def _processor_of_560() -> MllamaProcessor:
    config = read_config(GOLDEN / FAMILY)
    config["vision_config"] |= {"image_size": 560}
    return MllamaProcessor(GOLDEN / FAMILY, config)


@pytest.mark.parametrize("entry", golden_pixels("mllama_560"), ids=lambda entry: entry["file"])
def test_tiles(entry):
    with Image.open(GOLDEN / "preprocessing" / entry["file"]) as picture:
        inputs = _processor_of_560().image_inputs([picture])
    assert inputs["aspect_ratio_ids"].tolist() == [[entry["aspect_ratio_id"]]]
    assert inputs["aspect_ratio_mask"].tolist() == [[entry["aspect_ratio_mask"]]]
    assert inputs["pixel_values"].shape == (1, 1, 4, 3, 560, 560)
    tiles = inputs["pixel_values"][0, 0]
    assert not tiles[entry["num_tiles"] :].any()
    for tile, figures in zip(tiles[: entry["num_tiles"]], entry["tiles"], strict=True):
        assert_pixels(tile, figures)


def test_several_pictures(model):
    inputs = model.image_inputs([Image.new("RGB", (28, 28)), Image.new("LA", (60, 30))])
    assert inputs["pixel_values"].shape == (1, 2, 4, 3, 28, 28)
    features = model.encode_images(**inputs)
    assert [states.shape for states in features] == [(4, 5, 48)] * 2
    assert features.tiles == [1, 2]
    ids = torch.tensor([[3, 97, 4, 97, 5, 6]])
    prepared = model.prepare(ids, features)
    # Tiles of each picture that a token sees
    visible_tiles = prepared["cross_attention_mask"][0].sum(-1)
    assert visible_tiles.tolist() == [[0, 0], [1, 0], [1, 0], [0, 2], [0, 2], [0, 2]]
    assert model(**prepared).logits.shape == (1, 6, 97)


def test_more_pictures_than_places(model, expected):
    features = _features(model, expected, 0)
    with pytest.raises(CheckpointError, match=r"has 0 <\|image\|> tokens for 1 pictures"):
        model.prepare(expected["text_only.input_ids"], features)


def test_batch_of_prompts_with_different_pictures(model, expected):
    prompts = [
        model.prepare(expected[f"input_ids.{case}"][:, :length], _features(model, expected, case))
        for case, length in ((0, 12), (1, 9))
    ]
    logits = model(**collate(prompts)).logits
    assert_close(logits[0], expected["logits.0"][0])
    assert_close(logits[1, 3:], expected["logits.1"][0, :9])


# Prompts

QUESTION = conversations()["one_turn"][0]


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(name):
    processor = load_processor(BUNDLED / FAMILY)
    [picture] = processor.image_strings({"aspect_ratio_ids": torch.ones(1, 1)})
    rendered = processor.template.render(conversations()[name])
    assert rendered.replace("<image>", picture) == PROMPTS[name]


# The published template refuses words of the system beside a picture.
REFUSING = """{%- if messages[0].role == "system" %}
{{- raise_exception("Prompting with images is incompatible with system messages.") }}
{%- endif %}
"""


@pytest.mark.parametrize(
    ("text", "end", "system"),
    [
        (CHAT_TEMPLATE, "<|eot_id|>", "system<|end_header_id|>"),
        (REFUSING + CHAT_TEMPLATE, "<|eot_id|>", "system<|end_header_id|>"),
        (CHAT_TEMPLATE.replace("eot_id", "eom_id"), "<|eom_id|>", "system<|end_header_id|>"),
        (CHAT_TEMPLATE.replace("+ message.role +", '+ "a " + message.role +'), "<|eot_id|>", "a s"),
    ],
    ids=["published", "refusing the system", "another end", "other roles"],
)
@pytest.mark.parametrize("name", ["chat_template.json", "chat_template.jinja"])
def test_a_chat_template_with_other_words_is_read(text, end, system, name, tmp_path):
    folder = shutil.copytree(BUNDLED / FAMILY, tmp_path / "trained")
    (folder / "chat_template.jinja").unlink()
    content = json.dumps({"chat_template": text}) if name.endswith("json") else text
    (folder / name).write_text(content, encoding="utf-8")
    template = load_processor(folder).template
    assert template.assistant_end == end
    assert template.system_form.startswith(f"<|begin_of_text|><|start_header_id|>{system}")
    is_published = load_processor(BUNDLED / FAMILY).template == template
    assert is_published == (text in (CHAT_TEMPLATE, REFUSING + CHAT_TEMPLATE))


def test_stop_tokens(tmp_path):
    config = read_config(GOLDEN / FAMILY)
    assert MllamaProcessor(tmp_path, config).stop_token_ids == [2]
    generation = {"eos_token_id": [128001, 128008, 128009]}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    assert MllamaProcessor(tmp_path, config).stop_token_ids == [128001, 128008, 128009]


def _tokenizer_folder(folder: Path) -> Path:
    """Write a `tokenizer.json` of bytes that puts BOS in front, as Llama 3's does."""
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    vocabulary = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "<|image|>"]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in (*special, "<|image|>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_input_ids(tmp_path):
    config = read_config(GOLDEN / FAMILY) | {"image_token_index": 4 + 256}
    processor = MllamaProcessor(_tokenizer_folder(tmp_path), config)
    inputs = processor.image_inputs([Image.new("RGB", (60, 30))])
    ids = processor.input_ids([QUESTION], inputs)
    assert (ids == 0).sum() == 1
    assert (ids == 260).sum() == 1
    tokens = processor.tokenizer.convert_ids_to_tokens(ids[0])
    assert tokens[:2] == ["<|begin_of_text|>", "<|start_header_id|>"]


def test_a_tokenizer_with_another_image_token(tmp_path):
    processor = MllamaProcessor(_tokenizer_folder(tmp_path), read_config(GOLDEN / FAMILY))
    with pytest.raises(CheckpointError, match=r"does not have <\|image\|> at 97"):
        _ = processor.tokenizer
