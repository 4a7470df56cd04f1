"""What the notebooks draw is what they were given."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.show import plots, tables


def test_grids_are_drawn_as_they_are_each_with_a_scale():
    grid = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], dtype=torch.float16)
    figure = plots.show_grids({"a picture": Image.new("RGB", (4, 4), "red"), "a grid": grid})
    picture, numbers, scale = figure.axes
    assert [axis.get_title() for axis in (picture, numbers)] == ["a picture", "a grid"]
    assert np.array_equal(numbers.images[0].get_array(), grid.float().numpy())
    assert scale.get_ylim() == (0.0, 5.0)


def test_grids_of_true_and_false_have_no_scale():
    grids = {"near": torch.eye(2).bool(), "everything": torch.ones(2, 2).tril().bool()}
    assert [axis.get_title() for axis in plots.show_grids(grids).axes] == list(grids)


def test_pictures_to_scale_have_pixels_of_one_size():
    pictures = [Image.new("RGB", (8, 4)), Image.new("RGB", (4, 8))]
    for to_scale, heights in ((False, [4, 8]), (True, [8, 8])):
        axes = plots.show_pictures(pictures, ["wide", "tall"], to_scale=to_scale).axes
        assert [axis.get_ylim()[0] - axis.get_ylim()[1] for axis in axes] == heights


def test_titles_wider_than_their_pictures_are_wrapped():
    pictures = [Image.new("RGB", (40, 40)), Image.new("RGB", (200, 40))]
    title = "the green triangle at the top left"
    narrow, wide = plots.show_pictures(pictures, [title, title], height=1.8).axes
    assert narrow.get_title().split() == title.split() and "\n" in narrow.get_title()
    assert wide.get_title() == title
    (axis,) = plots.show_pictures(pictures[1:], ["wide\n200 x 40"]).axes
    assert axis.get_title() == "wide\n200 x 40"


@pytest.mark.parametrize("size", [(10, 400), (400, 10)])
@pytest.mark.filterwarnings("error")
def test_a_strip_has_room_for_its_title_on_a_figure_that_a_page_holds(size):
    figure = plots.show_pictures([Image.new("RGB", size)], ["ask about this picture"], height=2.8)
    width, _ = figure.get_size_inches()
    assert 0.5 < width < 25


def test_a_mosaic_lays_pieces_out_row_by_row():
    colours = ("red", "green", "blue", "black")
    mosaic = plots.mosaic([Image.new("RGB", (3, 2), colour) for colour in colours], 2)
    right, down = 3 + plots.GAP, 2 + plots.GAP  # where the second column and row begin
    assert mosaic.size == (right + 3, down + 2)
    expected = [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in colours]
    places = [(2, 1), (right, 1), (2, down), (right, down)]
    assert [mosaic.getpixel(place) for place in places] == expected
    gaps = [mosaic.getpixel(place) for place in ((right - 1, 0), (0, down - 1))]
    assert gaps == [(255, 255, 255)] * 2


def test_lines_go_through_their_points_and_differ_in_more_than_colour():
    series = {"kept": {1: 2.0, 10: 2.5}, "computed": {1: 2.0, 10: 20.0}}
    (axis,) = plots.lines(series, x="tokens", y="milliseconds").axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("tokens", "milliseconds")
    for line, (name, points) in zip(axis.lines, series.items(), strict=True):
        assert line.get_label() == name
        assert dict(zip(*line.get_data(), strict=True)) == points
    first, second = axis.lines
    assert first.get_marker() != second.get_marker()
    assert first.get_linestyle() != second.get_linestyle()


def test_more_lines_than_can_be_told_apart():
    with pytest.raises(ValueError, match="7 lines cannot be told apart; draw at most 6"):
        plots.lines({str(name): {0: 1} for name in range(7)}, x="x", y="y")


def test_numbers_stand_on_the_right_with_or_without_separators():
    table = tables.format_table([{"part": "a", "weights": "1,024"}, {"part": "bc", "weights": 7}])
    assert table.splitlines()[2:] == ["a       1,024", "bc          7"]


def test_normalised_pixels_are_shown_in_their_own_colours():
    settings = SimpleNamespace(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.1])
    colours = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    pixels = (torch.tensor(colours) / 255 - torch.tensor(settings.image_mean)) / torch.tensor(
        settings.image_std
    )
    pictures = plots.pictures_of(pixels.permute(0, 3, 1, 2), settings)
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), colours)


def test_what_is_compared_has_one_scale():
    grids = {"low": torch.tensor([[0.0, 1.0]]), "high": torch.tensor([[2.0, 5.0]])}
    axes = plots.show_grids(grids, common_scale=True).axes
    assert len(axes) == 3  # the third is what the shades of both mean
    assert [axis.images[0].get_clim() for axis in axes[:2]] == [(0.0, 5.0)] * 2
    heights = {"small": {"a": 1.0}, "large": {"a": 8.0}}
    small, large = plots.bars(heights, unit="bytes", common_scale=True).axes
    assert small.get_ylim() == large.get_ylim()
    assert (small.get_ylabel(), large.get_ylabel()) == ("bytes", "")


def test_heights_begin_at_zero_and_a_single_line_needs_no_legend():
    (axis,) = plots.lines({"kept": {1: 130.0, 8: 250.0}}, x="beams", y="milliseconds").axes
    assert axis.get_ylim()[0] == 0 and axis.get_legend() is None
    (axis,) = plots.lines({"bias": {1: -1.0, 8: -8.0}}, x="distance", y="bias").axes
    assert axis.get_ylim()[0] < -8


def test_sizes_are_shown_by_part_and_together():
    rows = tables.size_rows({"int4": {"image encoder": 2_000_000, "language model": 1_500_000}})
    assert rows == [
        {
            "precision": "int4",
            "image encoder": "2.0 MB",
            "language model": "1.5 MB",
            "all": "3.5 MB",
        }
    ]


def test_long_texts_are_wrapped_between_words():
    answer = " ".join(["a green cross at the top left,"] * 4)
    table = tables.format_table([{"way": "greedy", "answer": answer, "tokens": 33}])
    lines = table.splitlines()
    assert len(lines) == 4 and max(map(len, lines)) < 100
    assert lines[2].endswith("33") and lines[3].startswith(" " * len("greedy  "))
    assert " ".join((lines[2].removesuffix("33") + lines[3]).split()[1:]) == answer


def test_bars_have_their_numbers_and_names_that_do_not_run_together():
    heights = {"8b": {"int4": 190.2, "PyTorch bfloat16": 1208.4, "PyTorch float32": 2416.0}}
    (axis,) = plots.bars(heights).axes
    assert [text.get_text() for text in axis.texts] == ["190", "1,208", "2,416"]
    labels = axis.get_xticklabels()
    assert [label.get_text() for label in labels] == [
        "int4",
        "PyTorch\nbfloat16",
        "PyTorch\nfloat32",
    ]
    assert {label.get_rotation() for label in labels} == {0.0}
    (axis,) = plots.bars(
        {"8b": {"quantized": 0.5, "unquantized": 22.94, "as before": 1, "x": 2}}
    ).axes
    assert [text.get_text() for text in axis.texts] == ["0.5", "22.9", "1", "2"]
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {35.0}


def test_a_variant_has_its_colour_also_where_others_are_missing():
    variants = ("fp16", "int8", "int4")
    colours = []
    for heights in ({"fp16": 3.0, "int8": 2.0, "int4": 1.0}, {"int8": 2.0, "int4": 1.0}):
        (axis,) = plots.bars({"8b": heights}, variants=variants).axes
        colours.append([bar.get_facecolor() for bar in axis.patches])
    assert colours[0][1:] == colours[1] and len(set(colours[0])) == 3


def test_a_span_is_shaded_and_named():
    series = {"head 1": {1: 0.8, 256: 0.0}}
    (axis,) = plots.lines(series, x="distance", y="weight", span=(10, 154, "the picture")).axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["head 1", "the picture"]
    (span,) = axis.patches
    assert (span.get_x(), span.get_x() + span.get_width()) == (10, 154)


def test_intervals_stand_about_their_values_beside_a_line():
    values = {"AWQ": (0.97, 1.01, 1.06), "GPTQ": (1.75, 3.05, 5.02)}
    (axis,) = plots.intervals(values, x="times as far", even=1).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["AWQ", "GPTQ"]
    for place, container in enumerate(axis.containers):
        (segment,) = container.lines[2][0].get_segments()
        low, value, high = list(values.values())[place]
        assert segment[:, 0].tolist() == pytest.approx([low, high])
        assert container.lines[0].get_xdata().tolist() == [value]


def test_half_as_much_is_drawn_as_far_from_even_as_twice_as_much():
    values = {"less": (0.01, 0.5, 0.9), "more": (1.2, 2, 35)}
    (axis,) = plots.intervals(values, x="times as far", even=1).axes
    half, even, twice = axis.transData.transform([(0.5, 0), (1, 0), (2, 0)])[:, 0]
    assert even - half == pytest.approx(twice - even) and even > half


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.005, 0.03, 35), {"0.01", "0.1", "1", "10"}), ((0.9, 1.2, 5), {"1", "2", "5"})],
)
def test_a_logarithmic_axis_has_few_numbers(interval, expected):
    (axis,) = plots.intervals({"int8": interval}, x="times as far", even=1).axes
    axis.figure.canvas.draw()
    low, high = axis.get_xlim()
    ticks = zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
    assert {label.get_text() for tick, label in ticks if low <= tick <= high} == expected
