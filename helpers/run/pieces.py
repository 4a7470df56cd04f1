"""How much of a prompt is computed at once, so that not too much of it is computed for nobody.

Weights are read and unpacked anew for each piece, and what stands in the cache already is attended
to in a slower way: the larger pieces are, the sooner a prompt is done. An answer that is stopped
ends at once, but the piece that was begun is finished in the background.
"""

LEAST = 32  # positions; still smaller pieces would take a prompt twice its time or more
LONGEST = 3.0  # seconds that a piece should take, which the next question may have to wait
GROWTH = 16  # a piece is at most so many times larger than the one before
STRETCH = 256  # positions of the past within which pieces take alike


class PieceSizes:
    """The sizes of pieces in positions, from the seconds that earlier ones took.

    They begin small, while nothing is known of the model's speed. The more positions are in the
    cache the longer a piece takes, so each stretch of them has a size of its own.
    """

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.last = LEAST

    def size(self, past: int) -> int:
        """Return the size of a piece behind so many positions."""
        return self.sizes.get(past // STRETCH, self.last)

    def note(self, past: int, positions: int, seconds: float) -> None:
        """Note what a piece took; one that is smaller than `size` says less, and enlarges nothing.

        Positions take less time each the more there are, so sizes come near from below.
        """
        if positions >= self.size(past) or seconds > LONGEST:
            fitting = int(positions * min(GROWTH, LONGEST / seconds))
            self.last = self.sizes[past // STRETCH] = max(LEAST, fitting - fitting % LEAST)
