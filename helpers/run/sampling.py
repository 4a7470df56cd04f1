"""How an answer's tokens are chosen: the options of one question, checked when they are given.

What this module does not know: how tokens are computed.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from helpers.errors import SettingsError, is_number, is_whole

LONGEST_ANSWER = 100_000  # tokens
HIGHEST_SEED = 2**63 - 1
RANGES = {
    "max_new_tokens": (1, LONGEST_ANSWER),
    "num_beams": (1, 16),
    "temperature": (0.01, 5.0),
    "top_p": (0.01, 1.0),
    "top_k": (0, 100_000),
    "repetition_penalty": (0.1, 10.0),
    "seed": (0, HIGHEST_SEED),
}
INTEGERS = ("max_new_tokens", "num_beams", "top_k", "seed")
_OPTIONAL = ("temperature", "top_p", "top_k", "seed")
_OF_SAMPLING = ("temperature", "top_p", "top_k")  # they count with `do_sample`


def is_within(name: str, value: Any, limits: tuple[float, float]) -> bool:
    """Return whether a value, from one limit to the other, can be that of the option `name`."""
    low, high = limits
    is_of_kind = is_whole(value) if name in INTEGERS else is_number(value)
    return is_of_kind and bool(low <= value <= high)


def has_effect(name: str, options: Mapping[str, Any]) -> bool:
    """Return whether the option called `name` counts beside these options."""
    return name not in _OF_SAMPLING or bool(options.get("do_sample"))


@dataclass(frozen=True)
class Sampling:
    """Options of transformers' `generate`, and a `seed`; `repetition_penalty` is for the answer.

    Without `do_sample`, or with a temperature of 0, the most probable token is taken, and
    temperature, top_p and top_k do not count. Whole numbers may come as `2.0`, as sliders send
    them. An answer ends before the first of the `stop_strings` (a string, or several), and is JSON
    that follows a JSON `schema`, if there is one. `thinking` is whether the model thinks before it
    answers (None: as its template has it); neither stop strings nor a schema count in the thought.
    With `prompt_lookup`, what an answer repeats of its prompt is computed several tokens at a time.

    Raises `SettingsError` for a value out of its range.
    """

    max_new_tokens: int = 256
    do_sample: bool = False
    num_beams: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_strings: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    thinking: bool | None = None
    prompt_lookup: bool = False

    def __post_init__(self) -> None:
        if self.temperature == 0:  # most clients mean the most probable token by it
            object.__setattr__(self, "do_sample", False)
            object.__setattr__(self, "temperature", None)
        if self.thinking not in (None, True, False):
            raise SettingsError(f"thinking is {self.thinking!r}; it should be True or False.")
        for name in ("do_sample", "prompt_lookup"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(
                    f"{name} is {getattr(self, name)!r}; it should be True or False."
                )
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not is_within(name, value, (low, high)):
                kind = "a whole number " if name in INTEGERS else ""
                raise SettingsError(
                    f"{name} is {value!r}; it should be {kind}from {low} to {high}."
                )
            # transformers takes no whole number for a temperature, and no fraction for a length.
            object.__setattr__(self, name, int(value) if name in INTEGERS else float(value))
        object.__setattr__(self, "stop_strings", _strings(self.stop_strings))
        if self.schema is not None and self.num_beams > 1:
            raise SettingsError("A schema and beams do not go together; leave num_beams at 1.")
        if self.prompt_lookup and (self.num_beams > 1 or self.do_sample):
            raise SettingsError(
                "Prompt lookup takes the most probable tokens; ask without beams and sampling."
            )

    @classmethod
    def of(cls, **options: Any) -> "Sampling":
        """Return the options as they are given to a question; an unknown one is an error."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in sorted(set(options) - set(names)):
            raise SettingsError(f"The option {name!r} does not exist; use {', '.join(names)}.")
        return cls(**options)

    def for_generate(self) -> dict[str, Any]:
        """Return what transformers' `GenerationConfig` takes of these options."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.do_sample,
        }
        if self.do_sample:
            choices = {name: getattr(self, name) for name in _OF_SAMPLING}
            options |= {name: value for name, value in choices.items() if value is not None}
        return options


def _strings(value: object) -> tuple[str, ...]:
    """Return the stop strings that a caller gave: one, several or none."""
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(
        isinstance(string, str) and string for string in strings
    ):
        raise SettingsError(f"stop_strings is {value!r}; it should be texts that are not empty.")
    return tuple(strings)
