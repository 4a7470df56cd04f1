"""Parts that training begins with compute in the new model what they did in the bundled one."""

import random
from dataclasses import replace

import pytest
import torch
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

from helpers.models import load_model
from helpers.shapes import tokenizers, world
from helpers.workshop import beginnings, gemma_beginnings, qwen_beginnings, samples, training
from helpers.workshop.recipes import RECIPES
from tests.tiny import seeded

TEXT = ["What", " colour", " is", " the", " circle", "?", " red"]


@pytest.fixture(scope="module")
def new_model(tmp_path_factory):
    """Return a function that gives a family's new model, as training begins with it."""
    models = {}

    def begin(family):
        if family not in models:
            run = tmp_path_factory.mktemp(family)
            RECIPES[family].write_files(run, tokenizers.corpus(700))
            with seeded(0):
                models[family] = training.new_model(run).eval()
            for other, beginning in RECIPES[family].begins_with.items():
                beginnings.start_from(models[family], other, beginning)
        return models[family]

    return begin


def logits(model) -> dict[str, float]:
    """Return what comes after `TEXT`, by token."""
    ids = beginnings.vocabulary_of(model)
    words = [word.replace(" ", "\u2581") for word in TEXT]
    text = [ids.get(word, ids.get("\u2581" + word)) for word in words]
    embeddings = model.embed_tokens(torch.tensor([text]))
    with torch.inference_mode():
        scores = model.language_model(inputs_embeds=embeddings).logits[0, -1].tolist()
    return {token: scores[number] for token, number in ids.items() if number < len(scores)}


@pytest.mark.parametrize("family", ["mobilevlm", "minicpm_v2", "mllama"])
def test_the_language_model_says_the_same(new_model, family):
    """Not quite the same: biases are missing. Measured: 0.998 to 0.999."""
    actual = logits(new_model(family))
    expected = logits(load_model(beginnings.BUNDLED / "internvl2"))
    tokens = [token for token in actual if token in expected]
    assert len(tokens) > 150
    pair = [torch.tensor([scores[token] for token in tokens]) for scores in (actual, expected)]
    assert torch.cosine_similarity(*pair, dim=0) > 0.99


def test_a_vision_transformer_sees_the_same_without_its_summary(new_model):
    siglip = new_model("minicpm_v2").image_encoder.siglip
    trained = load_model(beginnings.BUNDLED / "internvl2", torch.float32).image_encoder
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = trained(pixels).last_hidden_state[:, 1:].flatten()
        patches = siglip.embeddings(pixels, interpolate_pos_encoding=True)
        actual = siglip.encoder(patches).last_hidden_state.flatten()
    assert torch.cosine_similarity(expected, actual, dim=0) > 0.99


@pytest.mark.parametrize("family", ["mobilevlm", "mllama"])
def test_clip_sees_alike_with_patches_and_pictures_of_other_sizes(new_model, family):
    """A picture's features still vary from place to place as those of the encoder taken do.

    Measured: 0.91 and 0.41 (the picture lies elsewhere on its canvas); random weights have 0.02.
    """
    model, trained = new_model(family), load_model(beginnings.BUNDLED / "llava_mpt", torch.float32)
    picture = training.world.draw(
        samples.sample_scene(random.Random(1), "test", "small")[0], cell=30
    )
    grids = [clip_states(model, picture), clip_states(trained, picture)]
    size = min(grid.shape[-1] for grid in grids)
    grids = [torch.nn.functional.adaptive_avg_pool2d(grid, size) for grid in grids]
    centred = [(grid - grid.mean((1, 2), keepdim=True)).flatten() for grid in grids]
    assert torch.cosine_similarity(*centred, dim=0) > 0.3


@pytest.mark.parametrize(("canvas", "top"), [((2, 2), 0.0), ((1, 2), 0.25)])
def test_tiles_begin_with_the_places_of_the_whole_picture(new_model, canvas, top):
    """On a canvas of (rows, columns) tiles, each patch is nearest to CLIP's position for its place.

    A wide canvas lies in the middle of the square: it begins at a quarter of the height.
    """
    model = new_model("mllama")
    shapes = model.config["vision_config"]["supported_aspect_ratios"]
    positions = model.image_encoder.gated_positional_embedding
    trained = load_model(beginnings.BUNDLED / "llava_mpt", torch.float32)
    table = trained.image_encoder.embeddings.position_embedding.weight.detach()[1:]
    features = torch.zeros(1, 4, positions.num_patches, positions.hidden_size)
    with torch.inference_mode():
        patches = positions(features, torch.tensor([[1 + shapes.index(list(canvas))]]))[0, :, 1:]
    (rows, columns), side, wide = canvas, 8, 12  # patches: of a tile, and of CLIP's square
    for row, column in ((0, 0), (side - 1, columns * side - 1), (rows * side - 1, side)):
        tile = row // side * columns + column // side
        patch = patches[tile, row % side * side + column % side]
        nearest = torch.cosine_similarity(patch, table, dim=1).argmax().item()
        down = (row + 0.5) / (max(canvas) * side) + top
        across = (column + 0.5) / (max(canvas) * side)
        assert divmod(nearest, wide) == (int(down * wide), int(across * wide))


