"""MiniCPM-V 4.6 at random dimensions, beside transformers' own model of the same checkpoint."""

from pathlib import Path

import pytest
import torch
from transformers import MiniCPMV4_6Processor as TransformersProcessor
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
    MiniCPMV4_6ImageProcessorPil,
)

from helpers.errors import PictureError, QuestionError
from helpers.graphs.part_names import LANGUAGE_MODEL
from helpers.inputs.messages import user_message
from helpers.inputs.video import Video
from helpers.models.families import families, find_original, load_processor
from helpers.models.minicpm_v4_6.patches import FEW, MANY, nested_order
from helpers.sources.checkpoints import write_json
from tests.random_minicpm_v4_6 import PREPARATION, write_random
from tests.random_models import (
    BETWEEN,
    CASES,
    PICTURES,
    WAYS,
    error,
    noise,
    random_models,
)
from tests.workers import in_groups

LARGE = 10**6  # a budget of tokens that has room for the mode with many
# Seeds and budgets: each checkpoint in one of the modes.
CHECKPOINTS = in_groups([(0, None), (1, LARGE)], "minicpm_v4_6")


@pytest.fixture(scope="module", params=CHECKPOINTS)
def models(request, tmp_path_factory):
    seed, budget = request.param
    folder = tmp_path_factory.mktemp("minicpm_v4_6")
    return random_models(folder, write_random, seed, picture_tokens=budget, answers_at_once=2)


@pytest.mark.parametrize("case", CASES)
def test_logits(models, case):
    models.check_logits(models.prompt(*CASES[case]))


@pytest.mark.parametrize("way", WAYS)
def test_tokens(models, way):
    models.check_tokens(models.prompt(*CASES["pictures between words"]), WAYS[way])


def test_prompts_of_several_lengths_in_one_batch(models):
    models.check_batch([models.prompt(*case) for case in CASES.values()])


def test_a_conversation_goes_on_and_back(models):
    models.check_conversation()


def test_pictures_are_counted_through_a_conversation(models):
    conversation = models.pipeline.conversation()
    for picture in PICTURES:
        reply = conversation.ask("What is it?", [picture], max_new_tokens=2)
        reply.wait()
    prompt = models.pipeline.processor.tokenizer.decode(reply.prompt_ids)
    numbers = [prompt.count(f"<image_id>{number}</image_id>") for number in range(4)]
    assert numbers == [1, 1, 1, 0]


def test_each_linear_layer_is_one_operation(models):
    kinds = models.operations(LANGUAGE_MODEL)
    layers = models.reference.config.text_config.layer_types
    assert kinds.count("GatedDeltaNet") == layers.count("linear_attention")


@pytest.mark.parametrize("mode", [FEW, MANY])
@torch.inference_mode()
def test_one_graph_takes_slices_of_every_shape(models, mode):
    sizes = torch.tensor([[4, 4], [4, 12], [12, 4], [8, 20], [4, 12]], dtype=torch.int32)
    pixels = torch.randn(1, 3, 14, 14 * int(sizes.prod(-1).sum()))
    expected = models.reference.get_image_features(pixels, sizes, downsample_mode=mode)
    inputs = {"pixel_values": pixels, "target_sizes": sizes, "downsample_mode": mode}
    for model, tolerance in ((models.model, 5e-6), (models.pipeline, 1e-4)):
        features = model.encode_images(**inputs)
        for actual, piece in zip(features, expected.pooler_output, strict=True):
            assert actual.shape == piece.shape and error(actual, piece) < tolerance


# Pictures and prompts, against transformers' own preparation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a random checkpoint."""
    folder = tmp_path_factory.mktemp("minicpm_v4_6")
    write_random(folder, 0)
    return folder


def transformers_processor(tokenizer, mode: str):
    """Return transformers' processor without videos, which would need torchvision."""
    processor = TransformersProcessor.__new__(TransformersProcessor)
    processor.image_processor = MiniCPMV4_6ImageProcessorPil(**PREPARATION, downsample_mode=mode)
    processor.tokenizer, processor.slice_mode = tokenizer, True
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    for name, token in names.items():
        setattr(processor, f"{name}_token", token)
    for kind in ("image", "slice", "image_id"):
        setattr(processor, f"{kind}_start_token", f"<{kind}>")
        setattr(processor, f"{kind}_end_token", f"</{kind}>")
    return processor


SIZES = [(5, 9), (64, 64), (168, 168), (169, 169), (400, 90), (90, 400), (300, 260), (1000, 30)]
SIZES += [(width, height) for width in range(150, 700, 91) for height in range(130, 600, 83)]


