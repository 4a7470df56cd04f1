"""Tables of tokens: with rows that are scaled, and shared with the last layer or not."""

from typing import Any

import torch
from torch import Tensor, nn

from helpers.graphs.parts import Traceable


def is_tied(settings: Any) -> bool:
    """Return whether a last layer that is not in the files is the table of embeddings.

    transformers 5 asks the config of the whole model, transformers 4 that of the text; a file of
    either may say it in one place alone. A last layer that is there counts whatever they say.
    """
    sections = (settings, settings.text_config)
    return any(getattr(section, "tie_word_embeddings", False) for section in sections)


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
