"""`vlm tune`: which settings it takes, where it keeps them, and who follows them."""

import io
import json
import weakref
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops

from helpers import resources
from helpers.__main__ import main
from helpers.errors import DeviceError, OutputError
from helpers.graphs import presets
from helpers.graphs.part_names import IMAGE_ENCODER, LANGUAGE_MODEL, NEXT_TOKENS, PROMPTS
from helpers.measure import candidates, duels, evaluation, tune
from helpers.measure.duels import ROUNDS, duel, seconds_of_duel
from helpers.run import tuning as kept
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.tuning import Tuning, key_of, read_tuning, write_tuning
from helpers.serve import server
from helpers.shapes.questions import draw_questions
from tests.tiny import picture


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep what is tuned in a folder of the test."""
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Which is faster


def outcome(champion, challenger):
    """Return the duel of two lists of seconds, in the order of the calls."""
    first, second = iter(champion), iter(challenger)
    return duel(lambda: next(first), lambda: next(second))


def test_a_challenger_wins_by_a_margin():
    assert outcome([9, *[1.0] * 5], [9, *[0.9] * 5]).is_won
    assert not outcome([9, *[1.0] * 5], [9, *[0.97] * 5]).is_won
    assert not outcome([9, *[1.0] * 5], [9, 0.9, 0.9, 1.01, 0.9, 0.9]).is_won


def test_what_drifts_meets_both():
    speeds = [1, 2, 3, 2, 1, 1]
    result = outcome(speeds, [0.8 * speed for speed in speeds])
    assert result.is_won and result.noise == pytest.approx(0)


def test_each_way_comes_first_in_turn():
    calls = []
    duel(lambda: calls.append("old") or 1, lambda: calls.append("new") or 1)
    assert calls[2:] == ["old", "new", "new", "old", "old", "new"]


@pytest.mark.parametrize(
    "ratios, rounds, is_won",
    [
        ([0.9, 0.89, 0.88], 3, True),
        ([1.02, 1, 1.01], 3, False),
        ([0.9, 0.86, 0.88, 0.89, 0.88], 5, True),  # nearer to the margin than twice their spread
        ([0.98, 0.95, 0.96, 0.96, 0.96], 5, False),
    ],
)
def test_what_is_clear_takes_three_rounds(ratios, rounds, is_won):
    result = outcome([1] * 6, [1, *ratios])
    assert (len(result.ratios), result.is_won) == (rounds, is_won)


def test_what_is_much_slower_is_given_up():
    result = outcome([1] * 3, [1.3] * 3)
    assert result.is_given_up and not result.is_won and len(result.ratios) == 2
    result = outcome([1] * 3, [1, 1.3, 3])  # however its times vary
    assert result.is_given_up and not result.is_too_noisy


def test_times_that_vary_decide_nothing():
    result = outcome([1] * 6, [9, 0.4, 0.5, 0.9, 1.1, 0.6])
    assert result.is_too_noisy and not result.is_won and len(result.ratios) == ROUNDS


# Tuning a folder


CANDIDATE = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 64}
BOTH = json.dumps(CANDIDATE | {"KV_CACHE_PRECISION": "f16"})
MEMORY = "keeps one language model: there is no memory to compile it beside the fastest"
DEFAULT, KV_ONLY, FIRST = "{}", json.dumps({"KV_CACHE_PRECISION": "f16"}), json.dumps(CANDIDATE)


@pytest.fixture
def answer_seconds(monkeypatch):
    """Return a dictionary of seconds, or of functions for them, by what the language model has.

    A pair is the seconds of the prompt and of all next tokens, which one number halves. Candidates
    are one only, and no two compiled models are the same.
    """
    seconds, properties_of = {}, weakref.WeakKeyDictionary()
    with_parts = VisionLanguagePipeline.with_parts

    def noted(self, properties):
        pipeline, names = (
            with_parts(self, properties),
            dict.fromkeys(map(json.dumps, properties.values())),
        )
        properties_of[pipeline] = " and ".join(names) + " apart" * (NEXT_TOKENS in properties)
        return pipeline

    def seconds_of_steps(pipeline, prepared, *, tokens, computed):
        value = seconds[properties_of[pipeline]]
        value = value() if callable(value) else value
        return value if isinstance(value, tuple) else (value / 2, value / 2)

    monkeypatch.setattr(VisionLanguagePipeline, "with_parts", noted)
    monkeypatch.setattr(tune, "seconds_of_steps", seconds_of_steps)
    monkeypatch.setattr(tune, "has_room", lambda weights, models: models == 1)
    monkeypatch.setattr(tune, "timed", lambda encode: (1.0, None))
    monkeypatch.setattr(tune, "candidates_of", lambda size, group: [CANDIDATE])
    numbers = count()
    monkeypatch.setattr(tune, "decisive", lambda pipeline, names: next(numbers))
    return seconds


def test_what_loses_is_gone_before_the_next_is_compiled(converted, answer_seconds, monkeypatch):
    """Each has weights of its own: beside the next, only the fastest so far is in memory."""
    answer_seconds |= {DEFAULT: 1.0, FIRST: 1.1, KV_ONLY: 1.1, f"{DEFAULT} apart": 1.1}
    monkeypatch.setattr(tune, "has_room", lambda weights, models: True)
    compiled, most = weakref.WeakSet(), []
    compile_part = VisionLanguagePipeline._compile

    def compile_and_count(self, name):
        if name != LANGUAGE_MODEL:
            return compile_part(self, name)
        most.append(len(compiled))
        model = compile_part(self, name)
        compiled.add(model)
        return model

    monkeypatch.setattr(VisionLanguagePipeline, "_compile", compile_and_count)
    tuned(converted)
    assert len(most) > 3 and max(most) <= 1


def tuned(folder):
    return tune.tune(folder, draw_questions(2, seed=0))


def test_what_wins_is_tried_together_with_the_next(converted, answer_seconds):
    answer_seconds |= {DEFAULT: 1.0, FIRST: 0.8, BOTH: 0.6}
    tuning, trials = tuned(converted)
    assert tuning.properties == {IMAGE_ENCODER: {}, LANGUAGE_MODEL: json.loads(BOTH)}
    assert tuning.reasons[NEXT_TOKENS] == MEMORY
    assert tuning.reasons[LANGUAGE_MODEL] == "takes 0.60 of the default's time"
    assert "keeps the defaults" in tuning.reasons[IMAGE_ENCODER]
    parts = [IMAGE_ENCODER, LANGUAGE_MODEL, LANGUAGE_MODEL, NEXT_TOKENS]
    assert [trial.part for trial in trials] == parts
    assert trials[1].row["verdict"] == "0.80 of the time, taken"


def test_what_is_too_far_from_accuracy_mode_is_not_taken(converted, answer_seconds, monkeypatch):
    answer_seconds |= {DEFAULT: 1.0, FIRST: 0.5, KV_ONLY: 1.0}
    monkeypatch.setattr(tune, "TIMES_DEFAULT", 0.0)
    monkeypatch.setattr(tune, "ROUNDING", -1.0)
    tuning, trials = tuned(converted)
    assert tuning.properties[LANGUAGE_MODEL] == {}
    far = f"{1000 * trials[1].divergence:.3g} thousandths of a nat, at most 0"
    verdict = f"0.50 of the time, but too far from ACCURACY mode ({far})"
    assert trials[1].verdict == verdict and trials[1].divergence >= 0
    assert tuning.reasons[LANGUAGE_MODEL] == f"keeps the defaults: {verdict}"


def test_what_does_not_win_every_round_is_not_taken_and_it_is_said(converted, answer_seconds):
    times = iter([9, 0.9, 0.9, 1.01, 0.9, 0.9])
    answer_seconds |= {DEFAULT: 1.0, FIRST: lambda: next(times), KV_ONLY: 1.0}
    tuning, _ = tuned(converted)
    assert tuning.properties[LANGUAGE_MODEL] == {}
    assert tuning.reasons[LANGUAGE_MODEL] == (
        "keeps the defaults: 0.90 of the time, but not in every round; try again while nothing "
        "else computes"
    )


@pytest.mark.parametrize(
    "is_twice, compared", [(False, [FIRST, DEFAULT, BOTH]), (True, [f"{DEFAULT} apart", DEFAULT])]
)
def test_the_bound_is_that_of_the_default(
    converted, answer_seconds, monkeypatch, is_twice, compared
):
    """It is measured once, at the first that wins, also where that is next tokens apart."""
    first = 1.0 if is_twice else 0.5
    answer_seconds |= {DEFAULT: 1.0, FIRST: first, BOTH: 0.3, KV_ONLY: 1.0}
    answer_seconds |= {f"{DEFAULT} apart": 0.5}
    names = []

    def divergence(self, pipeline, part):
        if part != IMAGE_ENCODER:
            name = json.dumps(pipeline.properties[LANGUAGE_MODEL])
            names.append(name + (" apart" if NEXT_TOKENS in pipeline.properties else ""))
        return 1.0

    monkeypatch.setattr(tune, "has_room", lambda weights, models: is_twice or models == 1)
    monkeypatch.setattr(tune._Tuner, "_divergence", divergence)
    tuned(converted)
    assert names == compared


def test_where_times_vary_the_default_stays_and_it_is_said(converted, answer_seconds):
    times = iter([9, 0.4, 0.5, 0.9, 1.1, 0.6])
    answer_seconds |= {DEFAULT: 1.0, FIRST: lambda: next(times), KV_ONLY: 1.0}
    tuning, _ = tuned(converted)
    assert tuning.properties[LANGUAGE_MODEL] == {}
    assert "too noisy to say: the times vary by" in tuning.reasons[LANGUAGE_MODEL]


@pytest.mark.parametrize("seconds, is_apart", [(0.7, True), (0.78, False), (1.1, False)])
def test_next_tokens_are_compiled_apart_where_that_wins(
    converted, answer_seconds, monkeypatch, seconds, is_apart
):
    monkeypatch.setattr(tune, "has_room", lambda weights, models: True)
    answer_seconds |= {DEFAULT: 1.0, FIRST: 0.8, BOTH: 1.0}
    answer_seconds[f"{FIRST} apart"] = seconds
    tuning, trials = tuned(converted)
    assert tuning.properties.get(NEXT_TOKENS) == (CANDIDATE if is_apart else None)
    assert [trial.part for trial in trials].count(NEXT_TOKENS) == 1
    default = "keeps one language model, of 2 settings the fastest"
    assert tuning.reasons[NEXT_TOKENS] == (
        "takes 0.87 of one model's time" if is_apart else default
    )


@pytest.mark.parametrize("seconds", [0.7, 1.2])
def test_prompts_and_next_tokens_may_have_properties_of_their_own(
    converted, answer_seconds, monkeypatch, seconds
):
    """Prompts are fastest by default here, next tokens with what an answer is fastest with."""
    monkeypatch.setattr(tune, "has_room", lambda weights, models: True)
    answer_seconds |= {DEFAULT: (0.3, 0.7), FIRST: (0.5, 0.3), BOTH: 1.0}
    answer_seconds |= {f"{DEFAULT} and {FIRST} apart": seconds, f"{FIRST} apart": 0.7}
    tuning, trials = tuned(converted)
    assert tuning.properties[LANGUAGE_MODEL] == CANDIDATE
    settings = [trial.properties for trial in trials if trial.part == NEXT_TOKENS]
    assert settings == [
        {LANGUAGE_MODEL: properties, NEXT_TOKENS: CANDIDATE} for properties in ({}, CANDIDATE)
    ]
    assert tuning.properties[NEXT_TOKENS] == CANDIDATE
    assert tuning.properties.get(PROMPTS) == ({} if seconds == 0.7 else None)
    assert (PROMPTS in tuning.reasons) == (seconds == 0.7)
    words = "INFERENCE_PRECISION_HINT f32, DYNAMIC_QUANTIZATION_GROUP_SIZE 64"
    rows = [trial.row["candidate"] for trial in trials[-2:]]
    assert rows == [f"{words}; prompts as by default", words]


def test_what_cannot_be_computed_here_is_told_as_that(converted, answer_seconds, monkeypatch):
    def refuse():
        raise DeviceError("This attention has no such thing.")

    monkeypatch.setattr(tune, "has_room", lambda weights, models: True)
    answer_seconds |= {DEFAULT: 1.0, FIRST: refuse, KV_ONLY: refuse, f"{DEFAULT} apart": refuse}
    tuning, trials = tuned(converted)
    assert [trial.verdict for trial in trials[1:]] == ["cannot be computed here"] * 3
    assert tuning.reasons[LANGUAGE_MODEL] == "keeps the defaults: others cannot be computed here"
    words = "keeps one language model: two cannot be computed here"
    assert tuning.reasons[NEXT_TOKENS] == words


def test_what_there_was_no_time_for_is_said(converted, answer_seconds, monkeypatch):
    answer_seconds |= {DEFAULT: 1.0}
    monkeypatch.setattr(tune, "has_room", lambda weights, models: True)
    untried = ["the defaults: there was no time to try others", "one language model: there was no "]
    untried[1] += "time to try two"
    for seconds, of_duel in ((0, 1), (500, 600)):
        monkeypatch.setattr(tune, "seconds_of_duel", lambda *_, value=of_duel: value)
        tuning, trials = tune.tune(converted, draw_questions(3, seed=0), seconds=seconds)
        reasons = {f"keeps {words}; `--seconds` gives more" for words in untried}
        assert not trials and set(tuning.reasons.values()) == reasons


@pytest.mark.parametrize("is_alike", [False, True])
def test_a_part_s_first_comparison_may_come_later(converted, answer_seconds, monkeypatch, is_alike):
    """A duel takes 12 of 20 seconds: more than the others of the encoder's would leave.

    A candidate that computes as the default does is no comparison.
    """
    other = {"ENABLE_CPU_PINNING": False}
    names = DEFAULT, FIRST, KV_ONLY, json.dumps(other)
    answer_seconds |= dict.fromkeys(names, 1.0)
    monkeypatch.setattr(tune, "candidates_of", lambda size, group: [CANDIDATE, other])
    monkeypatch.setattr(tune, "seconds_of_duel", lambda *_: 12)
    monkeypatch.setattr(tune._Tuner, "_left", lambda self, share: 20 * share)
    if is_alike:
        numbers = count()

        def decisive(pipeline, parts):
            (part,) = parts
            return 0 if pipeline.properties[part] in ({}, CANDIDATE) else next(numbers) + 1

        monkeypatch.setattr(tune, "decisive", decisive)
    tuning, trials = tuned(converted)
    candidates = [
        trial.properties[IMAGE_ENCODER] for trial in trials if trial.part == IMAGE_ENCODER
    ]
    assert candidates == [other if is_alike else CANDIDATE]
    more = "" if is_alike else "; there was no time for 1 more"
    reason = f"keeps the defaults, of 2 settings the fastest{more}"
    assert tuning.reasons[IMAGE_ENCODER] == reason


def test_the_time_of_a_duel_is_that_of_the_clock(monkeypatch):
    """A call takes three seconds here, the first one nine, and says that it took a thousand."""
    calls, clock = [], iter([0, 9, 10, 13])
    monkeypatch.setattr(duels.time, "perf_counter", lambda: next(clock))
    seconds = seconds_of_duel(lambda: 1000, limit=54)
    duel(lambda: calls.append(1) or 1, lambda: calls.append(1) or duels.MARGIN)  # all rounds
    assert seconds == 3 * len(calls)


def test_a_duel_that_is_far_too_long_is_known_after_a_call(monkeypatch):
    clock = iter([0, 9])
    monkeypatch.setattr(duels.time, "perf_counter", lambda: next(clock))
    assert seconds_of_duel(lambda: 1000, limit=53) == 9 * 12


def test_where_nothing_computes_otherwise_it_is_said(converted, answer_seconds, monkeypatch):
    monkeypatch.setattr(tune, "candidates_of", lambda size, group: [])
    answer_seconds |= {DEFAULT: 1.0, KV_ONLY: 1.0}
    reason = tuned(converted)[0].reasons[IMAGE_ENCODER]
    assert reason == "keeps the defaults: no other setting computes otherwise on this processor"


@pytest.mark.parametrize(
    "sets, precisions, expected",
    [
        (["AVX2"], ["FP32"], []),
        (["AVX2", "VNNI"], ["FP32"], ["groups"]),
        (["AVX2", "AVX-512", "VNNI"], ["BF16", "FP32"], ["groups", "both", "f32"]),
        (["AVX2", "AVX-512"], ["FP16", "FP32"], ["f32"]),
        ([], ["FP32", "FP16"], ["groups", "both", "f32"]),
    ],
)
def test_what_changes_nothing_here_is_not_tried(monkeypatch, sets, precisions, expected):
    monkeypatch.setattr(resources, "instruction_sets", lambda: sets)
    monkeypatch.setattr(
        candidates, "core", lambda: SimpleNamespace(get_property=lambda *_: precisions)
    )
    groups, f32 = {candidates.GROUP: 64}, {candidates.PRECISION: "f32"}
    names = {"groups": groups, "both": f32 | groups, "f32": f32}
    offers = candidates.candidates_of(10**15, 64)
    assert [name for name, candidate in names.items() if candidate in offers] == expected


@pytest.mark.parametrize(
    "weights, cores, expected", [(10**9, 2, True), (10**9, 1, False), (10**9 + 1, 2, False)]
)
def test_16_bits_are_tried_where_several_threads_and_memory_allow_it(
    monkeypatch, weights, cores, expected
):
    """With one thread they can end the process, and weights are kept decompressed for them."""
    capabilities = SimpleNamespace(get_property=lambda *_: ["BF16", "FP32"])
    monkeypatch.setattr(candidates, "core", lambda: capabilities)
    monkeypatch.setattr(candidates, "processors", lambda: cores)
    monkeypatch.setattr(candidates, "available_memory", lambda: 8 * 10**9 + 1)
    assert ({candidates.PRECISION: "f16"} in candidates.candidates_of(weights, 64)) is expected


@pytest.mark.parametrize("cores, expected", [(2, []), (4, [2]), (7, [3])])
def test_half_of_the_cores_is_tried_where_that_is_more_than_one(monkeypatch, cores, expected):
    monkeypatch.setattr(candidates, "processors", lambda: cores)
    offers = candidates.candidates_of(10**15, 64)
    name = "INFERENCE_NUM_THREADS"
    assert [candidate[name] for candidate in offers if name in candidate] == expected


@pytest.mark.parametrize(
    "capabilities, sets, has_vnni",
    [
        ({"avx2": True, "avx512_f": False, "avx_vnni": False}, ["AVX2"], False),
        ({"avx2": True, "avx_vnni": True}, ["AVX2", "VNNI"], True),
        ({"avx2": True, "avx512_f": True, "avx512_vnni": True}, ["AVX2", "AVX-512", "VNNI"], True),
        ({"avx512_bf16": True, "amx_bf16": True}, ["BF16"], False),
        ({"amx_int8": True, "amx_fp16": True, "amx_tile": True}, ["AMX", "AMX-FP16"], False),
        ({"architecture": "aarch64", "neon": True}, [], True),
    ],
)
def test_instruction_sets_are_named_on_every_system(monkeypatch, capabilities, sets, has_vnni):
    """Linux says it itself, and has another name for one of them."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    flags = {"avx512f" if name == "avx512_f" else name for name, has in capabilities.items() if has}
    for answer in (set(), flags):
        monkeypatch.setattr(resources, "processor_flags", lambda answer=answer: answer)
        assert (resources.instruction_sets(), resources.has_vnni()) == (sets, has_vnni)


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n", "family 25, model 17"),
        ("Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", "family 6, model 143"),
        ("arm", ""),
    ],
)
def test_processors_of_one_name_are_told_apart(text, numbers):
    assert resources.family_and_model(text) == numbers


