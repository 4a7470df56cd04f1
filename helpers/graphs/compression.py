"""Make a converted model smaller: NNCF presets, what they did to which weights, and a widget.

A language model's time per token is the time to read its weights, so weights in 4 bits answer
nearly four times as fast as in 16. The image encoder is more sensitive and runs once per picture:
it stays at 8 bits.

Rounding can go by the weights alone, or also by what reaches them: then it is given sample inputs,
which `helpers.convert.calibration` makes of pictures and questions.

What this module does not know: quantised activations in the language model, NF4 and FP8 weights.
"""

import contextlib
import io
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from unittest import mock

import nncf
import numpy as np
import openvino as ov
from nncf.openvino.optimized_functions import models as optimized_models
from nncf.quantization.algorithms.weight_compression import openvino_backend
from openvino import opset13 as ops

from helpers.errors import SettingsError
from helpers.graphs.tracing import IMAGE_ENCODER, LANGUAGE_MODEL
from helpers.resources import return_freed_memory
from helpers.run.devices import core
from helpers.show.widgets import Choice, Option

_MODES = {
    "int8": nncf.CompressWeightsMode.INT8_ASYM,
    "int4-asym": nncf.CompressWeightsMode.INT4_ASYM,
    "int4-sym": nncf.CompressWeightsMode.INT4_SYM,
}
_REFUSALS = (
    nncf.ParameterNotSupportedError,
    nncf.UnsupportedModelError,
    nncf.ValidationError,
)
_SENSITIVITIES = {metric.value: metric for metric in nncf.SensitivityMetric}

Inputs = Iterable[Mapping[str, np.ndarray]]  # a model's inputs by name, for each sample


@dataclass(frozen=True)
class Weights:
    """How the weights of one part are stored: `mode` is fp16, int8, int4-asym or int4-sym.

    In 4 bits, `group_size` weights share a scale, and `ratio` is the share of the layers that get
    4 bits (the others get 8); `all_layers` includes the embeddings and the last layer.

    The rest is for 4 bits and looks at sample inputs, the first `samples` of them: `awq` enlarges
    the weights that meet large activations before they are rounded; `scale_estimation` chooses each
    group's scale for the layer's output; `gptq` rounds column by column and lets the next ones make
    up for the error; `sensitivity` is NNCF's measure of which layers get 8 bits at a ratio below 1.
    """

    mode: str
    group_size: int = 128
    ratio: float = 1.0
    all_layers: bool = False
    awq: bool = False
    scale_estimation: bool = False
    gptq: bool = False
    sensitivity: str | None = None
    samples: int = 64

    def __post_init__(self) -> None:
        if self.mode != "fp16" and self.mode not in _MODES:
            raise SettingsError(
                f"Weights {self.mode!r} do not exist; use fp16, {', '.join(_MODES)}."
            )
        if not 0 <= self.ratio <= 1:
            raise SettingsError(f"The ratio is {self.ratio}; it should be from 0 to 1.")
        if self.group_size != -1 and (self.group_size < 1 or self.group_size % 1):
            raise SettingsError(
                f"The group size is {self.group_size}; it should be a whole number of weights, "
                "or -1 for a whole row."
            )
        if self.sensitivity is not None and self.sensitivity not in _SENSITIVITIES:
            raise SettingsError(
                f"The sensitivity {self.sensitivity!r} does not exist; use "
                f"{', '.join(_SENSITIVITIES)}."
            )
        if self.needs_data and not self.mode.startswith("int4"):
            raise SettingsError(
                f"Weights in {self.mode} look at no samples; use int4-asym or -sym."
            )
        _check_number_of(self.samples)

    @property
    def needs_data(self) -> bool:
        """Whether sample inputs have to be looked at."""
        return self.awq or self.scale_estimation or self.gptq or self.sensitivity is not None

    @property
    def bits(self) -> float:
        """How many bits a weight takes on average, scales aside."""
        if self.mode.startswith("int4"):
            return 4 * self.ratio + 8 * (1 - self.ratio)
        return 16 if self.mode == "fp16" else 8

    def __str__(self) -> str:
        if not self.mode.startswith("int4"):
            return self.mode.upper()
        methods = {
            "all layers": self.all_layers,
            "AWQ": self.awq,
            "scale estimation": self.scale_estimation,
            "GPTQ": self.gptq,
        }
        used = "".join(f" + {name}" for name, on in methods.items() if on)
        return f"{self.mode.upper()} group {self.group_size} ratio {self.ratio:g}{used}"


