"""Wrong answers to the notebooks' exercises, as a reader would write them into the cell.

For each exercise: a value that is wrong and no known mistake, answers of a wrong form, and answers
of known mistakes, which get sentences of their own. An exercise with two choices has no other
values. `NAME = ` is left out where an answer is one expression.
"""

from typing import NamedTuple


class WrongAnswers(NamedTuple):
    """Sources of wrong answers; each is what replaces the None, or lines that set the variable."""

    values: tuple[str, ...]
    forms: tuple[str, ...]
    mistakes: tuple[str, ...]


STAR = 'world.Item("star", "red")'
ONE_SHAPE = f"world.Scene((2, 2), ({STAR}, None, None, None))"
TWINS = f"world.Scene((2, 2), ({STAR}, {STAR}, None, None))"
SHAPES_WITHOUT_PLACES = f"world.Scene((2, 2), ({STAR}, {STAR}, {STAR}))"
OTHER_GRID = f"world.Scene((2, 3), 6 * ({STAR},))"
OTHER_COLOUR = STAR.replace("red", "pink")
PINK = f"world.Scene((2, 2), ({STAR}, {OTHER_COLOUR}, {STAR}, None))"
BLOCKS = "torch.nn.Sequential(*[LdpBlock(width, stride={}) for _ in range(2)])"
GATE = """
class Gate(torch.nn.Module):
    def forward(self, words, attended, gate):
        return {}

my_gate = Gate()
"""
EYE = """
class Eye(PictureTokens):
    def forward(self, pixel_values):
        return {}

my_encoder = Eye(reference.image_encoder, reference.projector)
"""
FLOW = "lambda words, layers, scale_depth: words + {} * sum(map(sum, layers))"
CLOSE = """
def closing(language):
    for number in {}:
        language.model.layers[number].cross_attn_{}_gate.zero_()
        language.model.layers[number].cross_attn_{}_gate.zero_()

my_closing = closing
"""
CUT = """
def cut(picture, numbers):
    left, top, right, bottom = (number / 1000 for number in numbers)
    across, down = {}, {}
    return picture.crop((left * across, top * down, right * across, bottom * down))

my_cut = cut
"""
RULE = """
def added(queries, keys, values, decays, strengths):
    state, outputs = np.zeros((keys.shape[1], values.shape[1])), []
    for token in range(len(keys)):
        state = state * {} + np.outer(keys[token], {})
        outputs.append(queries[token] @ state)
    return np.stack(outputs)

my_rule = added
"""
REMEMBER = """
def remember(language):
    for layer in {}:
        if hasattr(layer, "linear_attn"):
            layer.linear_attn.{}

my_change = remember
"""
PAD = """
def pad(prompts):
    longest, embeddings, mask = max(map(len, prompts)), [], []
    for prompt in prompts:
        embeddings.append(np.pad(prompt, ({}, (0, 0))))
        mask.append(np.pad(np.ones(len(prompt)), {}))
    return np.stack(embeddings), np.stack(mask)

my_pad = pad
"""
WEIGHTS = "from helpers.graphs.presets import Weights\n\nmy_weights = Weights({})"
PIECE = """
def my_piece(table, token, layer):
    return {}
"""
CLOSED = """
def my_change(language):
    for layer in {}:
        layer.per_layer_projection.weight.data.zero_()
"""

