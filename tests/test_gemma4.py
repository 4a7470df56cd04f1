"""Gemma 4 at random dimensions, beside transformers' own model of the same checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.convert import conversion
from helpers.errors import CheckpointError, QuestionError, SettingsError
from helpers.graphs.part_names import LANGUAGE_MODEL
from helpers.graphs.presets import find_preset
from helpers.inputs.messages import user_message
from helpers.inputs.video import Video
from helpers.models import load_model
from helpers.models.exported import collate
from helpers.models.families import family_of, find_original
from helpers.models.gemma4.originals import TOKENIZER
from helpers.models.gemma4.processor import PICTURE_MARKS
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.sources.checkpoints import read_json, write_json
from tests.random_gemma4 import write_random
from tests.random_qwen3_vl import noise
from tests.workers import in_groups

SEEDS = in_groups(range(3), "gemma4")
PICTURES = (noise(300, 260, 1), noise(64, 512, 2), noise(700, 400, 3))
GREEDY = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
# The prompts are several times longer than the windows.
CASES = {
    "pictures": (user_message("What is it, and what is beside it?", 3), PICTURES),
    "text": (user_message("Who are you, and what do you see there?"), ()),
}


@pytest.fixture(scope="module", params=SEEDS)
def random_models(request, tmp_path_factory):
    """Return transformers' model as `reference`, ours as `model`, and the `pipeline` of both."""
    folder = tmp_path_factory.mktemp("gemma4")
    reference = write_random(folder, request.param)
    conversion.convert(folder, folder / "converted", find_preset("fp16"))
    model = load_model(folder, torch.float32)
    model.processor = model.processor.within(70)
    return SimpleNamespace(
        folder=folder,
        reference=reference,
        model=model,
        pipeline=VisionLanguagePipeline(folder / "converted", accuracy=True, picture_tokens=70),
    )


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def prompt_of(models, message, pictures) -> SimpleNamespace:
    """Return a prompt's `ids`, its `images`, and what transformers' model takes besides."""
    images = models.model.image_inputs(pictures) if pictures else {}
    ids = models.model.processor.input_ids([message], images or None)
    assert ids.shape[1] > 3 * models.reference.config.text_config.sliding_window
    reference = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images}
    return SimpleNamespace(ids=ids, images=images, reference=reference)


def prepared(model, prompt) -> dict:
    """Return what a language model takes for a prompt."""
    return model.prepare(
        prompt.ids, model.encode_images(**prompt.images) if prompt.images else None
    )


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_logits(random_models, case):
    """Those of the whole prompt, of its last position on OpenVINO, and of steps behind it."""
    prompt = prompt_of(random_models, *CASES[case])
    model, pipeline = random_models.model, random_models.pipeline
    expected = random_models.reference(**prompt.reference).logits
    assert error(model(**prepared(model, prompt)).logits, expected) < 5e-6
    if prompt.images:
        compiled = pipeline.encode_images(**prompt.images)
        for ours, theirs in zip(compiled, model.encode_images(**prompt.images), strict=True):
            assert error(ours, theirs) < 1e-4
    inputs = prepared(pipeline, prompt)
    output = pipeline.language_model(**inputs)
    assert error(output.logits[:, -1], expected[:, -1]) < 1e-4
    ids, cache = prompt.ids, output.past_key_values
    for token in (5, 100, 7):
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
        whole = prompt.reference | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        expected = random_models.reference(**whole).logits
        output = pipeline.language_model(input_ids=ids[:, -1:], past_key_values=cache)
        assert error(output.logits[:, -1], expected[:, -1]) < 1e-4


@pytest.mark.parametrize(
    "options",
    [GREEDY, GREEDY | {"num_beams": 3}, GREEDY | {"do_sample": True, "top_k": 0}],
    ids=["greedy", "beams", "sampled"],
)
@torch.inference_mode()
def test_tokens(random_models, options):
    prompt = prompt_of(random_models, *CASES["pictures"])
    options = options | {"eos_token_id": 1}
    torch.manual_seed(7)
    expected = random_models.reference.generate(**prompt.reference, **options)
    expected = expected[0, prompt.ids.shape[1] :].tolist()
    for model in (random_models.model, random_models.pipeline):
        inputs = prepared(model, prompt)
        torch.manual_seed(7)
        assert model.language_model.generate(**inputs, **options)[0].tolist() == expected