def test_a_layer_that_looks_takes_from_a_picture_what_the_one_behind_took_from_words(new_model):
    """Of a state like a sum of three embeddings, which says what a picture shows somewhere."""
    model = new_model("mllama")
    trained = load_model(beginnings.BUNDLED / "internvl2", torch.float32)
    layers, words = (
        trained.language_model.model.layers,
        trained.embed_tokens(torch.arange(300, 303)),
    )
    state = words.sum(0)[None, None]
    crossing = model.config["text_config"]["cross_attention_layers"]
    for index, number in enumerate(crossing):
        layer, source = model.language_model.model.layers[number], layers[number - index]
        attention = source.self_attn
        with torch.inference_mode():
            normed = source.input_layernorm(state)
            values = attention.v_proj(normed).unflatten(-1, (2, 32)) - attention.v_proj.bias.view(
                2, 32
            )
            expected = attention.o_proj(values.repeat_interleave(2, dim=2).flatten(2))
            actual, _ = layer.cross_attn(state, state)
        assert torch.cosine_similarity(actual, expected, dim=-1) > 0.999
        assert 0.5 < actual.norm() / expected.norm() < 2
        assert layer.cross_attn_attn_gate.tanh() > 0.5


def clip_states(model, picture) -> torch.Tensor:
    """Return the patches of a picture's only tile behind CLIP's layers, (width, side, side)."""
    encoder, outputs = model.image_encoder, []
    layers = (encoder.encoder if hasattr(encoder, "encoder") else encoder.transformer).layers
    hook = layers[2].register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
    with torch.inference_mode():
        model.encode_images(**model.image_inputs([picture]))
    hook.remove()
    side = encoder.config.image_size // encoder.config.patch_size
    return outputs[0][0, 1 : 1 + side**2].T.unflatten(1, (side, side))


