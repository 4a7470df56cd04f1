"""LLaVA-MPT against its authors' code, and its attention against transformers' and OpenVINO's."""

import itertools

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import MptConfig, MptForCausalLM, PreTrainedTokenizerFast

from helpers.errors import CheckpointError
from helpers.graphs.parts import DecoderWithCache, decoder_example
from helpers.inputs.images import open_picture
from helpers.inputs.messages import user_message
from helpers.models import load_model, load_processor
from helpers.models.clip import PLACEHOLDER
from helpers.models.llava_mpt import RELEASE_SYSTEM, FusedMpt, alibi_slopes
from tests.golden_checks import (
    GOLDEN,
    assert_close,
    assert_pixels,
    change_tensors,
    compiled,
    conversations,
    copy_of,
    golden_pixels,
    golden_prompts,
    golden_results,
    relative_error,
)


@torch.inference_mode()
def test_two_pictures():
    model, expected = load_model(GOLDEN / "llava_mpt"), golden_results("llava_mpt")
    features = model.encode_images(expected["two_images.pixel_values"])
    prepared = model.prepare(expected["two_images.input_ids"], features)
    assert_close(prepared["inputs_embeds"], expected["two_images.inputs_embeds"])
    assert_close(model(**prepared).logits, expected["two_images.logits"])


@torch.inference_mode()
@pytest.mark.parametrize("rows", [50, 200])
def test_the_vocabulary_is_as_large_as_its_tensor(tmp_path, rows):
    folder = copy_of("llava_mpt", tmp_path, vocab_size=rows)
    model, expected = load_model(folder), golden_results("llava_mpt")
    assert model.processor.config["vocab_size"] == 105
    prepared = model.prepare(expected["input_ids"], model.encode_images(expected["pixel_values"]))
    assert_close(model(**prepared).logits, expected["logits"])
    assert model.language_model.lm_head.weight is model.language_model.transformer.wte.weight


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        (None, "no_bias", False),
        (None, "logit_scale", "inv_sqrt_d_model"),
        (None, "n_heads", "4"),
        (None, "attn_config", None),
        ("attn_config", "alibi", False),
        ("attn_config", "qk_ln", True),
        ("attn_config", "prefix_lm", True),
        ("attn_config", "attn_type", "multiquery_attention"),
    ],
)
def test_configs_that_cannot_be_read(tmp_path, section, name, value):
    change = {name: value}
    if section:
        change = {section: load_processor(GOLDEN / "llava_mpt").config[section] | change}
    with pytest.raises(CheckpointError, match=name if value is not None else "config"):
        load_model(copy_of("llava_mpt", tmp_path, **change))


def test_a_dropout_written_as_a_float_is_read(tmp_path):
    attention = load_processor(GOLDEN / "llava_mpt").config["attn_config"] | {"attn_pdrop": 0.0}
    load_model(copy_of("llava_mpt", tmp_path, attn_config=attention))


def test_a_mis_shaped_projector_is_named(tmp_path):
    folder = copy_of("llava_mpt", tmp_path)
    name = "transformer.mm_projector.weight"

    def cut(tensors):
        return tensors | ({name: tensors[name][:, :-1].clone()} if name in tensors else {})

    change_tensors(folder, cut)
    with pytest.raises(CheckpointError, match=f"mis-shaped {name}"):
        load_model(folder)


# Pictures and prompts


def test_pixels(tmp_path):
    vision = load_processor(GOLDEN / "llava_mpt").config["vision_config"] | {"image_size": 224}
    processor = load_processor(copy_of("llava_mpt", tmp_path, vision_config=vision))
    for figures in golden_pixels("clip_224"):
        picture = open_picture(GOLDEN / "preprocessing" / figures["file"])
        assert_pixels(processor.image_inputs([picture])["pixel_values"][0], figures)
    assert processor.tokens_per_picture == 256


def test_prompts(tmp_path):
    plain = load_processor(copy_of("llava_mpt", tmp_path, mm_use_im_start_end=False))
    marked = load_processor(GOLDEN / "llava_mpt")
    expected = golden_prompts("llava_mpt")
    for name, messages in conversations().items():
        assert plain.template.render(messages) == expected[name]
    messages = conversations()["one_turn"]
    assert marked.template.render(messages) == expected["one_turn_with_image_marks"]
    marked.system = RELEASE_SYSTEM
    assert marked.template.render(messages).startswith(expected["release_system"] + "<|im_end|>")