WRONG_ANSWERS = {
    "01-1": WrongAnswers(
        (EYE.format("self.projector(self.encoder(pixel_values).last_hidden_state[:, 2:])"),),
        ("145", "PictureTokens"),
        (
            "PictureTokens(reference.image_encoder, reference.projector)",
            EYE.format("self.projector(self.encoder(pixel_values).last_hidden_state[:, :1])"),
            EYE.format("self.encoder(pixel_values).last_hidden_state"),
            EYE.format("self.projector(self.encoder(pixel_values).last_hidden_state[1:])"),
            EYE.format("self.projector(self.encoder(pixel_values).last_hidden_state)").replace(
                "reference.", "model."
            ),
            "reference.image_encoder",
        ),
    ),
    "01-2": WrongAnswers(
        ("7",),
        ('"2048"', "settings"),
        (
            "settings.n_layers * settings.d_model * 2",
            "2 * settings.d_model * 2",
            "8 * settings.n_layers * settings.d_model * 4",
        ),
    ),
    "01-3": WrongAnswers(("3",), ('"32"', "slopes"), ("8 / slopes[-1]", "-8 / slopes[0]")),
    "01-4": WrongAnswers(("5",), ('"4.8"',), ("0.2 * 4 + 0.8 * 8", "6", "0.8 * 4")),
    "01-5": WrongAnswers(
        (),
        ('"int4"', "0.5", "Weights"),
        ('Weights("int4-asym")', 'Weights("int8")'),
    ),
    "01-6": WrongAnswers(
        ("lambda reply, event: 1 / 0",),
        ("lambda reply: reply", '"stop"', "50"),
        (
            "lambda reply, event: event.set()",
            "lambda reply, event: (event.set(), next(iter(reply)))",
            "lambda reply, event: next(iter(reply))",
            "lambda reply, event: (list(reply), event.set())",
        ),
    ),
    "02-1": WrongAnswers(
        ("1",),
        ('"8"',),
        ("reference.processor.patches_per_side", "reference.processor.patches_per_side // 4"),
    ),
    "02-2": WrongAnswers(
        (BLOCKS.format(4),),
        ("16", "torch.nn.Sequential", "lambda grid: grid"),
        (BLOCKS.format(1), "LdpBlock(width, stride=2)", "torch.nn.AvgPool2d(4)"),
    ),
    "02-3": WrongAnswers(("50", "-0.5"), ('"0.5"', "[0.5]"), ("0", "1")),
    "02-4": WrongAnswers(("2",), ('"0.3"',), ("1", "3")),
    "03-1": WrongAnswers(("7",), ('"4"',), ("3",)),
    "03-2": WrongAnswers(
        ("7",),
        ("features.shape", '"64"'),
        ("features.shape[1]", "3 * features.shape[1]", "5 * features.shape[1]"),
    ),
    "03-3": WrongAnswers(("7",), ('"4.25"', "[4, 16]"), ("4", "4 + 16 / 128", "4 + 20 / 64")),
    "03-4": WrongAnswers(
        (SHAPES_WITHOUT_PLACES, OTHER_GRID, PINK), ('"a red star"', STAR), (ONE_SHAPE,)
    ),
    "03-5": WrongAnswers(
        (SHAPES_WITHOUT_PLACES,),
        ('"KEY"', STAR),
        (
            "my_scene",
            f'world.Scene((2, 2), 4 * ({STAR},), word="KEY")',
            'world.Scene((2, 2), my_scene.items, style=3, word="K", word_place=2)',
        ),
    ),
    "04-1": WrongAnswers(
        ("3",), ('"65"', "slicing"), ("slicing.resolution", "2 * slicing.resolution")
    ),
    "04-2": WrongAnswers((), ("1", '"third"'), ('"first"',)),
    "04-3": WrongAnswers(
        (FLOW.format("2"), "lambda words, layers, scale_depth: 1 / 0"),
        ("0.5", "lambda words: words"),
        (
            FLOW.format("1"),
            FLOW.format("scale_depth / len(layers)"),
            FLOW.format("scale_depth / (2 * len(layers)) ** 0.5"),
            FLOW.format("scale_depth / 8"),
            FLOW.format("1.4 / len(layers) ** 0.5"),
            f"{FLOW.format('scale_depth / len(layers) ** 0.5')} - words",
            "lambda words, layers, scale_depth: None",
        ),
    ),
    "04-4": WrongAnswers((), ("1", '"greedy"'), ('"beam search"',)),
    "04-5": WrongAnswers(
        ('Preset("mine", FP16, INT8, why="larger", image_encoder=FP16)',),
        ('"int4"', 'Weights("int8")'),
        (
            'Preset("mine", Weights("int4-sym", group_size=64), INT8, why="all parts")',
            'Preset("mine", INT8, INT8, why="larger", image_encoder=FP16)',
        ),
    ),
    "05-1": WrongAnswers(("7",), ('"3"',), ("4", "1")),
    "05-2": WrongAnswers(
        ("3",),
        ('"209846272"', "original"),
        (
            "cross_layers * vectors * key_value_bytes // 2",
            "cross_layers * per_tile * key_value_bytes",
            "vectors * key_value_bytes",
            "210",
            "209.846",
            "vectors * key_value_bytes * texts['num_hidden_layers']",
            "4 * cross_layers * vectors * key_value_bytes",
        ),
    ),
    "05-3": WrongAnswers(
        ("lambda language: 1 / 0",),
        ("0.46", "lambda: 0"),
        (
            "lambda language: language",
            CLOSE.format("crossing", "attn", "mlp"),
            CLOSE.format("crossing[1:]", "attn", "mlp"),
            CLOSE.format("crossing[:1]", "attn", "attn"),
        ),
    ),
    "05-4": WrongAnswers(("1", "0.3"), ('"0.2"', "mean_size"), ("0", "0.25")),
    "05-5": WrongAnswers(
        (GATE.format("words - gate"), GATE.format("1 / 0")),
        ("0.46", GATE.format("words").replace("Gate()", "Gate")),
        (
            GATE.format("words + gate * attended"),
            GATE.format("gate.tanh() * attended"),
            GATE.format("gate.tanh() * (words + attended)"),
            GATE.format("None"),
        ),
    ),
    "06-1": WrongAnswers(
        ("7",), ('"60"',), ("264", "22", "61", "700 * 90 / 32**2", "62", "42", "44")
    ),
    "06-2": WrongAnswers(("7",), ('"21"',), ("22", "27", "67")),
    "06-3": WrongAnswers(
        (),
        ('"int4"', "64"),
        (
            'Weights("int4-asym", group_size=128)',
            'Weights("int4-asym", ratio=0.5)',
            'Weights("int4-asym", group_size=1)',
            'Weights("int8")',
        ),
    ),
    "06-4": WrongAnswers((SHAPES_WITHOUT_PLACES,), ('"a red star"',), (ONE_SHAPE, TWINS)),
    "06-5": WrongAnswers(
        ("lambda picture, numbers: picture", "lambda picture, numbers: 1 / 0"),
        ("100", "lambda picture: picture"),
        (
            "lambda picture, numbers: None",
            "lambda picture, numbers: numbers",
            "lambda picture, numbers: picture.crop(numbers)",
            "lambda picture, numbers: picture.crop([number // 1000 for number in numbers])",
            CUT.format("picture.height", "picture.width"),
            CUT.format("picture.width", "picture.width"),
            CUT.format("picture.height", "picture.height"),
        ),
    ),
    "07-1": WrongAnswers(("7",), ('"77"',), ("76",)),
    "07-2": WrongAnswers(
        (RULE.format("decays[token]", "2 * strengths[token] * values[token]"),),
        ("6", "lambda queries, keys: keys"),
        (
            "delta_rule",
            "lambda queries, keys, values, decays, strengths: None",
            RULE.format("1", "strengths[token] * values[token]"),
            RULE.format("decays[token]", "values[token]"),
            RULE.format("1", "values[token]"),
        ),
    ),
    "07-3": WrongAnswers(
        ("lambda language: 1 / 0",),
        ("-30", "lambda: 0"),
        (
            "lambda language: language",
            REMEMBER.format("language.model.layers", "A_log.fill_(9)"),
            REMEMBER.format("language.model.layers[:1]", "A_log.fill_(-30)"),
            REMEMBER.format("language.model.layers", "A_log.fill_(-3)"),
            REMEMBER.format("language.model.layers", "in_proj_a.weight.zero_()"),
        ),
    ),
    "07-4": WrongAnswers(
        ("lambda prompts: 1 / 0",),
        ("6", "lambda: 0"),
        (
            PAD.format("(0, longest - len(prompt))", "(0, longest - len(prompt))"),
            PAD.format("(longest - len(prompt), 0)", "(0, longest - len(prompt))"),
            "lambda prompts: None",
            "lambda prompts: 2",
            "lambda prompts: (prompts[0], prompts[1])",
            "lambda prompts: (np.zeros((2, 5, 4)), np.ones((2, 5)))",
        ),
    ),
    "07-5": WrongAnswers(
        (),
        ('"int4"', "128"),
        (WEIGHTS.format('"int4-asym", group_size=128'), WEIGHTS.format('"int8"')),
    ),
    "08-1": WrongAnswers(
        ("lambda table, token, layer: table", "lambda table, token, layer: 1 / 0"),
        ("7", "lambda table: table"),
        (
            PIECE.format("table[token].reshape(shape)[layer]"),
            PIECE.format("None"),
            PIECE.format("table[token] * factor"),
            PIECE.format("table[token].reshape(shape[::-1])[:, layer] * factor"),
        ),
    ),
    "08-2": WrongAnswers(
        ("lambda near: 1 / 0",),
        ("62",),
        (
            "lambda near: None",
            "lambda near: 62",
            "lambda near: near[:5]",
            "lambda near: near",
            "lambda near: torch.ones_like(near).tril() & ~torch.ones_like(near).tril(-64)",
            "lambda near: torch.ones_like(near).tril()",
        ),
    ),
    "08-3": WrongAnswers(
        ('Image.new("RGB", (900, 300))', 'Image.new("RGB", (500, 500))'), ("280", "(20, 14)"), ()
    ),
    "08-4": WrongAnswers(
        (),
        ('"int4"', "64"),
        (
            'Weights("int4-asym", group_size=128)',
            'Weights("int4-asym", ratio=0.5)',
            'Weights("int4-asym", group_size=1)',
            'Weights("int8")',
        ),
    ),
    "08-5": WrongAnswers(
        ("lambda language: 1 / 0",),
        ('"all"',),
        (
            "lambda language: None",
            CLOSED.format("language.model.layers[:1]"),
            CLOSED.format("language.model.layers[2:3]"),
            CLOSED.format("language.model.layers[1:]"),
        ),
    ),
}
