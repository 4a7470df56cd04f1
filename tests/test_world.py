"""The bundled world: exact answers, splits by content, and the samples made of it."""

import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.models import load_processor
from helpers.shapes import questions, tokenizers, world
from helpers.shapes.world import PLACES, SPLITS, Item, Scene, draw, random_scene, split_of
from helpers.workshop import naming, samples, sharing, stages, training
from helpers.workshop.recipes import BATCHES, RECIPES


def scenes(number: int, seed: int = 0, split: str = "train") -> list[Scene]:
    generator = random.Random(seed)
    return [random_scene(generator, split) for _ in range(number)]


# Splits


def test_no_scene_and_no_word_of_the_test_set_occurs_in_training():
    contents, words = {}, {}
    for split in SPLITS:
        sample = [scene for seed in range(20) for scene in scenes(200, seed, split)]
        contents[split] = {(scene.grid, scene.items) for scene in sample}
        words[split] = {scene.word for scene in sample} - {None}
    for splits in (contents, words):
        assert all(len(values) > 100 for values in splits.values())
        assert not splits["train"] & (splits["test"] | splits["validation"])
        assert not splits["test"] & splits["validation"]


def test_scenes_for_training_are_of_its_split():
    generator = random.Random(0)
    for sort in BATCHES:
        for _ in range(200):
            scene, _ = samples.sample_scene(generator, "train", sort)
            assert split_of((scene.grid, scene.items)) == "train"
            assert scene.word is None or split_of(scene.word) == "train"


def test_texts_for_the_tokenizer_hold_no_printed_word():
    generator = random.Random(0)
    words = {world.random_word(generator, split) for split in SPLITS for _ in range(300)}
    assert not words & set(" ".join(tokenizers.corpus(700)).replace(".", " ").split())


