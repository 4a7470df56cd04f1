"""Exercises: what answers are told, and how notebooks print their solutions.

tests/nbval_exercises.py pastes the solutions, and wrong answers, into the running notebooks.
"""

import ast
import inspect
import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch

from helpers.errors import SettingsError
from helpers.graphs.presets import Weights
from helpers.models.families import find_original
from helpers.shapes.world import Item, Scene
from helpers.show import picture_trials
from helpers.show.answers import NUMBER, Exercise, choice, function, instance
from helpers.show.exercises import EXERCISES, check
from helpers.show.trials import outcome_of
from helpers.workshop.notebooks import html_copy
from tests.exercise_answers import WRONG_ANSWERS
from tests.nbval_exercises import CALL, solution_below

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

STAR = Item("star", "red")
SUM = Exercise(
    NUMBER,
    truth=lambda numbers: sum(numbers),
    hint="Add them.",
    mistakes=lambda truth, numbers: {len(numbers): "That is how many there are.", -truth: "Sign!"},
)
TWO_DIGITS = Exercise(NUMBER, truth=math.tanh(0.5), hint="Think.", digits=2)
COLOUR = Exercise(choice("red", "blue"), truth="red", hint="Look.", mistakes={"blue": "Warmer."})


class TestResponses:
    @pytest.mark.parametrize(
        ("answer", "line"),
        [
            (None, "Not answered yet: replace None in this cell and run it again."),
            (6, "Right."),
            (0.6 * 4 + 0.4 * 9, "Right."),  # 5.999999999999999 or so
            (np.int64(6), "Right."),
            (torch.tensor(6), "Right."),
            (torch.tensor([6]), "Right."),
            (np.array([[6]]), "Right."),
            (
                np.array([6, 6]),
                "Not right yet: the answer is a number, and this is of type ndarray.",
            ),
            (7, "Not right yet. Add them."),
            (6.0001, "Not right yet. Add them."),
            (math.nan, "Not right yet. Add them."),
            (2, "Not right yet. That is how many there are."),
            (-6, "Not right yet. Sign!"),
            ("6", 'Not right yet: the answer is a number, and this is the text "6".'),
            (True, "Not right yet: the answer is a number, and this is True or False."),
            ([6], "Not right yet: the answer is a number, and this is of type list."),
        ],
    )
    def test_of_numbers(self, answer, line):
        assert SUM.response(answer, [2, 4]) == line

    @pytest.mark.parametrize("answer", [0.46, 0.462, 0.4621, math.tanh(0.5), 0.465])
    def test_of_rounded_numbers(self, answer):
        assert TWO_DIGITS.response(answer) == "Right."

    def test_whole_numbers_are_exact(self):
        exercise = Exercise(NUMBER, truth=210_000_000, hint="Count all.")
        assert exercise.response(210_000_000) == "Right."
        assert exercise.response(210_000_001) == "Not right yet. Count all."

    @pytest.mark.parametrize("answer", [np.float32(4.8), torch.tensor(4.8)])
    def test_of_numbers_that_were_computed_in_32_bits(self, answer):
        assert Exercise(NUMBER, truth=0.8 * 4 + 0.2 * 8, hint="Add.").response(answer) == "Right."

    @pytest.mark.parametrize("answer", [0.45, 0.47, 0.5])
    def test_of_numbers_that_are_not_rounded_so(self, answer):
        assert TWO_DIGITS.response(answer) == "Not right yet. Think."

    @pytest.mark.parametrize(
        ("answer", "line"),
        [
            (" Red", "Right."),
            ("blue", "Not right yet. Warmer."),
            ("pink", 'Not right yet: the answer is "red" or "blue", and this is the text "pink".'),
            (3, 'Not right yet: the answer is "red" or "blue", and this is a number.'),
        ],
    )
    def test_of_choices(self, answer, line):
        assert COLOUR.response(answer) == line

    def test_of_objects(self):
        exercise = Exercise(instance(Weights, "weights"), truth=Weights("int8"), hint="Think.")
        assert exercise.response(Weights("int8")) == "Right."
        assert exercise.response(Weights).endswith(
            "the answer is weights, and this is the class Weights, which () behind it makes an "
            "object of."
        )

    @pytest.mark.parametrize(
        ("answer", "kind"),
        [
            (lambda number: number, "a function with 1 argument."),
            (lambda: 1, "a function with 0 arguments."),
            (int, "the class int, which () behind it makes an object of."),
            (max, "of type builtin_function_or_method."),  # which says nothing of its arguments
        ],
    )
    def test_of_functions_with_other_arguments(self, answer, kind):
        exercise = Exercise(function("this", "that"), truth=3, hint="Add.", trial=lambda f: f(1, 2))
        line = (
            "Not right yet: the answer is a function with 2 arguments, this and that, and this is"
        )
        assert exercise.response(answer) == f"{line} {kind}"
        assert exercise.response(lambda a, b: a + b) == "Right."
        assert exercise.response(lambda *numbers: sum(numbers)) == "Right."

    def test_names_of_many_arguments_are_a_list(self):
        exercise = Exercise(function("a", "b", "c"), truth=3, hint="Add.")
        assert "a function with 3 arguments, a, b and c, and" in exercise.response(3)


