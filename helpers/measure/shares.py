"""How many of a number of questions are right, and how far chance may move that."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """How many of a number of questions: `right` of `total`."""

    right: int
    total: int

    @property
    def value(self) -> float:
        """The share, 0 to 1."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share of all such questions lies with a probability of 95 %, 0 to 1.

        Wilson's score interval (E. B. Wilson, 1927, doi:10.1080/01621459.1927.10502953).
        """
        z, n = 1.96, self.total
        middle = (self.value + z**2 / (2 * n)) / (1 + z**2 / n)
        half = (
            z / (1 + z**2 / n) * math.sqrt(self.value * (1 - self.value) / n + (z / (2 * n)) ** 2)
        )
        return max(0.0, middle - half), min(1.0, middle + half)

    @property
    def count(self) -> str:
        """The share as a count in words: 12 of 13."""
        return f"{self.right} of {self.total}"

    def __str__(self) -> str:
        """Return a count below 50 questions, a percentage with its interval from there on."""
        if self.total < 50:
            return self.count
        low, high = self.interval
        return f"{self.value:.1%} ({100 * low:.0f} to {100 * high:.0f})"
