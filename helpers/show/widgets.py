"""A choice in a notebook: a dropdown, and one line that says what is chosen.

The line is also the widget's plain text, so that it stands where no widget can be shown: on the
web, in an HTML copy, in the output that is kept.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets
from IPython.display import display

from helpers.errors import SettingsError


@dataclass(frozen=True)
class Option:
    """One entry: its value, the words in the list, the line under it, whether it can be chosen."""

    value: str
    label: str
    line: str
    offered: bool = True
    aliases: tuple[str, ...] = ()  # other values that mean this one

    def is_called(self, value: str) -> bool:
        """Return whether `value` means this option, in small letters or capitals."""
        return value.lower() in (name.lower() for name in (self.value, *self.aliases))


class Choice:
    """A labelled dropdown of options whose first choice an environment variable can set.

    A cell chooses by `value`, where no widget is shown. Raises `SettingsError` for a value that is
    not offered, whoever asks for it.
    """

    def __init__(
        self, label: str, options: Sequence[Option], *, default: str, variable: str
    ) -> None:
        self.label = label
        self.options = {option.value: option for option in options}
        offered = [option for option in options if option.offered]
        name = os.environ.get(variable)
        self.dropdown = ipywidgets.Dropdown(
            options=[(option.label, option.value) for option in offered],
            value=self._offered(name or default, variable if name else "The default"),
            description=f"{label}:",
            layout={"width": "min(100%, 48em)"},
            style={"description_width": "7em"},
        )
        self.text = ipywidgets.HTML()
        self.dropdown.observe(lambda _: self._update(), names="value")
        self._update()

    @property
    def value(self) -> str:
        """What is chosen now."""
        value: str = self.dropdown.value
        return value

    @value.setter
    def value(self, name: str) -> None:
        self.dropdown.value = self._offered(name, "The cell")

    @property
    def line(self) -> str:
        """What is chosen, in words."""
        option = self.options[self.value]
        return f"{self.label}: {option.value} ({option.line})" if option.line else option.value

    def _offered(self, name: str, source: str) -> str:
        """Return the value of the offered option that is called so; `source` asks for it."""
        offered = [option for option in self.options.values() if option.offered]
        for option in offered:
            if option.is_called(str(name)):
                return option.value
        values = ", ".join(option.value for option in offered)
        raise SettingsError(f"{source} asks for {name!r}; this offers {values}.")

    def _update(self) -> None:
        self.text.value = self.line

    def _ipython_display_(self) -> None:
        box = ipywidgets.VBox([self.dropdown, self.text])
        bundle = box._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        display({**data, "text/plain": self.line}, raw=True)  # type: ignore[no-untyped-call]
