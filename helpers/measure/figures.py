"""What is measured of a model: figures with their names and units, and how files hold them.

What this module does not know: how anything is measured.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from helpers.graphs.bit_widths import BitWidth

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a process took: seconds, and the most bytes of anonymous memory that it had."""

    seconds: float
    peak_memory: int


@dataclass(frozen=True)
class Conversion(Cost):
    """A conversion: seconds, bytes on disk and bit widths by part."""

    seconds_by_part: dict[str, float]
    bytes_by_part: dict[str, int]
    bit_widths: dict[str, list[BitWidth]]

    @property
    def bytes(self) -> int:
        """The size on disk of all parts."""
        return sum(self.bytes_by_part.values())


@dataclass(frozen=True)
class Round:
    """Seconds of the image encoder, the first token and each next one; bytes a second of memory."""

    image_encoder: float
    first_token: float
    next_token: float
    bandwidth: float


@dataclass(frozen=True)
class Speed(Cost):
    """A model's speed: the median of each figure, and every round that it is the median of."""

    speed: Round
    rounds: list[Round]
    prompt_tokens: int


@dataclass(frozen=True)
class Running(Speed):
    """A converted model's speed, and a conversation's seconds.

    Those are the first token of a question with a picture, that of a second question about it, and
    what it takes to stop while a prompt is read.
    """

    first_question: float
    second_question: float
    stop: float


@dataclass(frozen=True)
class Profile(Cost):
    """Mean seconds of a decode step, of its kernels, and of the largest types of operation."""

    step: float
    kernels: float
    largest: dict[str, float]


@dataclass(frozen=True)
class Floor:
    """The least seconds of a token, and how many times that a token takes."""

    seconds: float
    times: float


@dataclass(frozen=True)
class Run:
    """All figures of one precision, or of PyTorch, which is neither converted nor profiled."""

    running: Running | Speed
    conversion: Conversion | None = None
    profile: Profile | None = None
    floor: Floor | None = None


@dataclass(frozen=True)
class Computer:
    """What figures depend on: the processor, its cores, bytes of memory, packages' versions.

    `instruction_sets` are those that OpenVINO's kernels make use of; older files do not have them.
    """

    processor: str
    cores: int
    memory: int
    versions: dict[str, str]
    instruction_sets: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        sets = f" ({', '.join(self.instruction_sets)})" if self.instruction_sets else ""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.processor}{sets}, {self.cores} cores, {self.memory / 2**30:.0f} GiB of memory, "
            f"with {versions}"
        )


@dataclass(frozen=True)
class Figures:
    """All figures of one model. `picture` is its width and height; `runs` go by precision."""

    model: str
    full_size: bool
    picture: tuple[int, int]
    computer: Computer
    parameters: dict[str, int]
    runs: dict[str, Run] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderRun(Cost):
    """An image encoder in one setting: what compressing it took, its bytes, seconds by round."""

    bytes: int
    rounds: list[float]


@dataclass(frozen=True)
class Encoder:
    """What was measured of an original's image encoder alone; `runs` go by setting.

    `changes` are the fields of its config that were replaced, where it did not fit as it is.
    """

    model: str
    picture: tuple[int, int]
    changes: dict[str, Any]
    computer: Computer
    runs: dict[str, EncoderRun]


def from_json(kind: type[T], data: Any) -> T:
    """Return an object of the dataclass `kind` from what `dataclasses.asdict` made of it.

    Raises `TypeError` where a field is missing.
    """
    return typing.cast(T, _read(kind, data))


def _read(kind: Any, data: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _read(hints[name], value) for name, value in data.items()})
    if origin in (types.UnionType, typing.Union):
        return None if data is None else _read(_fitting(arguments, data), data)
    if origin is list:
        return [_read(arguments[0], value) for value in data]
    if origin is dict:
        return {name: _read(arguments[1], value) for name, value in data.items()}
    return tuple(data) if origin is tuple else data


def _fitting(kinds: tuple[Any, ...], data: Any) -> Any:
    """Return the first dataclass that has all fields of `data`; the most special stands first."""
    for kind in filter(dataclasses.is_dataclass, kinds):
        if set(data) == {field.name for field in dataclasses.fields(kind)}:
            return kind
    return next(kind for kind in kinds if kind is not type(None))
