"""How weights are stored: the settings of one part, and the presets for a whole model.

What this module does not know: how weights are rounded, which `compression` has NNCF do. So a
folder can be run, and a choice shown, without NNCF.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import openvino as ov

from helpers.errors import SettingsError, is_number, is_whole
from helpers.graphs.core import has_one_size
from helpers.graphs.part_names import IMAGE_ENCODER, LANGUAGE_MODEL
from helpers.resources import has_vnni, instruction_sets

MODES = ("int8", "int4-asym", "int4-sym")  # beside fp16, which leaves weights as they are
# NNCF's measures of how much a layer loses in 4 bits (its `SensitivityMetric`).
SENSITIVITIES = (
    "weight_quantization_error",
    "hessian_input_activation",
    "mean_activation_variance",
    "max_activation_variance",
    "mean_activation_magnitude",
)


@dataclass(frozen=True)
class Weights:
    """How the weights of one part are stored: `mode` is fp16, int8, int4-asym or int4-sym.

    In 4 bits, `group_size` weights share a scale (-1: a row), and `ratio` is the share of the
    weights that get 4 bits, in whole layers (the others get 8, all of them at 0); `all_layers`
    includes the embeddings and the last layer. What keeps 8 bits has no zero points either in
    int4-sym; int8 itself is asymmetric.

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
        if self.mode != "fp16" and self.mode not in MODES:
            raise SettingsError(
                f"Weights {self.mode!r} do not exist; use fp16, {', '.join(MODES)}."
            )
        if not is_number(self.ratio) or not 0 <= self.ratio <= 1:
            raise SettingsError(f"The ratio is {self.ratio!r}; it should be from 0 to 1.")
        if not is_whole(self.group_size) or not (self.group_size == -1 or self.group_size >= 1):
            raise SettingsError(
                f"The group size is {self.group_size!r}; it should be a whole number of weights, "
                "or -1 for a whole row."
            )
        if self.sensitivity is not None and self.sensitivity not in SENSITIVITIES:
            raise SettingsError(
                f"The sensitivity {self.sensitivity!r} does not exist; use "
                f"{', '.join(SENSITIVITIES)}."
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
    def has_4_bits(self) -> bool:
        """Whether any layer gets 4 bits."""
        return self.mode.startswith("int4") and self.ratio > 0

    @property
    def is_symmetric(self) -> bool:
        """Whether there are no zero points, in 4 bits and in what keeps 8."""
        return self.mode == "int4-sym"

    @property
    def bits(self) -> float:
        """How many bits a weight takes on average, scales aside."""
        if self.mode.startswith("int4"):
            return 4 * self.ratio + 8 * (1 - self.ratio)
        return 16 if self.mode == "fp16" else 8

    def bits_of(self, *, last_layer: bool) -> float:
        """How many bits a weight of a layer takes on average.

        In 4 bits, a group's scale is counted (16 bits), and its zero point (4 bits).
        """
        if not self.mode.startswith("int4"):
            return self.bits
        if last_layer and not self.all_layers:
            return 8
        beside = 16 if self.is_symmetric else 20
        return self.bits + self.ratio * (beside / self.group_size if self.group_size > 0 else 0)

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
        if not is_number(self.smooth_quant) or not 0 <= self.smooth_quant <= 1:
            raise SettingsError(
                f"The strength of SmoothQuant is {self.smooth_quant!r}; it should be from 0 to 1."
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

    def bits_of(self, *, last_layer: bool) -> float:
        """How many bits a weight of a layer takes: the last one is like the others."""
        return self.bits

    def __str__(self) -> str:
        return f"INT8 with activations, SmoothQuant {self.smooth_quant:g}"


def _check_number_of(samples: int) -> None:
    if not is_whole(samples) or samples < 1:
        raise SettingsError(
            f"There are {samples!r} samples to look at; it should be a whole number from 1 on."
        )


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

    def __post_init__(self) -> None:
        for part, weights in (("language model", self.language_model), ("others", self.others)):
            if not isinstance(weights, Weights):
                raise _no_weights(self.name, part, weights, "Weights")
        if not isinstance(self.image_encoder, Weights | Quantization | None):
            kinds = "Weights or Quantization"
            raise _no_weights(self.name, "image encoder", self.image_encoder, kinds)

    def weights_of(self, part: str) -> Weights | Quantization:
        """Return how the weights of the part called `part` are stored."""
        if part == IMAGE_ENCODER and self.image_encoder is not None:
            return self.image_encoder
        return self.language_model if part == LANGUAGE_MODEL else self.others

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """How weights are stored, without the name, as a manifest has it."""
        parts = ("language_model", "others", "image_encoder")
        weights = {part: getattr(self, part) for part in parts}
        return {part: asdict(stored) for part, stored in weights.items() if stored is not None}

    def __str__(self) -> str:
        encoder = "" if self.image_encoder is None else f"image encoder {self.image_encoder}, "
        return f"language model {self.language_model}, {encoder}other parts {self.others}"


def _no_weights(preset: str, part: str, weights: object, kinds: str) -> SettingsError:
    return SettingsError(
        f"The preset {preset!r} has {weights!r} for its {part}; give {kinds}, as in "
        'Preset("mine", Weights("int4-sym", group_size=64), Weights("int8"), "why").'
    )


FP16, INT8 = Weights("fp16"), Weights("int8")


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "fp16", FP16, FP16, "as the checkpoint, 16 bits in most: the reference, and the largest"
        ),
        Preset("int8", INT8, INT8, "half the size, nearly the same answers"),
        Preset(
            "int4",
            Weights("int4-asym"),
            INT8,
            "a third to half of the size: the least memory",
        ),
        Preset(
            "int4-sym",
            Weights("int4-sym", group_size=64),
            INT8,
            "like int4, without zero points: a bit larger, and faster",
        ),
    )
}

