"""Gemma 4 at random dimensions, beside transformers' own model of the same checkpoint."""

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma4ForConditionalGeneration

from helpers.errors import CheckpointError, QuestionError, SettingsError
from helpers.graphs.part_names import LANGUAGE_MODEL
from helpers.inputs.chat_templates import jinja_of
from helpers.inputs.messages import answer_message, user_message
from helpers.inputs.video import Video
from helpers.models import load_model, load_processor
from helpers.models.checks import check_processor
from helpers.models.families import family_of, find_original
from helpers.models.gemma4.exported import FULL
from helpers.models.gemma4.originals import TOKENIZER
from helpers.models.gemma4.processor import PICTURE_MARKS, TEMPLATE
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.sources.checkpoints import BUNDLED, read_json, write_json
from tests.random_gemma4 import write_random
from tests.random_models import (
    PICTURES,
    WAYS,
    error,
    noise,
    prepared,
    random_models,
)
from tests.workers import in_groups

SEEDS = in_groups(range(3), "gemma4")
# The prompts are several times longer than the windows.
CASES = {
    "pictures": (user_message("What is it, and what is beside it?", 3), PICTURES),
    "text": (user_message("Who are you, and what do you see there?"), ()),
}


@pytest.fixture(scope="module", params=SEEDS)
def models(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma4")
    return random_models(folder, write_random, request.param, picture_tokens=70)


@pytest.mark.parametrize("case", CASES)
def test_logits(models, case):
    prompt = models.prompt(*CASES[case])
    assert prompt.ids.shape[1] > 3 * models.reference.config.text_config.sliding_window
    models.check_logits(prompt)


@pytest.mark.parametrize("way", WAYS)
def test_tokens(models, way):
    models.check_tokens(models.prompt(*CASES["pictures"]), WAYS[way] | {"eos_token_id": 1})


def test_prompts_of_several_lengths_in_one_batch(models):
    models.check_batch([models.prompt(*case) for case in CASES.values()])


def test_a_conversation_is_the_prompt_of_all_its_turns(models):
    models.check_conversation((1, 0, 2))


def test_answers_that_are_computed_together_are_the_same(models):
    """The rows' states are of several lengths, and some of them keep one window's positions."""
    pipeline = models.pipeline
    together = VisionLanguagePipeline(
        pipeline.folder, accuracy=True, picture_tokens=70, answers_at_once=3
    )
    questions = [("Who?", []), ("What is it, and what is beside it?", PICTURES[:1]), ("Why?", [])]
    alone = [pipeline.ask(*question, max_new_tokens=12).token_ids for question in questions]
    replies = [together.ask(*question, max_new_tokens=12) for question in questions]
    assert [reply.token_ids for reply in replies] == alone


@torch.inference_mode()
def test_masks_by_what_is_visible_have_the_window(models):
    """As training makes them, where questions share a picture: here every earlier token is seen."""
    model, prompt = models.model, models.prompt(*CASES["text"])
    inputs, length = prepared(model, prompt), prompt.ids.shape[1]
    positions = torch.arange(length)[None]
    masks = model.attention_masks(torch.ones(1, 1, length, length).bool().tril(), positions)
    actual = model(**inputs | {"attention_mask": masks, "position_ids": positions}).logits
    assert error(actual, model(**inputs).logits) < 5e-6


def test_which_operations_run(models):
    """Every layer with keys and values of its own keeps them where it attends to them."""
    text = models.reference.config.text_config
    owners = text.num_hidden_layers - text.num_kv_shared_layers
    kinds = models.operations(LANGUAGE_MODEL)
    assert kinds.count("RoPE") == 2 * owners + text.num_kv_shared_layers
    assert kinds.count("ScaledDotProductAttention") == owners


def test_layers_that_all_see_everything(tmp_path):
    write = partial(write_random, layer_types=(FULL,) * 3, sharing=1)
    models = random_models(tmp_path, write, 0)
    models.check_logits(models.prompt(*CASES["text"]))


# Pictures


@pytest.mark.parametrize(("budget", "most"), [(70, 70), (200, 140), (280, 280), (10**6, 1120)])
def test_a_budget_is_one_of_those_that_the_model_knows(models, budget, most):
    processor = models.pipeline.processor.within(budget)
    for size in ((300, 200), (64, 512)):
        inputs = processor.image_inputs([noise(*size)])
        assert inputs["pixel_values"].shape[1] == 9 * most
        rows, columns = processor.token_grid(inputs)
        ids = processor.input_ids([user_message("What is it?", 1)], inputs)
        assert rows * columns == int(processor.picture_positions(ids).sum())
        assert 0.5 * most < rows * columns <= most


def test_too_small_a_budget_is_told(models):
    with pytest.raises(SettingsError, match="picture_tokens is 69, but a picture has at least 70"):
        models.pipeline.processor.within(69)


def test_the_usual_budget_is_that_of_the_files(models, tmp_path):
    processor = models.pipeline.processor
    assert processor.usual_picture_tokens == 280
    write_json(tmp_path / "processor_config.json", {"image_processor": {"max_soft_tokens": 560}})
    other = type(processor)(tmp_path, processor.config)
    assert other.usual_picture_tokens == 560
    plain = type(processor)(processor.folder, processor.config)  # as `load_model` has it
    assert plain.image_inputs([noise(40, 40)])["pixel_values"].shape[1] == 9 * 280


def test_videos_are_refused(models):
    with pytest.raises(QuestionError, match="reads no video"):
        models.pipeline.image_inputs([Video([noise(9, 9)] * 2, [0.0, 1.0])])


def test_audio_is_refused(models):
    audio = {"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}
    with pytest.raises(QuestionError, match="No model here reads audio"):
        models.pipeline.ask(audio)


# Checkpoints


def test_random_checkpoints_of_full_size_are_no_chaos():
    """Scores are as large as if they were divided; factors and bounds change nothing."""
    constant = find_original("google/gemma-4-E2B-it").constant
    assert constant("model.language_model.layers.3.self_attn.q_norm.weight", (256,)) == 0.25
    assert constant("model.language_model.layers.3.layer_scalar", (1,)) == 1
    assert constant("model.vision_tower.layers.0.mlp.up_proj.input_min", ()) == -float("inf")
    assert constant("model.language_model.layers.3.mlp.up_proj.weight", (4, 4)) is None


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_embeddings_are_multiplied_as_by_transformers(tmp_path, kind):
    """Its factor has the type that is computed in, which is 32 bits in a converted folder."""
    write_random(tmp_path, 1, per_layer=12)
    model = load_model(tmp_path, kind)
    expected = Gemma4ForConditionalGeneration.from_pretrained(tmp_path, dtype=kind)
    ids, layers = torch.arange(5)[None], expected.model.language_model
    for name, table in (
        ("embed_tokens", model.token_embeddings),
        ("embed_tokens_per_layer", model.per_layer_embeddings),
    ):
        torch.testing.assert_close(table(ids), getattr(layers, name)(ids), atol=0, rtol=0)
    assert model.per_layer_embeddings_part().factor == 12**0.5


def test_tensors_that_are_not_used_are_passed_over_knowingly(models, tmp_path):
    """Those of audio, and keys of layers that share others'; any other is an error."""
    source, model = models.folder, models.model
    for path in source.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    last = model.processor.text.num_hidden_layers - 1
    unused = {
        "model.audio_tower.layers.0.weight": torch.zeros(2, 2),
        "model.embed_audio.embedding_projection.weight": torch.zeros(2, 2),
    }
    if model.processor.text.num_kv_shared_layers:
        layer = f"model.language_model.layers.{last}.self_attn"
        unused[f"{layer}.k_proj.weight"] = torch.zeros(2, 2)
        unused[f"{layer}.k_norm.weight"] = torch.zeros(2)
    save_file(tensors | unused, tmp_path / "model.safetensors", {"format": "pt"})
    again = load_model(tmp_path, torch.float32)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    other = {"model.language_model.layers.0.other.weight": torch.zeros(2)}
    save_file(tensors | other, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected model.language_model.layers.0.other"):
        load_model(tmp_path)


LARGER = "{}.* take gemma-4-E2B-it or E4B-it"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"use_bidirectional_attention": "vision"}, LARGER.format('_attention .* is "vision"')),
        ({"hidden_size_per_layer_input": 0}, LARGER.format("hidden_size_per_layer_input .* is 0")),
        ({"enable_moe_block": True}, LARGER.format("enable_moe_block .* is true")),
        ({"sliding_window": 0}, "sliding_window .* is 0, and a window is at least one token"),
    ],
)
def test_what_is_not_read_here_is_refused(models, tmp_path, change, sentence):
    config = read_json(models.folder / "config.json")
    config["text_config"] |= change
    write_json(tmp_path / "config.json", config)
    with pytest.raises(CheckpointError, match=sentence):
        load_model(tmp_path)


