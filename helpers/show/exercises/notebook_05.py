"""The exercises of notebook 05."""

from helpers.show import trials, truths, weight_trials
from helpers.show.answers import NUMBER, Exercise, function
from helpers.show.exercises.forms import MODULE

EXERCISES = {
    "05-1": Exercise(
        NUMBER,
        truth=truths.tile_number,
        hint="By which factor is it scaled to fit each canvas? The smallest factor of at least 1 "
        "is taken, or else the largest; of equals, the fewest tiles.",
        mistakes=lambda truth, model: {
            model.image_encoder.config.max_num_tiles: "No canvas of four tiles scales it better "
            "than a smaller one does, which is then taken.",
            1: "On one tile the picture would be made smaller than it has to be.",
        },
    ),
    "05-2": Exercise(
        NUMBER,
        truth=truths.picture_bytes,
        hint="A key and a value, of 2 bytes a number, for each vector, head and layer.",
        mistakes=lambda truth, original: {
            truth // 2: "Half is missing: a key and a value, of 2 bytes each.",
            truth // 4: "That is one tile.",
            truths.picture_bytes(
                original, summaries=0
            ): "Each tile has a vector for all of it too.",
            truth // len(original.config["text_config"]["cross_attention_layers"]): "That is one "
            "layer; count those with cross-attention.",
            5 * truth: "Those are all layers; only the layers with cross-attention keep them.",
            4 * truth: "Count the heads of keys and values, which are fewer than those of queries, "
            "and of the layers only those with cross-attention.",
            **dict.fromkeys(
                (round(truth / 1e6, digits) for digits in range(7)),
                "Those are megabytes, of a million bytes each.",
            ),
            2 * truth: "16 bits are 2 bytes, not 4.",
            8 * truth: "Those are bits; a byte has 8 of them.",
        },
    ),
    "05-3": Exercise(
        function("language"),
        truth="first layer",
        hint="A gate is a weight of its layer, language.model.layers[number], and closed at 0.",
        mistakes={
            "nothing": "No gate is closed: fill those of the first layer with 0.",
            "all layers": "All gates are closed; only the first layer's should be.",
            "another layer": "That is another layer's; the first has the smallest number.",
            "half": "The layer has two gates, of its attention and of its feed-forward network.",
        },
        trial=weight_trials.closed_gates,
    ),
    "05-4": Exercise(
        NUMBER,
        truth=truths.best_power,
        hint="Repeat the cell with the trial layer for 11 powers, with 32 instead of 64.",
        mistakes={
            0: "That is the data-free rounding, which other powers improve on.",
            0.25: "That is the best of five powers in groups of 64; here are tenths, and 32.",
        },
    ),
    "05-5": Exercise(
        MODULE,
        truth="gated",
        hint="Return the words plus what the gate lets through of the picture's share.",
        mistakes={
            "gate as it is": "Not the gate itself, but its hyperbolic tangent opens it.",
            "without words": "The words are missing: the layer adds to them.",
            "all gated": "The gate is for the picture's share alone; the words pass.",
        },
        trial=trials.gate_kind,
    ),
}
