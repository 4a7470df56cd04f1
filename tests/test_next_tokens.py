"""A language model that is compiled twice, for prompts and for next tokens, answers as one does."""

import io
import threading

import openvino as ov
import pytest
import torch

from helpers.__main__ import main
from helpers.convert.conversion import convert_part
from helpers.errors import DeviceError
from helpers.graphs.part_names import LANGUAGE_MODEL, NEXT_TOKENS, PROMPTS
from helpers.graphs.single_token import expect_single_token
from helpers.models import load_model
from helpers.models.families import families
from helpers.run import tuning
from helpers.run.caches import StateCache
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.prefill_again import language_model_of
from helpers.run.tuning import Tuning, key_of, write_tuning
from helpers.shapes.questions import draw_questions
from tests.golden_checks import ACCURATE, GOLDEN
from tests.workers import in_groups

# A product in Llama 3.2 Vision's cross-attention needs all sizes or none (OpenVINO 2026.4).
REFUSED = "mllama"
NAMES = [f.bundled for f in families() if f.checkpoint and f.bundled != REFUSED]
SAMPLED = {"do_sample": True, "temperature": 1.5, "seed": 3, "max_new_tokens": 12}
PAIRS = draw_questions(3, seed=4)


def apart(pipeline):
    """Return a pipeline with the same parts whose next tokens are compiled apart."""
    return pipeline.with_parts({NEXT_TOKENS: dict(pipeline.properties[LANGUAGE_MODEL])})


@pytest.fixture(scope="module", params=in_groups(NAMES, "next-tokens"))
def pipelines(request, bundled_folder):
    """Return a pipeline with one language model, and one with two."""
    pipeline = VisionLanguagePipeline(
        bundled_folder(request.param, "int8"), accuracy=True, answers_at_once=3
    )
    return pipeline, apart(pipeline)


@pytest.mark.slow
def test_turns_are_the_same_however_tokens_are_chosen(pipelines):
    """The cache moves to the model for next tokens, and back for each further question."""
    texts, tokens = [], []
    for pipeline in pipelines:
        for image, question in PAIRS:
            conversation = pipeline.conversation()
            for text, images, options in (
                (question.text, [image], {}),
                ("Describe the picture.", [], SAMPLED),
                ("How many shapes are there?", [], {"num_beams": 2}),
                ("What is it?", [], {"max_new_tokens": 1}),
                ("Where is it?", [], {}),
            ):
                reply = conversation.ask(text, images, **options)
                texts.append(reply.text)
                tokens.append(reply.token_ids)
                moved = reply.wait() and len(reply.token_ids) > 1 and "num_beams" not in options
                is_apart = moved and pipeline is pipelines[1]
                assert not is_apart or conversation.cache.is_for_next_tokens
    half = len(tokens) // 2
    assert tokens[:half] == tokens[half:] and len(set(texts[:half])) > 4


@pytest.mark.slow
def test_answers_together_and_alone_are_the_same(pipelines):
    """Some are computed with others for a while, some end, and one is stopped."""
    texts = []
    for pipeline in pipelines:
        stop = threading.Event()
        stopped = pipeline.ask("Describe it.", stop=stop, max_new_tokens=900, **_ENDLESS)
        replies = [pipeline.ask(q.text, [image], max_new_tokens=9) for image, q in PAIRS]
        for _ in zip(range(4), stopped, strict=False):
            pass
        stop.set()
        texts.append([reply.text for reply in replies])
        texts[-1] += [reply.conversation.ask("How many shapes?").text for reply in replies]
        assert stopped.wait(10) and len(stopped.token_ids) < 900
        texts[-1].append(stopped.conversation.ask("What is it?", PAIRS[0][:1]).text)
    assert texts[0] == texts[1]


_ENDLESS = {"schema": {"type": "string", "minLength": 2000}}