@torch.inference_mode()
def test_prompts_of_several_lengths_in_one_batch(random_models):
    pipeline = random_models.pipeline
    prompts = [prepared(pipeline, prompt_of(random_models, *case)) for case in CASES.values()]
    alone = [pipeline.language_model.generate(**one, **GREEDY)[0].tolist() for one in prompts]
    assert pipeline.language_model.generate(**collate(prompts), **GREEDY).tolist() == alone


def test_a_conversation_is_the_prompt_of_all_its_turns(random_models):
    pipeline, model = random_models.pipeline, random_models.model
    conversation, earlier = pipeline.conversation(), []
    for turn, number in enumerate((1, 0, 2)):
        pictures = [noise(60 + 40 * turn, 90, turn)] * number
        reply = conversation.ask(f"What is it? {turn}", pictures, max_new_tokens=6)
        reply.wait()
        assert turn == 0 or reply.counts.cached > 0
        earlier += pictures
        with torch.inference_mode():
            ids = torch.tensor([reply.request.prompt_ids])
            inputs = model.prepare(ids, model.encode_images(**model.image_inputs(earlier)))
            stop = pipeline.processor.stop_token_ids
            options = GREEDY | {"max_new_tokens": 6, "eos_token_id": stop}
            expected = model.language_model.generate(**inputs, **options)
        assert reply.token_ids == expected[0].tolist()


def test_answers_that_are_computed_together_are_the_same(random_models):
    """The rows' states are of several lengths, and some of them keep one window's positions."""
    pipeline = random_models.pipeline
    together = VisionLanguagePipeline(
        pipeline.folder, accuracy=True, picture_tokens=70, answers_at_once=3
    )
    questions = [("Who?", []), ("What is it, and what is beside it?", PICTURES[:1]), ("Why?", [])]
    alone = [pipeline.ask(*question, max_new_tokens=12).token_ids for question in questions]
    replies = [together.ask(*question, max_new_tokens=12) for question in questions]
    assert [reply.token_ids for reply in replies] == alone


@torch.inference_mode()
def test_masks_by_what_is_visible_have_the_window(random_models):
    """As training makes them, where questions share a picture: here every earlier token is seen."""
    model, prompt = random_models.model, prompt_of(random_models, *CASES["text"])
    inputs, length = prepared(model, prompt), prompt.ids.shape[1]
    positions = torch.arange(length)[None]
    masks = model.attention_masks(torch.ones(1, 1, length, length).bool().tril(), positions)
    actual = model(**inputs | {"attention_mask": masks, "position_ids": positions}).logits
    assert error(actual, model(**inputs).logits) < 5e-6


def operations(compiled) -> list[str]:
    """Return the kinds of operations that run."""
    model = compiled.get_runtime_model()
    return [str(node.get_rt_info()["layerType"].astype(str)) for node in model.get_ops()]


def test_which_operations_run(random_models):
    """Every layer with keys and values of its own keeps them where it attends to them."""
    text = random_models.reference.config.text_config
    owners = text.num_hidden_layers - text.num_kv_shared_layers
    kinds = operations(random_models.pipeline.parts[LANGUAGE_MODEL])
    assert kinds.count("RoPE") == 2 * owners + text.num_kv_shared_layers
    assert kinds.count("ScaledDotProductAttention") == owners


# Pictures


@pytest.mark.parametrize(("budget", "most"), [(70, 70), (200, 140), (280, 280), (10**6, 1120)])
def test_a_budget_is_one_of_those_that_the_model_knows(random_models, budget, most):
    processor = random_models.pipeline.processor.within(budget)
    for size in ((300, 200), (64, 512)):
        inputs = processor.image_inputs([noise(*size)])
        assert inputs["pixel_values"].shape[1] == 9 * most
        rows, columns = processor.token_grid(inputs)
        ids = processor.input_ids([user_message("What is it?", 1)], inputs)
        assert rows * columns == int(processor.picture_positions(ids).sum())
        assert 0.5 * most < rows * columns <= most


def test_too_small_a_budget_is_told(random_models):
    with pytest.raises(SettingsError, match="picture_tokens is 69, but a picture has at least 70"):
        random_models.pipeline.processor.within(69)