def test_linux_and_pytorch_know_the_same_instruction_sets(monkeypatch):
    sets, has_bfloat16 = resources.instruction_sets(), resources.has_bfloat16()
    monkeypatch.setattr(resources, "processor_flags", set)
    assert (resources.instruction_sets(), resources.has_bfloat16()) == (sets, has_bfloat16)


def test_slow_processors_have_more_time(monkeypatch):
    for sets, factor in ((["AVX2"], 2.5), (["AVX2", "AVX-512"], 1), ([], 1)):
        monkeypatch.setattr(candidates, "instruction_sets", lambda sets=sets: sets)
        seconds = [candidates.seconds_for(gigabytes * 10**9) for gigabytes in (0.1, 2, 40)]
        assert seconds == [60 * factor, 120 * factor, 300 * factor]


def test_settings_that_compute_alike_are_measured_once(converted):
    pipeline = VisionLanguagePipeline(converted)
    same = pipeline.with_parts({LANGUAGE_MODEL: {"KV_CACHE_PRECISION": "u8"}})
    other = pipeline.with_parts({LANGUAGE_MODEL: {"KV_CACHE_PRECISION": "f16"}})
    default, same, other = (tune.decisive(p, [LANGUAGE_MODEL]) for p in (pipeline, same, other))
    assert default == same != other


