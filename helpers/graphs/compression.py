"""Make a converted model smaller: NNCF stores its weights in fewer bits.

A language model reads all its weights for each token, so fewer bits arrive sooner. They have to be
unpacked as well: on some processors 4 bits save memory beside 8, and no time. The image encoder is
more sensitive and runs once per picture: it stays at 8 bits.

Rounding can go by the weights alone, or also by what reaches them: then it is given sample inputs,
which `helpers.convert.calibration` makes of pictures and questions.

What this module does not know: quantised activations in the language model, NF4 and FP8 weights.
"""

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import nncf
import numpy as np
import openvino as ov
from openvino import opset13 as ops

from helpers.errors import SettingsError
from helpers.graphs.bit_widths import module_of, stored_layers
from helpers.graphs.core import core
from helpers.graphs.parts import SENSITIVE
from helpers.graphs.presets import Quantization, Weights
from helpers.graphs.rounding import rounded
from helpers.graphs.tables import compress_table, is_table
from helpers.upstream import nncf as upstream

_MODES = {
    "int4-asym": nncf.CompressWeightsMode.INT4_ASYM,
    "int4-sym": nncf.CompressWeightsMode.INT4_SYM,
}
# Weights of a matrix from which on 8 bits are made here, for which NNCF would take 1.2 GB or more.
LARGE = 2**27
_REFUSALS = (
    nncf.ParameterNotSupportedError,
    nncf.UnsupportedModelError,
    nncf.ValidationError,
)
_SENSITIVITIES = {metric.value: metric for metric in nncf.SensitivityMetric}

Samples = Iterable[Mapping[str, np.ndarray]]  # a model's inputs by name, for each


def compress(
    model: ov.Model, weights: Weights | Quantization, samples: Samples | None = None
) -> ov.Model:
    """Return `model` with its weights stored as `weights` says; fp16 leaves it as it is.

    `samples` are what methods that need data look at: the model's inputs by name, in an iterable
    that can be gone through more than once. A stateful model starts anew for each sample. Layers
    that are marked as sensitive get 8 bits where others get 4, unless `weights` mean all layers;
    those 8 bits are symmetric where the 4 are.

    Raises `SettingsError` where samples are needed and there are none, and where NNCF refuses, as
    for a group size that does not divide a layer.
    """
    if isinstance(weights, Quantization):
        return quantize(model, weights, samples)
    if weights.mode == "fp16":
        return model
    if is_table(model):
        return compress_table(model, weights)
    # NNCF takes a ratio of 0 for one of 1.
    mode = _MODES[weights.mode] if weights.has_4_bits else _in_8_bits(weights)
    options = _options_of_4_bits(weights, samples) if weights.has_4_bits else {}
    names = _sensitive_layers(model) if weights.has_4_bits and not weights.all_layers else []
    if names:
        options["ignored_scope"] = nncf.IgnoredScope(names=names)
    if _round_large(model, weights) and weights.has_4_bits:
        options["all_layers"] = True  # that are left: the last one, which is not one, is done
    try:
        with repaired_nncf(), upstream.compiled_once():
            model = nncf.compress_weights(model, mode=mode, **options)
            if names:  # which are the only ones left
                model = nncf.compress_weights(model, mode=_in_8_bits(weights))
            return model
    except nncf.InvalidGroupSizeError as error:
        widths = sorted({int(width) for width in re.findall(r"channel size: (\d+)", str(error))})
        raise SettingsError(
            f"A group size of {weights.group_size} does not divide the width of every layer "
            f"({', '.join(map(str, widths))}); choose one that does."
        ) from None
    except _REFUSALS as error:
        raise SettingsError(
            f"NNCF cannot store these weights as {weights} ({error}); choose other settings."
        ) from None


def _in_8_bits(weights: Weights) -> nncf.CompressWeightsMode:
    """Return how weights that get 8 bits are rounded: without zero points where 4 have none."""
    mode = nncf.CompressWeightsMode
    return mode.INT8_SYM if weights.is_symmetric else mode.INT8_ASYM


