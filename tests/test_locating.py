"""What picture tokens learn of boxes."""

import pytest
import torch

from helpers.workshop import locating
from tests.tiny import seeded


def test_tokens_of_a_shape_learn_the_sides_of_its_box():
    sides = locating.sides_of_boxes([(0.0, 0.26, 0.499, 1.0)], rows=2, columns=4)
    shape, nothing = torch.tensor([0, 260, 499, 999]), torch.full((4,), locating.IGNORED)
    # In the upper row the middles are at 0.25, above the box; in the lower one at 0.75.
    assert torch.equal(sides, torch.stack([*[nothing] * 4, *[shape] * 2, *[nothing] * 2]))


def test_the_loss_falls_with_the_right_sides_and_is_zero_without_shapes():
    sides = locating.sides_of_boxes([(0.1, 0.2, 0.34, 0.9)], rows=5, columns=5)
    with seeded(0):
        locator, features = locating.new_locator(8), torch.randn(25, 8)
    optimizer = torch.optim.Adam(locator.parameters(), lr=0.02)
    losses = []
    for _ in range(500):
        losses.append(locating.locating_loss(locator, features, sides))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 1 > 0.2 > losses[-1]
    # What is read is the box: its sides, then the hundreds and the tens of each.
    output = locator(features[sides[:, 0] != locating.IGNORED])
    shares, logits = output[:, :4], output[:, 4:].unflatten(-1, (4, 2, 10))
    assert shares[0].tolist() == pytest.approx([0.1, 0.2, 0.34, 0.9], abs=0.03)
    assert logits[0].argmax(-1).tolist() == [[1, 0], [2, 0], [3, 4], [9, 0]]
    assert locating.locating_loss(locator, features, sides.fill_(locating.IGNORED)) == 0