@pytest.mark.parametrize(
    "mode, size, expected",
    [("int4-sym", 32, 32), ("int4-asym", 128, 64), ("int4-asym", -1, 64), ("int8", 32, 64)],
)
def test_activations_have_no_larger_groups_than_weights(
    converted, monkeypatch, mode, size, expected
):
    """One that is larger switches off what is tried."""
    groups = []

    class Tuner(SimpleNamespace):
        def __init__(self, *_) -> None:
            super().__init__(choices={}, reasons={}, unclear=[], trials=[])

        def tune_encoder(self, offers) -> None:
            groups.append(offers)

        tune_language_model = tune_encoder

        def tune_next_tokens(self) -> None:
            pass

    weights = {"mode": mode, "group_size": size}
    monkeypatch.setattr(tune, "_Tuner", Tuner)
    monkeypatch.setattr(tune, "read_manifest", lambda _: {"preset": {"language_model": weights}})
    monkeypatch.setattr(tune, "candidates_of", lambda _, group: [group])
    tune.tune(converted, [])
    assert [offers[0] for offers in groups] == [64, expected]


# Where the result is kept


def test_a_result_is_kept_for_this_computer_version_and_folder(converted, cache, monkeypatch):
    assert read_tuning(converted) is None
    tuning = Tuning(key_of(converted), {LANGUAGE_MODEL: CANDIDATE}, {LANGUAGE_MODEL: "faster"})
    path = write_tuning(tuning)
    assert cache in path.parents and not list(converted.glob("*tun*"))
    assert read_tuning(converted) == tuning
    for change in ({"openvino": "1.0"}, {"processor": "another"}, {"cores": 99}, {"folder": "0"}):
        monkeypatch.setattr(kept, "key_of", lambda folder, new=change: tuning.key | new)
        assert read_tuning(converted) is None
    monkeypatch.undo()


