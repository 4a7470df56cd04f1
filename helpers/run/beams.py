"""The best of several answers that are followed at once: transformers' beam search.

What this module does not know: conversations, and how an answer is told while it is computed.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import GenerationConfig
from transformers.generation import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
)

from helpers.graphs.core import Stoppable
from helpers.run.caches import StateCache
from helpers.run.generation import StatefulLanguageModel, StopOnEvent
from helpers.run.sampling import Sampling


def search(
    language_model: StatefulLanguageModel,
    prepared: dict[str, Any],
    cache: StateCache,
    sampling: Sampling,
    *,
    stop: Stoppable,
    stop_ids: Sequence[int],
) -> list[int]:
    """Return the tokens of the best beam behind a prompt that was `prepared`."""
    config = GenerationConfig(
        **sampling.for_generate(), eos_token_id=list(stop_ids), pad_token_id=stop_ids[0]
    )
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    # Given as an option, a penalty would warn of each answer that the prompt has none.
    penalty = sampling.repetition_penalty
    penalties = [] if penalty == 1 else [RepetitionPenaltyLogitsProcessor(penalty)]
    output = cast(Any, language_model).generate(
        **prepared,
        past_key_values=cache,
        generation_config=config,
        stopping_criteria=StoppingCriteriaList([StopOnEvent(stop)]),
        logits_processor=LogitsProcessorList(penalties),
    )
    return cast(list[int], output[0].tolist())
