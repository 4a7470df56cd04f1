"""Squares that take little memory are the authors' own preprocessing, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.models.families import find_family_by_name
from helpers.models.squares import NARROWEST


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", ["llava-mpt", "mobilevlm"])
def test_pixels_equal_those_of_the_authors(name, padded, repetitions):
    family = find_family_by_name(name)
    processor = family.model.processor_class(Path(), family.originals[0].config)
    authors = processor.image_processor
    authors.do_pad = padded
    random = np.random.default_rng(0)
    for _ in range(repetitions("pictures made square", 25, 300)):
        width, height = np.exp(random.uniform(0, np.log(700), 2)).astype(int).tolist()
        if max(width, height) > NARROWEST * min(width, height):
            continue
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        picture = Image.fromarray(pixels)
        expected = authors([picture], return_tensors="pt")["pixel_values"]
        assert torch.equal(processor.pixels([picture])["pixel_values"], expected), picture.size
