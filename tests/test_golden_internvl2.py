"""InternVL2, with each of its three language models, against its authors' code."""

import io
import json
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import sentencepiece
import torch
from PIL import Image
from sentencepiece import sentencepiece_model_pb2
from transformers import LlamaTokenizer

from helpers.convert.conversion import convert
from helpers.errors import CheckpointError
from helpers.graphs.presets import find_preset
from helpers.inputs.messages import user_message
from helpers.models import load_model, load_processor
from helpers.models.internvl2 import IMAGE_MEAN, IMAGE_STD, InternVL2Processor
from helpers.models.internvl2.chats import CHATS
from helpers.run.generation import StatefulLanguageModel
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.sources.checkpoints import BUNDLED, read_config
from tests.golden_checks import (
    GOLDEN,
    assert_close,
    change_config,
    change_tensors,
    change_type,
    check_original_tensors,
    compiled,
    conversations,
    copy_of,
    generate,
    golden_pixels,
    golden_prompts,
    golden_results,
    greedy,
    loading_error,
    stateful,
)

NAMES = ("internvl2_qwen2", "internvl2_internlm2", "internvl2_phi3")
LENGTHS = (20, 38)  # Phi-3's frequencies change beyond 32
# Measured with bfloat16 copies: 0.014 for features, 0.038 for logits.
BFLOAT16_TOLERANCE = 0.05