class TestTrials:
    def test_what_comes_of_an_answer_is_compared(self):
        exercise = Exercise(
            NUMBER,
            truth="even",
            hint="Think.",
            mistakes={"odd": "Add 1."},
            trial=lambda answer: "odd" if answer % 2 else "even",
        )
        assert exercise.response(4) == "Right."
        assert exercise.response(3) == "Not right yet. Add 1."

    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (SettingsError("The ratio is 50."), "Not right yet. The ratio is 50."),
            (
                ValueError("two.\nlines"),
                "Not right yet: with this answer Python raises ValueError: two.",
            ),
        ],
    )
    def test_errors_are_told_in_a_sentence(self, error, line):
        def fail(answer):
            raise error

        assert Exercise(NUMBER, truth=1, hint="Think.", trial=fail).response(2) == line

    def test_an_error_of_the_truth_is_ours(self):
        with pytest.raises(ZeroDivisionError):
            Exercise(NUMBER, truth=lambda: 1 / 0, hint="Think.").response(2)


@pytest.mark.parametrize(
    ("scene", "line"),
    [
        (Scene((2, 2), (STAR, STAR)), "4 places and the scene 2 items; put None where nothing is."),
        (Scene((2, 2), 5), "The items of the scene are 5; give one for each place, in brackets"),
        (Scene((1, 1), STAR), "give one for each place, in brackets"),
        (Scene([1, 1], (STAR,)), "The grid [1, 1] does not exist; use (1, 1), (2, 1)"),
        (Scene((3, 3), 9 * (STAR,)), "The grid (3, 3) does not exist; use (1, 1), (2, 1)"),
        (Scene((1, 1), (Item("star", "pink"),)), "no 'pink' here; use red, green"),
        (Scene((1, 1), (Item("heart", "red"),)), "no 'heart' here; use circle, square"),
        (Scene((2, 1), 2 * (STAR,), word="KEY", word_place=2), "2 places, counted from 0, and"),
        (Scene((1, 1), ("red star",)), "'red star' is no world.Item(shape, colour), and not None"),
    ],
)
def test_a_scene_that_cannot_be_drawn_is_told_in_a_sentence(scene, line):
    assert line in EXERCISES["03-4"].response(scene, None)
    assert line in EXERCISES["06-4"].response(scene, None)


def test_a_word_for_a_scene_that_was_not_drawn_yet_is_told_so():
    sign = Scene((2, 2), (Item("star", "red"), None, None, None), word="KEY")
    assert "exercise 4" in EXERCISES["03-5"].response(sign, None, None)


