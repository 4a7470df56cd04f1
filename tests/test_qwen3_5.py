"""Qwen3.5 at random dimensions, beside transformers' own model of the same checkpoint."""

import pytest
import torch

from helpers.convert import conversion
from helpers.graphs.bit_widths import layer_types
from helpers.graphs.compression import compress
from helpers.graphs.part_names import LANGUAGE_MODEL
from helpers.graphs.presets import Weights
from helpers.graphs.stateful import is_fixed_size
from helpers.inputs.messages import user_message
from helpers.models import load_model
from helpers.models.exported import collate
from helpers.models.qwen_vision.processor import PICTURE_MARKS
from helpers.sources.saving import save_tensors
from helpers.sources.tensors import open_tensors
from tests.random_models import (
    BETWEEN,
    CASES,
    PICTURES,
    WAYS,
    error,
    random_models,
)
from tests.random_qwen3_5 import write_random
from tests.workers import in_groups

SEEDS = in_groups(range(2), "qwen3_5")


@pytest.fixture(scope="module", params=SEEDS)
def models(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3_5")
    return random_models(folder, write_random, request.param, answers_at_once=3)


@pytest.mark.parametrize("case", CASES)
def test_logits(models, case):
    models.check_logits(models.prompt(*CASES[case]))


def test_each_linear_layer_is_one_operation(models):
    kinds = models.operations(LANGUAGE_MODEL)
    layers = models.reference.config.text_config.layer_types
    assert kinds.count("GatedDeltaNet") == layers.count("linear_attention")
    assert not {"Loop", "TensorIterator"} & set(kinds)


@pytest.mark.parametrize(("mode", "signs"), [("int4-asym", "u"), ("int4-sym", "i")])
def test_what_the_recurrence_reads_keeps_8_bits(models, mode, signs):
    """And so do the short convolution and the last layer; rates and decays are no layers."""

    def stored(**options) -> dict[str, set[str]]:
        model = conversion.convert_part(models.model.language_model_part())
        types: dict[str, set[str]] = {}
        weights = Weights(mode, group_size=16, **options)
        for name, width in layer_types(compress(model, weights)).items():
            end = name.rpartition(".")[2]  # a number is that of a layer, whose convolution it is
            types.setdefault("conv1d" if end.isdigit() else end, set()).add(width)
        return types

    in_4_bits = [
        "in_proj_z",
        "out_proj",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    ]
    in_4_bits += ["gate_proj", "up_proj", "down_proj"]
    expected = {name: {f"{signs}4"} for name in in_4_bits}
    expected |= {
        name: {f"{signs}8"}
        for name in ("in_proj_qkv", "in_proj_a", "in_proj_b", "conv1d", "lm_head")
    }
    assert stored() == expected
    assert stored(all_layers=True)["in_proj_qkv"] == {f"{signs}4"}


@pytest.mark.parametrize("way", WAYS)
def test_tokens(models, way):
    models.check_tokens(models.prompt(*CASES["pictures between words"]), WAYS[way])


@torch.inference_mode()
def test_padding_leaves_the_states_untouched(models):
    pipeline = models.pipeline
    prompts = models.check_batch([models.prompt(*case) for case in CASES.values()])
    caches = [pipeline.language_model.new_cache() for _ in range(2)]
    pipeline.language_model(**collate(prompts), past_key_values=caches[0])
    pipeline.language_model(**prompts[-1], past_key_values=caches[1])
    padded, plain = (
        {state.name: state.state.data for state in cache.request.query_state()} for cache in caches
    )
    names = list(filter(is_fixed_size, plain))
    assert names
    for name in names:
        assert error(*map(torch.tensor, (padded[name][-1:], plain[name]))) < 1e-5


def test_prompts_are_those_of_the_checkpoints_template(models):
    processor = models.model.processor
    messages = [BETWEEN, {"role": "assistant", "content": "It is red."}, user_message("And why?")]
    images = processor.image_inputs(PICTURES)
    text = processor.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    for mark in processor.image_strings(images):
        text = text.replace("".join(PICTURE_MARKS), mark, 1)
    ids = processor.input_ids(messages, images)[0].tolist()
    assert ids == processor.tokenizer(text)["input_ids"]
    assert ids[-len(processor.start_of_answer_ids) :] == processor.start_of_answer_ids != []


def test_a_conversation_goes_on_and_back(models):
    """With the states it had, since nothing can be taken out of them."""
    models.check_conversation()


def test_thoughts_stay_in_no_earlier_turn(models):
    conversation = models.pipeline.conversation()
    for turn in range(2):
        reply = conversation.ask(f"What is it? {turn}", max_new_tokens=6)
        reply.wait()
        prompt = models.pipeline.processor.tokenizer.decode(reply.prompt_ids)
        assert prompt.count("<think>") == 1 and prompt.endswith("<think>\n\n</think>\n\n")


def test_answers_together_are_those_alone(models):
    pipeline = models.pipeline
    questions = [("What is it?", [PICTURES[0]]), ("Who are you, and why?", []), ("And?", [])]
    conversations = [pipeline.conversation() for _ in questions]
    for _ in range(2):
        with pipeline.worker.held() as tasks:
            pairs = zip(conversations, questions, strict=True)
            replies = [c.ask(*question, max_new_tokens=6) for c, question in pairs]
        pipeline.worker.submit(*tasks)
        for reply, (_, pictures) in zip(replies, questions, strict=True):
            reply.wait()
            shown = pictures * (len(reply.conversation.messages) // 2)
            assert reply.token_ids == models.expected_answer(reply, shown)


def test_positions(models):
    """Those of transformers, for pictures of several shapes between words, and tokens counted."""
    prompt = models.prompt(*CASES["pictures between words"])
    expected, _ = models.reference.model.get_rope_index(
        prompt.ids,
        prompt.reference["mm_token_type_ids"],
        image_grid_thw=prompt.images["image_grid_thw"],
    )
    counted, *positions = models.model.processor.position_ids(prompt.ids, prompt.images)
    assert torch.equal(torch.stack(positions), expected)
    assert counted.tolist() == [list(range(prompt.ids.shape[1]))]


def test_gradients_reach_every_weight(models):
    """In training, all of both models learns."""
    model = models.model
    prompt = models.prompt(*CASES["one picture"])
    model.requires_grad_(True)
    try:
        prepared = model.prepare(prompt.ids, model.encode_images(**prompt.images))
        model(**prepared, use_cache=False).logits.square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    finally:
        model.requires_grad_(False)


def test_the_layer_that_guesses_ahead_is_left_out(models, tmp_path):
    source = models.model.processor.folder
    tensors = open_tensors(source) | {"mtp.fc.weight": torch.ones(2, 2)}
    for path in source.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    list(save_tensors([tensors], tmp_path, "safetensors"))
    model = load_model(tmp_path, torch.float32)
    for name, tensor in models.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
