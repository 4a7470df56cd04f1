"""Every family's recipe gives a small model in the authors' layout, which the loader reads back."""

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.convert.conversion import convert
from helpers.errors import PictureError
from helpers.graphs.presets import find_preset
from helpers.inputs.messages import user_message
from helpers.measure import evaluation
from helpers.models import load_model
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes import questions, tokenizers, world
from helpers.sources.checkpoints import CARD
from helpers.workshop import locating, naming, samples, stages, training
from helpers.workshop.recipes import RECIPES, Recipe
from tests.tiny import seeded
from tests.workers import in_groups


@pytest.fixture(scope="module", params=in_groups(RECIPES, "recipe"))
def prepared(request, tmp_path_factory):
    """Return a `recipe`, the `folder` that it prepared, and a new `model`."""
    recipe, folder = RECIPES[request.param], tmp_path_factory.mktemp(request.param)
    recipe.write_files(folder, tokenizers.corpus(700))
    with seeded(0):
        return SimpleNamespace(recipe=recipe, folder=folder, model=training.new_model(folder))


def test_its_size(prepared):
    parameters = prepared.model.parameters()
    assert 1e6 < sum(parameter.numel() for parameter in parameters) < 6e6


def test_words_of_the_world_are_single_tokens(prepared):
    processor = prepared.model.processor
    tokenizer = processor.tokenizer
    assert "unk" not in tokenizer.decode(tokenizer(" ".join(world.LETTERS))["input_ids"])
    for word in (*world.COLOURS, *world.SHAPES, "top", "left", "right"):
        assert len(naming.tokens_in_sentence(processor, word)) == 1


def sorts_of(recipe: Recipe) -> set[str]:
    """Return the sorts of batches that a recipe has."""
    return {sort for stage in recipe.stages for sort in stage.batches}


@pytest.mark.parametrize(
    ("prepared", "sort"),
    [
        pytest.param(name, sort, marks=pytest.mark.xdist_group(f"recipe-{name}"))
        for name, recipe in RECIPES.items()
        for sort in sorted(sorts_of(recipe))
    ],
    indirect=["prepared"],
)
def test_every_sort_of_batch_has_a_loss_that_reaches_the_weights(prepared, sort):
    model = prepared.model
    kinds = {} if sort == "name" else stages.ALL_KINDS
    recipe = replace(prepared.recipe, batches=dict.fromkeys(prepared.recipe.batches, 2))
    batch = samples.make_batch(model.processor, recipe, random.Random(0), sort, kinds)
    model.zero_grad()
    locator = locating.new_locator(model.token_embeddings.embedding_dim)
    training.loss_of(model, batch, locator).backward()
    names = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert any(name.startswith("image_encoder.") for name in names)
    assert any(name.startswith("language_model.") for name in names) == (sort != "name")


def test_an_instruction_stands_behind_some_questions_that_a_word_answers():
    generator, ends = random.Random(0), Counter()
    for _, question in questions.sample_questions(700, seed=0, split="train"):
        variant = samples.with_instruction(question, "Be brief.", generator)
        assert variant.text in (question.text, f"{question.text}\nBe brief.")
        assert variant.answer == question.answer
        ends[" " in question.answer, variant.text != question.text] += 1
    assert ends[True, True] == 0
    assert 0.2 < ends[False, True] / (ends[False, True] + ends[False, False]) < 0.4


def weight_files(folder: Path) -> set[str]:
    """Return the files of weights in a folder, those of an image encoder of its own included."""
    paths = [path for path in folder.rglob("*") if path.suffix in (".bin", ".safetensors")]
    return {path.relative_to(folder).as_posix() for path in paths}


def test_what_is_saved_is_what_was_trained(prepared, tmp_path):
    (prepared.folder / "state.pt").write_bytes(b"not part of the checkpoint")
    training.save(prepared.model, prepared.folder, tmp_path, prepared.recipe)
    actual = load_model(tmp_path).state_dict()
    for name, tensor in prepared.model.state_dict().items():
        assert torch.equal(tensor.to(torch.float16), actual[name]), name
    assert (tmp_path / CARD).exists() and not (tmp_path / "state.pt").exists()
    files = weight_files(tmp_path)
    if checkpoint := prepared.recipe.family.checkpoint:  # is there once it is trained
        assert files == weight_files(checkpoint)
    assert sum("/" not in file for file in files) == prepared.recipe.shards
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 11e6


# Whatever people write and show


@given(data=st.data())
def test_no_words_of_a_question_become_control_tokens(prepared, repetitions, data):
    repetitions("prompts with control words")
    processor = prepared.model.processor
    controls = processor.tokenizer.get_added_vocab()
    parts = st.one_of(st.text(max_size=10), st.sampled_from(sorted(controls)))
    text = "".join(data.draw(st.lists(parts, max_size=6)))

    def control_tokens(question: str) -> Counter:
        ids = processor.input_ids([user_message(question)])[0].tolist()
        return Counter(token for token in ids if token in controls.values())

    assert control_tokens(text) == control_tokens("What is red?")