def test_the_usual_budget_is_that_of_the_files(random_models, tmp_path):
    processor = random_models.pipeline.processor
    assert processor.usual_picture_tokens == 280
    write_json(tmp_path / "processor_config.json", {"image_processor": {"max_soft_tokens": 560}})
    other = type(processor)(tmp_path, processor.config)
    assert other.usual_picture_tokens == 560
    plain = type(processor)(processor.folder, processor.config)  # as `load_model` has it
    assert plain.image_inputs([noise(40, 40)])["pixel_values"].shape[1] == 9 * 280


def test_videos_are_refused(random_models):
    with pytest.raises(QuestionError, match="reads no video"):
        random_models.pipeline.image_inputs([Video([noise(9, 9)] * 2, [0.0, 1.0])])


def test_audio_is_refused(random_models):
    audio = {"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}
    with pytest.raises(QuestionError, match="type"):
        random_models.pipeline.ask(audio)


# Checkpoints


def test_random_checkpoints_of_full_size_are_no_chaos():
    """Scores are as large as if they were divided; factors and bounds change nothing."""
    constant = find_original("google/gemma-4-E2B-it").constant
    assert constant("model.language_model.layers.3.self_attn.q_norm.weight", (256,)) == 0.25
    assert constant("model.language_model.layers.3.layer_scalar", (1,)) == 1
    assert constant("model.vision_tower.layers.0.mlp.up_proj.input_min", ()) == -float("inf")
    assert constant("model.language_model.layers.3.mlp.up_proj.weight", (4, 4)) is None


def test_tensors_that_are_not_used_are_passed_over_knowingly(random_models, tmp_path):
    """Those of audio, and keys of layers that share others'; any other is an error."""
    source, model = random_models.folder, random_models.model
    for path in source.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    last = model.processor.text.num_hidden_layers - 1
    unused = {
        "model.audio_tower.layers.0.weight": torch.zeros(2, 2),
        "model.embed_audio.embedding_projection.weight": torch.zeros(2, 2),
        f"model.language_model.layers.{last}.self_attn.k_proj.weight": torch.zeros(2, 2),
        f"model.language_model.layers.{last}.self_attn.k_norm.weight": torch.zeros(2),
    }
    save_file(tensors | unused, tmp_path / "model.safetensors", {"format": "pt"})
    again = load_model(tmp_path, torch.float32)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    other = {"model.language_model.layers.0.other.weight": torch.zeros(2)}
    save_file(tensors | other, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected model.language_model.layers.0.other"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"use_bidirectional_attention": "vision"}, "use_bidirectional_attention .* is 'vision'"),
        ({"hidden_size_per_layer_input": 0}, "hidden_size_per_layer_input .* is 0"),
        ({"enable_moe_block": True}, "enable_moe_block .* is True"),
    ],
)
def test_larger_models_are_refused(random_models, tmp_path, change, sentence):
    config = read_json(random_models.folder / "config.json")
    config["text_config"] |= change
    write_json(tmp_path / "config.json", config)
    with pytest.raises(CheckpointError, match=f"{sentence}.* take gemma-4-E2B-it or E4B-it"):
        load_model(tmp_path)


def test_the_unified_model_is_refused(random_models, tmp_path):
    config = read_json(random_models.folder / "config.json") | {"model_type": "gemma4_unified"}
    write_json(tmp_path / "config.json", config)
    with pytest.raises(CheckpointError, match="holds a 'gemma4_unified' model; this reads"):
        family_of(tmp_path)


def test_the_chat_template_writes_the_prompt_of_the_processor(random_models):
    processor = random_models.pipeline.processor
    text = "What is it?"
    parts = [{"type": "image"}, {"type": "text", "text": text}]
    written = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}],
        chat_template=TOKENIZER.chat_template,
        tokenize=False,
        add_generation_prompt=True,
    )
    begin, token, end = PICTURE_MARKS
    inputs = processor.image_inputs([noise(40, 40)])
    prompt = processor.tokenizer.decode(processor.input_ids([user_message(text, 1)], inputs)[0])
    (count,) = processor.exported.token_counts(inputs["image_position_ids"])
    assert prompt == written.replace(token, begin + count * token + end)