def test_the_splits_have_their_shares():
    counts = Counter(split_of(number) for number in range(10_000))
    shares = [counts[split] / 10_000 for split in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


# Answers


def article(thing: str) -> str:
    return f"an {thing}" if thing.startswith("orange") else f"a {thing}"


def places_of(scene: Scene) -> dict[str, tuple[str, str]]:
    """Return colour and shape by place, read from the scene anew."""
    return {
        place: (item.colour, item.shape)
        for place, item in zip(PLACES[scene.grid], scene.items, strict=True)
        if item
    }


def answer_to(scene: Scene, text: str) -> str:
    """Return the answer, found from the question's words as a person would."""
    things = places_of(scene)
    words = text.rstrip("?.").lower().split()
    place = text.rstrip("?").partition("at the ")[2]
    if words[0] == "describe" or text in ("What is in the picture?", "What do you see?"):
        parts = [f"{article(' '.join(thing))} at the {place}" for place, thing in things.items()]
        sentence = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
        return f"{sentence[0].upper()}{sentence[1:]}."
    if words[:2] == ["how", "many"] or words[0] == "count":
        noun = words[2]
        if noun == "shapes":
            return str(len(things))
        if noun in world.COLOURS:
            return str(sum(colour == noun for colour, _ in things.values()))
        plurals = [f"{shape}{'es' if shape == 'cross' else 's'}" for _, shape in things.values()]
        return str(plurals.count(noun))
    if words[:2] == ["what", "colour"]:
        answers = [
            colour
            for position, (colour, shape) in things.items()
            if (position == place if place else shape == words[-1])
        ]
    elif words[:2] == ["what", "shape"]:
        answers = [things[place][1]]
    elif words[:2] == ["which", "shape"] and words[2] == "is" and words[3] in world.COLOURS:
        answers = [shape for colour, shape in things.values() if colour == words[-1]]
    elif words[0] == "where":
        positions = [place for place, thing in things.items() if list(thing) == words[-2:]]
        answers = [f"at the {position}" for position in positions]
    elif words[0] in ("read",) or "word" in words or words[-2:] == ["it", "say"]:
        answers = [scene.word or "no word"]
    else:
        counts = Counter(things.values())
        unique = [place for place, thing in things.items() if counts[thing] == 1]
        answers = ["nothing"]
        if len(counts) == 2 and len(unique) == 1:
            answers = [f"the {' '.join(things[unique[0]])} at the {unique[0]}"]
    assert len(answers) == 1, f"{text} has {len(answers)} answers"
    return answers[0]


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_follows_from_the_scene(split):
    for scene, question in questions.sample_questions(1400, seed=1, split=split):
        assert question.answer == answer_to(scene, question.text)


def test_every_kind_says_each_of_its_answers():
    answers = {kind: Counter() for kind in questions.KINDS}
    for _, question in questions.sample_questions(1400, seed=2):
        answers[question.kind][question.answer] += 1
    assert set(answers["colour"]) == set(world.COLOURS)
    assert set(answers["shape"]) == set(world.SHAPES)
    assert set(answers["count"]) == set("01234")
    places = {place for names in PLACES.values() for place in names} - {"middle"}
    assert set(answers["where"]) == {f"at the {place}" for place in places}
    # No answer is so frequent that saying it always would be knowing something.
    assert all(max(counts.values()) <= 0.5 * counts.total() for counts in answers.values())


@pytest.mark.parametrize("number", [7, 70, 75])
def test_the_kinds_take_turns(number):
    kinds = Counter(question.kind for _, question in questions.sample_questions(number, seed=0))
    assert set(kinds) == set(questions.KINDS) and len(kinds) >= 6
    assert max(kinds.values()) - min(kinds.values()) <= 1


def test_a_seed_decides_the_questions():
    first, same, other = (list(questions.sample_questions(20, seed=seed)) for seed in (1, 1, 2))
    assert first == same != other


# Pictures


def test_a_scene_has_one_picture():
    for scene in scenes(10):
        assert draw(scene).tobytes() == draw(scene).tobytes()


def test_pictures_show_colours_where_the_scene_has_them():
    generator = random.Random(0)
    for _ in range(30):
        scene = random_scene(generator, word=0)
        picture = draw(scene)
        columns, rows = scene.grid
        for place, item in enumerate(scene.items):
            row, column = divmod(place, columns)
            middle = (
                int((column + 0.5) * picture.width / columns),
                int((row + 0.5) * picture.height / rows),
            )
            actual = picture.getpixel(middle)
            expected = world.COLOURS[item.colour] if item else (240, 240, 240)
            assert max(abs(a - b) for a, b in zip(actual, expected, strict=True)) < 30


def test_a_word_is_printed_where_there_is_one():
    blank = Scene((1, 1), (None,), style=7)
    printed = draw(Scene((1, 1), (None,), word="ABC", style=7))
    assert draw(blank).convert("L").getextrema()[0] > 200
    assert printed.convert("L").getextrema()[0] < 60


# Training samples


@pytest.fixture(scope="module")
def processor(checkpoint):
    return load_processor(checkpoint)


@pytest.fixture(scope="module")
def example(processor):
    """Return the `inputs` of a picture and four `questions` about it."""
    generator = random.Random(5)
    scene = random_scene(generator, grid=(2, 2))
    return SimpleNamespace(
        questions=samples.questions_about(scene, generator, 6, stages.ALL_KINDS)[:4],
        inputs=processor.image_inputs([draw(scene)]),
    )


def answers_of(processor, sample) -> list[str]:
    """Return the texts of the runs of learned tokens."""
    runs, previous = [], -2
    for place in (sample["labels"] != samples.IGNORED).nonzero().flatten().tolist():
        if place != previous + 1:
            runs.append([])
        runs[-1].append(int(sample["labels"][place]))
        previous = place
    assert all(run[-1] in processor.stop_token_ids for run in runs)
    return [processor.tokenizer.decode(run[:-1]) for run in runs]


@pytest.mark.parametrize("turns", [False, True])
def test_the_answers_and_nothing_else_are_learned(processor, example, turns):
    sample = samples.encode_sample(processor, example.inputs, example.questions, turns=turns)
    assert answers_of(processor, sample) == [question.answer for question in example.questions]
    learned = sample["labels"] != samples.IGNORED
    assert torch.equal(sample["labels"][learned], sample["input_ids"][learned])
    assert torch.equal(sample["weights"] > 0, learned)


def test_each_question_sees_the_picture_and_itself_as_if_it_were_alone(processor, example):
    sample = samples.encode_sample(processor, example.inputs, example.questions, turns=False)
    mask = sharing.visible_mask(sample["blocks"][None])[0, 0]
    shared = int((sample["blocks"] > 0).int().argmax())
    assert shared > int(processor.picture_positions(sample["input_ids"]).nonzero().max())
    start = shared
    for question in example.questions:
        expected = samples.encode_sample(processor, example.inputs, [question], turns=False)
        length = len(expected["input_ids"]) - shared
        span = slice(start, start + length)
        assert torch.equal(sample["input_ids"][span], expected["input_ids"][shared:])
        assert torch.equal(sample["position_ids"][span], expected["position_ids"][shared:])
        visible = mask[span]
        assert visible[:, :shared].all() and not visible[:, shared:start].any()
        assert torch.equal(visible[:, span], torch.ones(length, length).tril().bool())
        assert not visible[:, start + length :].any()
        start += length
    assert start == len(sample["input_ids"])


def test_later_turns_see_the_earlier_ones(processor, example):
    sample = samples.encode_sample(processor, example.inputs, example.questions, turns=True)
    length = len(sample["input_ids"])
    mask = sharing.visible_mask(sample["blocks"][None])[0, 0]
    assert torch.equal(mask, torch.ones(length, length).tril().bool())
    assert torch.equal(sample["position_ids"], torch.arange(length))


@torch.inference_mode()
def test_a_sample_of_several_questions_gives_each_its_own_logits(torch_model, example):
    inputs, processor = example.inputs, torch_model.processor

    def logits(questions) -> torch.Tensor:
        sample = samples.encode_sample(processor, inputs, questions, turns=False)
        learned = (sample["labels"] != samples.IGNORED).nonzero().flatten()
        batch = samples.collate([sample]) | {"images": inputs}
        features = torch_model.encode_images(**inputs)
        return training.forward(torch_model, batch, features)[0, learned - 1]

    actual = logits(example.questions)
    expected = torch.cat([logits([question]) for question in example.questions])
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)  # measured: 4e-6


