"""Answers to exercises: what is right, what is a known mistake, and what a reader is told.

What this module does not know: which exercises there are.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from helpers.errors import UserError, reason_of

NOT_YET = "Not answered yet: replace None in this cell and run it again."
RIGHT = "Right."
FLOAT32_ERROR = 1e-6  # of a number that was computed in 32 bits


@dataclass(frozen=True)
class Form:
    """What kind of thing an answer is: in words, and as a check."""

    name: str
    fits: Callable[[object], bool]


@dataclass(frozen=True)
class Exercise:
    """What is checked of one exercise.

    `truth` is the right answer, `hint` the next step after a wrong one, and `mistakes` holds for
    known wrong answers what to say instead. What depends on the model is a function: `truth` of
    what the cell hands over, `mistakes` of the truth and that. `trial`, if there is one, does
    something with the answer and what is handed over; then what it returns is compared, not the
    answer itself. An answer may be rounded to `digits` behind the point, or have more of them.
    """

    form: Form
    truth: object | Callable[..., object]
    hint: str
    mistakes: Mapping[Any, str] | Callable[..., Mapping[Any, str]] | None = None
    trial: Callable[..., object] | None = None
    digits: int | None = None

    def response(self, answer: object, *data: object) -> str:
        """Return what a reader is told about an answer; `data` is what the cell hands over."""
        if answer is None:
            return NOT_YET
        answer = _plain(answer)
        if not self.form.fits(answer):
            return f"Not right yet: the answer is {self.form.name}, and this is {kind_of(answer)}."
        truth = self.truth(*data) if callable(self.truth) else self.truth
        mistakes = self.mistakes(truth, *data) if callable(self.mistakes) else self.mistakes
        try:
            outcome = answer if self.trial is None else self.trial(answer, *data)
        except UserError as error:
            return f"Not right yet. {error}"
        except Exception as error:  # a reader's own function or module may raise anything
            return f"Not right yet: with this answer Python raises {reason_of(error).rstrip('.')}."
        if self._same(outcome, truth):
            return RIGHT
        for mistake, next_step in (mistakes or {}).items():
            if self._same(outcome, mistake):
                return f"Not right yet. {next_step}"
        return f"Not right yet. {self.hint}"

    def _same(self, outcome: object, expected: object) -> bool:
        if isinstance(outcome, Real) and isinstance(expected, Real):
            error = 0.0 if self.digits is None else 0.5 * 10**-self.digits
            are_whole = isinstance(outcome, Integral) and isinstance(expected, Integral)
            share = 0.0 if are_whole else FLOAT32_ERROR
            return math.isclose(outcome, expected, rel_tol=share, abs_tol=error)
        if isinstance(outcome, str) and isinstance(expected, str):
            return outcome.strip().lower() == expected.strip().lower()
        return outcome == expected


def _plain(answer: object) -> object:
    """Return the number in an array or a tensor of one number; anything else as it is."""
    shape = getattr(answer, "shape", None)
    is_number = isinstance(shape, tuple) and math.prod(shape) == 1
    return answer.item() if is_number else answer  # type: ignore[attr-defined]


def kind_of(answer: object) -> str:
    """Return in words what kind of answer this is."""
    if isinstance(answer, bool):
        return "True or False"
    if isinstance(answer, Real):
        return "a number"
    if isinstance(answer, str):
        return f'the text "{answer[:40]}"'
    if isinstance(answer, type):
        return f"the class {answer.__name__}, which () behind it makes an object of"
    if inspect.isfunction(answer):
        number = len(inspect.signature(answer).parameters)
        return f"a function with {number} argument{'' if number == 1 else 's'}"
    return f"of type {type(answer).__name__}"


NUMBER = Form("a number", lambda answer: isinstance(answer, Real) and not isinstance(answer, bool))


def choice(*words: str) -> Form:
    """Return the form of an answer that is one of these words."""
    name = " or ".join(f'"{word}"' for word in words)
    return Form(name, lambda answer: isinstance(answer, str) and answer.strip().lower() in words)


def instance(kind: type, name: str) -> Form:
    """Return the form of an answer that is an object of a class; `name` is what to call it."""
    return Form(name, lambda answer: isinstance(answer, kind))


def function(*arguments: str) -> Form:
    """Return the form of an answer that is a function of so many arguments."""

    def fits(answer: object) -> bool:
        if not inspect.isroutine(answer):
            return False
        try:
            inspect.signature(answer).bind(*arguments)
        except (TypeError, ValueError):  # a built-in function may not say what it takes
            return False
        return True

    number = "1 argument" if len(arguments) == 1 else f"{len(arguments)} arguments"
    *others, last = arguments
    names = f"{', '.join(others)} and {last}" if others else last
    return Form(f"a function with {number}, {names}", fits)