@settings(max_examples=settings.default.max_examples // 2)
@example(sizes=[(1, 1)])
@example(sizes=[(20_000, 10)])
@given(sizes=st.lists(st.tuples(*[st.integers(1, 200)] * 2), min_size=1, max_size=2))
def test_a_prompt_has_room_for_what_pictures_give(prepared, repetitions, sizes):
    repetitions("pictures of any shape", len(sizes), len(sizes))
    model = prepared.model
    pictures = [Image.new("RGB", size, "red") for size in sizes]
    try:
        inputs = model.image_inputs(pictures)
    except PictureError as error:
        assert re.search("too long and narrow|200 times as long", str(error))
        return
    ids = model.processor.input_ids([user_message("?", len(pictures))], inputs)
    with torch.inference_mode():
        features = model.encode_images(**inputs)
        prompt = model.prepare(ids, features)  # which raises if there is too much or too little
    assert prompt["inputs_embeds"].shape[1] == prompt["attention_mask"].shape[1] == ids.shape[1]


# Every family in a pipeline


@pytest.fixture(scope="module")
def random_model(prepared, tmp_path_factory):
    """Return a random model in PyTorch, the `reference`, and its `pipeline`, both in 32 bits."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with seeded(0):
        larger_weights(prepared.model)
    training.save(prepared.model, prepared.folder, folder / "checkpoint", prepared.recipe)
    convert(folder / "checkpoint", folder / "converted", find_preset("fp16"))
    return SimpleNamespace(
        reference=load_model(folder / "checkpoint", torch.float32),
        pipeline=VisionLanguagePipeline(folder / "converted", accuracy=True),
    )


def larger_weights(model: training.Model) -> None:
    """Let weights be larger than where training starts, so that answers differ.

    Not embeddings as they are read, behind factors: beside those of one token, layers would say
    nothing, and a head with the same table would repeat the token.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5 if "embed" in name else 0.12)
    table = model.token_embeddings
    with torch.no_grad():
        table.weight.mul_(0.5 / model.embed_tokens(torch.arange(len(table.weight))).std())


@torch.inference_mode()
def most_probable(model, prompt: list[int], answer: list[int], pictures: list) -> list[int]:
    """Return PyTorch's most probable token at each place of an answer."""
    features = model.encode_images(**model.image_inputs(pictures)) if pictures else None
    logits = model(**model.prepare(torch.tensor([prompt + answer]), features)).logits
    return logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()


def test_a_conversation_says_what_pytorch_says(random_model):
    model, pipeline = random_model.reference, random_model.pipeline
    picture = world.draw(*samples.sample_scene(random.Random(3), "train", "large")[:1])
    answers = []
    for pictures in ([picture], []):
        conversation = pipeline.conversation()
        for question, images in (("What do you see?", pictures), ("Where is the star?", [])):
            reply = conversation.ask(question, images, max_new_tokens=6)
            expected = most_probable(model, reply.prompt_ids, reply.token_ids, pictures)
            assert reply.token_ids == expected
            answers.append(reply.text)
    assert len(set(answers)) >= 3  # of four: they are of what was asked and shown


def test_a_second_question_hands_no_picture_over_again(random_model):
    pipeline = random_model.pipeline
    conversation = pipeline.conversation()
    picture = world.draw(*samples.sample_scene(random.Random(3), "train", "large")[:1])
    conversation.ask("What do you see?", [picture], max_new_tokens=2).wait()
    names = pipeline.processor.exported.kept_inputs
    before = dict(conversation.cache.pictures)
    assert before.keys() >= set(names)
    conversation.ask("Where is the star?", max_new_tokens=2).wait()
    after = conversation.cache.pictures
    assert all(after[name] is before[name] for name in names)


def test_a_later_prompt_is_that_of_its_messages(random_model, monkeypatch):
    """What stands between turns is the template's, whichever token ended the answer."""
    pipeline = random_model.pipeline
    processor = pipeline.processor
    tokens = second_prompt_starts_with_answer(pipeline)
    monkeypatch.delitem(vars(processor), "stop_token_ids", raising=False)
    monkeypatch.setattr(type(processor), "stop_token_ids", [tokens[3]])
    assert second_prompt_starts_with_answer(pipeline) == tokens[: tokens.index(tokens[3])]


def second_prompt_starts_with_answer(pipeline) -> list[int]:
    """Ask two questions; return what stands between them of the first answer's tokens."""
    processor, conversation = pipeline.processor, pipeline.conversation()
    first = conversation.ask("What do you see?", max_new_tokens=6)
    ended = first.token_ids[-1] in processor.stop_token_ids
    tokens = first.token_ids[:-1] if ended else first.token_ids
    second = conversation.ask("Where?", max_new_tokens=1)
    turn = processor.turn_ids(user_message("Where?"), first=False)
    # What stands before an answer to come, an empty thought, does not before an earlier one.
    before = first.prompt_ids[: len(first.prompt_ids) - len(processor.start_of_answer_ids)]
    expected = [*before, *tokens, *processor.end_of_answer_ids, *turn]
    assert second.prompt_ids == expected
    return tokens


def test_both_are_evaluated_by_the_same_calls(random_model):
    models = random_model.reference, random_model.pipeline
    pairs = questions.draw_questions(3, seed=0)
    answers = [evaluation.answer(model, pairs, max_new_tokens=4, batch=2) for model in models]
    assert evaluation.agreement(*answers).same_text == 1
    picture, question = pairs[0]
    beams = [
        model.language_model.generate(
            **evaluation.question_inputs(model, picture, question.text),
            num_beams=3,
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        for model in models
    ]
    assert torch.equal(*beams)