@pytest.mark.parametrize("change", [{"image_token_id": None}, {"image_token_id": 258880}])
def test_a_token_of_pictures_that_is_not_the_tokenizers(models, tmp_path, change):
    for path in models.folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_json(tmp_path / "config.json", read_json(tmp_path / "config.json") | change)
    with pytest.raises(CheckpointError, match="a token for pictures that its tokenizer has not"):
        check_processor(load_processor(tmp_path))


def test_the_unified_model_is_refused(models, tmp_path):
    config = read_json(models.folder / "config.json") | {"model_type": "gemma4_unified"}
    write_json(tmp_path / "config.json", config)
    with pytest.raises(CheckpointError, match="holds a 'gemma4_unified' model; this reads"):
        family_of(tmp_path)


def test_the_chat_template_writes_the_prompt_of_the_processor(models):
    processor = models.pipeline.processor
    text = "What is it?"
    parts = [{"type": "image"}, {"type": "text", "text": text}]
    expected = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}],
        chat_template=TOKENIZER.chat_template,
        tokenize=False,
        add_generation_prompt=True,
    )
    begin, token, end = PICTURE_MARKS
    inputs = processor.image_inputs([noise(40, 40)])
    prompt = processor.tokenizer.decode(processor.input_ids([user_message(text, 1)], inputs)[0])
    (count,) = processor.exported.token_counts(inputs["image_position_ids"])
    assert prompt == expected.replace(token, begin + count * token + end)