def test_a_module_is_traced_with_what_was_computed_in_inference_mode(capsys):
    with torch.inference_mode():
        grid = torch.rand(8, 8, 8) + 1
    blocks = torch.nn.Sequential(*[torch.nn.Conv2d(8, 8, 2, stride=2) for _ in range(2)])
    respond, kind = EXERCISES["02-2"].response, torch.nn.Conv2d
    assert respond(blocks, kind, grid) == "Right."
    halved_once = torch.nn.Sequential(blocks[0], torch.nn.Conv2d(8, 8, 1))
    assert respond(halved_once, kind, grid).endswith("both blocks need stride 2.")
    assert "Put two LdpBlock" in respond(torch.nn.AvgPool2d(4), kind, grid)
    assert capsys.readouterr().out.count("in OpenVINO as in PyTorch: True") == 2
    assert "and returns list." in respond(Listing(blocks), kind, grid)


def test_a_module_may_change_what_it_is_given(capsys):
    class Gate(torch.nn.Module):
        def forward(self, words, attended, gate):
            return words.add_(gate.tanh() * attended)

    assert EXERCISES["05-5"].response(Gate()) == "Right."
    assert "in OpenVINO as in PyTorch: True" in capsys.readouterr().out


class Listing(torch.nn.Module):
    """A module that returns its result in a list."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks

    def forward(self, grid):
        return [self.blocks(grid)]


@pytest.mark.parametrize("name", ["04-3", "07-2", "07-4", "08-2"])
def test_a_function_without_a_return_is_told_so(name):
    assert "returns None" in EXERCISES[name].response(lambda *_: None)


@pytest.mark.parametrize("output", [2, True, [1, 2], torch.zeros(3)])
def test_a_function_that_returns_another_shape_is_told_which_shape_is_right(output):
    assert "a row and a column for each token" in EXERCISES["08-2"].response(lambda near: output)
    assert "Return the embeddings (2, longest" in EXERCISES["07-4"].response(lambda prompts: output)


@pytest.mark.parametrize("kind", [list, np.asarray, torch.as_tensor, tuple])
def test_a_result_may_be_a_tensor_an_array_or_a_list(kind):
    numbers = [1.0, 2.0]
    outcomes = {"other": torch.zeros(2), "right": torch.tensor(numbers)}
    assert outcome_of(kind(numbers), outcomes) == "right"
    assert outcome_of(kind([3.0, 4.0]), outcomes) == "something else"


@pytest.mark.parametrize("output", ["words", None, [[1.0], [1.0, 2.0]]])
def test_a_result_that_is_no_numbers_is_something_else(output):
    assert outcome_of(output, {"right": torch.zeros(2)}) == "something else"


class Rows(torch.nn.Module):
    """Rows of a square as an image encoder's vectors, in the order `places`."""

    def __init__(self, places):
        super().__init__()
        self.places = places

    def forward(self, pixels):
        return pixels[:, 0, self.places]


@pytest.mark.parametrize(
    ("places", "line"),
    [
        ([0, 1, 2, 3], "Right."),
        ([1, 2, 3, 0], "Right."),  # CLS behind the patches is one token more, too
        ([1, 2, 3], "leave [:, 1:] away."),
        ([0, 1, 2, 2], "give the projector what CLIP returns."),
    ],
)
def test_where_the_summary_stands_is_free(places, line):
    def encode(pixels):
        return SimpleNamespace(last_hidden_state=pixels[:, 0])

    model = SimpleNamespace(image_encoder=encode, projector=torch.nn.Identity())
    pixels = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert EXERCISES["01-1"].response(Rows(places), model, pixels).endswith(line)


def test_modules_in_16_bits_are_told_from_other_vectors():
    class Rounded(Rows):
        def forward(self, pixels):
            return super().forward(pixels).half().float()

    model = SimpleNamespace(
        image_encoder=lambda pixels: SimpleNamespace(last_hidden_state=pixels[:, 0]),
        projector=torch.nn.Identity(),
    )
    pixels = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    response = EXERCISES["01-1"].response
    assert "the modules of `reference`" in response(Rounded([0, 1, 2, 3]), model, pixels)
    assert "`reference`" not in response(Rounded([0, 1, 2, 2]), model, pixels)