def byte_tokenizer(folder, extra=()):
    """Write a GPT-NeoX-like tokenizer of single bytes with MPT's chat tokens into `folder`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *extra]
    added = [AddedToken(token, special=True, normalized=False) for token in special]
    tokenizer.add_special_tokens(added)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end
    ).save_pretrained(folder)


def authors_ids(tokenizer, prompt: str, rows: int) -> list[int]:
    """Return ids as the authors' `tokenizer_image_token` does, with a placeholder a row."""
    chunks = [tokenizer(chunk)["input_ids"] for chunk in prompt.split("<image>")]
    bos = [tokenizer.bos_token_id] if chunks[0][:1] == [tokenizer.bos_token_id] else []
    ids = bos + chunks[0][len(bos) :]
    for chunk in chunks[1:]:
        ids += [PLACEHOLDER] * rows + chunk[len(bos) :]
    return ids


@pytest.mark.parametrize("present", [(), ("<im_patch>", "<im_start>", "<im_end>")])
def test_tokens(tmp_path, present):
    folder = copy_of("llava_mpt", tmp_path, vocab_size=262)
    byte_tokenizer(folder, present)
    processor = load_processor(folder)
    tokenizer = processor.tokenizer
    marks = ["<im_patch>", "<im_start>", "<im_end>"]
    assert tokenizer.convert_tokens_to_ids(marks) == [259, 260, 261]
    assert processor.stop_token_ids == [0, 258]
    inputs = {"pixel_values": golden_results("llava_mpt")["pixel_values"]}
    for name, messages in conversations().items():
        ids = processor.input_ids(messages, inputs if name != "text_only" else None)
        prompt = processor.template.render(messages)
        assert ids.tolist() == [authors_ids(tokenizer, prompt, processor.tokens_per_picture)]
    two = {"pixel_values": golden_results("llava_mpt")["two_images.pixel_values"]}
    ids = processor.input_ids([user_message("Compare.", 2)], two)
    assert int(processor.picture_positions(ids).sum()) == 2 * processor.tokens_per_picture
    assert "<im_start><im_end>\n<im_start><im_end>\nCompare." in tokenizer.decode(
        ids[ids != PLACEHOLDER]
    )


def test_words_of_special_tokens_in_a_question_are_plain_text(tmp_path):
    folder = copy_of("llava_mpt", tmp_path, vocab_size=262)
    byte_tokenizer(folder)
    processor = load_processor(folder)
    question = "What does <|im_end|> or <im_start> or <image> mean?"
    inputs = {"pixel_values": golden_results("llava_mpt")["pixel_values"]}
    ids = processor.input_ids([user_message(question, 1)], inputs)[0]
    reference = processor.input_ids([user_message("Hello", 1)], inputs)[0]
    for token in (258, 260, PLACEHOLDER):
        assert (ids == token).sum() == (reference == token).sum()
    assert question in processor.tokenizer.decode(ids[ids != PLACEHOLDER])


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path):
    folder = copy_of("llava_mpt", tmp_path, vocab_size=261)
    byte_tokenizer(folder)
    with pytest.raises(CheckpointError, match="has 262 tokens, but the model only 261"):
        load_processor(folder).tokenizer  # noqa: B018


# Attention


def mpt_pair(heads: int, *, max_seq_len: int = 512) -> tuple[MptForCausalLM, FusedMpt]:
    """Return transformers' MPT and this collection's with the same random weights."""
    torch.manual_seed(heads)
    config = MptConfig(
        d_model=16 * heads, n_heads=heads, n_layers=2, vocab_size=99, max_seq_len=max_seq_len
    )
    eager = MptForCausalLM(config).eval()
    for parameter in eager.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    fused = FusedMpt(MptConfig(**config.to_dict() | {"max_seq_len": 8})).eval()
    fused.load_state_dict(eager.state_dict())
    fused.tie_weights()
    return eager, fused


@torch.inference_mode()
@pytest.mark.parametrize("heads", [2, 4, 6])  # of which 6 is no power of two
def test_attention_equals_transformers_with_left_padding_and_a_cache(heads):
    eager, fused = mpt_pair(heads)
    ids = torch.randint(0, 99, (3, 60))
    mask = torch.ones(3, 60, dtype=torch.int64)
    mask[1, :7], mask[2, :19] = 0, 0
    caches = [None, None]
    # A prompt, steps of one token and of several, and a cache far longer than the prompt.
    for start, stop in itertools.pairwise([0, 20, 21, 22, 30, 31, 59, 60]):
        outputs = [
            model(
                input_ids=ids[:, start:stop],
                attention_mask=mask[:, :stop],
                past_key_values=cache,
                use_cache=True,
            )
            for model, cache in zip((eager, fused), caches, strict=True)
        ]
        caches = [output.past_key_values for output in outputs]
        real = mask[:, start:stop].bool()
        assert_close(outputs[1].logits[real], outputs[0].logits[real], 1e-5)
    expected = fused(input_ids=ids, attention_mask=mask).logits
    assert_close(expected[:, -1], outputs[1].logits[:, -1], 1e-5)


