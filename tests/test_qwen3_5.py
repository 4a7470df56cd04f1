"""Qwen3.5 at random dimensions, beside transformers' own model of the same checkpoint."""

from types import SimpleNamespace

import pytest
import torch

from helpers.convert import conversion
from helpers.graphs.bit_widths import layer_types
from helpers.graphs.compression import compress
from helpers.graphs.part_names import LANGUAGE_MODEL
from helpers.graphs.presets import Weights, find_preset
from helpers.graphs.stateful import is_fixed_size
from helpers.inputs.messages import user_message
from helpers.models import load_model
from helpers.models.exported import collate
from helpers.models.qwen_vision.processor import PICTURE_MARKS
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.sources.saving import save_tensors
from helpers.sources.tensors import open_tensors
from tests.random_qwen3_5 import write_random
from tests.random_qwen3_vl import noise
from tests.workers import in_groups

SEEDS = in_groups(range(2), "qwen3_5")
PICTURES = (noise(300, 260, 1), noise(64, 512, 2), noise(700, 400, 3))
BETWEEN = {
    "role": "user",
    "content": [
        {"type": "text", "text": "Here "},
        {"type": "image"},
        {"type": "text", "text": " and "},
        {"type": "image"},
        {"type": "image"},
        {"type": "text", "text": " what is it?"},
    ],
}

GREEDY = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module", params=SEEDS)
def random_models(request, tmp_path_factory):
    """Return transformers' model as `reference`, ours as `model`, and the `pipeline` of both."""
    folder = tmp_path_factory.mktemp("qwen3_5")
    reference = write_random(folder, request.param)
    conversion.convert(folder, folder / "converted", find_preset("fp16"))
    return SimpleNamespace(
        reference=reference,
        model=load_model(folder, torch.float32),
        pipeline=VisionLanguagePipeline(folder / "converted", accuracy=True, answers_at_once=3),
    )


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def prompt_of(models, message, pictures) -> SimpleNamespace:
    """Return a prompt's `ids`, its `images`, and what transformers' model takes besides."""
    images = models.model.image_inputs(pictures) if pictures else {}
    ids = models.model.processor.input_ids([message], images or None)
    kinds = (ids == models.reference.config.image_token_id).int()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images}
    return SimpleNamespace(
        ids=ids, images=images, reference=inputs | ({"mm_token_type_ids": kinds} if images else {})
    )


CASES = {
    "pictures between words": (BETWEEN, PICTURES),
    "one picture": (user_message("What is it?", 1), PICTURES[:1]),
    "text": (user_message("Who are you?"), ()),
}


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_logits(random_models, case):
    prompt, model = prompt_of(random_models, *CASES[case]), random_models.model
    expected = random_models.reference(**prompt.reference).logits
    features = model.encode_images(**prompt.images) if prompt.images else None
    prepared = model.prepare(prompt.ids, features)
    assert error(model(**prepared).logits, expected) < 5e-6
    pipeline = random_models.pipeline
    compiled = pipeline.encode_images(**prompt.images) if prompt.images else None
    for ours, theirs in zip(compiled or (), features or (), strict=True):
        assert error(ours, theirs) < 1e-4
        assert ours.grid == theirs.grid
    logits = pipeline.language_model(**pipeline.prepare(prompt.ids, compiled)).logits
    assert error(logits[:, -1], expected[:, -1]) < 1e-4


def test_each_linear_layer_is_one_operation(random_models):
    nodes = random_models.pipeline.parts[LANGUAGE_MODEL].get_runtime_model().get_ops()
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in nodes]
    layers = random_models.reference.config.text_config.layer_types
    assert kinds.count("GatedDeltaNet") == layers.count("linear_attention")
    assert not {"Loop", "TensorIterator"} & set(kinds)


def test_what_the_recurrence_reads_keeps_8_bits(random_models):
    """And so do the short convolution and the last layer; rates and decays are no layers."""

    def stored(**options) -> dict[str, set[str]]:
        model = conversion.convert_part(random_models.model.language_model_part())
        types: dict[str, set[str]] = {}
        weights = Weights("int4-asym", group_size=16, **options)
        for name, width in layer_types(compress(model, weights)).items():
            end = name.rpartition(".")[2]  # a number is that of a layer, whose convolution it is
            types.setdefault("conv1d" if end.isdigit() else end, set()).add(width)
        return types

    in_4_bits = [
        "in_proj_a",
        "in_proj_b",
        "in_proj_z",
        "out_proj",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    ]
    in_4_bits += ["gate_proj", "up_proj", "down_proj"]
    expected = {name: {"u4"} for name in in_4_bits}
    expected |= {name: {"u8"} for name in ("in_proj_qkv", "conv1d", "lm_head")}
    assert stored() == expected
    assert stored(all_layers=True)["in_proj_qkv"] == {"u4"}


