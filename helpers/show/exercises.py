"""Check cells for the exercises: they tell a right answer from a wrong one and from none."""

import math
from numbers import Real


def check(answer: object, right: object, hint: str) -> None:
    """Print whether `answer` is `right`, and what to do next if it is not.

    None counts as not answered yet. Numbers may differ by rounding; an answer of another kind than
    the right one gets a word on its form instead of the hint.
    """
    if answer is None:
        print("Not answered yet: replace None in this cell and run it again.")
    elif kind_of(answer) != kind_of(right):
        print(f"Not right yet: the answer is {kind_of(right)}, and this is {kind_of(answer)}.")
    elif _same(answer, right):
        print("Right.")
    else:
        print(f"Not right yet. {hint}")


def kind_of(answer: object) -> str:
    """Return in words what kind of answer this is."""
    if isinstance(answer, bool):
        return "True or False"
    if isinstance(answer, Real):
        return "a number"
    return "a text in quotes" if isinstance(answer, str) else f"of type {type(answer).__name__}"


def _same(answer: object, right: object) -> bool:
    if isinstance(answer, Real) and isinstance(right, Real):
        return math.isclose(answer, right, rel_tol=1e-6)
    if isinstance(answer, str) and isinstance(right, str):
        return answer.strip().lower() == right.strip().lower()
    return answer == right
