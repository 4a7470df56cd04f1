"""What picture tokens learn of boxes."""

import pytest
import torch

from helpers.workshop import locating
from tests.tiny import seeded


def test_tokens_of_a_shape_learn_the_hundreds_and_tens_of_its_box():
    digits = locating.digits_of_boxes([(0.0, 0.26, 0.499, 1.0)], rows=2, columns=4)
    shown = torch.tensor([[0, 0], [2, 6], [4, 9], [9, 9]])
    nothing = torch.full((4, 2), locating.IGNORED)
    # In the upper row the middles are at 0.25, above the box; in the lower one at 0.75.
    expected = [nothing] * 4 + [shown] * 2 + [nothing] * 2
    assert torch.equal(digits, torch.stack(expected))


def test_the_loss_falls_with_the_right_digits_and_is_zero_without_shapes():
    digits = locating.digits_of_boxes([(0.0, 0.0, 1.0, 1.0)], rows=1, columns=2)
    with seeded(0):
        locator, features = locating.new_locator(8), torch.randn(2, 8)
    optimizer = torch.optim.SGD(locator.parameters(), lr=0.5)
    losses = []
    for _ in range(50):
        losses.append(locating.locating_loss(locator, features, digits))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0].item() == pytest.approx(torch.tensor(10.0).log().item(), rel=0.3)
    assert losses[-1] < 0.1
    assert locating.locating_loss(locator, features, digits.fill_(locating.IGNORED)) == 0