@dataclass(frozen=True)
class Quantization:
    """How a part computes in 8 bits: its activations too, in ranges that sample inputs decide.

    Activations with a few large channels would leave the others few of the 256 values, so
    SmoothQuant scales such channels down and the weights behind them up; `smooth_quant` from 0 to 1
    is how much of that goes to the weights. The first `samples` inputs are looked at.
    """

    smooth_quant: float = 0.6
    samples: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.smooth_quant <= 1:
            raise SettingsError(
                f"The strength of SmoothQuant is {self.smooth_quant}; it should be from 0 to 1."
            )
        _check_number_of(self.samples)

    @property
    def needs_data(self) -> bool:
        """Whether sample inputs have to be looked at: yes."""
        return True

    @property
    def bits(self) -> float:
        """How many bits a weight takes, scales aside."""
        return 8

    def __str__(self) -> str:
        return f"INT8 with activations, SmoothQuant {self.smooth_quant:g}"


def _check_number_of(samples: int) -> None:
    if samples < 1:
        raise SettingsError(f"There are {samples} samples to look at; it should be at least 1.")


@dataclass(frozen=True)
class Preset:
    """A choice for a whole model: the language model's weights, and those of all other parts.

    `image_encoder`, if given, is how that part differs from the `others`.
    """

    name: str
    language_model: Weights
    others: Weights
    why: str
    image_encoder: Weights | Quantization | None = None

    def weights_of(self, part: str) -> Weights | Quantization:
        """Return how the weights of the part called `part` are stored."""
        if part == IMAGE_ENCODER and self.image_encoder is not None:
            return self.image_encoder
        return self.language_model if part == LANGUAGE_MODEL else self.others

    def __str__(self) -> str:
        encoder = "" if self.image_encoder is None else f"image encoder {self.image_encoder}, "
        return f"language model {self.language_model}, {encoder}other parts {self.others}"


FP16, INT8 = Weights("fp16"), Weights("int8")
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("fp16", FP16, FP16, "as the checkpoint: the reference, and the largest"),
        Preset("int8", INT8, INT8, "half the size, the same answers"),
        Preset("int4", Weights("int4-asym"), INT8, "a quarter of the size, the fastest"),
        Preset("int4-sym", Weights("int4-sym"), INT8, "as int4 without zero points: a bit smaller"),
    )
}


