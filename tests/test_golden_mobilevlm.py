"""MobileVLM and MobileVLM V2 against their authors' code."""

import io
import shutil

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file

from helpers.convert.conversion import convert
from helpers.errors import CheckpointError
from helpers.graphs.presets import find_preset
from helpers.inputs.images import open_picture
from helpers.inputs.messages import user_message
from helpers.models import load_model, load_processor
from helpers.models.clip import PLACEHOLDER
from helpers.models.mobilevlm import LdpProjector, LdpV2Projector
from helpers.run.pipeline import VisionLanguagePipeline
from tests.golden_checks import (
    GOLDEN,
    assert_close,
    assert_pixels,
    change_config,
    change_tensors,
    conversations,
    copy_of,
    golden_pixels,
    golden_prompts,
    golden_results,
    greedy,
)
from tests.test_golden_llava_mpt import authors_ids

VERSIONS = {"mobilevlm": LdpProjector, "mobilevlm_v2": LdpV2Projector}
INSIDE = "model.vision_tower.vision_tower."


@pytest.mark.parametrize("name", VERSIONS)
def test_the_projector_is_the_one_that_config_names(name):
    assert type(load_model(GOLDEN / name).projector) is VERSIONS[name]


def put_tower_inside(folder, factor: float) -> None:
    """Put the tower of `folder`, its weights times `factor`, into the checkpoint itself."""
    tower = load_file(folder / "clip" / "model.safetensors")
    names = [name for name in tower if name.startswith("vision_model.")]
    vision = {INSIDE + name: tower[name] * factor for name in names}
    change_tensors(folder, lambda tensors: tensors | vision)


@torch.inference_mode()
def test_a_tower_inside_is_ignored_by_the_first_version(tmp_path):
    folder, expected = copy_of("mobilevlm", tmp_path), golden_results("mobilevlm")
    put_tower_inside(folder, 0.5)
    features = load_model(folder).encode_images(expected["pixel_values"])
    assert_close(features, expected["image_features"])


@torch.inference_mode()
def test_a_tower_inside_counts_for_v2(tmp_path):
    folder, expected = copy_of("mobilevlm_v2", tmp_path), golden_results("mobilevlm_v2")
    put_tower_inside(folder, 1.0)
    # The one outside is made wrong, then taken away but for its config.
    change_tensors(folder / "clip", lambda tensors: {name: tensors[name] * 0.5 for name in tensors})
    features = load_model(folder).encode_images(expected["pixel_values"])
    assert_close(features, expected["image_features"])
    (folder / "clip" / "model.safetensors").unlink()
    features = load_model(folder).encode_images(expected["pixel_values"])
    assert_close(features, expected["image_features"])


def test_an_incomplete_tower_inside_v2_is_told(tmp_path):
    folder = copy_of("mobilevlm_v2", tmp_path)
    put_tower_inside(folder, 1.0)
    missing = INSIDE + "vision_model.pre_layrnorm.weight"

    def cut(tensors):
        return {name: tensors[name] for name in tensors if name != missing}

    change_tensors(folder, cut)
    with pytest.raises(CheckpointError, match=r"missing image_encoder\.pre_layrnorm\.weight"):
        load_model(folder)


@pytest.mark.parametrize(
    ("projector", "problem"),
    [
        ("linear", 'The projector "linear" in config.json is none of ldpnet, ldpnetv2'),
        ("mlp2x_gelu", 'The projector "mlp2x_gelu" in config.json is none of ldpnet, ldpnetv2'),
        (None, "config.json names no projector, such as ldpnet, ldpnetv2"),
    ],
)
def test_an_unknown_projector(tmp_path, projector, problem):
    folder = copy_of("mobilevlm", tmp_path, mm_projector_type=projector)
    with pytest.raises(CheckpointError, match=problem):
        load_model(folder)


@pytest.mark.parametrize("side", [5, 8, 24])
@torch.inference_mode()
def test_the_number_of_tokens_is_what_the_projector_gives(side):
    for projector in VERSIONS.values():
        tokens = projector(32, 64)(torch.randn(2, side * side, 32))
        assert tokens.shape == (2, projector.side_after(side) ** 2, 64)


