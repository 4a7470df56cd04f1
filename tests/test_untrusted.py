"""Files that anyone may have made: whatever is in them, one sentence and nothing worse."""

import json
import random
import shutil
import time

import pytest
from PIL import Image

from helpers.__main__ import main
from helpers.errors import LONGEST, CheckpointError, UserError
from helpers.models import load_model, load_processor
from helpers.models.checks import check_processor
from helpers.sources.checkpoints import BUNDLED, read_config
from tests.bundled import BUNDLED_NAMES
from tests.golden_checks import GOLDEN, change_config
from tests.mutations import damage

FAMILIES = sorted(path.parent.name for path in GOLDEN.glob("*/expected.safetensors"))
MOST_SECONDS = 20  # for one damaged checkpoint; measured: at most 3


def load_and_look(folder) -> None:
    model = load_model(folder)
    model.processor.image_inputs([Image.new("RGB", (80, 50))])


def load_and_check(folder) -> None:
    check_processor(load_processor(folder))


def assert_no_worse_than_a_sentence(read, folder) -> str | None:
    """Return the sentence if there was one; anything else that is raised fails the test."""
    start, sentence = time.monotonic(), None
    try:
        read(folder)
    except UserError as error:
        sentence = str(error)
        assert "\n" not in sentence and len(sentence) <= LONGEST + 5
        assert sentence.endswith(".")
    assert time.monotonic() - start < MOST_SECONDS
    return sentence


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_damaged_checkpoint(tmp_path, repetitions, family):
    """Configs, indexes, lists of tokens and headers of weights, of each family's layout."""
    number = repetitions("damaged configs, indexes and headers", 20, 250)
    refusals = 0
    for seed in range(number):
        generator = random.Random(f"{family} {seed}")
        ignore = shutil.ignore_patterns("expected.safetensors")
        folder = shutil.copytree(GOLDEN / family, tmp_path / str(seed) / family, ignore=ignore)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        json_files = [path for path in files if path.suffix == ".json"]
        damage(generator.choice(json_files if generator.random() < 0.7 else files), generator)
        refusals += assert_no_worse_than_a_sentence(load_and_look, folder) is not None
        shutil.rmtree(tmp_path / str(seed))
    assert refusals >= number / 6  # or nothing much was damaged


@pytest.mark.slow
def test_a_damaged_tokenizer(checkpoint, tmp_path, repetitions):
    number = repetitions("damaged files of a tokenizer", 20, 200)
    refusals = 0
    for seed in range(number):
        generator = random.Random(seed)
        folder = shutil.copytree(checkpoint, tmp_path / str(seed))
        files = [path for path in folder.glob("*.json") if path.name != "config.json"]
        damage(generator.choice(sorted(files)), generator)
        refusals += assert_no_worse_than_a_sentence(load_and_check, folder) is not None
        shutil.rmtree(folder)
    assert refusals >= number / 10


@pytest.mark.slow
@pytest.mark.parametrize("family", BUNDLED_NAMES)
def test_converting_with_a_damaged_config(tmp_path, repetitions, capsys, family):
    """On the command line: exit code 0, or 1 and a sentence."""
    for seed in range(repetitions("damaged configs converted", 3, 40)):
        generator = random.Random(f"{family} {seed}")
        folder = shutil.copytree(BUNDLED / family, tmp_path / str(seed) / family)
        damage(folder / "config.json", generator)
        code = main(["convert", str(folder), "--output", str(tmp_path / str(seed) / "made")])
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert (code, message.startswith("error: ")) in ((0, False), (1, True)), message
        shutil.rmtree(tmp_path / str(seed))


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("llm_config", "num_hidden_layers", 10**9),
        ("llm_config", "hidden_size", 10**12),
        ("llm_config", "num_attention_heads", 0),
        ("llm_config", "vocab_size", "many"),
        ("vision_config", "patch_size", 0.5),
        ("vision_config", "image_size", [10**6, 10**6]),
        ("vision_config", "num_hidden_layers", True),
        (None, "max_dynamic_patch", 10**6),
        (None, "force_image_size", -448),
    ],
)
def test_numbers_that_size_a_model_are_checked_first(checkpoint, tmp_path, section, name, value):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    if section is None:
        change_config(folder, **{name: value})
    else:
        change_config(folder, **{section: read_config(folder)[section] | {name: value}})
    with pytest.raises(CheckpointError, match=rf"^{name} in .* should be a whole number from 1"):
        load_model(folder)


def test_a_trillion_parameters_are_refused(checkpoint, tmp_path):
    """Each number is within reason, all of them together are not what the files hold."""
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    wide = {"hidden_size": 10**5, "intermediate_size": 10**6, "num_hidden_layers": 2}
    change_config(folder, llm_config=read_config(folder)["llm_config"] | wide)
    with pytest.raises(CheckpointError, match="does not fit its config.json .mis-shaped"):
        load_model(folder)


def test_a_field_that_is_null_is_not_there(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    change_config(folder, force_image_size=None)
    assert load_model(folder)


@pytest.mark.parametrize("family", BUNDLED_NAMES)
def test_nothing_is_said_of_a_checkpoint_that_is_whole(family):
    check_processor(load_processor(BUNDLED / family))


@pytest.mark.parametrize("number", [5, 10**6])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
def test_a_token_of_pictures_that_no_prompt_has_is_told(tmp_path, family, number):
    folder = shutil.copytree(BUNDLED / family, tmp_path / family)
    change_config(folder, image_token_id=number)
    with pytest.raises(CheckpointError, match="a token for pictures that its tokenizer has not"):
        check_processor(load_processor(folder))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_an_index_names_files_of_its_own_folder_only(tmp_path, name):
    folder = shutil.copytree(GOLDEN / "minicpm_v2", tmp_path / "deep" / "checkpoint")
    shutil.copy(GOLDEN / "mllama" / "model.safetensors", tmp_path / "deep")
    index = {"weight_map": {"llm.model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match="names files that are not there"):
        load_model(folder)
