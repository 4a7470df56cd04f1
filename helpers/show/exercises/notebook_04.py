"""The exercises of notebook 04."""

from helpers.graphs.presets import Preset
from helpers.show import trials, truths
from helpers.show.answers import NUMBER, Exercise, choice, function, instance

EXERCISES = {
    "04-1": Exercise(
        NUMBER,
        truth=truths.least_side,
        hint="Compare the square's area with that of one slice.",
        mistakes=lambda truth, slicing: {
            slicing.resolution: "A picture of exactly one slice's area needs no cutting.",
            2 * slicing.resolution: "That is cut, and so is a smaller one.",
        },
    ),
    "04-2": Exercise(
        choice("first", "second"),
        truth=truths.row_half,
        hint="Look at the order in which tables_as_defined takes across and down.",
        mistakes={"first": "The first half tells the column, and that is the same here."},
    ),
    "04-3": Exercise(
        function("words", "layers", "scale_depth"),
        truth="scaled",
        hint="Both of what a layer adds is multiplied by scale_depth and divided by the root of "
        "the number of layers.",
        mistakes={
            "as they are": "The layers' results are added as they are: multiply them first.",
            "by the number": "Divide by the root of the number of layers, not by the number.",
            "by both": "Each layer counts once, although it adds two things.",
            "at times": "That is right for some of the cases only: take the number of layers and "
            "scale_depth from the arguments.",
            "without words": "The words are missing: layers add to them.",
        },
        trial=trials.depth_scale,
    ),
    "04-4": Exercise(
        choice("greedy search", "beam search"),
        truth=truths.way_of_one_token,
        hint="How many tokens are left to draw from?",
        mistakes={
            "beam search": "Beams keep several beginnings; here one token is left at a time."
        },
    ),
    "04-5": Exercise(
        instance(Preset, "a preset, Preset(...)"),
        truth="smaller",
        hint="Change one field of the preset at a time.",
        mistakes={
            "fewer bits": "The image encoder should keep its 16 bits: image_encoder=FP16.",
            "not smaller": "The language model is not smaller: raise the ratio, or enlarge groups.",
        },
        trial=trials.smaller_with_16_bit_encoder,
    ),
}
