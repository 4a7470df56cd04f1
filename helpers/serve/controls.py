"""What a page's user can set, as data: sliders, ticks and radio buttons with their options.

What this module does not know: the page that they stand on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr


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
        return gr.Slider(self.low, self.high, self.value, step=self.step, label=self.label)

    def options(self, value: float) -> dict[str, Any]:
        """Return what a value means to `Conversation.ask`."""
        return {self.option: int(value) if isinstance(self.step, int) else value}


@dataclass(frozen=True)
class Tick:
    """An `option` of `Conversation.ask` that is on or off."""

    option: str
    label: str
    value: bool = False

    def component(self) -> gr.Checkbox:
        """Return what the page shows; to be called where it belongs."""
        return gr.Checkbox(self.value, label=self.label)

    def options(self, value: bool) -> dict[str, Any]:
        """Return what a value means to `Conversation.ask`."""
        return {self.option: value}


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