@pytest.mark.parametrize(
    "change",
    [
        {"key": 1},
        {"properties": 2},
        {"properties": {LANGUAGE_MODEL: 2}},
        {"reasons": []},
        {"reasons": {LANGUAGE_MODEL: 2}},
        {"unclear": {}},
        {"unclear": [[]]},
    ],
)
def test_a_damaged_result_is_none(converted, change):
    path = write_tuning(Tuning(key_of(converted)))
    assert read_tuning(converted) is not None
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    assert read_tuning(converted) is None
    for text in ("", "{}", "[]"):
        path.write_text(text)
        assert read_tuning(converted) is None


def test_a_full_disk_is_told_before_the_work_and_gets_no_half_result(
    converted, full_disk, monkeypatch
):
    monkeypatch.setenv("VLM_CACHE", str(full_disk))
    for keep in (kept.check_writable, lambda folder: write_tuning(Tuning(key_of(folder)))):
        with pytest.raises(OutputError, match=r"No space left on device\); set VLM_CACHE"):
            keep(converted)
        assert not [*(full_disk / "tuning").iterdir()]


def test_a_folder_that_is_converted_anew_meanwhile_gets_no_settings_of_the_other(
    converted, cache, monkeypatch, capsys
):
    key = key_of(converted)

    def find(folder, *_, **__):
        return Tuning(key | {"folder": "of the other"}), []

    monkeypatch.setattr(tune, "tune", find)
    assert main(["tune", str(converted)]) == 1
    assert "was converted anew meanwhile; tune it again." in capsys.readouterr().err
    assert not [*cache.rglob("*.json")]