# Converting with these looks at sample pictures as well, so a choice by name alone is not enough.
WITH_SAMPLES = {
    preset.name: preset
    for preset in (
        Preset(
            "int8-activations",
            INT8,
            INT8,
            "like int8, and the image encoder computes in 8 bits: pictures are read faster where "
            "the processor has VNNI",
            image_encoder=Quantization(samples=32),
        ),
    )
}
ALL_PRESETS = PRESETS | WITH_SAMPLES


def name_of(settings: Mapping[str, Any]) -> str:
    """Return the name of the preset with these `settings`; "" if none has them."""
    return next((name for name, preset in ALL_PRESETS.items() if preset.settings == settings), "")


# The preset that computes fastest, which `auto` takes. Beside int4, InternVL2-1B at full size takes
# 0.69 of the time for a token with AVX2 alone, where weights are unpacked to 32 bits at every step.
# With AVX-512 and VNNI it is 0.82 to 0.87, and nearly 1 once int4 is tuned. In 8 bits some models
# are as fast, and twice as large.
FASTEST, AUTO = "int4-sym", "auto"
PRECISIONS = (*ALL_PRESETS, AUTO)


def faster_preset(settings: Mapping[str, Any]) -> str:
    """Return the name of a preset that is faster here than these tuned `settings`; "" for none."""
    is_fast = {"int8": True, "int4-sym": True, "int4-asym": has_vnni()}
    return "" if is_fast.get(settings["language_model"]["mode"]) else FASTEST


def faster_image_encoder(settings: Mapping[str, Any], encoder: ov.Model) -> str:
    """Return the name of a preset whose image encoder is faster here than that of these `settings`.

    "" is returned for none. With VNNI, activations in 8 bits took 0.67 of the time of InternVL2's
    tile; with AVX2 alone 0.95.
    """
    is_quantized = "smooth_quant" in settings.get("image_encoder", {})
    shapes = (port.partial_shape for port in encoder.inputs)
    gains = "VNNI" in instruction_sets() and has_one_size(shapes) and not is_quantized
    return "int8-activations" if gains else ""


_ONLY_IN_4_BITS = {"group_size", "ratio"}


def precisions_in(names: str) -> list[str]:
    """Return the precisions of a list with commas, each once; the fastest by its own name."""
    precisions = [FASTEST if name == AUTO else name for name in map(str.strip, names.split(","))]
    return list(dict.fromkeys(precisions))


def find_preset(name: str, *, image_encoder: str | None = None, **changes: Any) -> Preset:
    """Return the preset of a precision; `changes` replace fields of its language model's weights.

    Its image encoder is stored as the preset called `image_encoder` has it, if that is given.

    Raises `SettingsError` for a name that `PRECISIONS`, or for the image encoder `ALL_PRESETS`,
    does not have.
    """
    preset = _named(FASTEST if name == AUTO else name, PRECISIONS)
    if image_encoder is not None:
        preset = replace(
            preset, image_encoder=_named(image_encoder, ALL_PRESETS).weights_of(IMAGE_ENCODER)
        )
    changes = {field: value for field, value in changes.items() if value is not None}
    if not changes:
        return preset
    if not preset.language_model.mode.startswith("int4") and changes.keys() & _ONLY_IN_4_BITS:
        names = " and ".join(sorted(changes.keys() & _ONLY_IN_4_BITS)).replace("_", " ")
        raise SettingsError(f"Only weights in 4 bits have a {names}; choose int4 or leave it out.")
    return replace(preset, language_model=replace(preset.language_model, **changes))


def _named(name: str, names: Collection[str]) -> Preset:
    if not isinstance(name, str) or name not in ALL_PRESETS:
        raise SettingsError(
            f"The precision {name!r} does not exist; use {', '.join(names)}, or see "
            "docs/next-steps.md for one of your own."
        )
    return ALL_PRESETS[name]