def test_no_token_of_a_sample_goes_with_padding(processor, example):
    long, short = (
        samples.encode_sample(processor, example.inputs, questions, turns=False)
        for questions in (example.questions, example.questions[:1])
    )
    batch = samples.collate([long, short])
    mask = sharing.visible_mask(batch["blocks"])[:, 0]
    size = len(short["input_ids"])
    assert torch.equal(mask[1, :size, :size], sharing.visible_mask(short["blocks"][None])[0, 0])
    assert not mask[1, :size, size:].any()
    assert mask.any(-1).all()
    assert (batch["labels"][1, size:] == samples.IGNORED).all()
    assert (batch["weights"][1, size:] == 0).all()


def test_resuming_gives_the_batches_that_would_have_come(processor):
    def batches(start: int):
        recipe = replace(RECIPES["internvl2"], batches=dict.fromkeys(BATCHES, 2))
        return samples.Batches(processor, recipe, start=start, steps=12, seed=3)

    threads = torch.get_num_threads()
    try:
        complete, resumed = list(batches(0)), list(batches(8))
    finally:
        torch.set_num_threads(threads)
    assert len(complete) == 12 and len(resumed) == 4
    for expected, actual in zip(complete[8:], resumed, strict=True):
        expected, actual = expected | expected.pop("images"), actual | actual.pop("images")
        assert expected.keys() == actual.keys()
        assert all(torch.equal(value, actual[name]) for name, value in expected.items())
    assert not torch.equal(complete[10]["input_ids"], complete[11]["input_ids"])


@pytest.mark.parametrize("stages", [stages.FROM_NOTHING, stages.FROM_PARTS])
def test_the_stages_reach_the_end_and_know_their_batches(stages):
    shares = [stage.until for stage in stages]
    assert shares == sorted(shares) and shares[-1] == 1
    for stage in stages:
        assert stage.batches.keys() <= BATCHES.keys()
        assert stage.kinds.keys() <= questions.KINDS.keys()


def word_ids(processor, *items) -> torch.Tensor:
    scene = Scene((2, 2), items)
    return naming.shown_words(processor, [scene], side=4)[0]


def test_what_picture_tokens_should_name(processor):
    red, blue = Item("star", "red"), Item("cross", "blue")
    ids = word_ids(processor, red, None, None, blue)
    for rows, columns, text in (
        (slice(0, 2), slice(0, 2), "red star top left"),
        (slice(2, 4), slice(2, 4), "blue cross bottom right"),
    ):
        for words in ids[rows, columns].flatten(0, 1).tolist():
            assert processor.tokenizer.decode(words).strip() == text
    assert (ids[:2, 2:] == -1).all() and (ids[2:, :2] == -1).all()


