"""The exercises of notebook 08."""

from functools import partial

from helpers.show import trials, weight_trials
from helpers.show.answers import Exercise, function
from helpers.show.exercises.forms import OTHER_SIZES, PICTURE, WEIGHTS

EXERCISES = {
    "08-1": Exercise(
        function("table", "token", "layer"),
        truth="piece",
        hint="A token's row holds the pieces of all layers, one behind the other.",
        mistakes={
            "not multiplied": "The model multiplies each row by a number, the factor above.",
            "whole row": "That is what all layers get of the token; take the piece of one.",
            "every so many": "A piece is numbers side by side, not every so many of the row.",
        },
        trial=trials.piece_of_row,
    ),
    "08-2": Exercise(
        function("near"),
        truth="two layers",
        hint="Of which tokens has a token that it sees heard? With grid = near.float(), "
        "`grid @ grid` counts the ways.",
        mistakes={
            "one layer": "That is what it sees in one layer; there is one below.",
            "twice the window": "A window counts the token itself, in both layers.",
            "another shape": "Return a row and a column for each token, as near has.",
            "everything": "Through two windows the first tokens of a long text are not heard.",
        },
        trial=trials.heard_through_windows,
    ),
    "08-3": Exercise(
        PICTURE,
        truth=280,
        hint="It becomes rows and columns of tokens in its own shape: 280 is 20 times 14, say.",
        trial=trials.tokens_in_budget,
    ),
    "08-4": Exercise(
        WEIGHTS,
        truth="between",
        hint="Change the size of the groups.",
        mistakes=OTHER_SIZES,
        trial=trials.size_between,
    ),
    "08-5": Exercise(
        function("language"),
        truth="all layers",
        hint="A piece goes through language.model.layers[number].per_layer_projection.",
        mistakes={
            "nothing": "No per_layer_projection is 0 yet: fill the weights of all with 0.",
            "first layer": "That is the first layer; the others still get theirs.",
            "another layer": "That is one layer; the others still get theirs.",
            "some layers": "Some layers still get their pieces.",
        },
        trial=partial(weight_trials.closed_gates, gate="per_layer_projection.weight"),
    ),
}
