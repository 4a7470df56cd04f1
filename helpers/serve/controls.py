"""What a page's user can set, as data: sliders, ticks and radio buttons with their options.

A control that changes nothing, as the others are set, is greyed. Which those are follows from their
options: an earlier control may set the same one, or an option counts beside some others only.

What this module does not know: the page that they stand on.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gradio as gr

from helpers.errors import SettingsError
from helpers.run.sampling import has_effect


@dataclass(frozen=True)
class Slider:
    """A number that the page's user sets: an `option` of `Conversation.ask` and where it starts.

    With a whole `step` the number is a whole one; a `note` helps.
    """

    option: str
    label: str
    low: float
    high: float
    value: float
    step: float
    note: str = ""

    @property
    def names(self) -> set[str]:
        """The options that it can set."""
        return {self.option}

    def component(self, interactive: bool = True) -> gr.Slider:
        """Return what the page shows; to be called where it belongs."""
        component = gr.Slider(
            self.low,
            self.high,
            self.value,
            step=self.step,
            label=self.label,
            info=self.note,
            interactive=interactive,
        )
        component.preprocess = _as_it_is  # type: ignore[method-assign]
        return component

    def options(self, value: float | None) -> dict[str, Any]:
        """Return what a value means to `Conversation.ask`; one that cannot be is an error."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            wrong = "empty" if value is None else repr(value)
            raise SettingsError(
                f"{self.label} is {wrong}; it should be from {self.low:g} to {self.high:g}."
            )
        return {self.option: int(value) if isinstance(self.step, int) else value}


def _as_it_is(payload: Any) -> Any:
    """Return what a field sent: checking it, and telling errors, is ours."""
    return payload


@dataclass(frozen=True)
class Tick:
    """An `option` of `Conversation.ask` that is on or off."""

    option: str
    label: str
    value: bool = False

    @property
    def names(self) -> set[str]:
        """The options that it can set."""
        return {self.option}

    def component(self, interactive: bool = True) -> gr.Checkbox:
        """Return what the page shows; to be called where it belongs."""
        return gr.Checkbox(self.value, label=self.label, interactive=interactive)

    def options(self, value: bool | None) -> dict[str, Any]:
        """Return what a value means to `Conversation.ask`."""
        return {self.option: bool(value)}


@dataclass(frozen=True)
class Radio:
    """Several `choices` of how to answer, each with its options of `Conversation.ask`.

    The first choice is where it starts; a `note` helps.
    """

    label: str
    choices: Mapping[str, Mapping[str, Any]]
    note: str = ""

    @property
    def value(self) -> str:
        """The choice where it starts."""
        return next(iter(self.choices))

    @property
    def names(self) -> set[str]:
        """The options that it can set."""
        return set().union(*self.choices.values())

    def component(self, interactive: bool = True) -> gr.Radio:
        """Return what the page shows; to be called where it belongs."""
        return gr.Radio(
            list(self.choices),
            value=self.value,
            label=self.label,
            info=self.note,
            interactive=interactive,
        )

    def options(self, value: str | None) -> dict[str, Any]:
        """Return what a value means to `Conversation.ask`; one that cannot be is an error."""
        if value is None or value not in self.choices:
            raise SettingsError(f"{self.label} is empty; it should be {' or '.join(self.choices)}.")
        return dict(self.choices[value])


Control = Slider | Tick | Radio

WHILE_SAMPLING = "Used while Sample is on"
SAMPLING: tuple[Control, ...] = (
    Tick("do_sample", "Sample (otherwise the most probable token)"),
    Slider("temperature", "Temperature", 0.1, 2.0, value=0.7, step=0.1, note=WHILE_SAMPLING),
    Slider("top_p", "Top-p", 0.1, 1.0, value=0.9, step=0.05, note=WHILE_SAMPLING),
)


def options_of(controls: Sequence[Control], values: Sequence[Any]) -> dict[str, Any]:
    """Return what controls are set to; where two set the same option, the earlier one counts."""
    options: dict[str, Any] = {}
    for control, value in reversed([*zip(controls, values, strict=True)]):
        options |= control.options(value)
    return options


def effects(controls: Sequence[Control], values: Sequence[Any]) -> list[bool]:
    """Return for each control whether it changes answers while all are set to these values.

    What is empty is no error here: of sliders only the place counts.
    """
    options: dict[str, Any] = {}
    undecided = []
    for control, value in zip(controls, values, strict=True):
        undecided.append(control.names - options.keys())
        if not isinstance(control, Slider):
            with suppress(SettingsError):
                options = control.options(value) | options
    return [any(has_effect(name, options) for name in names) for names in undecided]