@pytest.mark.parametrize(
    ("grid", "place", "stretch"), [((1, 1), 0, None), ((2, 2), 1, None), ((1, 2), 1, 1.6)]
)
def test_letters_are_where_they_are_said_to_be(grid, place, stretch):
    """Nearly all ink is in the boxes, and each box has some."""
    for style in range(20):
        items = (None,) * (grid[0] * grid[1])
        scene = Scene(grid, items, style=style, word="MKB", word_place=place, stretch=stretch)
        pixels = np.asarray(draw(scene, cell=100).convert("L")) < 120
        inside = np.zeros_like(pixels)
        for left, top, right, bottom in world.letter_boxes(scene):
            height, width = pixels.shape
            rows = slice(round(top * height) - 3, round(bottom * height) + 3)
            box = rows, slice(round(left * width), round(right * width))
            inside[box] = True
            assert pixels[box].mean() > 0.1
        assert pixels[inside].sum() > 0.95 * pixels.sum()
    assert world.letter_boxes(Scene((1, 1), (None,))) == []


def test_letters_are_named_where_they_are(processor):
    scene = Scene((1, 1), (Item("star", "red"),), word="AVX")
    ids = naming.shown_words(processor, [scene])[0]
    assert processor.tokenizer.decode(ids[2, 6, :2]).strip() == "red star"
    line = [processor.tokenizer.decode(ids[9, column, :1]).strip() for column in (3, 6, 8)]
    assert line == ["A", "V", "X"]
    assert (ids[9, 6, 1:] == -1).all()


@torch.inference_mode()
def test_naming_is_perfect_where_tokens_are_the_sums_of_their_words(torch_model):
    ids = word_ids(torch_model.processor, Item("star", "red"), None, Item("cross", "blue"), None)
    words = torch_model.embed_tokens(ids.clamp(min=0)) * (ids >= 0)[..., None]
    perfect = words.sum(-2).flatten(0, 1)
    assert naming.naming_loss(torch_model, [perfect], ids[None]) < 1e-9
    assert naming.naming_loss(torch_model, [torch.zeros_like(perfect)], ids[None]) > 0.9
    assert naming.naming_loss(torch_model, [perfect.flip(0)], ids[None]) > 0.9


@torch.inference_mode()
@pytest.mark.parametrize(("words_of_token", "least"), [(1, 0.5), (4, 0.9)], ids=["letter", "shape"])
def test_letters_count_among_letters_and_shapes_among_shapes(torch_model, words_of_token, least):
    """Beside all tokens, three named by a mean letter would be off by a hundredth."""
    items = (Item("star", "red"), None, None, Item("cross", "blue"))
    ids = naming.shown_words(torch_model.processor, [Scene((2, 2), items, "AVX", 2)])
    words = torch_model.embed_tokens(ids.clamp(min=0)) * (ids >= 0)[..., None]
    tokens = words.sum(-2).flatten(1, 2)[0]
    assert naming.naming_loss(torch_model, [tokens], ids) < 1e-9
    group = ((ids >= 0).sum(-1) == words_of_token).flatten()
    tokens[group] = tokens[group].mean(0)
    assert naming.naming_loss(torch_model, [tokens], ids) > least


def test_the_loss_is_that_of_the_answers(processor, example):
    sample = samples.encode_sample(processor, example.inputs, example.questions, turns=False)
    batch = samples.collate([sample])
    perfect = torch.full((*batch["input_ids"].shape, len(processor.tokenizer)), -30.0)
    labels = batch["labels"][0]
    for place in (labels != samples.IGNORED).nonzero().flatten().tolist():
        perfect[0, place - 1, labels[place]] = 30.0
    assert training.answer_loss(perfect, batch) < 1e-6
    assert training.answer_loss(torch.zeros_like(perfect), batch) > 5


def test_questions_about_a_scene_are_different_ones():
    generator = random.Random(0)
    for scene in scenes(20):
        sample = samples.questions_about(scene, generator, 10, stages.ALL_KINDS)
        texts = [question.text for question in sample]
        assert len(set(texts)) == len(texts) > 0
