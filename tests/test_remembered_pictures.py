"""Features of the last pictures are kept: the same object comes back, within a limit of bytes."""

import torch

from helpers.models.qwen3_vl.exported import DeepStackTokens
from helpers.run.remembered_pictures import RememberedPictures, digest_of

PIXELS = torch.arange(12.0).reshape(3, 4)


def inputs(number: float = 0.0, grid: tuple[int, ...] = (1, 2)) -> dict:
    """Return an image encoder's inputs."""
    return {"pixel_values": PIXELS + number, "grids": [grid, torch.tensor(3)]}


def test_inputs_are_told_apart():
    same = {digest_of(inputs()), digest_of(dict(reversed(inputs().items())))}
    assert len(same) == 1
    others = {digest_of(inputs(1.0)), digest_of(inputs(grid=(2, 1)))}
    reshaped = inputs() | {"pixel_values": PIXELS.reshape(4, 3)}
    doubles = inputs() | {"pixel_values": PIXELS.double()}
    assert len(same | others | {digest_of(reshaped), digest_of(doubles)}) == 5


def test_what_was_computed_is_not_computed_again():
    pictures, computed = RememberedPictures(), []
    features = torch.ones(2, 3)
    for _ in range(3):
        actual = pictures.find(inputs(), lambda: computed.append(1) or [features])
        assert actual[0] is features
    assert computed == [1] and pictures.bytes == features.nbytes


def test_the_ones_used_last_stay():
    pictures, computed = RememberedPictures(most_bytes=100), []

    def find(number: int) -> None:
        pictures.find(inputs(number), lambda: computed.append(number) or [torch.ones(10)])

    for number in (1, 2, 1, 3, 1, 2):  # two of 40 bytes fit
        find(number)
    assert computed == [1, 2, 3, 2] and pictures.bytes == 80


def test_features_that_are_too_large_are_not_kept():
    pictures, computed = RememberedPictures(most_bytes=100), []
    pictures.find(inputs(1), lambda: [torch.ones(10)])
    for _ in range(2):
        pictures.find(inputs(), lambda: computed.append(1) or [torch.ones(100)])
    assert computed == [1, 1] and pictures.bytes == 40
    assert pictures.find(inputs(1), list) != []  # and push nothing else out


def test_what_two_compute_at_once_is_counted_once():
    pictures, features = RememberedPictures(), [torch.ones(10)]

    def compute_while_another_does() -> list[torch.Tensor]:
        return pictures.find(inputs(), lambda: features)

    assert pictures.find(inputs(), compute_while_another_does)[0] is features[0]
    assert pictures.bytes == 40


def test_what_features_carry_is_counted():
    tokens = DeepStackTokens.with_rows(torch.ones(2, 3), (1, 2, 2), torch.ones(4, 2, 3))
    pictures = RememberedPictures()
    assert pictures.find(inputs(), lambda: [tokens])[0] is tokens
    assert pictures.bytes == 4 * (6 + 24)
