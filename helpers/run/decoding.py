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
        # " n't" becomes "n't" when it is complete, so the last word waits too.
        self.is_by_words = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self.token_ids: list[int] = []
        self.text = ""

    def add(self, token_ids: list[int]) -> str:
        """Take tokens and return the text that they add."""
        self.token_ids += token_ids
        text = self._complete_text()
        return self._extended(text[: text.rfind(" ") + 1].rstrip() if self.is_by_words else text)

    def end(self) -> str:
        """Return the text that is left when no more tokens come."""
        return self._extended(self._complete_text())

    def _complete_text(self) -> str:
        text = self.tokenizer.decode(self.token_ids, skip_special_tokens=True)
        return str(text).rstrip(UNFINISHED)

    def _extended(self, text: str) -> str:
        # Bytes in a row are decoded together, so an unfinished one may spoil those before it.
        piece = text[len(self.text) :] if text.startswith(self.text) else ""
        self.text += piece
        return piece


def text_of(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Return the text of an answer's tokens, as its pieces joined would be."""
    decoder = Decoder(tokenizer)
    for token in token_ids:
        decoder.add([token])
    decoder.end()
    return decoder.text.strip()