@pytest.mark.parametrize("mode", [FEW, MANY])
def test_pictures_and_prompts_are_those_of_transformers(folder, mode):
    processor = load_processor(folder).within(LARGE if mode == MANY else None)
    theirs = transformers_processor(processor.tokenizer, mode)
    pictures = [noise(*size, seed) for seed, size in enumerate(SIZES)]
    expected, replacements = theirs._process_images(
        pictures, return_tensors="pt", downsample_mode=mode
    )
    inputs = processor.image_inputs(pictures)
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
    assert torch.equal(inputs["target_sizes"], expected["target_sizes"])
    assert inputs["grids"].flip(-1).tolist() == [list(grid) for grid in expected["grids"]]
    messages = [BETWEEN, {"role": "assistant", "content": "Red."}, user_message("And?", 1)]
    text = processor.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    numbered = theirs._prepend_local_ids([text], replacements[:4], theirs.image_token)
    for string in numbered:
        text = text.replace(theirs.image_token, string.replace(theirs.image_token, "\0"), 1)
    text = text.replace("\0", theirs.image_token)
    ids = processor.input_ids(messages, processor.image_inputs(pictures[:4]))[0].tolist()
    assert ids == processor.tokenizer(text)["input_ids"]
    assert "<image_id>3</image_id>" in text


def test_numbers_of_pictures_are_left_out_where_the_files_say_so(folder, tmp_path):
    for path in folder.glob("*"):
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    write_json(tmp_path / "preprocessor_config.json", PREPARATION | {"use_image_id": False})
    processor = load_processor(tmp_path)
    ids = processor.input_ids([BETWEEN], processor.image_inputs(PICTURES))
    assert "<image_id>" not in processor.tokenizer.decode(ids[0])


def test_the_files_can_say_that_tokens_are_many(folder, tmp_path):
    for path in folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_json(tmp_path / "preprocessor_config.json", PREPARATION | {"downsample_mode": MANY})
    processor = load_processor(tmp_path)
    assert processor.downsample_mode == MANY
    assert processor.within(processor.usual_picture_tokens).downsample_mode == MANY
    assert processor.within(processor.pieces.tokens).downsample_mode == FEW


@pytest.mark.parametrize("budget", [9, 20, 54, 120, 215, 216, 1000])
def test_no_picture_has_more_tokens_than_the_budget(folder, budget):
    """36 and 9 tokens a square slice, 5 slices and an overview."""
    processor = load_processor(folder).within(budget)
    assert processor.downsample_mode == (MANY if budget >= 6 * 36 else FEW)
    counts = []
    for size in [*SIZES, (3000, 40), (40, 3000)]:
        inputs = processor.image_inputs([noise(*size)])
        ids = processor.input_ids([user_message("What is it?", 1)], inputs)
        counts.append(int(processor.picture_positions(ids).sum()))
    assert max(counts) <= budget
    assert max(counts) > 0.7 * processor.pieces.tokens_within(budget)


def test_the_numbers_of_the_original():
    """One slice of 448 x 448 pixels has 64 tokens, or 256."""
    original = find_original("openbmb/MiniCPM-V-4_6")
    assert original is find_original("minicpm-v-4.6")
    family = next(family for family in families() if original in family.originals)
    processor = family.model.processor_class(Path(), original.config)
    pieces = processor.pieces
    assert (pieces.tokens, pieces.finer, pieces.most) == (64, 256, 9)
    overview = "and one of the whole picture"
    assert pieces.sentence(640) == f"about 640 tokens at most: 9 slices of about 64 {overview}"
    assert pieces.sentence(2560) == f"about 2560 tokens at most: 9 slices of about 256 {overview}"


def test_pictures_like_a_line_and_videos_are_refused(folder):
    processor = load_processor(folder)
    with pytest.raises(PictureError, match="5000 x 1 pixels is too long and narrow"):
        processor.image_inputs([noise(5000, 1)])
    with pytest.raises(QuestionError, match="reads no video"):
        processor.image_inputs([Video([noise(9, 9)] * 2, [0.0, 1.0])])


def test_order_of_patches():
    """Squares of 4 x 4 row by row, in each those of 2 x 2."""
    order = nested_order(4, 8, 2).reshape(2, 4, 4)
    assert order[0].tolist() == [[0, 1, 8, 9], [2, 3, 10, 11], [16, 17, 24, 25], [18, 19, 26, 27]]
    assert torch.equal(order[1], order[0] + 4)