# Pictures and prompts


def test_pixels():
    processor = load_processor(GOLDEN / "mobilevlm_v2")
    for figures in golden_pixels("padded_336"):
        picture = open_picture(GOLDEN / "preprocessing" / figures["file"])
        assert_pixels(processor.image_inputs([picture])["pixel_values"][0], figures)
    assert processor.tokens_per_picture == 144


def test_prompts():
    template = load_processor(GOLDEN / "mobilevlm").template
    expected = golden_prompts("mobilevlm")
    for name, messages in conversations().items():
        assert template.render(messages) == expected[name]


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """Return a processor with a small sentencepiece tokenizer in Llama's form."""
    folder = copy_of("mobilevlm", tmp_path_factory.mktemp("tokens"))
    texts = [*golden_prompts("mobilevlm").values(), "How many circles are red or blue?"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 3),
        model_writer=model,
        vocab_size=360,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",  # these two as in Llama's own file
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return load_processor(folder)


def test_tokens_equal_sentencepiece_behind_a_bos(processor):
    pieces = sentencepiece.SentencePieceProcessor(str(processor.folder / "tokenizer.model"))
    for text in ("What is in the picture?", "USER: Hello\nthere  ASSISTANT:", "Grün, 红色 🙂"):
        ids = [1, *pieces.encode(text)]
        assert processor.tokenizer(text)["input_ids"] == ids
        twice = processor.tokenizer(f"{text}</s>{text}")["input_ids"]
        assert twice == [*ids, 2, *ids[1:]]


def test_tokens(processor):
    tokenizer = processor.tokenizer
    assert processor.stop_token_ids == [2]
    inputs = {"pixel_values": golden_results("mobilevlm")["pixel_values"]}
    for name, messages in conversations().items():
        ids = processor.input_ids(messages, inputs if name != "text_only" else None)
        prompt = processor.template.render(messages)
        assert ids.tolist() == [authors_ids(tokenizer, prompt, processor.tokens_per_picture)]
        assert ids[0].tolist().count(tokenizer.bos_token_id) == 1


def test_a_converted_folder_answers_without_the_tower(processor, tmp_path):
    """Two turns of a pipeline, the second from its cache, equal PyTorch on the whole prompt."""
    checkpoint = shutil.copytree(processor.folder, tmp_path / "checkpoint")
    rows = len(processor.tokenizer)
    table = torch.randn(rows, 64, generator=torch.Generator().manual_seed(0))
    names = ("model.embed_tokens.weight", "lm_head.weight")
    change_tensors(checkpoint, lambda tensors: tensors | dict.fromkeys(names, table))
    change_config(checkpoint, vocab_size=rows, max_position_embeddings=1024)
    model = load_model(checkpoint)
    convert(checkpoint, tmp_path / "converted", find_preset("fp16"))
    shutil.rmtree(checkpoint)
    pipeline = VisionLanguagePipeline(tmp_path / "converted", accuracy=True)
    picture = open_picture(GOLDEN / "preprocessing" / "sample_0.png")
    conversation = pipeline.conversation()
    conversation.ask("What is in the picture?", [picture], max_new_tokens=5).wait()
    first_turn = list(conversation.ids)
    reply = conversation.ask("What colour is it?", max_new_tokens=5)
    prompt = [*first_turn, *processor.turn_ids(user_message("What colour is it?"), first=False)]
    assert reply.token_ids and reply.prompt_ids == prompt
    features = model.encode_images(**model.image_inputs([picture]))
    prepared = model.prepare(torch.tensor([prompt]), features)
    assert greedy(model, prepared, len(reply.token_ids)) == reply.token_ids


def test_words_of_special_tokens_in_a_question_are_plain_text(processor):
    inputs = {"pixel_values": golden_results("mobilevlm")["pixel_values"]}
    ids = processor.input_ids([user_message("What is </s> or <s> or <image>?", 1)], inputs)[0]
    assert ids.tolist().count(2) == 0
    assert ids.tolist().count(1) == 1
    assert ids.tolist().count(PLACEHOLDER) == processor.tokens_per_picture