def test_the_table_of_places_says_where_a_patch_is():
    config = {
        "vision_config": {
            "num_position_embeddings": 256,
            "hidden_size": 128,
            "in_channels": 3,
            "temporal_patch_size": 2,
            "patch_size": 16,
        }
    }
    (table,) = qwen_beginnings.qwen3_vl_places(config).values()
    side, hidden = 16, config["vision_config"]["hidden_size"]
    assert table.shape == (side**2, hidden)
    # A linear layer reads both coordinates of a patch from it.
    down, across = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([across.flatten(), down.flatten()], dim=1).float()
    solution = torch.linalg.lstsq(table, places, driver="gelsd", rcond=1e-5).solution
    assert (table @ solution - places).abs().max() < 1e-3  # measured: 3e-5
    # As large, beside new patches of pixels as large as 1, as `PLACES_TO_PATCHES` says.
    inputs = 3 * 2 * 16 * 16
    pixels = torch.randn(4000, inputs, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(inputs, 32, generator=torch.Generator().manual_seed(1))
    patches = pixels @ (weights * beginnings.WEIGHT_STD)
    assert table.std() / patches.std() == pytest.approx(0.6, rel=0.02)


@torch.inference_mode()
def test_qwen3_5_begins_with_the_image_encoder_of_qwen3_vl(new_model):
    model, trained = (
        new_model("qwen3_5"),
        load_model(beginnings.BUNDLED / "qwen3_vl", torch.float32),
    )
    inputs = trained.image_inputs([world.draw(world.random_scene(random.Random(0)))])
    (actual,), (expected,) = (encoder.encode_images(**inputs) for encoder in (model, trained))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_recurrences_begin_slow_and_with_the_token_alone():
    config = RECIPES["qwen3_5"].config
    text = config["text_config"]
    layer = Qwen3_5GatedDeltaNet(Qwen3_5TextConfig(**text), 0)
    name = "language_model.model.layers.0.linear_attn."
    tensors = qwen_beginnings.qwen3_5_states(config)
    own = {key.removeprefix(name): value for key, value in tensors.items() if name in key}
    assert len(tensors) == 3 * text["layer_types"].count("linear_attention")
    layer.load_state_dict(own, strict=False)
    inputs = torch.randn(1, layer.conv_dim, 7)
    torch.testing.assert_close(layer.conv1d(inputs)[..., :7], inputs)
    forgetting = layer.A_log.exp() * torch.nn.functional.softplus(layer.dt_bias)
    assert (forgetting.min() < 1 / 300) and (1 / 20 < forgetting.max() < 1 / 10)


# Gemma 4


@torch.inference_mode()
def test_layers_with_keys_of_their_own_compute_what_those_of_internvl2_do(new_model):
    """Measured: 0.9."""
    model, trained = new_model("gemma4"), load_model(beginnings.BUNDLED / "internvl2")
    states = []
    for part in (model, trained):
        ids = beginnings.vocabulary_of(part)
        words = [word.replace(" ", "\u2581") for word in TEXT]
        text = torch.tensor([[ids.get(word, ids.get("\u2581" + word)) for word in words]])
        prepared = part.prepare(text)
        output = part.language_model(**prepared, output_hidden_states=True)
        states.append(output.hidden_states[3][0])
    similar = torch.cosine_similarity(*states, dim=-1)
    assert similar.min() > 0.5, similar


@torch.inference_mode()
def test_gemma4_sees_what_qwen3_vl_does(new_model):
    """What three layers say of patches is similar, since norms change sizes: 0.84 to 0.9."""
    model, trained = (
        new_model("gemma4"),
        load_model(beginnings.BUNDLED / "qwen3_vl", torch.float32),
    )
    scene = world.random_scene(random.Random(3), grid=(2, 2))
    picture = world.draw(scene, cell=128).resize((256, 256))
    states = outputs_of_layers(model, model.image_encoder.encoder.layers, picture)
    trained_states = outputs_of_layers(trained, trained.image_encoder.blocks, picture)
    side = 16
    for state, expected in zip(states[:3], trained_states[:3], strict=True):
        rows = state[0, : side**2]
        # Qwen3-VL has the four patches of a token one behind the other.
        squares = rows.unflatten(0, (side // 2, 2, side // 2, 2)).transpose(1, 2).flatten(0, 3)
        torch.testing.assert_close(squares.mean(-1), torch.full((side**2,), gemma_beginnings.MEAN))
        centred = [rows - rows.mean(-1, keepdim=True) for rows in (squares, expected)]
        assert torch.cosine_similarity(*centred, dim=-1).mean() > 0.8


def outputs_of_layers(model, layers, picture) -> list[torch.Tensor]:
    """Return what each layer of an image encoder gives for a picture."""
    outputs = []
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output))
        for layer in layers
    ]
    model.encode_images(**model.image_inputs([picture]))
    for hook in hooks:
        hook.remove()
    return outputs


def test_a_recipe_trains_at_its_budgets(new_model):
    model, recipe = (
        new_model("gemma4"),
        replace(RECIPES["gemma4"], batches={"large": 2, "name": 2, "page": 2}),
    )
    patches = set()
    for seed in range(12):
        batch = samples.make_batch(
            model.processor, recipe, random.Random(seed), "large", {"where": 1}
        )
        patches.add(batch["images"]["pixel_values"].shape[1])
    side = model.processor.vision.pooling_kernel_size
    assert patches == {budget * side**2 for budget in recipe.budgets}
    page = samples.make_batch(model.processor, recipe, random.Random(0), "page", {})
    assert page["images"]["pixel_values"].shape[1] == 4 * 70 * side**2
    batch = samples.make_batch(model.processor, recipe, random.Random(0), "name", {})
    usual = model.processor.usual_picture_tokens
    assert batch["images"]["pixel_values"].shape[1] == usual * side**2


def test_every_letter_is_named(new_model):
    """A token is as wide as a letter; with 12 points a side, three of four words were cut."""
    model, recipe = new_model("gemma4"), replace(RECIPES["gemma4"], batches={"word": 40})
    batch = samples.make_batch(model.processor, recipe, random.Random(0), "word", {})
    side = round(model.processor.usual_picture_tokens**0.5)
    points = batch["shown"].shape[1]
    nearest = (torch.arange(side) * 2 + 1) * points // (2 * side)
    words = batch["shown"][:, nearest][:, :, nearest].flatten(1, 2)
    letters = ((words >= 0).sum(-1) == 1).sum(-1)
    assert ((letters == 0) | (letters >= world.WORD_LENGTH)).all()
    assert (letters > 0).float().mean() > 0.8  # of the pictures have a word
