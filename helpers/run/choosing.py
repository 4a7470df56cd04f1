"""How the next token is chosen from the logits: the most probable one, or a sample.

The order of the steps, and that only the 50 most probable tokens are sampled from unless another
number is asked for, are those of transformers' `generate`.

What this module does not know: how logits are computed.
"""

import torch
from torch import Tensor
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from helpers.run.sampling import Sampling

TOP_K = 50  # `GenerationConfig.top_k`, unless it is set


class Chooser:
    """Chooses the tokens of one answer; the same `seed` chooses the same ones."""

    def __init__(self, sampling: Sampling, schema: LogitsProcessor | None = None) -> None:
        self.processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self.processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if schema is not None:
            self.processors.append(schema)
        self.generator: torch.Generator | None = None
        if not sampling.do_sample:
            return
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)
        if sampling.temperature not in (None, 1):
            self.processors.append(TemperatureLogitsWarper(sampling.temperature))
        top_k = TOP_K if sampling.top_k is None else sampling.top_k
        if top_k:
            self.processors.append(TopKLogitsWarper(top_k))
        if sampling.top_p is not None and sampling.top_p < 1:
            self.processors.append(TopPLogitsWarper(sampling.top_p))

    def choose(self, logits: Tensor, token_ids: list[int]) -> int:
        """Return the token that follows `token_ids`, those of the answer, with logits (1, n)."""
        answer = torch.tensor([token_ids], dtype=torch.int64)
        scores = self.processors(answer, logits)  # type: ignore[arg-type]
        if self.generator is None:
            return int(scores.argmax(-1))
        probabilities = scores.softmax(-1)
        return int(torch.multinomial(probabilities, 1, generator=self.generator))
