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


def test_pictures_to_scale_have_pixels_of_one_size():
    pictures = [Image.new("RGB", (8, 4)), Image.new("RGB", (4, 8))]
    for to_scale, heights in ((False, [4, 8]), (True, [8, 8])):
        axes = plots.show_pictures(pictures, ["wide", "tall"], to_scale=to_scale).axes
        assert [axis.get_ylim()[0] - axis.get_ylim()[1] for axis in axes] == heights


def test_a_mosaic_lays_pieces_out_row_by_row():
    colours = ("red", "green", "blue", "black")
    mosaic = plots.mosaic([Image.new("RGB", (3, 2), colour) for colour in colours], 2, gap=1)
    assert mosaic.size == (7, 5)
    expected = [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in colours]
    assert [mosaic.getpixel(place) for place in ((2, 1), (4, 1), (2, 3), (4, 3))] == expected
    gaps = [mosaic.getpixel(place) for place in ((3, 0), (0, 2))]
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
    assert [axis.images[0].get_clim() for axis in axes[:2]] == [(0.0, 5.0)] * 2
    heights = {"small": {"a": 1.0}, "large": {"a": 8.0}}
    units = dict.fromkeys(heights, "bytes")
    small, large = plots.bars(heights, units=units, common_scale=True).axes
    assert small.get_ylim() == large.get_ylim()


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
    (axis,) = plots.bars(heights, units={"8b": "milliseconds"}).axes
    assert [text.get_text() for text in axis.texts] == ["190", "1,208", "2,416"]
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {35.0}
    (axis,) = plots.bars({"8b": {"int4": 0.5, "int8": 22.94}}, units={"8b": "milliseconds"}).axes
    assert [text.get_text() for text in axis.texts] == ["0.5", "22.9"]
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {0.0}
