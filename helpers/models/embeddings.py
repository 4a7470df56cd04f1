"""Tables of tokens whose rows are scaled, as models with a scale of their own have them."""

import torch
from torch import Tensor, nn

from helpers.graphs.parts import Traceable


def plain_table(weight: Tensor) -> nn.Embedding:
    """Return a table of the one class whose 16-bit weights a trace shares."""
    rows, width = weight.shape
    return nn.Embedding(rows, width, _weight=weight)


class ScaledEmbedding(nn.Embedding):
    """A table whose rows are multiplied by `factor`, rounded to the type that is computed in."""

    def __init__(self, rows: int, width: int, factor: float) -> None:
        super().__init__(rows, width)
        self.factor = factor

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the rows (..., width) of token ids; in bfloat16 the root of 2560 is 50.5."""
        rows = super().forward(input_ids)
        return rows * torch.tensor(self.factor, dtype=rows.dtype, device="cpu").item()

    def traceable(self) -> Traceable:
        """Return a plain table, so that 16 bits stay 16, and the factor behind it."""
        table, factor = plain_table(self.weight), self.factor
        return Traceable(lambda input_ids: table(input_ids) * factor, table)
