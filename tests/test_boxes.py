"""Boxes in answers: whole, damaged, and drawn."""

import json
import random
from dataclasses import replace

import pytest
from PIL import Image, ImageChops

from helpers.inputs.box_drawing import COLOURS, draw_boxes
from helpers.inputs.boxes import Box, boxes_in, intersection_over_union, same_boxes

RED_STAR = '{"bbox_2d": [100, 200, 300, 400], "label": "red star"}'
BOX = Box(0.1, 0.2, 0.3, 0.4, "red star")


@pytest.mark.parametrize(
    "answer",
    [
        f"[{RED_STAR}]",
        f"```json\n[\n\t{RED_STAR}\n]\n```",
        f"Here it is: {RED_STAR}, I think.",
        '[{"label": "red star", "bbox_2d": [100, 200, 300, 400]}]',
        f'[{RED_STAR}, {{"bbox_2d": [5, 6, 7',
        f'[{RED_STAR}, {{"label": "blue sta',
        '{"bbox_2d": [300, 400, 100, 200], "label": "red star"',
    ],
)
def test_the_box_of_an_answer(answer):
    assert boxes_in(answer) == [BOX]


@pytest.mark.parametrize("label", ["a star\\", "a\tstar"])
def test_a_label_that_is_no_json_is_read_as_it_stands(label):
    text = label.replace("\\", "\\q")
    (box,) = boxes_in(f'{{"bbox_2d": [100, 200, 300, 400], "label": "{text}"}}')
    assert box.label == text


def test_an_answer_without_boxes():
    assert boxes_in("The star is red.") == boxes_in('{"bbox_2d": []}') == []


def random_boxes(generator: random.Random) -> list[Box]:
    boxes = []
    for number in range(generator.randint(1, 5)):
        left, right = sorted(generator.sample(range(1001), 2))
        top, bottom = sorted(generator.sample(range(1001), 2))
        label = generator.choice(["", "a", 'a "b"', "c, {d}", "\u00e9\n"]) + str(number)
        boxes.append(Box(left / 1000, top / 1000, right / 1000, bottom / 1000, label))
    return boxes


def answer_text(boxes: list[Box]) -> str:
    return json.dumps([{"bbox_2d": box.pixels(1000, 1000), "label": box.label} for box in boxes])


@pytest.mark.parametrize("seed", range(50))
def test_what_is_written_is_read_and_what_is_cut_off_is_a_beginning(seed):
    generator = random.Random(seed)
    boxes = random_boxes(generator)
    text = answer_text(boxes)
    corners = [box.pixels(1000, 1000) for box in boxes]
    assert [box.pixels(1000, 1000) for box in boxes_in(text)] == corners
    for length in range(len(text)):
        part = [box.pixels(1000, 1000) for box in boxes_in(text[:length])]
        assert part == corners[: len(part)]


@pytest.mark.parametrize("seed", range(50))
def test_the_agreement_of_two_boxes(seed):
    first, second = (random_boxes(random.Random(2 * seed + number))[0] for number in (0, 1))
    agreement = intersection_over_union(first, second)
    assert 0 <= agreement <= 1
    assert agreement == intersection_over_union(second, first)
    assert intersection_over_union(first, first) == pytest.approx(1)
    half = Box(first.left, first.top, (first.left + first.right) / 2, first.bottom)
    assert intersection_over_union(first, half) == pytest.approx(0.5)


def test_two_equal_points_agree():
    point, other = Box(0.5, 0.5, 0.5, 0.5), Box(0.5, 0.6, 0.5, 0.6)
    assert intersection_over_union(point, point) == 1
    assert intersection_over_union(point, other) == 0


def test_boxes_beyond_the_picture_end_at_its_edge():
    assert boxes_in('{"bbox_2d": [-5, 0, 2000, 500.5]}') == [Box(0, 0, 1, 0.5005)]


def test_a_box_is_drawn_where_it_is():
    picture = draw_boxes(Image.new("RGB", (200, 100)), [Box(0.25, 0.5, 0.75, 0.9)])
    edge = tuple(int(COLOURS[0][place : place + 2], 16) for place in (1, 3, 5))
    assert [picture.getpixel(place) for place in ((50, 50), (150, 90))] == [edge, edge]
    assert picture.getpixel((100, 70)) == (0, 0, 0)


def test_a_label_stands_in_the_upper_left_corner_of_its_box():
    box = Box(0.1, 0.5, 0.75, 0.9)
    plain, picture = (
        draw_boxes(Image.new("RGB", (200, 100)), [replace(box, label=label)])
        for label in ("", "a star")
    )
    left, top, right, bottom = ImageChops.difference(plain, picture).getbbox()
    assert (left, top) == pytest.approx((20, 50), abs=5)
    assert right < 150 and bottom < 75


def answer_with(*boxes: tuple[list[int], str]) -> str:
    return json.dumps([{"bbox_2d": sides, "label": label} for sides, label in boxes])


@pytest.mark.parametrize(
    ("sides", "label", "expected"),
    [
        ([100, 200, 300, 400], "red star", True),
        ([110, 205, 300, 400], "red star", True),  # 0.926 of the union is shared
        ([158, 200, 300, 400], "red star", True),  # 0.71
        ([162, 200, 300, 400], "red star", False),  # 0.69
        ([100, 200, 300, 400], "blue star", False),
    ],
)
def test_boxes_that_are_nearly_the_same(sides, label, expected):
    right_box = ([100, 200, 300, 400], "red star")
    assert same_boxes(answer_with((sides, label)), answer_with(right_box)) is expected
    assert not same_boxes(answer_with((sides, label), right_box), answer_with(right_box))
    assert not same_boxes("It is there.", answer_with(right_box))
