"""A model that writes what a test says: its logits are replaced, all else is computed."""

from contextlib import contextmanager
from unittest.mock import patch

import torch

from helpers.run.generation import StatefulLanguageModel


@contextmanager
def writing(token_ids: list[int]):
    """Have every answer be these tokens, as far as a grammar lets it."""
    forward, places = StatefulLanguageModel.forward, {}

    def scripted(self, input_ids=None, past_key_values=None, **inputs):
        output = forward(self, input_ids=input_ids, past_key_values=past_key_values, **inputs)
        # A prompt is handed over as embeddings, in one piece or two; each later token as its id.
        place = 0 if input_ids is None else places[past_key_values] + 1
        places[past_key_values] = place
        output.logits.zero_()
        output.logits[..., token_ids[min(place, len(token_ids) - 1)]] = 100.0
        return output

    with torch.inference_mode(), patch.object(StatefulLanguageModel, "forward", scripted):
        yield
