"""What the notebooks draw is what they were given."""

import numpy as np
import torch
from PIL import Image

from helpers import plots


def test_grids_are_drawn_as_they_are_each_with_a_scale():
    grid = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], dtype=torch.float16)
    figure = plots.show_grids({"a picture": Image.new("RGB", (4, 4), "red"), "a grid": grid})
    picture, numbers, scale = figure.axes
    assert [axis.get_title() for axis in (picture, numbers)] == ["a picture", "a grid"]
    assert np.array_equal(numbers.images[0].get_array(), grid.float().numpy())
    assert scale.get_ylim() == (0.0, 5.0)
