"""Pictures as a person sees them, and prompts as the model was trained on them."""

import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.errors import PictureError, QuestionError
from helpers.inputs import images
from helpers.inputs.images import open_picture
from helpers.inputs.messages import content_of, user_message
from helpers.inputs.prompts import PromptPiece, Template, encode
from helpers.models import load_processor
from helpers.models.slices import Slicing, plan_slices

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def two_colours() -> Image.Image:
    """Return a wide picture whose left half is red and whose right half is blue."""
    picture = Image.new("RGB", (40, 20), RED)
    picture.paste(BLUE, (20, 0, 40, 20))
    return picture


def save(picture: Image.Image, ending: str, tmp_path, **options):
    path = tmp_path / f"picture.{ending}"
    picture.save(path, **options)
    return path


def near(actual, expected, slack: int = 6) -> bool:
    return all(abs(value - target) <= slack for value, target in zip(actual, expected, strict=True))


# Pictures


@pytest.mark.parametrize(
    ("orientation", "size", "top_left", "bottom_right"),
    [
        (1, (40, 20), RED, BLUE),
        (2, (40, 20), BLUE, RED),
        (3, (40, 20), BLUE, RED),
        (6, (20, 40), RED, BLUE),
        (8, (20, 40), BLUE, RED),
    ],
)
def test_the_rotation_of_a_camera_is_applied(
    two_colours, tmp_path, orientation, size, top_left, bottom_right
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_picture(save(two_colours, "png", tmp_path, exif=exif))
    assert (opened.mode, opened.size) == ("RGB", size)
    assert opened.getpixel((0, 0)) == top_left
    assert opened.getpixel((size[0] - 1, size[1] - 1)) == bottom_right


def test_a_rotation_is_applied_once(two_colours, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = open_picture(save(two_colours, "png", tmp_path, exif=exif))
    assert open_picture(rotated).size == rotated.size


def test_printers_colours(two_colours, tmp_path):
    path = save(two_colours.convert("CMYK"), "jpg", tmp_path, quality=95)
    opened = open_picture(path)
    assert opened.mode == "RGB" and near(opened.getpixel((5, 10)), RED, slack=12)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_deep_greys_are_scaled_not_cut(tmp_path, ending):
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (4, 1))
    opened = open_picture(save(Image.fromarray(ramp), ending, tmp_path))
    values = np.asarray(opened)[0, :, 0].astype(int)
    assert opened.mode == "RGB"
    assert np.abs(values - np.arange(256)).max() <= 1


def test_deep_greys_that_are_dark_stay_dark(tmp_path):
    dark = np.full((4, 4), 6553, dtype=np.uint16)
    opened = open_picture(save(Image.fromarray(dark), "png", tmp_path))
    assert near(opened.getpixel((0, 0)), (25, 25, 25), slack=1)


# A dark picture of values to 255 is none of values to 1 with lights.
@pytest.mark.parametrize(("highest", "level"), [(1.0, 255), (255.0, 255), (40.25, 40.25)])
def test_greys_as_fractions(tmp_path, highest, level):
    ramp = np.tile(np.linspace(0, highest, 256, dtype=np.float32), (4, 1))
    opened = open_picture(save(Image.fromarray(ramp), "tif", tmp_path))
    values = np.asarray(opened)[0, :, 0].astype(int)
    assert np.abs(values - np.linspace(0, level, 256)).max() <= 1


@pytest.mark.parametrize(("ending", "kind"), [("tif", ">u2"), ("tif", "<u2"), ("png", "<u2")])
def test_deep_greys_in_either_order_of_bytes(tmp_path, ending, kind):
    """ImageJ and Fiji write TIFF with the higher byte first."""
    ramp = np.tile(np.linspace(0, 65535, 256).astype(kind), (4, 1))
    opened = open_picture(save(Image.fromarray(ramp), ending, tmp_path))
    reference = open_picture(Image.fromarray(ramp.astype(np.uint16)))
    assert opened.mode == "RGB" and opened.tobytes() == reference.tobytes()
    assert np.abs(np.asarray(opened)[0, :, 0].astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_deep_greys_in_memory(mode):
    ramp = np.linspace(0, 65535, 256).astype(">u2" if mode == "I;16B" else np.uint16)
    picture = Image.frombytes(mode, (256, 1), ramp.tobytes())
    values = np.asarray(open_picture(picture))[0, :, 0].astype(int)
    assert np.abs(values - np.arange(256)).max() <= 1


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_transparency_becomes_white(mode):
    clear = Image.new("RGBA", (2, 1), (*RED, 0))
    clear.putpixel((0, 0), (*RED, 255))
    picture = (clear.convert("LA") if mode == "La" else clear).convert(mode)
    opened = open_picture(picture)
    assert opened.getpixel((1, 0)) == WHITE != opened.getpixel((0, 0))


@pytest.mark.parametrize("highest", [1.001, 1.5, 12.0])
def test_lights_above_white_leave_the_rest_as_it_is(tmp_path, highest):
    """Rendered pictures in fractions have them; they are clipped as a screen does."""
    ramp = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (8, 1))
    expected = np.asarray(open_picture(Image.fromarray(ramp)))
    ramp[0, -1] = highest
    opened = open_picture(save(Image.fromarray(ramp), "tif", tmp_path))
    assert (np.asarray(opened) == expected).all()


def test_dark_greys_in_whole_numbers_stay_dark(tmp_path):
    few = np.tile(np.arange(4, dtype=np.float32), (4, 1))
    opened = open_picture(save(Image.fromarray(few), "tif", tmp_path))
    assert np.asarray(opened)[0, :, 0].tolist() == [0, 1, 2, 3]


def test_values_that_are_no_numbers(tmp_path):
    greys = np.array([[0.0, 0.5, np.nan, np.inf, -np.inf, -3.0, 1.0]], dtype=np.float32)
    opened = open_picture(save(Image.fromarray(greys), "tif", tmp_path))
    assert np.asarray(opened)[0, :, 0].tolist() == [0, 127, 0, 255, 0, 0, 255]


def test_greys_of_32_bits_go_to_the_brightest(tmp_path):
    greys = np.array([[0, 500_000, 1_000_000]], dtype=np.int32)
    opened = open_picture(save(Image.fromarray(greys), "tif", tmp_path))
    assert np.asarray(opened)[0, :, 0].tolist() == [0, 127, 255]


def test_an_open_file(two_colours, tmp_path):
    path = save(two_colours, "png", tmp_path)
    content = io.BytesIO(path.read_bytes())
    for _ in range(2):  # it is read from its beginning, and stays open
        assert open_picture(content).tobytes() == two_colours.tobytes()
    with path.open("rb") as file:
        assert open_picture(file).tobytes() == two_colours.tobytes()
    with pytest.raises(PictureError, match=r"^The picture is not a picture in a format"):
        open_picture(io.BytesIO(b"words"))


def test_transparency_becomes_white(tmp_path):
    clear = Image.new("RGBA", (4, 4), (*RED, 0))
    clear.putpixel((0, 0), (*RED, 255))
    for picture in (clear, clear.convert("LA")):
        opened = open_picture(save(picture, "png", tmp_path))
        assert opened.getpixel((3, 3)) == WHITE != opened.getpixel((0, 0))


def test_a_transparent_colour_of_a_palette_becomes_white(two_colours, tmp_path):
    palette = two_colours.quantize(4)
    clear = palette.getpixel((0, 0))
    opened = open_picture(save(palette, "png", tmp_path, transparency=clear))
    assert opened.getpixel((0, 0)) == WHITE and near(opened.getpixel((39, 0)), BLUE)


def test_a_transparent_deep_grey_becomes_white(tmp_path):
    grey = Image.fromarray(np.full((4, 4), 30000, dtype=np.uint16))
    grey.putpixel((0, 0), 20000)
    opened = open_picture(save(grey, "png", tmp_path, transparency=30000))
    assert opened.getpixel((1, 0)) == WHITE and near(opened.getpixel((0, 0)), (78, 78, 78))


def test_of_an_animation_the_first_frame(two_colours, tmp_path):
    frames = [Image.new("RGB", (40, 20), colour) for colour in ("lime", "black")]
    path = save(two_colours, "gif", tmp_path, save_all=True, append_images=frames)
    opened = open_picture(path)
    assert near(opened.getpixel((0, 0)), RED) and near(opened.getpixel((39, 19)), BLUE)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_a_single_pixel_of_every_mode(mode):
    assert open_picture(Image.new(mode, (1, 1))).size == (1, 1)
    assert open_picture(Image.new(mode, (1, 1))).mode == "RGB"


def test_a_picture_in_memory_is_left_as_it_is(two_colours):
    before = two_colours.copy()
    open_picture(two_colours).putpixel((0, 0), WHITE)
    assert two_colours.tobytes() == before.tobytes()


def test_a_single_pixel_reaches_the_model(checkpoint):
    inputs = load_processor(checkpoint).image_inputs([Image.new("RGB", (1, 1))])
    assert inputs["pixel_values"].shape[1:] == (3, 32, 32)


def cut_off(picture: Image.Image, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path = save(noise, "png", tmp_path)
    path.write_bytes(path.read_bytes()[:4000])
    return path


def words(picture: Image.Image, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("no picture", encoding="utf-8")
    return path


NO_PICTURES = {
    "cut off": (cut_off, r"picture\.png cannot be read as a picture"),
    "words": (words, r"words\.txt is not a picture in a format that Pillow reads"),
    "not there": (lambda _, folder: folder / "none.png", r"none\.png does not exist"),
    "a folder": (lambda _, folder: folder, "cannot be read as a picture"),
    "empty name": (lambda *_: "", "^'' is not a picture; give the path of one"),
    "blank name": (lambda *_: " ", "^' ' is not a picture"),
    "a number": (lambda _, folder: 5, "5 is not a picture"),
    "nothing": (lambda _, folder: None, "None is not a picture; give the path"),
    "an array": (lambda picture, _: np.asarray(picture), "An object of type ndarray is not a pic"),
    "bytes": (lambda picture, _: picture.tobytes(), "An object of type bytes is not a picture"),
    "a file of text": (lambda *_: io.StringIO("no"), "The picture cannot be read as a picture"),
    "too long": (lambda *_: Image.new("L", (100_001, 1)), "too long and narrow .100001 x 1 pixels"),
    "too high": (lambda *_: Image.new("L", (1, 100_001)), "too long and narrow .1 x 100001 pixels"),
    "too large": (lambda *_: Image.new("1", (8001, 8000)), "too large .8001 x 8000 pixels"),
    "a long name": (lambda *_: "a" * 400, "^a{300}[.]{3} cannot be read as a picture .OSError"),
    "no pixels": (lambda *_: Image.new("RGB", (0, 0)), "The picture is empty .0 x 0 pixels"),
    "no columns": (lambda *_: Image.new("L", (0, 5)), "The picture is empty .0 x 5 pixels"),
    "a closed picture": (lambda picture, _: picture.close() or picture, "cannot be read"),
}


@pytest.mark.parametrize("size", [(480, 360), (64, 96)])
def test_a_lake_has_a_sky_water_and_a_jetty_before_it(size):
    picture = images.draw_lake(*size)
    width, height = picture.size
    assert (picture.mode, picture.size) == ("RGB", size)
    sky, water = picture.getpixel((2, 2)), picture.getpixel((2, height - 2))
    jetty = picture.getpixel((width // 2, round(height * 0.92)))
    assert sky[2] > sky[0] and water[2] > water[0] and jetty[0] > jetty[2]


@pytest.mark.parametrize(("make", "message"), NO_PICTURES.values(), ids=NO_PICTURES)
def test_what_is_no_picture_is_told_in_a_sentence(two_colours, tmp_path, make, message):
    source = make(two_colours, tmp_path)
    with pytest.raises(PictureError, match=message) as caught:
        open_picture(source)
    assert "\n" not in str(caught.value)


def test_too_many_pixels_are_told_without_reading_them(tmp_path, monkeypatch):
    path = save(Image.new("1", (11_000, 9_000)), "png", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(PictureError, match="is too large .11000 x 9000 pixels.; reduce it"):
            open_picture(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(PictureError, match="is too large"):
        open_picture(path)


def test_just_small_enough(monkeypatch):
    monkeypatch.setattr(images, "MAXIMUM_PIXELS", 20)
    assert open_picture(Image.new("RGB", (4, 5))).size == (4, 5)
    with pytest.raises(PictureError, match="The picture is too large"):
        open_picture(Image.new("RGB", (7, 3)))


Image.init()
# Pillow knows these by name only, and needs another program to read EPS.
BY_NAME_ONLY = {"BUFR", "GRIB", "HDF5", "WMF", "EPS"}


@pytest.mark.parametrize("form", sorted((Image.OPEN.keys() & Image.SAVE.keys()) - BY_NAME_ONLY))
def test_every_format_that_pillow_writes(two_colours, tmp_path, repetitions, form):
    repetitions("formats of pictures")
    path = tmp_path / "picture"
    for mode in ("RGB", "L", "P", "1", "RGBA"):
        try:
            two_colours.convert(mode).save(path, form)
            break
        except (KeyError, OSError, ValueError):  # not in this mode
            continue
    picture = open_picture(path)
    assert picture.mode == "RGB" and min(picture.size) >= 1


# Of those that Pillow writes, one for each kind of error that its readers raise for damaged files.
DAMAGED = ["png", "jpg", "gif", "webp", "bmp", "tif", "avif", "qoi", "dds", "jp2", "spider", "tga"]


@pytest.mark.parametrize("ending", DAMAGED)
def test_damaged_files_raise_nothing_else(two_colours, tmp_path, repetitions, ending):
    content, form = io.BytesIO(), "SPIDER" if ending == "spider" else ending
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if ending in ("png", "jpg", "webp", "tif", "avif") else {}
    picture = two_colours.convert("F") if ending == "spider" else two_colours
    picture.save(content, Image.registered_extensions().get(f".{form}", form), **options)
    random = np.random.default_rng(0)
    path = tmp_path / f"damaged.{ending}"
    for number in range(repetitions("damaged pictures", 60, 600)):
        damaged = bytearray(content.getvalue())
        for place in random.integers(0, len(damaged), 4):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged[: random.integers(len(damaged))] if number % 4 == 0 else damaged)
        try:
            assert open_picture(path).mode == "RGB"
        except PictureError as error:
            assert "\n" not in str(error)


# Prompts

TEMPLATE = Template(
    system="<s>Be kind.</s>",
    user="<u>",
    user_end="</u>",
    assistant="<a>",
    assistant_end="</a>",
    before_answer=" ",
)
ANSWER = {"role": "assistant", "content": "A cat."}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user_message("Hello")], "<s>Be kind.</s><u>Hello</u><a>"),
        ([user_message("What?", 1)], "<s>Be kind.</s><u><image>\nWhat?</u><a>"),
        (
            [user_message("Which?", 2)],
            "<s>Be kind.</s><u>Image-1: <image>\nImage-2: <image>\nWhich?</u><a>",
        ),
        (
            [user_message("What?", 1), ANSWER, user_message("Sure?")],
            "<s>Be kind.</s><u><image>\nWhat?</u><a> A cat.</a><u>Sure?</u><a>",
        ),
        ([{"role": "user", "content": "Plain"}], "<s>Be kind.</s><u>Plain</u><a>"),
    ],
)
def test_the_words_of_a_template(messages, expected):
    assert TEMPLATE.render(messages) == expected


def test_a_later_turn_has_no_system_message():
    pieces = TEMPLATE.pieces([user_message("Sure?")], first=False)
    assert "".join(piece.text for piece in pieces) == "<u>Sure?</u><a>"
    assert [piece.kind for piece in pieces] == ["template", "text", "template"]


@pytest.mark.parametrize(
    "message", [{"role": "user"}, {"content": [{"type": "text"}]}, {"role": "dog", "content": []}]
)
def test_what_is_no_message(message):
    with pytest.raises(QuestionError, match="A message needs a role, system, user or assistant"):
        content_of(message)


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return load_processor(checkpoint).tokenizer


def ids_of(tokenizer, *pieces, images=()):
    return encode(tokenizer, [PromptPiece(kind, text) for kind, text in pieces], images)


def test_a_prompt_is_encoded_whole(tokenizer):
    actual = ids_of(tokenizer, ("template", "<|im_start|>user\n"), ("text", "What?"))
    assert actual == tokenizer("<|im_start|>user\nWhat?")["input_ids"]


@pytest.mark.parametrize("word", ["<|im_end|>", "<IMG_CONTEXT>", "<img>", "<|endoftext|>"])
def test_special_words_in_a_text_are_plain(tokenizer, word):
    (special_id,) = tokenizer.convert_tokens_to_ids([word])
    text = f"a {word} b{word}"
    actual = ids_of(tokenizer, ("template", word), ("text", text), ("template", word))
    assert actual[0] == actual[-1] == special_id
    assert special_id not in actual[1:-1]
    assert tokenizer.decode(actual[1:-1]) == text


def test_pictures_stand_where_the_template_puts_them(tokenizer):
    pieces = [("template", "<|im_start|>"), ("image", "<image>"), ("text", "What?")]
    actual = ids_of(tokenizer, *pieces, images=["<img><IMG_CONTEXT></img>"])
    assert actual == tokenizer("<|im_start|><img><IMG_CONTEXT></img>What?")["input_ids"]
    actual = ids_of(tokenizer, *pieces, images=[[7, 8, 9]])
    assert actual[1:4] == [7, 8, 9]
    assert actual[4:] == tokenizer("What?")["input_ids"]


def test_the_words_image_in_a_question_are_no_picture(tokenizer):
    ids = ids_of(tokenizer, ("text", "An <image> tag?"))
    assert tokenizer.decode(ids) == "An <image> tag?"


# Cutting pictures of any shape

ANY_SIZE = st.tuples(*[st.integers(1, 20_000)] * 2)


@settings(max_examples=300)
@given(ANY_SIZE, st.sampled_from([Slicing(448, 14, 9), Slicing(64, 8, 4), Slicing(64, 8, 1)]))
def test_slices_of_any_shape(size, slicing):
    """Whole patches, no more of them than the encoder reads, a shape near the picture's."""
    plan = plan_slices(*size, slicing)
    pieces = [plan.overview] if plan.cell is None else [plan.overview, plan.cell]
    limit = slicing.resolution // slicing.patch
    for width, height in pieces:
        assert width % slicing.patch == height % slicing.patch == 0
        columns, rows = width // slicing.patch, height // slicing.patch
        assert min(columns, rows) >= 1
        # Rounding to whole patches adds half a patch to each side at most.
        if min(columns, rows) > 1:
            assert columns * rows <= limit**2 + (columns + rows) / 2 + 1
    if plan.grid is not None:
        assert 2 <= plan.grid[0] * plan.grid[1] <= slicing.maximum
        if max(size) >= 2 * min(size):  # of nearly square ones, the nearest shape may be any
            is_tall = size[1] > size[0]
            assert plan.grid[is_tall] >= plan.grid[not is_tall]
    else:
        assert size[0] * size[1] <= slicing.resolution**2 or slicing.maximum == 1


@given(size=st.tuples(*[st.integers(1, 700)] * 2))
def test_tiles_of_any_shape(checkpoint, size):
    """As many as the config allows, a thumbnail behind them if there are several."""
    processor = load_processor(checkpoint)
    inputs = processor.image_inputs([Image.new("RGB", size, RED)])
    (number,) = inputs["tiles"].tolist()
    side = processor.config["force_image_size"]
    assert tuple(inputs["pixel_values"].shape) == (number, 3, side, side)
    tiles = number - 1 if number > 1 else 1
    assert processor.config["min_dynamic_patch"] <= tiles <= processor.config["max_dynamic_patch"]
    (marks,) = processor.image_strings(inputs)
    assert marks.count("<IMG_CONTEXT>") == number * processor.tokens_per_tile
