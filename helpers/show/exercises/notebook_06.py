"""The exercises of notebook 06."""

from helpers.show import picture_trials, trials, truths
from helpers.show.answers import NUMBER, Exercise, function
from helpers.show.exercises.forms import OTHER_SIZES, SCENE, WEIGHTS

EXERCISES = {
    "06-1": Exercise(
        NUMBER,
        truth=truths.banner_tokens,
        hint="A token covers 32 x 32 pixels.",
        mistakes=lambda truth, processor: (
            {
                4 * truth: "Those are patches of 16 pixels; four of them become a token.",
                22: "That is one row of them.",
            }
            | dict.fromkeys(  # cut off, as it is, and rounded
                (61, 700 * 90 / 32**2, 62), "Its sides are rounded to whole tokens first."
            )
            | dict.fromkeys((42, 44), "Round to the nearest whole token; none is cut off.")
        ),
    ),
    "06-2": Exercise(
        NUMBER,
        truth=truths.banner_rise,
        hint="The picture takes as many positions as its longer side has tokens.",
        mistakes=lambda truth, processor: {
            truth - 1: "Those are the banner's; and the step behind it?",
            truth + 4: "That is the position behind it; the one before has 4 already.",
            truths.banner_tokens(processor) + 1: "All tokens of a row share their position down.",
        },
    ),
    "06-3": Exercise(
        WEIGHTS,
        truth="between",
        hint="Change the size of the groups.",
        mistakes=OTHER_SIZES
        | {"same groups": "Groups of 128 are those of the INT4 above: change group_size."},
        trial=trials.size_by_groups,
    ),
    "06-4": Exercise(
        SCENE,
        truth="located",
        hint="Look for the overlap above that is small, and draw that scene with another style.",
        mistakes={
            "twins": "Two shapes are the same, so the question for one has two answers.",
            "few shapes": "Draw at least two shapes.",
        },
        trial=picture_trials.located_by_model,
    ),
    "06-5": Exercise(
        function("picture", "numbers"),
        truth="cut out",
        hint="picture.crop takes left, top, right and bottom in pixels.",
        mistakes={
            "as pixels": "The numbers count to 1000 along each side, and are no pixels yet.",
            "sides exchanged": "Left and right go by the width, top and bottom by the height.",
            "one side": "Each side counts to 1000 for itself: the picture is no square.",
            "no pixels": "That piece has no pixels: divide by 1000 with / and not with //.",
        },
        trial=picture_trials.piece_of_picture,
    ),
}