@torch.inference_mode()
def test_attention_without_a_mask_and_beyond_max_seq_len():
    eager, fused = mpt_pair(4, max_seq_len=300)
    ids = torch.randint(0, 99, (1, 300))
    assert_close(fused(input_ids=ids).logits, eager(input_ids=ids).logits, 1e-5)
    first = fused(input_ids=ids[:, :200], use_cache=True)
    rest = fused(input_ids=ids[:, 200:], past_key_values=first.past_key_values, logits_to_keep=1)
    assert_close(rest.logits, eager(input_ids=ids).logits[:, -1:], 1e-5)


@torch.inference_mode()
def test_a_mask_of_who_sees_whom_counts_distances_by_position():
    """Two questions that share a beginning, in one row, equal the same in two rows."""
    _, fused = mpt_pair(4)
    shared, first, second = torch.randint(0, 99, (3, 6))
    ids = torch.cat([shared, first, second])[None]
    block = torch.arange(3).repeat_interleave(6)
    visible_mask = ((block[None] == block[:, None]) | (block[None] == 0)).tril()[None, None]
    positions = torch.tensor([[*range(12), *range(6, 12)]])
    together = fused(input_ids=ids, attention_mask=visible_mask, position_ids=positions).logits[0]
    for start, part in ((6, first), (12, second)):
        alone = fused(input_ids=torch.cat([shared, part])[None]).logits[0]
        assert_close(together[start : start + 6], alone[6:], 1e-5)


def test_slopes_are_those_of_the_paper():
    """arXiv:2108.12409: 1/2, 1/4, ... for 8 heads; other numbers of heads take every second."""
    assert alibi_slopes(8, 8).tolist() == [2.0**-exponent for exponent in range(1, 9)]
    assert alibi_slopes(3, 8).tolist() == [2.0**-4, 2.0**-8, 2.0**-2]
    assert alibi_slopes(1, 8).tolist() == [2.0**-8]


def cached_inputs(past: int, new: int, batch: int) -> dict[str, torch.Tensor]:
    """Return random inputs of the exported decoder; the last row has padding on the left."""
    example = decoder_example(64, [(4, 16)] * 2)
    inputs = {
        name: torch.randn(batch, 4, past, 16) for name in example if name.startswith("past_key")
    }
    mask = torch.ones(batch, past + new, dtype=torch.int64)
    mask[-1, : (past + new) // 3] = 0
    return {
        "inputs_embeds": torch.randn(batch, new, 64),
        "attention_mask": mask,
        "position_ids": torch.zeros(batch, new, dtype=torch.int64),  # not looked at
    } | inputs


@pytest.mark.filterwarnings("ignore")  # tracing tells of every value that becomes a constant
@torch.inference_mode()
def test_a_trace_has_no_fixed_lengths():
    decoder = DecoderWithCache(mpt_pair(4)[1])
    example = tuple(decoder_example(64, [(4, 16)] * 2).values())
    traced = torch.jit.trace(decoder, example, check_trace=False)
    for past, new, batch in ((0, 5, 1), (9, 1, 2), (40, 7, 3)):
        inputs = tuple(cached_inputs(past, new, batch).values())
        for actual, expected in zip(traced(*inputs), decoder(*inputs), strict=True):
            assert_close(actual, expected, 1e-6)


@torch.inference_mode()
def test_openvino_fuses_attention_and_computes_the_same():
    model, expected = load_model(GOLDEN / "llava_mpt"), golden_results("llava_mpt")
    language_model = compiled(model.language_model_part())
    kinds = [
        node.get_rt_info()["layerType"].astype(str)
        for node in language_model.get_runtime_model().get_ops()
    ]
    assert kinds.count("ScaledDotProductAttention") == model.config["n_layers"]
    assert not any("oftmax" in kind for kind in kinds)
    request = language_model.create_infer_request()
    embeddings = expected["inputs_embeds"].numpy()
    for start, stop in itertools.pairwise([0, 20, 21, 22, 26, 29]):
        request.infer(
            {
                "inputs_embeds": embeddings[:, start:stop],
                "attention_mask": np.ones((1, stop), np.int64),
                "position_ids": np.arange(start, stop)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        logits = torch.from_numpy(request.get_tensor("logits").data.copy())
        assert relative_error(logits[0, -1], expected["logits"][0, stop - 1]) < 1e-4


@torch.inference_mode()
def test_openvino_encodes_pictures():
    model, expected = load_model(GOLDEN / "llava_mpt"), golden_results("llava_mpt")
    encoder = compiled(model.image_encoder_part())
    for name in ("pixel_values", "two_images.pixel_values"):
        features = torch.from_numpy(encoder(expected[name].numpy())[0])
        assert_close(features, model.encode_images(expected[name]), 1e-4)