def test_settings_that_openvino_refuses_are_named_as_what_tune_chose(converted):
    write_tuning(Tuning(key_of(converted), {LANGUAGE_MODEL: {"NO_SUCH_PROPERTY": 1}}))
    with pytest.raises(DeviceError, match=r"NO_SUCH_PROPERTY.*; `vlm tune` chose its settings"):
        VisionLanguagePipeline(converted)
    assert VisionLanguagePipeline(converted, tuned=False).tuning is None


def test_what_noise_leaves_open_stays_as_it_was_measured_before(converted):
    key, pair = key_of(converted), {LANGUAGE_MODEL: {}, NEXT_TOKENS: CANDIDATE, PROMPTS: {}}
    noisy, clear = "keeps the defaults: too noisy to say", "keeps the defaults, the fastest"
    earlier = Tuning(key, {IMAGE_ENCODER: CANDIDATE} | pair, dict.fromkeys(pair, "0.9 of the time"))
    now = Tuning(
        key,
        {IMAGE_ENCODER: {}, LANGUAGE_MODEL: {}},
        {IMAGE_ENCODER: clear, LANGUAGE_MODEL: noisy, NEXT_TOKENS: noisy},
        [LANGUAGE_MODEL, NEXT_TOKENS],
    )
    assert now.or_earlier(None) == now
    result = now.or_earlier(earlier)
    assert result.properties == {IMAGE_ENCODER: {}} | pair
    assert result.reasons == earlier.reasons | {IMAGE_ENCODER: clear} and not result.unclear
    faster = Tuning(key, now.properties | {LANGUAGE_MODEL: CANDIDATE}, now.reasons, now.unclear)
    assert faster.or_earlier(earlier) == faster
    unclear = Tuning(key, now.properties, dict.fromkeys(now.reasons, "no time"), now.unclear)
    assert now.or_earlier(unclear) == now  # nor is more known from before
    result = now.or_earlier(replace(unclear, unclear=[NEXT_TOKENS]))
    assert result.reasons[LANGUAGE_MODEL] == "no time" and result.unclear == [NEXT_TOKENS]


