"""A pytest plugin that answers the exercises of a notebook when their cells have passed.

In the notebook's kernel, the cell is run again with the solution that is printed below it, and with
the wrong answers of tests/exercise_answers.py: "Right." or a next step, and never a traceback. Each
runs in a copy of the kernel's names, so that later cells find them as they were.

tests/test_nbval_exercises.py shows that each kind of failure is noticed.
"""

import json
import re
from collections.abc import Iterator
from queue import Empty

import pytest
from nbformat import NotebookNode
from nbval.plugin import IPyNbCell

from helpers.show.answers import NOT_YET, RIGHT, Exercise
from tests.exercise_answers import WRONG_ANSWERS

WRONG = "Not right yet"
KINDS = ("value", "form", "mistake")  # of wrong answers
CALL = re.compile(r'^check\("(\d\d-\d)", (\w+)', re.M)
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)\n```.*?</details>", re.S)
# In the kernel: what each source prints, as the last line. A traceback counts as printed.
RUN = """
def _run_each(sources):
    import contextlib, io, json, traceback

    outputs = []
    for source in sources:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            try:
                exec(source, dict(globals()))
            except BaseException:
                print(traceback.format_exc())
        outputs.append(output.getvalue())
    print(json.dumps(outputs))


_run_each({sources!r})
del _run_each
"""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Answer an exercise whose cell has passed."""
    result = yield
    if isinstance(item, IPyNbCell) and (call := CALL.search(item.cell.source)):
        problems = exercise_problems(item, *call.groups())
        if problems:
            item.raise_cell_error("\n".join(problems))
    return result


def exercise_problems(item: IPyNbCell, name: str, variable: str) -> list[str]:
    """Return what is wrong with an exercise, or with what its answers are told."""
    from helpers.show.exercises import EXERCISES  # with PyTorch, which other tests do without

    blank = f"{variable} = None"
    solution = solution_below(item.parent.nb.cells, item.cell)
    if name not in EXERCISES or name not in WRONG_ANSWERS:
        return [f"Exercise {name} is not in helpers/show/exercises/ and exercise_answers.py."]
    if solution is None:
        return [f"Exercise {name} has no solution below it that could be pasted."]
    if blank not in item.cell.source.splitlines():
        return [f"Exercise {name} has no line {blank!r}."]
    before = earlier_solutions(item.parent.nb.cells, item.cell)
    cases = [("blank", blank), ("solution", solution)]
    for kind, sources in zip(KINDS, WRONG_ANSWERS[name], strict=True):
        cases += [(kind, with_variable(source, variable)) for source in sources]
    sources = [item.cell.source.replace(blank, answer) for _, answer in cases]
    outputs = printed(item, [before + source for source in sources])
    problems = []
    for (kind, answer), output in zip(cases, outputs, strict=True):
        if not is_expected(kind, EXERCISES[name], output):
            problems.append(f"Exercise {name}, {kind}:\n{answer}\ngets\n{output}")
    return problems


def earlier_solutions(cells: list[NotebookNode], cell: NotebookNode) -> str:
    """Return the solutions of the exercises whose answers an exercise's check takes too."""
    (call,) = CALL.finditer(cell.source)
    data = re.findall(r"\bmy_\w+", cell.source[call.end() :])
    calls = [(other, CALL.search(other.source)) for other in cells]
    solutions = [solution_below(cells, other) for other, call in calls if call and call[2] in data]
    return "\n".join([*filter(None, solutions), ""])


def with_variable(source: str, variable: str) -> str:
    """Return lines that give the variable a value, for lines that do or for an expression."""
    assignment = re.search(rf"^({variable} =|def {variable}\()", source, re.M)
    return source if assignment else f"{variable} = {source}"


def solution_below(cells: list[NotebookNode], cell: NotebookNode) -> str | None:
    """Return the code of the solution in the cell behind a cell, if there is one."""
    following = cells[cells.index(cell) + 1 :][:1]
    solution = SOLUTION.search(following[0].source) if following else None
    return solution and solution[1]


def is_expected(kind: str, exercise: Exercise, output: str) -> bool:
    """Return whether an answer of this kind is told what it should be."""
    line = output.strip().splitlines()[-1] if output.strip() else ""
    if "Traceback" in output:
        return False
    if kind in ("blank", "solution"):
        return line == (NOT_YET if kind == "blank" else RIGHT)
    is_form = line.startswith(f"{WRONG}: the answer is {exercise.form.name}")
    if kind == "form":
        return is_form
    is_hint = line == f"{WRONG}. {exercise.hint}"
    return line.startswith(WRONG) and not is_form and not (kind == "mistake" and is_hint)


def printed(item: IPyNbCell, sources: list[str]) -> list[str]:
    """Return what each source prints in the notebook's kernel, which stays as it is."""
    kernel = item.parent.kernel
    request = kernel.execute_cell_input(RUN.replace("{sources!r}", repr(sources)))
    text = ""
    try:
        kernel.await_reply(request, timeout=item.config.option.nbval_cell_timeout)
        while True:
            message = kernel.get_message("iopub", timeout=item.output_timeout)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["content"].get("execution_state") == "idle":
                break
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                text += message["content"]["text"]
    except Empty:
        item.raise_cell_error("The answers to this exercise took too long.")
    outputs: list[str] = json.loads(text.splitlines()[-1])
    return outputs