def test_keys_and_values_of_other_layers_and_heads_are_known_mistakes():
    original = find_original("llama-3.2-vision")
    config = original.config["text_config"]
    layers = config["num_hidden_layers"] / len(config["cross_attention_layers"])
    heads = config["num_attention_heads"] / config["num_key_value_heads"]
    exercise = EXERCISES["05-2"]
    truth = exercise.truth(original)
    assert "all layers" in exercise.response(layers * truth, original)
    assert "those of queries" in exercise.response(heads * truth, original)
    for digits in range(7):
        assert "megabytes" in exercise.response(round(truth / 1e6, digits), original)


def test_check_prints(capsys):
    check("03-3", None)
    check("03-3", 4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Not answered yet") and lines[1].startswith("Not right yet. That is")


def layers_with_gates():
    """Return a model whose language model has two layers with two open gates each."""
    layers = torch.nn.ModuleList(torch.nn.Module() for _ in range(2))
    for layer in layers:
        layer.one_gate = torch.nn.Parameter(torch.tensor([0.5]))
        layer.other_gate = torch.nn.Parameter(torch.tensor([0.7]))
    return SimpleNamespace(language_model=torch.nn.ModuleDict({"layers": layers}))


def close(number, *names):
    """Return a function that closes gates of a layer."""

    def closing(language):
        for name in names:
            getattr(language["layers"][number], name).zero_()

    return closing


@pytest.mark.parametrize(
    ("closing", "line"),
    [
        (close(0, "one_gate", "other_gate"), "Right."),
        (close(1, "one_gate", "other_gate"), "That is another layer's"),
        (close(0, "one_gate"), "The layer has two gates"),
        (close(0), "No gate is closed"),
        (close(0, "one_gate", "third_gate"), "with this answer Python raises AttributeError"),
    ],
)
def test_gates_that_a_function_closes_are_open_afterwards(closing, line):
    model = layers_with_gates()
    assert line in EXERCISES["05-3"].response(closing, model, [])
    gates = dict(model.language_model.named_parameters())
    assert len(gates) == 4 and all(gate.item() > 0.4 for gate in gates.values())


def remove(number, name):
    """Return a function that takes a weight away from a layer."""
    return lambda language: delattr(language["layers"][number], name)


def replace_by_numbers(number, name):
    """Return a function that puts more numbers where a layer has one."""
    numbers = torch.nn.Parameter(torch.zeros(2))
    return lambda language: setattr(language["layers"][number], name, numbers)


@pytest.mark.parametrize("change", [remove, replace_by_numbers])
def test_weights_that_a_function_takes_away_are_back_for_the_next_answer(change):
    model = layers_with_gates()
    response = EXERCISES["05-3"].response
    assert "Not right yet." in response(change(0, "one_gate"), model, [])
    assert response(close(0, "one_gate", "other_gate"), model, []) == "Right."
    assert model.language_model["layers"][0].one_gate.item() == 0.5


def pad_in_front(prompts, change):
    """Return prompts of 3 and 5 tokens padded in front, the longer one changed, and their mask."""
    shorter, longer = prompts
    embeddings = np.stack([np.pad(shorter, ((2, 0), (0, 0))), change(longer)])
    return embeddings, np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_prompts_may_be_padded_into_numbers_of_32_bits(kind):
    def pad(prompts):
        embeddings, mask = np.zeros((2, 5, 4), kind), np.zeros((2, 5), np.int64)
        for row, prompt in enumerate(prompts):
            embeddings[row, -len(prompt) :] = prompt
            mask[row, -len(prompt) :] = 1
        return embeddings, mask

    assert EXERCISES["07-4"].response(pad) == "Right."


def test_both_padded_prompts_keep_their_tokens():
    response = EXERCISES["07-4"].response
    assert response(lambda prompts: pad_in_front(prompts, np.copy)) == "Right."
    assert "own tokens" in response(lambda prompts: pad_in_front(prompts, np.zeros_like))


def cut_by(across, down):
    """Return a function that takes a box's numbers as thousandths of these sides of a picture."""

    def cut(picture, numbers):
        sides = [across(picture) / 1000, down(picture) / 1000] * 2
        return picture.crop([number * side for number, side in zip(numbers, sides, strict=True)])

    return cut


@pytest.mark.parametrize(
    ("across", "down", "kind"),
    [
        (lambda picture: picture.width, lambda picture: picture.height, "cut out"),
        (lambda picture: picture.height, lambda picture: picture.width, "sides exchanged"),
        (lambda picture: picture.width, lambda picture: picture.width, "one side"),
        (lambda picture: picture.height, lambda picture: picture.height, "one side"),
        (lambda picture: 1000, lambda picture: 1000, "as pixels"),
        (lambda picture: 500, lambda picture: 500, "something else"),
        (lambda picture: 0, lambda picture: 0, "no pixels"),
    ],
)
def test_by_which_sides_a_piece_is_cut_out(across, down, kind):
    assert picture_trials.kind_of_cut(cut_by(across, down)) == kind


# The notebooks


def exercise_cells(path):
    """Return the exercises' cells of a notebook by name, and all its cells."""
    cells = nbformat.read(path, as_version=4).cells
    calls = {cell.id: CALL.search(cell.source) for cell in cells if cell.cell_type == "code"}
    return {calls[cell.id][1]: cell for cell in cells if calls.get(cell.id)}, cells


def test_every_exercise_is_asked_once_and_answered_wrongly():
    names = Counter(name for path in NOTEBOOKS for name in exercise_cells(path)[0])
    assert names == Counter(EXERCISES.keys()) == Counter(WRONG_ANSWERS.keys())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_take_what_notebooks_hand_over(path):
    code = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    for source in filter(CALL.search, code):
        (call,) = (
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check"
        )
        name, answer, *data = call.args
        exercise = EXERCISES[ast.literal_eval(name)]
        takers = {exercise.truth: data, exercise.trial: [answer, *data]}
        for taker, handed_over in takers.items():
            if callable(taker):
                inspect.signature(taker).bind(*handed_over)
        if callable(exercise.mistakes):
            inspect.signature(exercise.mistakes).bind("truth", *data)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_belong_to_their_notebook_and_count_up(path):
    names = list(exercise_cells(path)[0])
    assert names == [f"{path.stem[:2]}-{number}" for number in range(1, len(names) + 1)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_cell_shows_the_variable_and_the_check_only(path):
    for name, cell in exercise_cells(path)[0].items():
        lines = [line for line in cell.source.splitlines() if line]
        lines = [line for line in lines if not line.startswith(("from ", "    ", ")"))]
        variable = CALL.search(cell.source)[2]
        assert lines[0] == f"{variable} = None" and len(lines) == 2, name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_below_each_exercise_stands_a_solution_to_paste(path):
    exercises, cells = exercise_cells(path)
    assert all(solution_below(cells, cell) for cell in exercises.values())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_an_exercise_that_changes_something(path):
    """Its answer is weights, a preset, a scene or a module, which the check then uses."""
    forms = [EXERCISES[name].form.name for name in exercise_cells(path)[0]]
    assert any("(...)" in form or "module" in form for form in forms)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_solutions_are_folded_in_the_page_too(path):
    notebook = nbformat.read(path, as_version=4)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    page = html_copy(notebook, path)
    solutions = re.findall(r"<details><summary>Solution</summary>(.*?)</details>", page, re.DOTALL)
    assert len(solutions) == "".join(texts).count("<summary>Solution") >= 3
    assert all("my_" in re.sub("<[^>]*>", "", solution) for solution in solutions)
