"""Strings that end an answer: its text is cut before the first of them.

What this module does not know: tokens.
"""

from collections.abc import Sequence


class StopStrings:
    """Take an answer's pieces and return what of them may be shown.

    The end of a text that may still become one of the `strings` is held back until it cannot.
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        self.strings = tuple(strings)
        self.text = ""  # what may be shown
        self._held = ""
        self._is_met = False

    def is_set(self) -> bool:
        """Return whether one of the strings has come, so that the answer should end."""
        return self._is_met

    def add(self, piece: str) -> str:
        """Take a piece of an answer; return the text that may be shown now."""
        if self._is_met:
            return ""
        text = self._held + piece
        self._is_met = any(string in text for string in self.strings)
        length = self._place(text) if self._is_met else len(text) - self._length_of_beginning(text)
        self._held = "" if self._is_met else text[length:]
        self.text += text[:length]
        return text[:length]

    def end(self) -> str:
        """Return what was held back, once no more pieces come."""
        text, self._held = self._held, ""
        self.text += text
        return text

    def _place(self, text: str) -> int:
        """Return where the string begins that is complete first, however the text came."""
        strings = [string for string in self.strings if string in text]
        complete = text[: min(text.find(string) + len(string) for string in strings)]
        return min(complete.find(string) for string in strings if string in complete)

    def _length_of_beginning(self, text: str) -> int:
        """Return the length of the longest end of `text` that a string begins with."""
        longest = max(map(len, self.strings), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self.strings):
                return length
        return 0