def test_logits_are_the_same_there_and_back(bundled_folder):
    single = VisionLanguagePipeline(bundled_folder("internvl2", "int8"), accuracy=True)
    models, ids = (
        [pipeline.language_model for pipeline in (single, apart(single))],
        torch.arange(20, 32),
    )
    caches = [model.new_cache() for model in models]
    for start, end in ((0, 5), (5, 6), (6, 7), (7, 10), (10, 11)):
        first, second = (
            model(input_ids=ids[None, start:end], past_key_values=cache).logits
            for model, cache in zip(models, caches, strict=True)
        )
        assert torch.allclose(first, second, atol=1e-4)
        assert caches[1].is_for_next_tokens == (end - start == 1) and caches[1].length == end
    for model, cache in zip(models, caches, strict=True):  # the last token of a prompt, then drafts
        model(input_ids=ids[None, :1], past_key_values=cache)
        output = model(input_ids=ids[None, 1:4], past_key_values=cache, has_drafts=True)
        assert output.logits.shape[1] == 1 and not cache.is_for_next_tokens
        model(input_ids=ids[None, :1], past_key_values=cache, has_drafts=True)  # none this time
        assert not cache.is_for_next_tokens
    caches[1].clear()
    assert models[1](input_ids=ids[None, :1], past_key_values=caches[1]).logits.isfinite().all()


def test_drafts_stay_where_several_tokens_are_computed(bundled_folder):
    single = VisionLanguagePipeline(bundled_folder("internvl2", "int8"), accuracy=True)
    answers = []
    for pipeline in (single, apart(single)):
        reply = pipeline.ask("Describe the picture.", [PAIRS[0][0]], prompt_lookup=True)
        answers.append(reply.token_ids)
        assert reply.wait(30) and not reply.conversation.cache.is_for_next_tokens
    assert answers[0] == answers[1]


def test_a_cache_that_is_computed_anew_goes_back_and_forth():
    """Phi-3's, beyond the length that the model was first trained with."""
    model = load_model(GOLDEN / "internvl2_phi3")
    embeddings = ov.Core().compile_model(convert_part(model.text_embeddings_part()), "CPU")
    part = convert_part(model.language_model_part())
    prompts = ov.Core().compile_model(part, "CPU", ACCURATE)
    expect_single_token(part)
    next_tokens = ov.Core().compile_model(part, "CPU", ACCURATE)
    ids = torch.randint(0, 90, (1, 25), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    tokens = []
    for second in (None, next_tokens):
        language_model = language_model_of(
            {"inputs_embeds": embeddings}, prompts, model.processor.exported, second
        )
        cache = language_model.new_cache()
        tokens.append(language_model.generate(ids, past_key_values=cache, **options).tolist())
        assert language_model.next_tokens is second
        assert (cache.steps, cache.is_crossing) == ([], False)  # beyond the length
    assert tokens[0] == tokens[1] and len(tokens[0][0]) == 45


def test_a_model_that_cannot_have_fixed_sizes_is_told(bundled_folder):
    pipeline = VisionLanguagePipeline(bundled_folder(REFUSED, "int8"), accuracy=True)
    with pytest.raises(DeviceError, match=r"CPU cannot run openvino_language_model\.xml"):
        apart(pipeline)


# Who has it


def compiled_names(monkeypatch):
    """Return a list that gets the name of each part that is compiled from now on."""
    names, compile_part = [], VisionLanguagePipeline._compile

    def noted(self, name):
        names.append(name)
        return compile_part(self, name)

    monkeypatch.setattr(VisionLanguagePipeline, "_compile", noted)
    return names


def test_a_pipeline_has_it_where_it_was_tuned_so_and_memory_is_free(
    converted, tmp_path, monkeypatch
):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path))
    properties = {LANGUAGE_MODEL: {}, NEXT_TOKENS: {"KV_CACHE_PRECISION": "f16"}}
    write_tuning(Tuning(key_of(converted), properties))
    pipeline = VisionLanguagePipeline(converted)
    sizes = pipeline.parts[NEXT_TOKENS].input("inputs_embeds").get_partial_shape()
    assert [sizes[0], sizes[1]] == [1, 1]
    kinds = (pipeline.parts[name].get_property("KV_CACHE_PRECISION") for name in properties)
    assert [kind.to_string() for kind in kinds] == ["u8", "f16"]
    reply = pipeline.ask("What?", [PAIRS[0][0]], max_new_tokens=3)
    assert reply.wait(30) and reply.conversation.cache.is_for_next_tokens
    for options in ({"tuned": False}, {"accuracy": True}, {"next_tokens_apart": False}):
        assert NEXT_TOKENS not in VisionLanguagePipeline(converted, **options).parts
    monkeypatch.setattr(tuning, "RESERVE", 1e9)
    assert NEXT_TOKENS not in VisionLanguagePipeline(converted).parts


