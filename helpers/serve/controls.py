"""What a page's user can set, as data: sliders, ticks and radio buttons with their options.

What this module does not know: the page that they stand on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from helpers.errors import SettingsError


@dataclass(frozen=True)
class Slider:
    """A number that the page's user sets: an `option` of `Conversation.ask` and where it starts.

    With a whole `step` the number is a whole one.
    """

    option: str
    label: str
    low: float
    high: float
    value: float
    step: float

    def component(self) -> gr.Slider:
        """Return what the page shows; to be called where it belongs."""
        component = gr.Slider(self.low, self.high, self.value, step=self.step, label=self.label)
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

    def component(self) -> gr.Checkbox:
        """Return what the page shows; to be called where it belongs."""
        return gr.Checkbox(self.value, label=self.label)

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

    def component(self) -> gr.Radio:
        """Return what the page shows; to be called where it belongs."""
        names = list(self.choices)
        return gr.Radio(names, value=names[0], label=self.label, info=self.note)

    def options(self, value: str) -> dict[str, Any]:
        """Return what a value means to `Conversation.ask`."""
        return dict(self.choices[value])


Control = Slider | Tick | Radio


SAMPLING: tuple[Control, ...] = (
    Tick("do_sample", "Sample (otherwise the most probable token)"),
    Slider("temperature", "Temperature", 0.1, 2.0, value=0.7, step=0.1),
    Slider("top_p", "Top-p", 0.1, 1.0, value=0.9, step=0.05),
)


def options_of(controls: Sequence[Control], values: Sequence[Any]) -> dict[str, Any]:
    """Return what controls are set to; where two set the same option, the earlier one counts."""
    options: dict[str, Any] = {}
    for control, value in reversed([*zip(controls, values, strict=True)]):
        options |= control.options(value)
    return options
