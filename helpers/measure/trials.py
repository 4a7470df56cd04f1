"""What came of each candidate that `vlm tune` measured, and of a part's candidates altogether.

What this module does not know: how they are measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from helpers.graphs.part_names import LANGUAGE_MODEL, NEXT_TOKENS
from helpers.measure.duels import MARGIN, Duel
from helpers.resources import time_in_words
from helpers.run.tuning import Properties, properties_in_words

NOISY = "too noisy to say: the times vary"
NOT_ALWAYS, TOO_FAR = "but not in every round", "but too far from ACCURACY mode"
REFUSED, NO_ROOM = "cannot be computed here", "there is no memory to compile it beside the fastest"


@dataclass(frozen=True)
class Trial:
    """A candidate for a part: its seconds and those of the fastest before it, how far it is, why.

    `properties` are those of the part, or for next tokens apart those of both language models, by
    their names. The divergence is in nats. None is what was not measured.
    """

    part: str
    properties: Mapping[str, Properties]
    before: float | None
    seconds: float | None
    divergence: float | None
    verdict: str

    @property
    def words(self) -> str:
        """The properties as a person reads them."""
        words = properties_in_words(self.properties[self.part])
        of_prompts = self.properties.get(LANGUAGE_MODEL)
        if self.part != NEXT_TOKENS or of_prompts in (None, self.properties[NEXT_TOKENS]):
            return words
        return f"{words}; prompts {properties_in_words(of_prompts)}"

    @property
    def row(self) -> dict[str, str]:
        """The trial as a row of a table."""
        times = [self.before, self.seconds]
        before, seconds = ("-" if value is None else time_in_words(value) for value in times)
        return {
            "part": self.part,
            "candidate": self.words,
            "before": before,
            "with it": seconds,
            "1000 KL": "-" if self.divergence is None else f"{1000 * self.divergence:.3f}",
            "verdict": self.verdict,
        }


def trial_of(
    part: str,
    properties: Mapping[str, Properties],
    result: Duel,
    divergence: float | None,
    bound: float,
) -> Trial:
    """Return the trial of a candidate that was measured, and in nats how far it may diverge."""
    ratio = median(result.ratios)
    if result.is_too_noisy:
        verdict = f"{NOISY} by {result.noise:.0%}"
    elif divergence is not None and divergence > bound:
        far = f"{1000 * divergence:.3g} thousandths of a nat, at most {1000 * bound:.3g}"
        verdict = f"{ratio:.2f} of the time, {TOO_FAR} ({far})"
    elif ratio < MARGIN and not result.is_won:
        verdict = f"{ratio:.2f} of the time, {NOT_ALWAYS}"
    else:
        verdict = f"{ratio:.2f} of the time" + (", taken" if result.is_won else "")
    times = median(result.champion), median(result.challenger)
    return Trial(part, properties, *times, divergence, verdict)


def measured(trials: Sequence[Trial], part: str) -> list[Trial]:
    """Return those trials of a part in which a candidate was measured."""
    return [trial for trial in trials if trial.part == part and trial.seconds is not None]


def is_unclear(trials: Sequence[Trial]) -> bool:
    """Return whether trials leave open what is fastest: for noise, or with none measured."""
    verdicts = [trial.verdict for trial in trials if trial.seconds is not None]
    return not verdicts or any(map(_leaves_open, verdicts))


def _leaves_open(verdict: str) -> bool:
    return NOISY in verdict or NOT_ALWAYS in verdict


def part_reason(part: str, trials: Sequence[Trial], gain: float, untried: int) -> str:
    """Return in a sentence what came of a part's trials, which took `gain` of the default's time.

    For so many candidates that were `untried` there was no time.
    """
    if part == NEXT_TOKENS:  # whose trial is a second language model beside the first one
        default, unchanged, others = "one model", "keeps one language model", "two"
    else:
        default, unchanged, others = "the default", "keeps the defaults", "others"
    no_time = f"; there was no time for {untried} more" if untried else ""
    if gain < 1:
        return f"takes {gain:.2f} of {default}'s time{no_time}"
    if untried and not trials:
        return f"{unchanged}: there was no time to try {others}; `--seconds` gives more"
    return unchanged + _why_unchanged(trials, others) + no_time


def _why_unchanged(trials: Sequence[Trial], others: str) -> str:
    """Return, as the end of a sentence, why none of a part's trials was taken."""
    verdicts = [trial.verdict for trial in trials]
    unclear = [verdict for verdict in verdicts if _leaves_open(verdict)]
    too_far = [verdict for verdict in verdicts if TOO_FAR in verdict]
    number = sum(trial.seconds is not None for trial in trials)
    if unclear:
        return f": {unclear[0]}; try again while nothing else computes"
    if too_far:
        return f": {too_far[0]}"
    if number:
        return f", of {number + 1} settings the fastest"
    if NO_ROOM in verdicts:
        return f": {NO_ROOM}"
    if trials:
        return f": {others} cannot be computed here"
    return ": no other setting computes otherwise on this processor"