def test_prompts_have_properties_of_their_own_where_answers_come_one_by_one(
    converted, tmp_path, monkeypatch
):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path))
    of_prompts = {"KV_CACHE_PRECISION": "f16"}
    write_tuning(
        Tuning(key_of(converted), {LANGUAGE_MODEL: {}, PROMPTS: of_prompts, NEXT_TOKENS: {}})
    )
    for options, properties in (
        ({}, of_prompts),
        ({"next_tokens_apart": False}, {}),
        ({"answers_at_once": 2}, {}),
    ):
        pipeline = VisionLanguagePipeline(converted, **options)
        assert pipeline.properties[LANGUAGE_MODEL] == properties and PROMPTS not in pipeline.parts
        assert pipeline.ask("What?", [PAIRS[0][0]], max_new_tokens=3).wait(30)


@pytest.mark.parametrize(
    "arguments, is_apart",
    [
        (["chat"], True),
        (["chat", "--prompt-lookup"], False),
        (["batch", "--batch-size", "1"], True),
        (["batch"], False),
    ],
)
def test_commands_that_compute_next_tokens_together_go_without(
    converted, tmp_path, monkeypatch, arguments, is_apart
):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    write_tuning(Tuning(key_of(converted), {LANGUAGE_MODEL: {}, NEXT_TOKENS: {}}))
    names = compiled_names(monkeypatch)
    (tmp_path / "rows.jsonl").write_text('{"question": "What?"}\n')
    if arguments[0] == "batch":
        arguments = [
            *arguments,
            "--input",
            tmp_path / "rows.jsonl",
            "--output",
            tmp_path / "out.jsonl",
        ]
        arguments += ["--max-new-tokens", 1]
    command, *options = map(str, arguments)
    assert main([command, str(converted), *options]) == 0
    assert LANGUAGE_MODEL in names and (NEXT_TOKENS in names) == is_apart


def test_a_command_that_answers_once_goes_without(converted, tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path))
    write_tuning(Tuning(key_of(converted), {LANGUAGE_MODEL: {}, NEXT_TOKENS: {}}))
    compiled = compiled_names(monkeypatch)
    options = ["--question", "What?", "--max-new-tokens", "1"]
    assert main(["ask", str(converted), *options]) == 0
    assert LANGUAGE_MODEL in compiled and NEXT_TOKENS not in compiled
    VisionLanguagePipeline(converted)
    assert NEXT_TOKENS in compiled


def test_another_language_model_is_one_again(bundled_folder):
    pipeline = apart(VisionLanguagePipeline(bundled_folder("internvl2", "int8"), accuracy=True))
    changed = pipeline.with_parts({LANGUAGE_MODEL: {}})
    assert NEXT_TOKENS not in changed.parts and NEXT_TOKENS not in changed.properties
    assert NEXT_TOKENS in pipeline.parts and changed.language_model.next_tokens is None


def test_a_move_that_fails_is_told(bundled_folder, monkeypatch):
    pipeline = apart(VisionLanguagePipeline(bundled_folder("internvl2", "int8"), accuracy=True))

    def no_memory(self, model):
        raise RuntimeError("bad alloc")

    with monkeypatch.context() as patch:
        patch.setattr(StateCache, "move_to", no_memory)
        with pytest.raises(
            DeviceError, match="could not compute the answer .bad alloc.; ask again"
        ):
            list(pipeline.ask("What?", [PAIRS[0][0]]))
    assert list(pipeline.ask("What?", [PAIRS[0][0]]))
