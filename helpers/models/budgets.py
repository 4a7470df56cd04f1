"""How many tokens of a picture reach the language model, and what that means to a model of pieces.

A budget is a number of tokens. A family that cuts pictures into tiles or slices says how many
tokens a piece has; then as many pieces are cut as the budget has room for.

What this module does not know: how a picture is cut.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class PicturePieces:
    """The pieces that a picture is cut into: what they are called, the tokens of each, the most.

    `overview` says that beside several pieces comes the whole picture as one more. `choices` are
    the only numbers of pieces that there can be, where not all up to the most can be. `finer` is
    how many tokens a piece has instead where the budget has room for the most pieces of so many; 0
    where there is no such choice. `varies` says that `tokens` are those of a square piece, and that
    one of another shape may have a few more.
    """

    name: str
    tokens: int
    most: int = 1
    overview: bool = False
    choices: tuple[int, ...] = ()
    finer: int = 0
    varies: bool = False

    @property
    def largest(self) -> int:
        """How many tokens a picture has at most."""
        return replace(self, tokens=self.finer or self.tokens).total(self.most)

    def at(self, budget: int | None) -> "PicturePieces":
        """Return the pieces that a budget has room for; None: those of the files."""
        if not self.finer or budget is None or budget < self.largest:
            return self
        return replace(self, tokens=self.finer, finer=0)

    def total(self, pieces: int) -> int:
        """Return how many tokens a picture in so many pieces has."""
        return self.tokens * (pieces + (self.overview and pieces > 1))

    def within(self, budget: int | None) -> int:
        """Return into how many pieces a picture may be cut; None: as many as there can be."""
        if budget is None:
            return self.most
        choices = self.choices or range(1, self.most + 1)
        fitting = [pieces for pieces in choices if self.total(pieces) <= budget]
        return max(fitting, default=1)

    def tokens_within(self, budget: int | None) -> int:
        """Return how many tokens a picture has at most within a budget."""
        return self.at(budget).total(self.within(budget))

    def sentence(self, budget: int | None) -> str:
        """Return what a picture becomes, in words."""
        if self.at(budget) != self:
            return self.at(budget).sentence(budget)
        pieces = self.within(budget)
        tokens, about = f"{self.total(pieces)} tokens", "about " if self.varies else ""
        if self.most == 1:
            return f"{tokens}, whatever its size"
        if self.choices:
            return f"at most {tokens}"
        if pieces == 1:
            return f"{about}{tokens}: one {self.name}"
        overview = " and one of the whole picture" if self.overview else ""
        most = f"about {tokens} at most" if self.varies else f"at most {tokens}"
        return f"{most}: {pieces} {self.name}s of {about}{self.tokens}{overview}"
