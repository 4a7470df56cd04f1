"""The exercises of the notebooks, and the check of an answer: `check("01-2", my_bytes, part)`.

Each entry is one exercise, by notebook and number. Its truth does not stand in the cell, and is
computed from what the cell hands over where it depends on the checkpoint.

What this module does not know: how an answer is compared, and what trials do with it.
"""

import math

from torch import nn

from helpers.graphs.presets import Preset, Weights
from helpers.shapes.world import Scene
from helpers.show import picture_trials, trials, truths
from helpers.show.answers import NUMBER, Exercise, choice, function, instance

WEIGHTS = instance(Weights, "weights, Weights(...)")
SCENE = instance(Scene, "a scene, world.Scene(...)")
MODULE = instance(nn.Module, "a module of PyTorch")


def check(name: str, answer: object, *data: object) -> None:
    """Print what is to be said of an answer to the exercise `name`; `data` is what it needs."""
    print(EXERCISES[name].response(answer, *data))


EXERCISES = {
    "01-1": Exercise(
        MODULE,
        truth="all vectors",
        hint="It is PictureTokens with another forward: give the projector what CLIP returns.",
        mistakes={
            "without CLS": "The CLS vector is still cut off: leave [:, 1:] away.",
            "CLS alone": "Those are no patches: the squares' vectors should stay too.",
            "not projected": "The projector is missing: words have another width.",
        },
        trial=trials.vectors_kept,
    ),
    "01-2": Exercise(
        NUMBER,
        truth=truths.cache_bytes,
        hint="A key and a value in every layer, each of the model's width, 2 bytes a number.",
        mistakes=lambda truth, part: {
            truth // 2: "Half of it is missing: is there a key and a value, in 2 bytes?",
            2 * truth: "16 bits are 2 bytes, not 4.",
            2 * truth // len(part.cache): "That is one layer.",
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
        truth=lambda grid: (grid.shape[1] // 4) ** 2,
        hint="Each block halves the grid's sides where its stride is 2.",
        mistakes=lambda truth, grid: {
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
    "03-1": Exercise(
        NUMBER,
        truth=truths.banner_pieces,
        hint="Which grid of tiles is three times as wide as high? The thumbnail comes on top.",
        mistakes=lambda truth, model: {truth - 1: "The thumbnail counts too."},
    ),
    "03-2": Exercise(
        NUMBER,
        truth=lambda model, features: truths.banner_picture_tokens(model),
        hint="Multiply the tiles of exercise 1 by the tokens of one, in the table of shapes.",
        mistakes=lambda truth, model, features: {
            features[..., 0].numel(): "That is the picture at the top of the notebook; this one "
            "has another grid.",
            truth - model.processor.tokens_per_tile: "The thumbnail has tokens too.",
            model.processor.tokens_per_tile: "Those are the tokens of one tile.",
            4 * truth: "Those are patches; the pixel shuffle makes four of them a token.",
        },
    ),
    "03-3": Exercise(
        NUMBER,
        truth=Weights("int4-sym", group_size=64).bits_of(last_layer=False),
        hint="Divide the bits that a group stores beside its weights among these weights.",
        mistakes={
            4: "That is the weight alone; its share of the group's scale comes on top.",
            4 + 16 / 128: "Those are groups of 128; here 64 weights share a scale.",
            4 + 20 / 64: "A symmetric group has no zero point.",
            4 + 20 / 128: "That is the INT4 above; here groups are symmetric, and of 64 weights.",
            4 + 16: "The scale is the whole group's: divide its bits among the weights.",
        },
    ),
    "03-4": Exercise(
        SCENE,
        truth="seen",
        hint="Look for the line above that differs, and draw that scene with another style.",
        mistakes={"few shapes": "Draw at least three shapes, so that there is something to see."},
        trial=picture_trials.seen_by_model,
    ),
    "03-5": Exercise(
        SCENE,
        truth="read",
        hint="Compare the words above; print yours elsewhere with word_place, or in another style.",
        mistakes={
            "no word": "The scene has no word yet: replace its field word.",
            "other shapes": "The shapes are not those of my_scene: start from it, and replace the "
            "word only.",
        },
        trial=picture_trials.read_by_model,
    ),
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
        },
    ),
    "05-3": Exercise(
        function("language"),
        truth="first layer",
        hint="A gate is a weight of its layer, language.model.layers[number], and closed at 0.",
        mistakes={
            "nothing": "All gates are as they were: fill the first layer's with 0.",
            "all layers": "All gates are closed; only the first layer's should be.",
            "another layer": "That is another layer's; the first has the smallest number.",
            "half": "The layer has two gates, of its attention and of its feed-forward network.",
        },
        trial=trials.closed_gates,
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
    "06-1": Exercise(
        NUMBER,
        truth=truths.banner_tokens,
        hint="A token covers 32 x 32 pixels.",
        mistakes=lambda truth, processor: {
            4 * truth: "Those are patches of 16 pixels; four of them become a token.",
            22: "That is one row of them.",
            700 * 90 // 32**2: "Its sides are rounded to whole tokens first.",
        },
    ),
    "06-2": Exercise(
        NUMBER,
        truth=truths.banner_rise,
        hint="The picture takes as many positions as its longer side has tokens.",
        mistakes=lambda truth, processor: {
            truth - 1: "Those are the banner's; and the step behind it?",
            truths.banner_tokens(processor) + 1: "All tokens of a row share their position down.",
        },
    ),
    "06-3": Exercise(
        WEIGHTS,
        truth="between",
        hint="Change the size of the groups.",
        mistakes={
            "too small": "The scales and zero points have to become more: make the groups smaller.",
            "too large": "That is 8 bits or more: use a mode of 4 bits.",
        },
        trial=trials.size_between,
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
        },
        trial=picture_trials.piece_of_picture,
    ),
}