def _round_large(model: ov.Model, weights: Weights) -> bool:
    """Round large matrices that get 8 bits, in place, and return whether there were any.

    NNCF leaves them as they are then. Where others get 4 bits, that is the last layer alone.
    """
    layers = list(stored_layers(model))
    if weights.has_4_bits:
        layers = [] if weights.all_layers else layers[-1:]
    large = [
        matrix
        for layer, matrix in layers
        if math.prod(matrix.get_output_shape(0)) >= LARGE and _is_by_rows(layer)
    ]
    for matrix in large:
        width = matrix.get_output_shape(0)[1]
        restored = rounded(matrix, 8, width, symmetric=weights.is_symmetric)
        if matrix.get_output_element_type(0) == ov.Type.f32:
            restored = ops.convert(restored, "f32")
        for reader in matrix.output(0).get_target_inputs():
            reader.replace_source_output(restored.output(0))
    return bool(large)


def _is_by_rows(layer: ov.Node) -> bool:
    """Return whether each row of a layer's matrix gives a number of its output."""
    return bool(layer.get_type_name() == "MatMul" and layer.get_attributes()["transpose_b"])


def _sensitive_layers(model: ov.Model) -> list[str]:
    """Return the names of the operations that are marked as sensitive."""
    if not model.has_rt_info(SENSITIVE):
        return []
    ends = tuple(f".{end}" for end in model.get_rt_info(SENSITIVE).astype(str).split())
    layers = (node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul")
    return [layer.get_friendly_name() for layer in layers if module_of(layer).endswith(ends)]


@contextlib.contextmanager
def repaired_nncf() -> Iterator[None]:
    """Call NNCF without its progress bars, and with the options that some processors need."""
    with upstream.quiet(), upstream.one_core(core()):
        yield


def _options_of_4_bits(weights: Weights, samples: Samples | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "group_size": weights.group_size,
        "ratio": weights.ratio,
        "all_layers": weights.all_layers,
        "backup_mode": nncf.BackupMode(_in_8_bits(weights).value),
    }
    if not weights.needs_data:
        return options
    gptq = nncf.AdvancedGPTQParameters(subset_size=weights.samples)  # it has a limit of its own
    return options | {
        "dataset": _dataset(weights, samples),
        "subset_size": weights.samples,
        "awq": weights.awq,
        "scale_estimation": weights.scale_estimation,
        "gptq": weights.gptq,
        "advanced_parameters": nncf.AdvancedCompressionParameters(gptq_params=gptq),
        "sensitivity_metric": _SENSITIVITIES.get(weights.sensitivity),
    }


def quantize(model: ov.Model, setting: Quantization, samples: Samples | None) -> ov.Model:
    """Return `model`, a transformer, with weights and activations in 8 bits.

    `samples` are as for `compress`. Raises `SettingsError` where there are none.
    """
    _widen(model)
    smooth_quant = nncf.AdvancedSmoothQuantParameters(matmul=setting.smooth_quant)
    try:
        with repaired_nncf():
            return nncf.quantize(
                model,
                _dataset(setting, samples),
                subset_size=setting.samples,
                model_type=nncf.ModelType.TRANSFORMER,
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    smooth_quant_alphas=smooth_quant
                ),
            )
    except _REFUSALS as error:
        raise SettingsError(
            f"NNCF cannot quantise this part to {setting} ({error}); choose other settings."
        ) from None


def _widen(model: ov.Model) -> None:
    """Make 16-bit constants 32-bit ones, in place: NNCF would store others in 16 bits again."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convert":
            continue
        source = node.input_value(0).get_node()
        in_16_bits = source.get_output_element_type(0) in (ov.Type.f16, ov.Type.bf16)
        if source.get_type_name() == "Constant" and in_16_bits:
            wide = ops.constant(source.get_data(dtype=np.float32), ov.Type.f32)
            wide.set_friendly_name(source.get_friendly_name())
            for consumer in node.output(0).get_target_inputs():
                consumer.replace_source_output(wide.output(0))


def _dataset(weights: Weights | Quantization, samples: Samples | None) -> nncf.Dataset:
    if samples is None or next(iter(samples), None) is None:
        raise SettingsError(
            f"{weights} needs sample inputs to look at; give some, or choose what needs none."
        )
    return nncf.Dataset(samples)
