"""The exercises of notebook 03."""

from helpers.graphs.presets import Weights
from helpers.show import picture_trials, truths
from helpers.show.answers import NUMBER, Exercise
from helpers.show.exercises.forms import SCENE

EXERCISES = {
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
            4 + 20 / 128: "That is the INT4-ASYM above; here groups are symmetric, of 64 weights.",
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
        hint="Compare the words above; print yours elsewhere with word_place, in another style, or "
        "take other letters.",
        mistakes={
            "no word": "The scene has no word yet: replace its field word.",
            "other letters": "The word should be three capital letters.",
            "no scene": "my_scene is still None: answer exercise 4 first.",
            "other shapes": "The shapes are not those of my_scene: start from it, and replace the "
            "word only.",
        },
        trial=picture_trials.read_by_model,
    ),
}