def find_preset(name: str, **changes: object) -> Preset:
    """Return a preset by name; `changes` replace fields of its language model's weights."""
    if name not in PRESETS:
        raise SettingsError(f"The precision {name!r} does not exist; use {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    changes = {field: value for field, value in changes.items() if value is not None}
    if not changes:
        return preset
    return replace(preset, language_model=replace(preset.language_model, **changes))


def compress(
    model: ov.Model, weights: Weights | Quantization, samples: Inputs | None = None
) -> ov.Model:
    """Return `model` with its weights stored as `weights` says; fp16 leaves it as it is.

    `samples` are what methods that need data look at: the model's inputs by name, in an iterable
    that can be gone through more than once. A stateful model starts anew for each sample.

    Raises `SettingsError` where samples are needed and there are none, and where NNCF refuses, as
    for a group size that does not divide a layer.
    """
    if isinstance(weights, Quantization):
        return quantize(model, weights, samples)
    if weights.mode == "fp16":
        return model
    options = _options_of_4_bits(weights, samples) if weights.mode.startswith("int4") else {}
    try:
        with _quiet(), _one_core(), _compiled_once():
            return nncf.compress_weights(model, mode=_MODES[weights.mode], **options)
    except nncf.InvalidGroupSizeError as error:
        widths = sorted({int(width) for width in re.findall(r"channel size: (\d+)", str(error))})
        raise SettingsError(
            f"A group size of {weights.group_size} does not divide the width of every layer "
            f"({', '.join(map(str, widths))}); choose one that does."
        ) from None
    except _REFUSALS as error:
        raise SettingsError(f"NNCF cannot store these weights as {weights}: {error}.") from None


def _options_of_4_bits(weights: Weights, samples: Inputs | None) -> dict[str, object]:
    options = {
        "group_size": weights.group_size,
        "ratio": weights.ratio,
        "all_layers": weights.all_layers,
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


def quantize(model: ov.Model, how: Quantization, samples: Inputs | None) -> ov.Model:
    """Return `model`, a transformer, with weights and activations in 8 bits.

    `samples` are as for `compress`. Raises `SettingsError` where there are none.
    """
    _widen(model)
    smooth_quant = nncf.AdvancedSmoothQuantParameters(matmul=how.smooth_quant)
    try:
        with _quiet(), _one_core():
            return nncf.quantize(
                model,
                _dataset(how, samples),
                subset_size=how.samples,
                model_type=nncf.ModelType.TRANSFORMER,
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    smooth_quant_alphas=smooth_quant
                ),
            )
    except _REFUSALS as error:
        raise SettingsError(f"NNCF cannot quantise this part to {how}: {error}.") from None


def _widen(model: ov.Model) -> None:
    """Make 16-bit constants 32-bit ones, in place: NNCF would store others in 16 bits again."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convert":
            continue
        source = node.input_value(0).get_node()
        sixteen = source.get_output_element_type(0) in (ov.Type.f16, ov.Type.bf16)
        if source.get_type_name() == "Constant" and sixteen:
            wide = ops.constant(source.get_data(dtype=np.float32), ov.Type.f32)
            wide.set_friendly_name(source.get_friendly_name())
            for consumer in node.output(0).get_target_inputs():
                consumer.replace_source_output(wide.output(0))


def _dataset(weights: Weights | Quantization, samples: Inputs | None) -> nncf.Dataset:
    if samples is None or next(iter(samples), None) is None:
        raise SettingsError(f"{weights} needs sample inputs to look at, and there are none.")
    return nncf.Dataset(samples)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's progress bars, which show clock times, out of compared outputs.

    In a notebook they would be widgets, which redirecting the output does not reach; so rich,
    which draws them, is told that this is no notebook.
    """
    nncf.set_log_level(logging.ERROR)
    outside = mock.patch("rich.console._is_jupyter", return_value=False)
    with outside, contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Let NNCF use this process's `Core`, where it would make one for each model that it runs."""
    shared = core()

    def compile_model(model, device_name, config=None):
        return shared.compile_model(model, device_name, config or {})

    with mock.patch.multiple(ov, Core=lambda: shared, compile_model=compile_model):
        yield


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
    """Let NNCF compile what rounds a layer's weights once for all layers alike, not for each.

    It does not where the results become part of the model, since they share the memory of the
    request that computed them. Here they are copied, and the same; for MobileVLM's 169 layers,
    compiling was 9 of 21 seconds. A large result stays where it is, and what computed it is
    compiled again for the next layer.
    """
    infer, kept = optimized_models._infer_ov_model, 0

    def copied(parameters, compiled, inputs):
        nonlocal kept
        results = infer(parameters, compiled, inputs)
        size = sum(_bytes_of(result.data) for result in results)
        if size > _LARGE:
            optimized_models.clear_ov_model_cache()
        else:
            results = [type(result)(_copy(result.data)) for result in results]
        kept += size
        if kept > _SCATTERED:  # or results lie scattered between what each layer needs meanwhile
            return_freed_memory()
            kept = 0
        return results

    once = mock.patch.object(
        openvino_backend, "disable_results_caching", lambda _: contextlib.nullcontext()
    )
    with once, mock.patch.object(optimized_models, "_infer_ov_model", copied):
        try:
            yield
        finally:
            optimized_models.clear_ov_model_cache()


_LARGE = 2**26  # bytes of a result which are not worth a second copy
# Bytes of results after which memory freed between them is given back. To do so for every layer
# took a sixth of compressing InternVL2-1B, whose layers are small; to wait for 2**26 cost the 8B,
# whose layers are large, 0.6 GB.
_SCATTERED = 2**23


def _bytes_of(data: np.ndarray | ov.Tensor) -> int:
    return data.nbytes if isinstance(data, np.ndarray) else data.byte_size


def _copy(data: np.ndarray | ov.Tensor) -> np.ndarray | ov.Tensor:
    if isinstance(data, np.ndarray):
        return data.copy()
    copy = ov.Tensor(data.element_type, data.shape)
    data.copy_to(copy)
    return copy


# What became of the weights

# Operations that stand between a stored weight and its use: they decompress or reshape it.
_ON_THE_WAY = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose")
_USERS = {"MatMul": (0, 1), "Gather": (0,), "Convolution": (1,), "GroupConvolution": (1,)}


@dataclass(frozen=True)
class BitWidth:
    """How many layers, and what share of all weights, are stored in one type."""

    type: str
    layers: int
    share: float  # of the weights, 0 to 1


def bit_widths(model: ov.Model) -> list[BitWidth]:
    """Return how the weights of `model`'s layers are stored, the smallest type first.

    A layer is an operation that multiplies by a stored matrix or looks rows up in one. A matrix
    that two layers share is counted once.
    """
    stored = {constant.get_friendly_name(): constant for _, constant in _layers(model)}
    layers, sizes = Counter(), Counter()
    for constant in stored.values():
        name = constant.get_element_type().get_type_name()
        layers[name] += 1
        sizes[name] += math.prod(constant.get_output_shape(0))
    total = sum(sizes.values())
    order = sorted(layers, key=lambda name: (_bits(name), name))
    return [BitWidth(name, layers[name], sizes[name] / total) for name in order]


def layer_types(model: ov.Model) -> dict[str, str]:
    """Return the type that each layer's weights are stored in, such as u4, by the layer's name.

    The name is that of the PyTorch module which was traced: `decoder.transformer.blocks.0.ffn`.
    """
    types = {}
    for layer, constant in _layers(model):
        module = layer.get_friendly_name().split("/")[0].removeprefix("__module.")
        types[module] = constant.get_element_type().get_type_name()
    return types


def _layers(model: ov.Model) -> Iterator[tuple]:
    """Yield each operation that uses a stored matrix, with the constant that holds it."""
    for node in model.get_ops():
        for index in _USERS.get(node.get_type_name(), ()):
            constant = _stored_weight(node.input_value(index).get_node())
            if constant is not None and _is_matrix(constant):
                yield node, constant


def _is_matrix(constant) -> bool:
    """Return whether a constant has rows and columns, unlike a table of rotary frequencies."""
    return sum(length > 1 for length in constant.get_output_shape(0)) > 1


def _bits(type_name: str) -> int:
    """Return the bits of an OpenVINO element type by its name, such as u4 or bf16."""
    return int("".join(character for character in type_name if character.isdigit()))


def _stored_weight(node):
    """Return the constant that a layer's input is decompressed from, or None for an activation."""
    while node.get_type_name() in _ON_THE_WAY:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def stored_bytes(model: ov.Model) -> int:
    """Return how many bytes the constants of `model` take, scales and zero points included."""
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    return sum(node.get_byte_size() for node in constants)


def table(widths: dict[str, list[BitWidth]]) -> list[dict[str, object]]:
    """Return bit widths by part as rows for `plots.show_table`."""
    return [
        {"part": part, "weights": width.type, "layers": width.layers, "share": f"{width.share:.0%}"}
        for part, part_widths in widths.items()
        for width in part_widths
    ]


def choose_precision(default: str = "int4", presets: Mapping[str, Preset] = PRESETS) -> Choice:
    """Show the presets; VLM_PRECISION sets the first choice."""
    options = [
        Option(name, f"{name}: {preset.why}", str(preset)) for name, preset in presets.items()
    ]
    return Choice("Precision", options, default=default, variable="VLM_PRECISION")


def choose_image_encoder(ways: Mapping[str, Weights | Quantization], default: str) -> Choice:
    """Show ways to store the image encoder; VLM_IMAGE_ENCODER sets the first choice."""
    options = [Option(name, f"{name}: {way}", str(way)) for name, way in ways.items()]
    return Choice("Image encoder", options, default=default, variable="VLM_IMAGE_ENCODER")
