"""Find the fastest properties of each part of a folder on this computer: `vlm tune`.

Each candidate is measured in turn with the fastest so far, and what it makes of the next tokens is
held against ACCURACY mode. What this module does not know: other devices than the CPU, and settings
that need another conversion.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import openvino as ov
import torch
from torch import Tensor

from helpers.convert.folders import Report, read_manifest, weight_bytes
from helpers.errors import DeviceError
from helpers.graphs.part_names import IMAGE_ENCODER, LANGUAGE_MODEL, NEXT_TOKENS
from helpers.inputs.messages import user_message
from helpers.inputs.questions import VisualQuestion
from helpers.measure.candidates import (
    GROUP,
    LARGEST_GROUP,
    PRECISION,
    candidates_of,
    has_16_bits,
    seconds_for,
)
from helpers.measure.duels import MARGIN, Duel, duel, seconds_of_duel
from helpers.measure.evaluation import divergences_of_logits
from helpers.measure.speed import answer_seconds, timed
from helpers.models.exported import Features, ImageInputs
from helpers.resources import time_in_words
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.tuning import Properties, Tuning, fits_twice, key_of, properties_in_words

TOKENS = 64  # of the answer whose whole time is compared, behind a picture and a question
STEPS = 8  # tokens of it that are computed
COMPARED = 4  # tokens of each answer that are compared with ACCURACY mode's
LEAST_QUESTIONS = 2
# Of the seconds, when ACCURACY mode's answers, the image encoder and the language model are over.
REFERENCE_SHARE, ENCODER_SHARE, MODEL_SHARE = 0.15, 0.5, 0.75
# A candidate may diverge from ACCURACY mode at most so many times as far as the default. Where that
# computes as ACCURACY mode does, so many nats are still rounding (measured: up to 6e-7).
TIMES_DEFAULT, ROUNDING = 2.0, 1e-6

NOISY = "too noisy to say: the times vary"
NOT_ALWAYS, TOO_FAR = "but not in every round", "but too far from ACCURACY mode"
# What a compiled model says of itself that decides how it computes.
DECISIVE = (PRECISION, GROUP, "KV_CACHE_PRECISION", "INFERENCE_NUM_THREADS", "ENABLE_CPU_PINNING")


@dataclass(frozen=True)
class Trial:
    """A candidate: its seconds and those of the fastest before it, in nats how far it is, and why.

    None is what was not measured.
    """

    part: str
    properties: Properties
    before: float | None
    seconds: float | None
    divergence: float | None
    verdict: str

    @property
    def row(self) -> dict[str, str]:
        """The trial as a row of a table."""
        times = [self.before, self.seconds]
        before, seconds = ("-" if value is None else time_in_words(value) for value in times)
        return {
            "part": self.part,
            "candidate": properties_in_words(self.properties),
            "before": before,
            "with it": seconds,
            "1000 KL": "-" if self.divergence is None else f"{1000 * self.divergence:.3f}",
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class _Sample:
    """A question, with its picture's features and the answer's first logits in ACCURACY mode."""

    image_inputs: ImageInputs
    ids: Tensor
    features: Features
    logits: Tensor  # (COMPARED, vocabulary)

    @property
    def token_ids(self) -> list[int]:
        """The tokens that ACCURACY mode chooses."""
        ids: list[int] = self.logits.argmax(-1).tolist()
        return ids


def tune(
    folder: Path,
    pairs: Sequence[VisualQuestion],
    *,
    seconds: float | None = None,
    report: Report = lambda line: None,
) -> tuple[Tuning, list[Trial]]:
    """Return the fastest properties of a folder's image encoder and language model, and all trials.

    The one of `pairs` with the shortest prompt is what times are measured with; all of them, as
    time allows, are what answers are compared with. `seconds` is how long it may take, but
    that what was begun is finished; None: as the size of the folder and the processor say.

    The language model's settings are chosen for the time of a whole answer of 64 tokens, since
    those that are fastest for a prompt and for the next token may differ. Where there is memory for
    it, it is then compiled a second time for next tokens alone, which is kept if it wins.
    """
    folder, sizes = Path(folder), weight_bytes(folder)
    if seconds is None:
        seconds = seconds_for(sum(sizes.values()))
    tuner = _Tuner(folder, pairs, seconds, report)
    weights = read_manifest(folder)["preset"]["language_model"]
    in_groups = weights["mode"].startswith("int4") and weights["group_size"] != -1
    group = min(LARGEST_GROUP, weights["group_size"]) if in_groups else LARGEST_GROUP
    tuner.tune_encoder(candidates_of(sizes[IMAGE_ENCODER], LARGEST_GROUP))
    tuner.tune_language_model(
        [*candidates_of(sizes[LANGUAGE_MODEL], group), {"KV_CACHE_PRECISION": "f16"}]
    )
    if fits_twice(folder):
        tuner.tune_next_tokens()
    else:
        tuner.reasons[NEXT_TOKENS] = "was not tried: there is no memory for two language models"
    return Tuning(key_of(folder), tuner.chosen, tuner.reasons), tuner.trials


class _Tuner:
    """Tunes the parts of one folder, one after the other.

    `pipeline` is in ACCURACY mode but for the part that is being tuned, which has the properties
    that are fastest so far. The image encoder comes first: it is judged by what the language model
    makes of its features, which are ACCURACY mode's while the language model is tuned.
    """

    def __init__(
        self, folder: Path, pairs: Sequence[VisualQuestion], seconds: float, report: Report
    ) -> None:
        self.started, self.seconds, self.report = time.monotonic(), seconds, report
        self.trials: list[Trial] = []
        self.reasons: dict[str, str] = {}
        self.chosen: dict[str, Properties] = {}
        self.bound: float | None = None
        report(f"{folder.name}: computing what is to come out, in ACCURACY mode")
        self.pipeline = VisionLanguagePipeline(folder, accuracy=True)
        prompts = sorted(map(self._prompt, pairs), key=lambda prompt: prompt[1].shape[1])
        self.samples: list[_Sample] = []
        for inputs, ids in prompts:  # the shortest first
            if len(self.samples) >= LEAST_QUESTIONS and self._left(REFERENCE_SHARE) < 0:
                break
            features = self.pipeline.encode_images(**inputs)
            logits = _logits(self.pipeline, ids, features)
            self.samples.append(_Sample(inputs, ids, features, logits))

    def _left(self, share: float) -> float:
        """Return the seconds that are left of a share of them."""
        return share * self.seconds - (time.monotonic() - self.started)

    def _prompt(self, pair: VisualQuestion) -> tuple[ImageInputs, Tensor]:
        """Return what the image encoder takes of a question's picture, and the question's ids."""
        picture, question = pair
        inputs = self.pipeline.image_inputs([picture])
        message = user_message(question.text, 1)
        return inputs, self.pipeline.processor.input_ids([message], inputs)

    def tune_encoder(self, candidates: Sequence[Properties]) -> None:
        """Choose the fastest properties of the image encoder."""
        inputs = self.samples[0].image_inputs

        def measure(pipeline: VisionLanguagePipeline) -> float:
            return timed(lambda: pipeline.encode_images(**inputs))[0]

        self._begin(IMAGE_ENCODER)
        self._tune(IMAGE_ENCODER, candidates, measure, ENCODER_SHARE)

    def tune_language_model(self, candidates: Sequence[Properties]) -> None:
        """Choose the properties of the language model with which a whole answer is fastest."""
        self._begin(LANGUAGE_MODEL)
        self._tune(LANGUAGE_MODEL, candidates, self._answer_seconds, MODEL_SHARE)

    def tune_next_tokens(self) -> None:
        """Choose whether next tokens are compiled apart from prompts, and their properties."""
        of_prompts = self.chosen[LANGUAGE_MODEL]
        candidates = [of_prompts]
        if has_16_bits():
            candidates.append(of_prompts | {PRECISION: "f32"})
        self._tune(NEXT_TOKENS, candidates, self._answer_seconds, 1)

    def _answer_seconds(self, pipeline: VisionLanguagePipeline) -> float:
        sample = self.samples[0]
        prepared = pipeline.prepare(sample.ids, sample.features)
        return answer_seconds(pipeline, prepared, tokens=TOKENS, computed=STEPS)

    def _begin(self, part: str) -> None:
        """Let a part have the defaults; how far a candidate may diverge is not known yet."""
        self.pipeline, self.chosen[part], self.bound = self.pipeline.with_part(part, {}), {}, None

    def _bound(self, part: str) -> float:
        """Return in nats how far a candidate for a part may diverge, by the default's divergence.

        That is measured when the first candidate has won: until then, the default is the fastest.
        """
        if self.bound is None:
            self.bound = max(ROUNDING, TIMES_DEFAULT * self._divergence(self.pipeline, part))
        return self.bound

    def _tune(
        self,
        part: str,
        candidates: Sequence[Properties],
        measure: Callable[[VisionLanguagePipeline], float],
        share: float,
    ) -> None:
        computations = [_decisive(self.pipeline.parts[part])] if part in self.chosen else []
        gain, untried = 1.0, 0
        champion, needed = partial(measure, self.pipeline), 0.0
        if candidates and self._left(share) > 0:
            self.report(f"{part}: measuring it as it is")
            needed = seconds_of_duel(champion)
        for candidate in candidates:
            if self._left(share) <= needed:
                untried += 1
                continue
            trial = self.chosen.get(part, {}) | candidate
            try:
                challenger = self.pipeline.with_part(part, trial)
                decisive = _decisive(challenger.parts[part])
                if decisive in computations:
                    continue
                computations.append(decisive)
                result = duel(champion, partial(measure, challenger))
                divergence = self._divergence(challenger, part) if result.is_won else None
                bound = self._bound(part) if result.is_won else 0.0
            except DeviceError:
                self._note(Trial(part, trial, None, None, None, "cannot be computed here"))
                continue
            self._note(_trial(part, trial, result, divergence, bound))
            if divergence is not None and divergence <= bound:
                self.pipeline, self.chosen[part] = challenger, trial
                champion, ratio = partial(measure, challenger), median(result.ratios)
                gain, needed = gain * ratio, needed * ratio
        self.reasons[part] = self._reason(part, gain, untried)

    def _reason(self, part: str, gain: float, untried: int) -> str:
        """Return in a sentence what came of tuning a part."""
        trials = [trial for trial in self.trials if trial.part == part]
        verdicts = [trial.verdict for trial in trials]
        unclear = [words for words in verdicts if NOISY in words or NOT_ALWAYS in words]
        too_far = [words for words in verdicts if TOO_FAR in words]
        is_second = part == NEXT_TOKENS
        default = "one language model" if is_second else "the defaults"
        if gain < 1:
            reason = f"takes {gain:.2f} of {'one model' if is_second else 'the default'}'s time"
        elif unclear:
            reason = f"keeps {default}: {unclear[0]}; try again while nothing else computes"
        elif too_far:
            reason = f"keeps {default}: {too_far[0]}"
        elif trials:
            reason = f"keeps {default}, of {len(trials) + 1} settings the fastest"
        elif untried:
            others = "two" if is_second else "others"
            return f"keeps {default}: there was no time to try {others}; `--seconds` gives more"
        else:
            reason = f"keeps {default}: no other setting computes otherwise on this processor"
        return reason + (f"; there was no time for {untried} more" if untried else "")

    def _note(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.report(f"{trial.part}, {properties_in_words(trial.properties)}: {trial.verdict}")

    def _divergence(self, pipeline: VisionLanguagePipeline, part: str) -> float:
        """Return in nats how far a part takes tokens from ACCURACY mode's, on average."""
        values = []
        for sample in self.samples:
            features = sample.features
            if part == IMAGE_ENCODER:
                features = pipeline.encode_images(**sample.image_inputs)
            logits = _logits(pipeline, sample.ids, features, sample.token_ids)
            values.append(divergences_of_logits(sample.logits, logits).mean())
        return float(torch.stack(values).mean())


