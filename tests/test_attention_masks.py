"""Masks of true and false become numbers: attentions give the same, and look at no padding."""

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops

from helpers.graphs.attention_masks import add_masks
from helpers.graphs.core import compile_model
from helpers.run.pipeline import VisionLanguagePipeline

SHAPE = [2, 3, 4, 8]  # rows, heads, positions, head size


def attentions(number: int = 2) -> ov.Model:
    """Return a model of attentions behind one another, with one mask (rows, 1, 4, 4)."""
    inputs = [ops.parameter(SHAPE, ov.Type.f32, name=name) for name in ("query", "key", "value")]
    mask = ops.parameter([2, 1, 4, 4], ov.Type.boolean, name="mask")
    query, key, value = inputs
    for _ in range(number):
        query = ops.scaled_dot_product_attention(query, key, value, mask)
    return ov.Model([query], [*inputs, mask])


def attention_nodes(model: ov.Model) -> list[ov.Node]:
    return [n for n in model.get_ops() if n.get_type_name() == "ScaledDotProductAttention"]


@pytest.fixture
def inputs():
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=SHAPE).astype(np.float32) for _ in range(3)]
    mask = np.tril(np.ones((2, 1, 4, 4), bool))
    mask[1, :, :, 0] = False  # padding: the second row's first position may look at nothing
    return [*arrays, mask]


def test_attentions_give_the_same(inputs):
    model = attentions()
    add_masks(model)
    compiled = compile_model(model, "CPU", EXECUTION_MODE_HINT="ACCURACY")
    result = torch.from_numpy(compiled(inputs)[0])
    query, key, value, mask = map(torch.from_numpy, inputs)
    for _ in range(2):
        query = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
    looks = mask.any(-1)[:, 0]
    assert (result - query).transpose(1, 2)[looks].abs().max() < 1e-6
    assert result.isfinite().all()  # also where there is nothing to look at


def test_attentions_of_one_mask_share_its_numbers():
    model = attentions()
    add_masks(model)
    first, second = attention_nodes(model)
    assert first.get_input_element_type(3) == ov.Type.f32
    assert first.input_value(3).get_node().get_name() == second.input_value(3).get_node().get_name()


def test_masks_of_numbers_stay_as_they_are():
    model = attentions()
    add_masks(model)
    nodes = len(model.get_ops())
    add_masks(model)
    assert len(model.get_ops()) == nodes


def test_a_pipeline_adds_its_masks(bundled_folder, monkeypatch):
    models = []
    compile_part = VisionLanguagePipeline._compile.__globals__["compile_model"]

    def noted(model, *arguments, **options):
        models.append(model)
        return compile_part(model, *arguments, **options)

    monkeypatch.setattr("helpers.run.pipeline.compile_model", noted)
    VisionLanguagePipeline(bundled_folder("internvl2", "int8"))
    nodes = [node for model in models for node in attention_nodes(model)]
    masked = [node for node in nodes if node.get_input_size() > 3]
    assert masked
    assert not any(node.get_input_element_type(3) == ov.Type.boolean for node in masked)