def test_an_account_without_a_home_computes_with_the_defaults(converted, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("VLM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert read_tuning(converted) is None
    with pytest.raises(OutputError, match="no home directory .* set VLM_CACHE to a folder"):
        write_tuning(Tuning(key_of(converted)))


def test_a_cache_that_cannot_be_written_is_said(converted, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="set VLM_CACHE"):
        write_tuning(Tuning(key_of(converted)))


def test_a_cache_that_cannot_be_written_is_said_before_the_work(
    converted, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "file"))
    assert main(["tune", str(converted)]) == 1
    messages = capsys.readouterr().err
    assert "set VLM_CACHE to a folder that can" in messages and "ACCURACY mode" not in messages


# Who follows it


def precision(pipeline, part):
    return pipeline.parts[part].get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")


def test_a_pipeline_takes_what_was_tuned_unless_told_not_to(converted):
    write_tuning(Tuning(key_of(converted), {LANGUAGE_MODEL: CANDIDATE}))
    pipeline = VisionLanguagePipeline(converted)
    assert (precision(pipeline, LANGUAGE_MODEL), precision(pipeline, IMAGE_ENCODER)) == (64, 32)
    assert pipeline.tuning.properties == {LANGUAGE_MODEL: CANDIDATE}
    other = VisionLanguagePipeline(converted, properties={"DYNAMIC_QUANTIZATION_GROUP_SIZE": 16})
    assert precision(other, LANGUAGE_MODEL) == 16
    for options in ({"tuned": False}, {"accuracy": True}, {"device": "AUTO"}):
        assert VisionLanguagePipeline(converted, **options).tuning is None


@pytest.fixture
def run(capsys):
    """Return a function that runs a command and returns what it printed, and its messages."""

    def run_here(*arguments):
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr()

    return run_here


def test_the_commands(converted, run, answer_seconds, monkeypatch):
    """A large folder is advised to be tuned until it was, or it is not wanted."""
    answer_seconds |= {DEFAULT: 1.0, FIRST: 0.8, BOTH: 1.0}
    monkeypatch.setattr(kept, "LARGE", 1)
    monkeypatch.setattr(presets, "has_vnni", lambda: True)
    monkeypatch.setattr(presets, "instruction_sets", lambda: ["AVX2", "VNNI"])
    ask = ["ask", converted, "--question", "What?", "--max-new-tokens", 1]
    assert run(*ask).err.count(f"never tuned on this computer; `vlm tune {converted}`") == 1
    assert "tune" not in run(*ask, "--untuned").err
    assert "the defaults, never tuned here" in run("info", converted).out
    printed = run("tune", converted, "--seconds", 1000)
    assert "language model: INFERENCE_PRECISION_HINT f32" in printed.out
    assert "0.80 of the time, taken" in printed.err
    assert f"next tokens apart: {MEMORY}" in printed.out
    choices = "--precision int4-sym --image-encoder int8-activations"
    assert f"`vlm convert {choices}` makes a folder that is faster here" in printed.out
    assert "tune" not in run(*ask).err
    printed = run("info", converted).out
    assert "settings on this computer: image encoder as by default; lan" in printed
    sets = ", ".join(resources.instruction_sets())
    assert "processor: " in printed and (f" ({sets})\n" in printed or not sets)
    data = json.loads(run("info", converted, "--json").out)
    assert data["tuning"]["properties"][LANGUAGE_MODEL] == CANDIDATE


ADVISED = {
    "chat": ["--image", "picture.png", "--max-new-tokens", 1],
    "batch": ["--input", ".", "--question", "What?", "--output", "out.jsonl"],
    "serve": [],
}


@pytest.mark.parametrize("command", ADVISED)
def test_commands_that_answer_many_times_advise_once(
    converted, command, tmp_path, run, monkeypatch
):
    monkeypatch.setattr(kept, "LARGE", 1)
    monkeypatch.setattr(server, "serve", lambda *settings, report: report("it serves"))
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\nWhere?\n"))
    monkeypatch.chdir(tmp_path)
    picture().save("picture.png")
    printed = run(command, converted, *ADVISED[command])
    assert printed.err.count(f"never tuned on this computer; `vlm tune {converted}`") == 1
    Path("out.jsonl").unlink(missing_ok=True)
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\n"))
    printed = run(command, converted, "--untuned", *ADVISED[command])
    assert "tune" not in printed.err


def test_a_small_folder_is_not_advised(converted):
    assert kept.advice(converted) == ""


# Which preset is fastest


def test_a_faster_preset_follows_the_processor(monkeypatch):
    for sets, of_int4 in ((["AVX2"], "int4-sym"), (["AVX2", "VNNI"], ""), ([], "")):
        monkeypatch.setattr(resources, "instruction_sets", lambda sets=sets: sets)
        names = {name: presets.faster_preset(p.settings) for name, p in presets.PRESETS.items()}
        expected = {"fp16": "int4-sym", "int8": "", "int4": of_int4, "int4-sym": ""}
        assert names == expected


def image_encoder(*sizes):
    """Return a model that takes pictures of these sizes; -1 is any."""
    pixels = ops.parameter(list(sizes), np.float32)
    return ov.Model([pixels], [pixels])


@pytest.mark.parametrize(
    "sets, preset, sizes, expected",
    [
        (["AVX2", "VNNI"], "int4", (-1, 3, 28, 28), "int8-activations"),
        (["AVX2", "VNNI"], "int4", (-1, 3, -1, -1), ""),
        (["AVX2", "VNNI"], "int4", (-1, 588), ""),
        (["AVX2", "VNNI"], "int8-activations", (-1, 3, 28, 28), ""),
        (["AVX2"], "int4", (-1, 3, 28, 28), ""),
    ],
)
def test_a_faster_image_encoder_is_named(monkeypatch, sets, preset, sizes, expected):
    monkeypatch.setattr(presets, "instruction_sets", lambda: sets)
    settings = presets.find_preset(preset).settings
    assert presets.faster_image_encoder(settings, image_encoder(*sizes)) == expected


def test_converting_to_what_is_fastest(checkpoint, tmp_path, run):
    run("convert", checkpoint, "--precision", "auto", "--output", tmp_path / "made")
    assert "precision: int4-sym" in run("info", tmp_path / "made").out


# What settings do to answers


@pytest.mark.slow
def test_settings_that_are_tried_keep_the_answers_of_a_trained_model(bundled_folder):
    """Forced on a bundled model, they leave its divergence small, and it as often right."""
    folder, pairs = bundled_folder("internvl2", "int4"), draw_questions(50, seed=3)
    reference = evaluation.answer(VisionLanguagePipeline(folder, accuracy=True), pairs)
    right = evaluation.accuracy(reference, pairs)["all"].right
    for properties in (
        {},
        {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 64},
    ):
        answers = evaluation.answer(VisionLanguagePipeline(folder, properties=properties), pairs)
        assert abs(evaluation.accuracy(answers, pairs)["all"].right - right) <= 1
        assert evaluation.divergences(reference, answers).mean() < 2e-5  # measured: 2e-6
