"""The exercises of notebook 01."""

import math

from helpers.show import trials, truths
from helpers.show.answers import NUMBER, Exercise, function
from helpers.show.exercises.forms import MODULE, WEIGHTS

EXERCISES = {
    "01-1": Exercise(
        MODULE,
        truth="all vectors",
        hint="It is PictureTokens with another forward: give the projector what CLIP returns.",
        mistakes={
            "without CLS": "The CLS vector is still cut off: leave [:, 1:] away.",
            "CLS alone": "Those are no patches: the squares' vectors should stay too.",
            "not projected": "The projector is missing: words have another width.",
            "rounded": "Take the modules of `reference`; those of `model` compute in 16 bits.",
        },
        trial=trials.vectors_kept,
    ),
    "01-2": Exercise(
        NUMBER,
        truth=truths.cache_bytes,
        hint="One token has a key and a value in every layer, each of the model's width, 2 bytes a "
        "number.",
        mistakes=lambda truth, part: {
            truth // 2: "Half of it is missing: is there a key and a value, in 2 bytes?",
            2 * truth: "16 bits are 2 bytes, not 4.",
            8 * truth: "Those are bits; a byte has 8 of them.",
            2 * truth // len(part.cache): "That is one layer, or one head in all of them.",
        },
    ),
    "01-3": Exercise(
        NUMBER,
        truth=lambda slopes: math.ceil(8 / slopes[0]),
        hint="The bias is minus the slope times the distance; the steepest slope is slopes[0].",
        mistakes=lambda truth, slopes: {
            math.ceil(8 / slopes[-1]): "That is the flattest head; the steepest is slopes[0].",
            -truth: "A distance is positive; the minus is the bias's.",
            truth + 1: "One token nearer will do already.",
        },
    ),
    "01-4": Exercise(
        NUMBER,
        truth=lambda weights: weights.bits,
        hint="Multiply each share of the weights by its bits, and add.",
        mistakes=lambda truth, weights: {
            12 - truth: "The ratio is the share in 4 bits, not that in 8.",
            6: "That is the mean of 4 and 8; the shares are not halves.",
            4 * weights.ratio: "Eight tenths have 4 bits; and the rest?",
        },
    ),
    "01-5": Exercise(
        WEIGHTS,
        truth="between",
        hint="Between 4 and 8 bits lie mixtures: choose the ratio.",
        mistakes={
            "too small": "More layers have to keep 8 bits: lower the ratio.",
            "too large": "More layers have to get 4 bits: raise the ratio of an int4 mode.",
        },
        trial=trials.size_between,
    ),
    "01-6": Exercise(
        function("the reply", "its event"),
        truth="stopped",
        hint="Take one piece with next(iter(reply)), then set the event.",
        mistakes={
            "nothing read": "The answer stopped, but no piece was read: take one with "
            "next(iter(reply)) first.",
            "not set": "A piece was read; now set the event with event.set().",
            "more read": "More than the first piece was read: stop after one.",
        },
        trial=trials.stopped,
    ),
}