@pytest.mark.parametrize(
    "options",
    [GREEDY, GREEDY | {"num_beams": 3}, GREEDY | {"do_sample": True, "top_k": 0}],
    ids=["greedy", "beams", "sampled"],
)
@torch.inference_mode()
def test_tokens(random_models, options):
    prompt = prompt_of(random_models, *CASES["pictures between words"])
    torch.manual_seed(7)
    expected = random_models.reference.generate(**prompt.reference, **options)
    expected = expected[0, prompt.ids.shape[1] :].tolist()
    for model in (random_models.model, random_models.pipeline):
        prepared = model.prepare(prompt.ids, model.encode_images(**prompt.images))
        torch.manual_seed(7)
        assert model.language_model.generate(**prepared, **options)[0].tolist() == expected


@torch.inference_mode()
def test_padding_leaves_the_states_untouched(random_models):
    pipeline = random_models.pipeline
    prompts = []
    for case in CASES.values():
        prompt = prompt_of(random_models, *case)
        features = pipeline.encode_images(**prompt.images) if prompt.images else None
        prompts.append(pipeline.prepare(prompt.ids, features))
    alone = [pipeline.language_model.generate(**one, **GREEDY)[0].tolist() for one in prompts]
    together = pipeline.language_model.generate(**collate(prompts), **GREEDY).tolist()
    assert together == alone
    caches = [pipeline.language_model.new_cache() for _ in range(2)]
    pipeline.language_model(**collate(prompts), past_key_values=caches[0])
    pipeline.language_model(**prompts[-1], past_key_values=caches[1])
    padded, plain = (
        {state.name: state.state.data for state in cache.request.query_state()} for cache in caches
    )
    for name in filter(is_fixed_size, plain):
        assert error(*map(torch.tensor, (padded[name][-1:], plain[name]))) < 1e-5


def expected_tokens(models, reply, pictures) -> list[int]:
    """Return what PyTorch answers to a reply's whole prompt."""
    model = models.model
    with torch.inference_mode():
        ids = torch.tensor([reply.prompt_ids])
        features = model.encode_images(**model.image_inputs(pictures)) if pictures else None
        stop_ids = models.pipeline.processor.stop_token_ids
        options = GREEDY | {"max_new_tokens": 6, "eos_token_id": stop_ids}
        return model.language_model.generate(**model.prepare(ids, features), **options)[0].tolist()


def test_prompts_are_those_of_the_checkpoints_template(random_models):
    processor = random_models.model.processor
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


def test_a_conversation_goes_on_and_back(random_models):
    """With the states it had, since nothing can be taken out of them."""
    conversation, earlier = random_models.pipeline.conversation(), []
    for turn, number in enumerate((1, 0, 2, 0)):
        pictures = [noise(60 + 40 * turn, 90, turn)] * number
        replies = []
        for attempt in range(2):
            reply = conversation.ask(f"What is it? {turn}", pictures, max_new_tokens=6)
            assert reply.token_ids == expected_tokens(random_models, reply, earlier + pictures)
            replies.append(reply)
            if not attempt:
                conversation.take_back(reply)
        first, second = replies
        assert (first.counts, first.token_ids) == (second.counts, second.token_ids)
        assert (second.counts.cached > 0) == (turn > 0)
        earlier += pictures
        # Thoughts stay in no earlier turn.
        prompt = random_models.pipeline.processor.tokenizer.decode(second.prompt_ids)
        assert prompt.count("<think>") == 1 and prompt.endswith("<think>\n\n</think>\n\n")


def test_answers_together_are_those_alone(random_models):
    pipeline = random_models.pipeline
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
            assert reply.token_ids == expected_tokens(random_models, reply, shown)


def test_positions(random_models):
    """Those of transformers, for pictures of several shapes between words, and tokens counted."""
    prompt = prompt_of(random_models, *CASES["pictures between words"])
    expected, _ = random_models.reference.model.get_rope_index(
        prompt.ids,
        prompt.reference["mm_token_type_ids"],
        image_grid_thw=prompt.images["image_grid_thw"],
    )
    counted, *positions = random_models.model.processor.position_ids(prompt.ids, prompt.images)
    assert torch.equal(torch.stack(positions), expected)
    assert counted.tolist() == [list(range(prompt.ids.shape[1]))]


def test_gradients_reach_every_weight(random_models):
    """In training, all of both models learns."""
    model = random_models.model
    prompt = prompt_of(random_models, *CASES["one picture"])
    model.requires_grad_(True)
    try:
        prepared = model.prepare(prompt.ids, model.encode_images(**prompt.images))
        model(**prepared, use_cache=False).logits.square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    finally:
        model.requires_grad_(False)


def test_the_layer_that_guesses_ahead_is_left_out(random_models, tmp_path):
    source = random_models.model.processor.folder
    tensors = open_tensors(source) | {"mtp.fc.weight": torch.ones(2, 2)}
    for path in source.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    list(save_tensors([tensors], tmp_path, "safetensors"))
    model = load_model(tmp_path, torch.float32)
    for name, tensor in random_models.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
