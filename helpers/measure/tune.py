"""Find the fastest properties of each part of a folder on this computer: `vlm tune`.

Each candidate is measured in turn with the fastest so far, and what it makes of the next tokens is
held against ACCURACY mode. What this module does not know: other devices than the CPU, and settings
that need another conversion.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from helpers.convert.folders import Report, read_manifest, weight_bytes
from helpers.errors import DeviceError
from helpers.graphs.part_names import IMAGE_ENCODER, LANGUAGE_MODEL, NEXT_TOKENS, PROMPTS
from helpers.inputs.messages import user_message
from helpers.inputs.questions import VisualQuestion
from helpers.measure.candidates import (
    LARGEST_GROUP,
    candidates_of,
    decisive,
    seconds_for,
)
from helpers.measure.duels import MARGIN, duel, seconds_of_duel
from helpers.measure.evaluation import divergences_of_logits
from helpers.measure.speed import seconds_of_steps, timed
from helpers.measure.trials import (
    NO_ROOM,
    REFUSED,
    Trial,
    is_unclear,
    measured,
    part_reason,
    trial_of,
)
from helpers.models.exported import Features, ImageInputs
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.tuning import Properties, Tuning, has_room, key_of

TOKENS = 64  # of the answer whose whole time is compared, behind a picture and a question
STEPS = 8  # tokens of it that are computed
COMPARED = 4  # tokens of each answer that are compared with ACCURACY mode's
LEAST_QUESTIONS = 2
# Of the seconds, when ACCURACY mode's answers are over; then when a part's first candidate, which
# gained most where it was measured, has to be over, and its others.
REFERENCE_SHARE, ENCODER_SHARES, MODEL_SHARES, NEXT_SHARES = 0.15, (0.75, 0.5), (1, 0.75), (1, 1)
# A candidate may diverge from ACCURACY mode at most so many times as far as the default. Where that
# computes as ACCURACY mode does, so many nats are still rounding (measured: up to 6e-7).
TIMES_DEFAULT, ROUNDING = 2.0, 1e-6


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
    it, it is then compiled a second time for next tokens alone, each of the two with what was
    fastest for it, which is kept if it wins.
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
    tuner.tune_next_tokens()
    return Tuning(key_of(folder), tuner.choices, tuner.reasons, tuner.unclear), tuner.trials


class _Clocked:
    """Measures a pipeline: the seconds of each step, as of a prompt and its next tokens.

    `of_default` are they by the default's, as soon as they were compared with what has that.
    """

    def __init__(
        self,
        pipeline: VisionLanguagePipeline,
        measure: Callable[[VisionLanguagePipeline], Sequence[float]],
    ) -> None:
        self.pipeline, self.measure = pipeline, measure
        self.calls: list[Sequence[float]] = []
        self.of_default = [1.0, 1.0]

    def __call__(self) -> float:
        """Return the seconds of all steps."""
        self.calls.append(self.measure(self.pipeline))
        return sum(self.calls[-1])

    def note_ratios(self, champion: "_Clocked", rounds: int) -> None:
        """Note `of_default`, by the last `rounds` calls of both, the slowest of which counts."""
        calls = zip(self.calls[-rounds:], champion.calls[-rounds:], strict=True)
        ratios = [[new / old for new, old in zip(*call, strict=True)] for call in calls]
        steps = zip(zip(*ratios, strict=True), champion.of_default, strict=False)
        self.of_default = [max(step) * before for step, before in steps]


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
        self.weights = weight_bytes(folder)
        self.trials: list[Trial] = []
        self.reasons: dict[str, str] = {}
        self.unclear: list[str] = []
        self.choices: dict[str, Properties] = {}
        # Of the part that is being tuned: properties, and the time of each step by the default's.
        self.steps: list[tuple[Properties, list[float]]] = []
        self.bound: float | None = None
        report(f"{folder.name}: computing what is to come out, in ACCURACY mode")
        self.pipeline = VisionLanguagePipeline(folder, accuracy=True)
        prompts = sorted(map(self._prompt, pairs), key=lambda prompt: prompt[1].shape[1])
        self.samples: list[_Sample] = []
        for inputs, ids in prompts:  # the shortest first
            if len(self.samples) >= LEAST_QUESTIONS and self._left(REFERENCE_SHARE) < 0:
                break
            features = self.pipeline.encode_images(**inputs)
            logits = answer_logits(self.pipeline, self.pipeline.prepare(ids, features), COMPARED)
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

        def measure(pipeline: VisionLanguagePipeline) -> list[float]:
            return [timed(lambda: pipeline.encode_images(**inputs))[0]]

        self._begin(IMAGE_ENCODER)
        self._tune(IMAGE_ENCODER, candidates, measure, ENCODER_SHARES)

    def tune_language_model(self, candidates: Sequence[Properties]) -> None:
        """Choose the properties of the language model with which a whole answer is fastest."""
        self._begin(LANGUAGE_MODEL)
        self._tune(LANGUAGE_MODEL, candidates, self._seconds_of_steps, MODEL_SHARES)

    def tune_next_tokens(self) -> None:
        """Choose whether next tokens are compiled apart from prompts, and the properties of both.

        Each is tried with what one model was fastest with in this step, and with what is chosen.
        """
        single = self.choices[LANGUAGE_MODEL]
        pairs = product(*(self._fastest(single, step) for step in (0, 1)))
        candidates = [{LANGUAGE_MODEL: first, NEXT_TOKENS: second} for first, second in pairs]
        self._tune(NEXT_TOKENS, candidates, self._seconds_of_steps, NEXT_SHARES)
        of_prompts = self.pipeline.properties[LANGUAGE_MODEL]
        if of_prompts != single:
            self.choices[PROMPTS] = of_prompts
            self.reasons[PROMPTS] = "where next tokens are apart"

    def _fastest(self, single: Properties, step: int) -> list[Properties]:
        """Return the properties that were faster in a step than those of a `single` model, if any.

        Behind them come those of the single model.
        """
        times = [(of_default[step], properties) for properties, of_default in self.steps]
        best, properties = min(times, key=itemgetter(0), default=(1.0, single))
        before = next((time for time, others in times if others == single), 1.0)
        return [properties, single] if best < MARGIN * before else [single]

    def _seconds_of_steps(self, pipeline: VisionLanguagePipeline) -> Sequence[float]:
        sample = self.samples[0]
        prepared = pipeline.prepare(sample.ids, sample.features)
        return seconds_of_steps(pipeline, prepared, tokens=TOKENS, computed=STEPS)

    def _begin(self, part: str) -> None:
        """Let a part have the defaults; how far a candidate may diverge is not known yet."""
        self.pipeline, self.choices[part] = self.pipeline.with_parts({part: {}}), {}
        self.bound, self.steps = None, []

    def _bound(self, part: str) -> float:
        """Return in nats how far a candidate for a part may diverge, by the default's divergence.

        That is measured when the first candidate has won: until then, the default is the fastest.
        """
        if self.bound is None:
            divergence = self._divergence(self.pipeline, part)
            self.report(
                f"{part}: by default {1000 * divergence:.3g} thousandths of a nat from ACCURACY "
                f"mode, with {len(self.samples)} questions and {COMPARED} tokens of each answer"
            )
            self.bound = max(ROUNDING, TIMES_DEFAULT * divergence)
        return self.bound

    def _tune(
        self,
        part: str,
        candidates: Sequence[Properties],
        measure: Callable[[VisionLanguagePipeline], Sequence[float]],
        shares: tuple[float, float],
    ) -> None:
        """Choose among candidates for a part: its properties, or for next tokens of both models."""
        computations = [decisive(self.pipeline, [part])] if part in self.choices else []
        gain, untried, needed = 1.0, 0, float("inf")
        champion = _Clocked(self.pipeline, measure)
        for candidate in candidates:
            is_pair = part == NEXT_TOKENS
            trial = candidate if is_pair else {part: self.choices[part] | candidate}
            share = shares[any(measured(self.trials, part))]
            if not has_room(self.weights[LANGUAGE_MODEL if is_pair else part], models=len(trial)):
                self._note(Trial(part, trial, None, None, None, NO_ROOM))
                continue
            if not champion.calls and self._left(share) > 0:
                self.report(f"{part}: measuring it as it is")
                needed = seconds_of_duel(champion, self._left(share))
                self.steps.append((self.choices.get(part, {}), champion.of_default))
            if self._left(share) <= needed:
                untried += 1
                continue
            winner, ratio = self._challenge(part, trial, champion, computations)
            if winner is not champion:
                self.pipeline, self.choices[part], champion = winner.pipeline, trial[part], winner
                gain, needed = gain * ratio, needed * ratio
        trials = [trial for trial in self.trials if trial.part == part]
        self.reasons[part] = part_reason(part, trials, gain, untried)
        if gain == 1 and (trials or untried) and is_unclear(trials):
            self.unclear.append(part)

    def _challenge(
        self,
        part: str,
        trial: Mapping[str, Properties],
        champion: _Clocked,
        computations: list[list[str]],
    ) -> tuple[_Clocked, float]:
        """Return the faster of the champion and a trial, and the trial's share of the time.

        What loses is gone with this call: each has weights of its own in memory.
        """
        try:
            pipeline = self.pipeline.with_parts(trial)
            computation = decisive(pipeline, trial)
            if computation in computations:
                return champion, 1.0
            computations.append(computation)
            challenger = _Clocked(pipeline, champion.measure)
            result = duel(champion, challenger)
            divergence = self._divergence(pipeline, part) if result.is_won else None
            bound = self._bound(part) if result.is_won else 0.0
        except DeviceError:
            self._note(Trial(part, trial, None, None, None, REFUSED))
            return champion, 1.0
        self._note(trial_of(part, trial, result, divergence, bound))
        if not result.is_too_noisy:
            challenger.note_ratios(champion, len(result.ratios))
            self.steps.append((trial[part], challenger.of_default))
        is_taken = divergence is not None and divergence <= bound
        return (challenger if is_taken else champion), median(result.ratios)

    def _note(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.report(f"{trial.part}, {trial.words}: {trial.verdict}")

    def _divergence(self, pipeline: VisionLanguagePipeline, part: str) -> float:
        """Return in nats how far a part takes tokens from ACCURACY mode's, on average."""
        values = []
        for sample in self.samples:
            features = sample.features
            if part == IMAGE_ENCODER:
                features = pipeline.encode_images(**sample.image_inputs)
            prepared = pipeline.prepare(sample.ids, features)
            logits = answer_logits(pipeline, prepared, COMPARED, sample.token_ids)
            values.append(divergences_of_logits(sample.logits, logits).mean())
        return float(torch.stack(values).mean())


@torch.inference_mode()
def answer_logits(
    pipeline: VisionLanguagePipeline,
    prepared: Mapping[str, Any],
    number: int,
    token_ids: Sequence[int] = (),
) -> Tensor:
    """Return the logits (number, vocabulary) behind a prompt and tokens of its answer.

    The prompt is what `pipeline.prepare` returned. The answer is `token_ids`, or where there are
    none the most probable tokens.
    """
    model, cache = pipeline.language_model, pipeline.language_model.new_cache()
    output = model(**prepared, past_key_values=cache)
    logits = [output.logits[0, -1]]
    for place in range(number - 1):
        token = token_ids[place] if token_ids else int(logits[-1].argmax())
        output = model(
            input_ids=torch.tensor([[token]]),
            past_key_values=cache,
            pictures=prepared.get("pictures"),
        )
        logits.append(output.logits[0, -1])
    return torch.stack(logits)
