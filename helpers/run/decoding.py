"""Tokens of an answer become text as they come.

What this module does not know: which tokens are an answer's, and who reads the text.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what tokenizers decode to for bytes that are no whole character


class Decoder:
    """Decodes an answer's tokens as they come; what has become `text` stays as it is.

    All tokens are decoded each time, since a tokenizer may drop the space before the first of them.
    A character that is not complete waits for the rest of its bytes, and at the end of an answer is
    left out: it is no character, and the limit of tokens cut it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.token_ids: list[int] = []
        self.text = ""

    def add(self, token_ids: list[int]) -> str:
        """Take tokens and return the text that they add."""
        self.token_ids += token_ids
        # Clean-up would take spaces away again that are a part of what has become text.
        text = self.tokenizer.decode(
            self.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        # Bytes in a row are decoded together: one that is no character's spoils those before it,
        # and as many marks stand there or more. So what is left of the text goes on behind it.
        piece = str(text).rstrip(UNFINISHED)[len(self.text) :]
        self.text += piece
        return piece


def text_of(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Return the text of an answer's tokens, as its pieces joined would be."""
    decoder = Decoder(tokenizer)
    for token in token_ids:
        decoder.add([token])
    return decoder.text.strip()
