"""The exercises of notebook 02."""

from helpers.show import trials, truths
from helpers.show.answers import NUMBER, Exercise
from helpers.show.exercises.forms import MODULE

EXERCISES = {
    "02-1": Exercise(
        NUMBER,
        truth=lambda model: model.processor.patches_per_side // 2,
        hint="Which share of the square's height is border? And how many rows are there?",
        mistakes=lambda truth, model: {
            truth // 2: "That is one border; the other is as high.",
            2 * truth: "Those are all rows; the picture has some of them.",
        },
    ),
    "02-2": Exercise(
        MODULE,
        truth=lambda kind, grid: (grid.shape[1] // 4) ** 2,
        hint="Each block halves the grid's sides where its stride is 2.",
        mistakes=lambda truth, kind, grid: {
            "other blocks": "Put two LdpBlock, and no other, into a torch.nn.Sequential.",
            4 * truth: "The sides are halved once only: both blocks need stride 2.",
            grid[0].numel(): "The grid is as before: stride=2 halves its sides.",
        },
        trial=trials.tokens_left,
    ),
    "02-3": Exercise(
        NUMBER,
        truth="within",
        hint="The ratio is a share, from 0 to 1.",
        mistakes={
            "too few": "Too few weights are in 4 bits: raise the ratio.",
            "too many": "Too many weights are in 4 bits: lower the ratio.",
        },
        trial=trials.share_in_4_bits,
    ),
    "02-4": Exercise(
        NUMBER,
        truth=truths.likeliest_temperature,
        hint="The answer is one of 0.3, 1 and 3.",
        mistakes={
            1: "1 leaves the logits as they are; can the best token get a larger share?",
            3: "Dividing by 3 brings the logits together: other tokens are drawn more often.",
        },
    ),
}
