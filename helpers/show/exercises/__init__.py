"""The exercises of the notebooks, and the check of an answer: `check("01-2", my_bytes, part)`.

Each entry is one exercise, by notebook and number. Its truth does not stand in the cell, and is
computed from what the cell hands over where it depends on the checkpoint.

What this package does not know: how an answer is compared, and what trials do with it.
"""

from helpers.show.exercises import (
    notebook_01,
    notebook_02,
    notebook_03,
    notebook_04,
    notebook_05,
    notebook_06,
    notebook_07,
    notebook_08,
)

EXERCISES = {
    **notebook_01.EXERCISES,
    **notebook_02.EXERCISES,
    **notebook_03.EXERCISES,
    **notebook_04.EXERCISES,
    **notebook_05.EXERCISES,
    **notebook_06.EXERCISES,
    **notebook_07.EXERCISES,
    **notebook_08.EXERCISES,
}


def check(name: str, answer: object, *data: object) -> None:
    """Print what is to be said of an answer to the exercise `name`; `data` is what it needs."""
    print(EXERCISES[name].response(answer, *data))
