"""Which of two ways is faster, on a computer that other programs use too.

What this module does not know: what is measured.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

LEAST_ROUNDS, ROUNDS = 3, 5
GIVE_UP = 1.2  # so many times slower in each of two rounds, and the others are not measured
MARGIN = 0.95  # of the champion's time is what a challenger has to come down to
NOISE = 0.2  # of the ratio: where its middle half is wider than this, nothing can be said


@dataclass(frozen=True)
class Duel:
    """The seconds of a champion and of its challenger, round by round, each round in turn."""

    champion: list[float]
    challenger: list[float]

    @property
    def ratios(self) -> list[float]:
        """The challenger's time by the champion's, round by round: what drifts meets both."""
        return [new / old for old, new in zip(self.champion, self.challenger, strict=True)]

    @property
    def is_given_up(self) -> bool:
        """Whether the challenger is so much slower that further rounds would change nothing."""
        return len(self.ratios) > 1 and min(self.ratios) > GIVE_UP

    @property
    def is_decided(self) -> bool:
        """Whether further rounds would change nothing, since the ratios are too far from `MARGIN`.

        That is more than twice as far as the least and the most of them are from each other.
        """
        if len(self.ratios) < LEAST_ROUNDS:
            return self.is_given_up
        spread = max(self.ratios) - min(self.ratios)
        return self.is_given_up or 2 * spread < abs(median(self.ratios) - MARGIN)

    @property
    def noise(self) -> float:
        """How wide the middle half of the ratios is, by their median."""
        low, middle, high = quantiles(self.ratios, n=4, method="inclusive")
        return (high - low) / middle

    @property
    def is_too_noisy(self) -> bool:
        """Whether the times vary too much to say which is faster."""
        return not self.is_given_up and self.noise > NOISE

    @property
    def is_won(self) -> bool:
        """Whether the challenger is faster: by the margin, and in every round.

        One that is as fast as the champion comes out faster in all of five rounds once in 32 times;
        after three there is a distance besides, see `is_decided`.
        """
        return not self.is_too_noisy and median(self.ratios) < MARGIN and max(self.ratios) < 1


def duel(champion: Callable[[], float], challenger: Callable[[], float]) -> Duel:
    """Measure two ways in turn; each call returns seconds, and a first one of each is left out.

    The one that comes first in a round comes last in the next, so that what drifts favours neither.
    """
    champion(), challenger()
    result = Duel([], [])
    turns = [(result.champion, champion), (result.challenger, challenger)]
    for number in range(ROUNDS):
        for seconds, measure in turns[:: (1, -1)[number % 2]]:
            seconds.append(measure())
        if result.is_decided:
            break
    return result


def seconds_of_duel(champion: Callable[[], float], limit: float) -> float:
    """Return about how many seconds a duel takes at most if both ways take as long.

    The champion is called twice, since a first call takes longer than the next ones; but once
    where even half of its time makes a duel longer than `limit` seconds. The clock decides, not
    what the champion returns, which may stand for more than was computed.
    """
    calls, seconds = 2 * (1 + ROUNDS), list[float]()
    while len(seconds) < 2 and calls * sum(seconds) / 2 <= limit:
        start = time.perf_counter()
        champion()
        seconds.append(time.perf_counter() - start)
    return calls * min(seconds)