WRITTEN = jinja_of(TEMPLATE, PICTURE_MARKS[1])
CHANGED = {
    "a line end": WRITTEN.replace("<|think|>", "<|think|>\\n"),
    "a role": WRITTEN.replace("model", "helper"),
    "a text of the system": WRITTEN.replace("model", "helper").replace(
        "content(message) + " + json.dumps("<turn|>\n"), 'message.content | trim + "<turn|>\\n"', 1
    ),
    "an empty thought": WRITTEN.replace(
        ' + "" -}}', ' + ("" if thinks else "<|channel>thought\\n<channel|>") -}}'
    ),
}


@pytest.mark.parametrize("has_system", [False, True])
@pytest.mark.parametrize("on", [None, True, False])
@pytest.mark.parametrize("text", CHANGED.values(), ids=CHANGED)
def test_a_chat_template_with_other_words_is_read(text, on, has_system, tmp_path):
    ignored = shutil.ignore_patterns("*.safetensors")
    folder = shutil.copytree(BUNDLED / "gemma4", tmp_path / "model", ignore=ignored)
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    processor = load_processor(folder)
    system = [{"role": "system", "content": " Be short. "}] * has_system
    messages = [*system, user_message(" Why? "), answer_message("So."), user_message("And?")]
    switch = {} if on is None else {"enable_thinking": on}
    expected = processor.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **switch
    )
    ids = processor.thinking(on).input_ids(messages)
    assert processor.tokenizer.decode(ids[0]) == expected
