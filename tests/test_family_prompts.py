"""Prompts of every family: pictures keep their places among the words, and words stay words."""

import shutil

import pytest
import torch

from helpers.inputs.messages import user_message
from helpers.models.families import families, load_model, load_processor
from helpers.sources.checkpoints import BUNDLED, read_json, write_json
from tests.golden_checks import change_tensors
from tests.tiny import picture

FOLDERS = {family.name: family.checkpoint for family in families() if family.checkpoint}
MESSAGE = {
    "role": "user",
    "content": [
        {"type": "text", "text": "First: "},
        {"type": "image", "image": picture()},
        {"type": "text", "text": " Second: "},
        {"type": "image", "image": picture(1)},
        {"type": "text", "text": " Which is larger?"},
    ],
}


@pytest.fixture(scope="module", params=FOLDERS)
def processor(request):
    return load_processor(FOLDERS[request.param])


def picture_ids(processor) -> set[int]:
    """Return the tokens that stand in a prompt for two pictures only."""
    inputs = processor.image_inputs([picture(), picture(1)])
    ids = set()
    for string in processor.image_strings(inputs):
        if isinstance(string, str):
            string = processor.tokenizer(string, add_special_tokens=False)["input_ids"]
        ids |= set(string)
    words = set(processor.tokenizer.get_vocab().values())
    return {token for token in ids if token not in words or token in special_ids(processor)}


def special_ids(processor) -> set[int]:
    return set(processor.tokenizer.added_tokens_decoder)


def test_pictures_stand_between_the_words(processor):
    inputs = processor.image_inputs([picture(), picture(1)])
    ids = processor.input_ids([MESSAGE], inputs)[0].tolist()
    marks = picture_ids(processor)
    assert processor.turn_ids(MESSAGE, inputs) == ids
    runs, texts = 0, [[]]
    for before, token in zip([None, *ids], ids, strict=False):
        if token in marks:
            if before not in marks:
                texts.append([])
                runs += 1
        else:
            texts[-1].append(token)
    words = [processor.tokenizer.decode(text) for text in texts]
    assert words[0].count("First:") == 1 and "Which is larger?" in words[-1]
    between = [number for number, text in enumerate(words) if "Second:" in text]
    assert len(between) == 1 and 0 < between[0] < runs


def test_special_words_in_a_question_are_text(processor):
    """Whatever a person types begins or ends no turn, and shows no picture."""
    tokenizer = processor.tokenizer
    plain = processor.input_ids([user_message("What?")])[0].tolist()
    for token, number in tokenizer.get_added_vocab().items():
        for text in (f"What is {token}?", f"{token}{token}{token}", f"a\n{token} b"):
            ids = processor.input_ids([user_message(text)])[0].tolist()
            assert ids.count(number) == plain.count(number), (token, text)
            assert token in tokenizer.decode(ids).replace(" ", "") + tokenizer.decode(ids)


TIED = {
    "internvl2": ("llm_config", "language_model.lm_head.weight"),
    "minicpm_v2": (None, "llm.lm_head.weight"),
    "mobilevlm": (None, "lm_head.weight"),
}


@pytest.mark.parametrize("name", TIED)
def test_a_checkpoint_whose_embeddings_are_tied(tmp_path, name):
    """A fine-tune saved so has no head; Llama-3.2-Vision's has fewer rows, and cannot be tied."""
    section, head = TIED[name]
    folder = shutil.copytree(BUNDLED / name, tmp_path / name)
    config = read_json(folder / "config.json")
    (config[section] if section else config)["tie_word_embeddings"] = True
    write_json(folder / "config.json", config | {"tie_word_embeddings": True})
    change_tensors(folder, lambda tensors: {k: t for k, t in tensors.items() if k != head})
    language_model = load_model(folder, torch.float32).language_model
    table = language_model.get_input_embeddings().weight
    assert language_model.get_output_embeddings().weight is table
