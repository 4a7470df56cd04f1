"""The exercises of notebook 07."""

from helpers.show import state_trials, trials, truths
from helpers.show.answers import NUMBER, Exercise, function
from helpers.show.exercises.forms import WEIGHTS

EXERCISES = {
    "07-1": Exercise(
        NUMBER,
        truth=truths.tokens_until_less,
        hint="The matrices and the convolutions are bytes at once; by how many more does full "
        "attention only grow with each token?",
        mistakes=lambda truth, series: {
            truth - 1: "With so many tokens Qwen3.5 keeps no less yet: take one more."
        },
    ),
    "07-2": Exercise(
        function("queries", "keys", "values", "decays", "strengths"),
        truth="added",
        hint="Copy delta_rule, and put the value itself where the error is.",
        mistakes={
            "delta rule": "That still takes away what the state says for the key.",
            "without decay": "The state should still shrink with each token.",
            "without strength": "The strength still says how much of the value is added.",
            "neither": "The decay and the strength should stay.",
        },
        trial=state_trials.rule_of,
    ),
    "07-3": Exercise(
        function("language"),
        truth="for ever",
        hint="A decay is exp(-rate), and the rate has the factor exp(A_log): make that nothing.",
        mistakes={
            "as before": "All weights are as they were: change A_log in place, with fill_.",
            "not at all": "That forgets at once: a large A_log is a fast decay.",
            "some layers": "Some layers do, but not all: go through all that have linear_attn.",
            "shorter": "A value still fades: the factor exp(A_log) has to come nearer to 0.",
            "other weights": "A_log alone is enough; the other weights should stay.",
        },
        trial=state_trials.memory_of,
    ),
    "07-4": Exercise(
        function("prompts"),
        truth="in front",
        hint="numpy.pad takes how many rows come before and behind: ((before, behind), (0, 0)).",
        mistakes={
            "behind": "That comes between the prompt and its answer: pad in front.",
            "another mask": "The mask is 1 where a prompt's token stands and 0 at padding.",
            "another shape": "Return the embeddings (2, longest, size) and the mask (2, longest).",
            "not the prompts": "The prompts' own tokens have to stay as they are, of both.",
        },
        trial=state_trials.padded,
    ),
    "07-5": Exercise(
        WEIGHTS,
        truth="smaller",
        hint="Which layers keep 8 bits? Weights has a setting that gives all layers 4.",
        mistakes={
            "the same": "Those are the preset's own weights: all layers are to have 4 bits.",
            "larger": "That takes more than the preset: start with its mode and groups.",
        },
        trial=trials.smaller_than,
    ),
}