@pytest.fixture(scope="module", params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return load_model(GOLDEN / name)


@pytest.fixture(scope="module")
def expected(name) -> dict[str, torch.Tensor]:
    return golden_results(name)


# The model


@torch.inference_mode()
def test_features(model, expected):
    features = model.encode_images(expected["pixel_values"])
    assert_close(features, expected["image_features"])
    assert model.processor.image_token_id == int(expected["image_token_id"])
    assert features.shape[1] == model.processor.tokens_per_tile


@torch.inference_mode()
@pytest.mark.parametrize("length", LENGTHS)
def test_logits(model, expected, length):
    prepared = model.prepare(expected[f"input_ids.{length}"], expected["image_features"])
    assert_close(model(**prepared).logits, expected[f"logits.{length}"])


def test_greedy_tokens(model, expected):
    prepared = model.prepare(expected["input_ids.38"], expected["image_features"])
    tokens = expected["greedy_tokens_of_longest_input"].tolist()
    assert greedy(model, prepared, len(tokens)) == tokens


@torch.inference_mode()
def test_bfloat16_is_kept(name, expected, tmp_path):
    folder = copy_of(name, tmp_path)
    change_type(folder, torch.bfloat16)
    model = load_model(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    features = model.encode_images(expected["pixel_values"].bfloat16())
    assert_close(features, expected["image_features"], BFLOAT16_TOLERANCE)
    for length in LENGTHS:
        logits = model(**model.prepare(expected[f"input_ids.{length}"], features)).logits
        assert_close(logits, expected[f"logits.{length}"], BFLOAT16_TOLERANCE)


def test_tensors_that_do_not_fit_are_listed(name, tmp_path):
    def change(tensors):
        del tensors["mlp1.3.bias"]
        tensors["vision_model.encoder.layers.1.ls1"] = torch.ones(31)
        tensors["language_model.model.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(3)
        return tensors | {"mlp1.2.weight": torch.zeros(1)}

    message = loading_error(copy_of(name, tmp_path), change)
    assert "missing projector.linear_2.bias" in message
    assert "mis-shaped vision_model.encoder.layers.1.ls1: (31,), not (32,)" in message
    assert "unexpected mlp1.2.weight" in message
    assert message.count(";") == 3  # between three problems, and before what to do


def test_saving_gives_the_original_tensors(name, model):
    check_original_tensors(model, name)


def test_a_language_model_that_is_not_known(tmp_path):
    llm = read_config(GOLDEN / NAMES[0])["llm_config"] | {"architectures": ["GemmaForCausalLM"]}
    with pytest.raises(CheckpointError, match='"GemmaForCausalLM" in .* is none of Qwen2'):
        load_model(copy_of(NAMES[0], tmp_path, llm_config=llm))


# OpenVINO


@pytest.fixture(scope="module")
def converted(model) -> StatefulLanguageModel:
    return stateful(model)


@pytest.fixture(scope="module")
def encoder(model) -> ov.CompiledModel:
    return compiled(model.image_encoder_part())


@torch.inference_mode()
def test_openvino_encodes_any_number_of_tiles(model, encoder, expected):
    tiles = torch.cat([expected["pixel_values"], expected["pixel_values"][:1].flip(3)])
    for number in (1, 2, 3):
        features = torch.from_numpy(encoder(tiles[:number].numpy())[0])
        assert_close(features, model.encode_images(tiles[:number]), 1e-4)
    assert_close(features[:2], expected["image_features"], 1e-4)


def test_openvino_fuses_attention(encoder, converted):
    for compiled_model in (encoder, converted.language_model):
        nodes = compiled_model.get_runtime_model().get_ops()
        kinds = [node.get_rt_info()["layerType"].astype(str) for node in nodes]
        assert not any("oftmax" in kind for kind in kinds)
    assert kinds.count("ScaledDotProductAttention") == 3  # the language model's layers


def test_openvino_logits(model, converted, expected):
    """Both lengths, the longer one beginning below Phi-3's first length and ending above it."""
    for length in LENGTHS:
        prepared = model.prepare(expected[f"input_ids.{length}"], expected["image_features"])
        embeddings, logits = prepared["inputs_embeds"], expected[f"logits.{length}"]
        cache = converted.new_cache()
        for start, stop in ((0, 15), (15, 16), (16, length)):
            output = converted(inputs_embeds=embeddings[:, start:stop], past_key_values=cache)
        assert cache.length == length
        assert_close(output.logits[0, -1], logits[0, -1], 1e-4)


def test_openvino_greedy_tokens(model, converted, expected):
    prepared = model.prepare(expected["input_ids.38"], expected["image_features"])
    tokens = expected["greedy_tokens_of_longest_input"].tolist()
    output = generate(converted, prepared["inputs_embeds"], max_new_tokens=len(tokens))
    assert output[0].tolist() == tokens


def test_openvino_beams(model, converted, expected):
    prepared = model.prepare(expected["input_ids.38"], expected["image_features"])
    embeddings = prepared["inputs_embeds"]
    options = {"num_beams": 3, "max_new_tokens": 8}
    tokens = generate(model.language_model, embeddings, **options)
    assert torch.equal(generate(converted, embeddings, **options), tokens)


# Phi-3's longer frequencies


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("start", [1, 30, 32, 33])
def test_a_generation_that_crosses_the_first_length(model, converted, start, beams):
    """transformers computes all positions anew when it crosses, if it is given token ids."""
    ids = torch.randint(0, 90, (2, start), generator=torch.Generator().manual_seed(start))
    mask = torch.ones_like(ids)
    mask[1, : start // 3] = 0
    options = {
        "attention_mask": mask,
        "num_beams": beams,
        "max_new_tokens": 44 - start,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    tokens = model.language_model.generate(ids, **options)
    assert torch.equal(converted.generate(ids, **options), tokens)


def test_only_phi3_prefills_again(name, model):
    limit = 32 if name == "internvl2_phi3" else None
    assert model.processor.exported.prefill_again_beyond == limit


# Pictures


def full_size_processor() -> InternVL2Processor:
    config = read_config(GOLDEN / NAMES[0]) | {"force_image_size": 448}
    return InternVL2Processor(GOLDEN / NAMES[0], config)


def test_tile_counts():
    processor = full_size_processor().image_processor
    entries = golden_pixels("internvl2_tile_counts")
    counts = [processor.get_number_of_image_patches(*entry["size"][::-1], {}) for entry in entries]
    assert len(counts) == 200
    assert counts == [entry["tiles"] for entry in entries]


@pytest.mark.parametrize("entry", golden_pixels("pixels"), ids=lambda entry: entry["file"])
def test_pixels(entry):
    with Image.open(GOLDEN / "preprocessing" / entry["file"]) as picture:
        inputs = full_size_processor().image_inputs([picture])
    tiles = entry["internvl2_tiles"]
    assert inputs["tiles"].tolist() == [len(tiles)]
    assert inputs["pixel_values"].shape == (len(tiles), 3, 448, 448)
    rows, columns = [0, 224, 447, 149], [0, 224, 447, 298]
    for pixels, figures in zip(inputs["pixel_values"], tiles, strict=True):
        colours = (
            pixels.permute(1, 2, 0) * torch.tensor(IMAGE_STD) + torch.tensor(IMAGE_MEAN)
        ) * 255
        assert np.allclose(colours.mean((0, 1)), figures["mean"], atol=1e-3)
        assert np.allclose(colours[rows, columns], figures["pixels"], atol=1e-3)


# Prompts


@pytest.mark.parametrize("template", [name for name in CHATS if name != "internvl2_5"])
def test_prompts(template):
    expected = golden_prompts(f"internvl2/{template}")
    for name, messages in conversations().items():
        assert CHATS[template].template(None).render(messages) == expected[name]


def test_expansion(monkeypatch):
    expected = golden_prompts("internvl2_expansion")
    monkeypatch.setattr(InternVL2Processor, "tokens_per_tile", expected["tokens_per_tile"])
    processor = full_size_processor()
    strings = iter(processor.image_strings({"tiles": torch.tensor(expected["tiles"])}))
    pieces = processor.template.pieces([user_message("Compare.", 2)], first=False)
    text = "".join(next(strings) if piece.kind == "image" else piece.text for piece in pieces)
    assert expected["expanded"] in text


def test_an_unknown_template(tmp_path):
    processor = load_processor(copy_of(NAMES[0], tmp_path, template="vicuna"))
    with pytest.raises(CheckpointError, match='"vicuna" in config.json is none of Hermes-2'):
        _ = processor.template


# Tokenizers


def tokenizer_folder(name: str, folder: Path, *, vocabulary: int = 1000) -> Path:
    """Copy a golden checkpoint without the ids that it lists, for a tokenizer of its own."""
    copy = copy_of(name, folder)
    (copy / "added_tokens.json").unlink()
    change_config(copy, llm_config=read_config(copy)["llm_config"] | {"vocab_size": vocabulary})
    return copy


def internlm2_folder(folder: Path, **options) -> Path:
    copy = tokenizer_folder("internvl2_internlm2", folder, **options)
    for file in (GOLDEN / "internlm2_tokenizer").glob("tokenizer*"):
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_internlm2_texts(tmp_path):
    tokenizer = load_processor(internlm2_folder(tmp_path)).tokenizer
    path = GOLDEN / "internlm2_tokenizer" / "expected.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    assert len(entries) == 80
    for entry in entries:
        assert tokenizer(entry["text"])["input_ids"] == entry["ids"]
        assert tokenizer.decode(entry["ids"]) == "<s>" + entry["text"]


def test_internlm2_ids(tmp_path):
    processor = load_processor(internlm2_folder(tmp_path))
    assert processor.image_token_id == 522
    assert processor.stop_token_ids == [2, 7]
    ids = processor.input_ids([user_message("Is <|im_end|> a word?", 1)], {"tiles": [1]})[0]
    assert (ids == 522).sum() == processor.tokens_per_tile
    assert (ids == 7).sum() == 2  # of the system message and the question
    later = processor.turn_ids(user_message("And this?"), first=False)
    assert later[0] == 8  # and no BOS


def test_internlm2_ids_beyond_the_vocabulary(tmp_path):
    processor = load_processor(internlm2_folder(tmp_path, vocabulary=522))
    with pytest.raises(CheckpointError, match="<IMG_CONTEXT> at 522, but the model needs it below"):
        _ = processor.tokenizer


def test_internlm2_files_that_do_not_belong_together(tmp_path):
    folder = internlm2_folder(tmp_path)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((folder / "tokenizer.model").read_bytes())
    del model.pieces[-1]
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="do not belong together; take both from the same"):
        _ = load_processor(folder).tokenizer


@pytest.mark.parametrize("content", [None, b"not a model", b""])
def test_internlm2_without_a_readable_model(tmp_path, content):
    folder = internlm2_folder(tmp_path)
    (folder / "tokenizer.model").unlink()
    if content is not None:
        (folder / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match="tokenizer.model"):
        _ = load_processor(folder).tokenizer


PHI3_TOKENS = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
INTERNVL_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>"]


def phi3_folder(folder: Path, *, as_json: bool) -> Path:
    """Write a small tokenizer in Phi-3's form: Llama's, with tokens that eat the space behind."""
    copy = tokenizer_folder("internvl2_phi3", folder)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["What is in the picture? How many circles are red?"] * 3),
        model_writer=model,
        vocab_size=300,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (copy / "tokenizer.model").write_bytes(model.getvalue())
    first = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    tokens = [
        {"content": token, "rstrip": token in PHI3_TOKENS, "special": True}
        | dict.fromkeys(("lstrip", "normalized", "single_word"), False)
        for token in (*PHI3_TOKENS, *INTERNVL_TOKENS)
    ]
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "legacy": False,
        "bos_token": "<s>",
        "eos_token": "<|end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
        "added_tokens_decoder": {first + index: token for index, token in enumerate(tokens)},
    }
    (copy / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if as_json:
        LlamaTokenizer.from_pretrained(copy).save_pretrained(copy)
        (copy / "tokenizer.model").unlink()
    return copy


@pytest.mark.parametrize("as_json", [True, False])
def test_phi3_ids(tmp_path, as_json):
    processor = load_processor(phi3_folder(tmp_path, as_json=as_json))
    tokenizer = processor.tokenizer
    first = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer.convert_tokens_to_ids("<|end|>") == first + 3
    assert processor.image_token_id == first + 7
    assert processor.stop_token_ids == [first + 3]
    ids = processor.input_ids([user_message("What is red?", 1)], {"tiles": [2]})[0].tolist()
    assert ids[:2] == [1, first + 2]
    assert ids.count(1) == 1
    assert ids.count(first + 7) == 2 * processor.tokens_per_tile
    assert ids[-1] == first + 1  # the newline behind it is eaten
    assert tokenizer.decode(ids).endswith("</img>\nWhat is red?<|end|><|assistant|>")


def test_the_bundled_tokenizer():
    processor = load_processor(BUNDLED / "internvl2")
    tokenizer = processor.tokenizer
    assert processor.image_token_id == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert processor.stop_token_ids == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


@pytest.mark.parametrize("room", [3, 14])
def test_a_conversation_that_crosses_the_first_length(tmp_path, room):
    """It crosses while it answers the first question, or with the second question."""
    checkpoint = phi3_folder(tmp_path, as_json=True)
    picture, question = Image.new("RGB", (56, 56), "teal"), user_message("What is red?", 1)
    processor = load_processor(checkpoint)
    rows = len(processor.tokenizer)
    prompt = processor.turn_ids(question, {"tiles": [1]})
    table = torch.randn(rows, 48, generator=torch.Generator().manual_seed(0)) / 8
    names = [f"language_model.{name}.weight" for name in ("model.embed_tokens", "lm_head")]
    change_tensors(checkpoint, lambda tensors: tensors | {name: table.clone() for name in names})
    llm = processor.config["llm_config"] | {
        "vocab_size": rows,
        "max_position_embeddings": 1024,
        "original_max_position_embeddings": len(prompt) + room,
    }
    change_config(checkpoint, llm_config=llm)
    convert(checkpoint, tmp_path / "converted", find_preset("fp16"))
    conversation = VisionLanguagePipeline(tmp_path / "converted", accuracy=True).conversation()
    replies = [conversation.ask("What is red?", [picture], max_new_tokens=8)]
    replies[0].wait()
    replies.append(conversation.ask("How many?", max_new_tokens=8))
    model = load_model(checkpoint)
    features = model.encode_images(**model.image_inputs([picture]))
    for reply in replies:
        prepared = model.prepare(torch.tensor([reply.prompt_ids]), features)
        assert greedy(model, prepared, len(reply.token_ids)) == reply.token_ids
    assert len(replies[0].token_ids) == 8


def test_a_token_without_an_id(tmp_path):
    folder = copy_of(NAMES[0], tmp_path)
    (folder / "added_tokens.json").write_text('{"<img>": 95}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="has no <IMG_CONTEXT> among the rows"):
        _ = load_processor(folder).image_token_id