def _trial(
    part: str, properties: Properties, result: Duel, divergence: float | None, bound: float
) -> Trial:
    ratio = median(result.ratios)
    if result.is_too_noisy:
        verdict = f"{NOISY} by {result.noise:.0%}"
    elif divergence is not None and divergence > bound:
        verdict = f"{ratio:.2f} of the time, {TOO_FAR} (at most {bound:.2g})"
    elif ratio < MARGIN and not result.is_won:
        verdict = f"{ratio:.2f} of the time, {NOT_ALWAYS}"
    else:
        verdict = f"{ratio:.2f} of the time" + (", taken" if result.is_won else "")
    times = median(result.champion), median(result.challenger)
    return Trial(part, properties, *times, divergence, verdict)


def _decisive(part: ov.CompiledModel) -> list[str]:
    """Return what a compiled part says of how it computes: equals need not be measured."""
    return [str(part.get_property(name)) for name in DECISIVE]


@torch.inference_mode()
def _logits(
    pipeline: VisionLanguagePipeline,
    ids: Tensor,
    features: Features,
    token_ids: Sequence[int] = (),
) -> Tensor:
    """Return the logits (COMPARED, vocabulary) behind a prompt and each token of its answer.

    The answer is `token_ids`, or where there are none the most probable tokens.
    """
    prepared = pipeline.prepare(ids, features)
    model, cache = pipeline.language_model, pipeline.language_model.new_cache()
    output = model(**prepared, past_key_values=cache)
    logits = [output.logits[0, -1]]
    for number in range(COMPARED - 1):
        token = token_ids[number] if token_ids else int(logits[-1].argmax())
        output = model(
            input_ids=torch.tensor([[token]]),
            past_key_values=cache,
            pictures=prepared.get("pictures"),
        )
        logits.append(output.logits[0, -1])
    return torch.stack(logits)
