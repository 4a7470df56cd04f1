"""One converted folder as a service: its queue, and the conversations that it remembers.

A client sends its whole conversation with each question. Where the last answers were computed here,
their conversation goes on with its cache, and only what is new is computed.

What this module does not know: the web, and any protocol.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from helpers.errors import ContextError
from helpers.inputs.messages import Message, content_of, pictures_of
from helpers.run.conversations import Conversation
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.replies import Reply
from helpers.serve.protocol import HIGH, LOW, Json

REMEMBERED = 4  # conversations, each of which keeps its cache in memory
USUAL_TOKENS = 1024  # of an answer, where a client names no limit
LOW_TOKENS = 256  # of a picture that is looked at in low detail


class BusyError(Exception):
    """So many requests wait that another one should come later."""


class Service:
    """A pipeline that answers several clients, at most `longest_queue` of them at once.

    Its `fingerprint` tells its model apart from others. `thinking` is whether the model thinks
    before it answers, where a client says nothing.
    """

    def __init__(
        self,
        pipeline: VisionLanguagePipeline,
        *,
        longest_queue: int,
        fingerprint: str = "",
        thinking: bool | None = None,
    ) -> None:
        pipeline.processor.thinking(thinking)  # or it is an error
        self.pipeline, self.fingerprint, self.thinking = pipeline, fingerprint, thinking
        self.longest_queue = longest_queue
        self._lock = threading.Lock()
        self._running = 0
        self._conversations: OrderedDict[bytes, Conversation] = OrderedDict()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in the queue; raises `BusyError` where all are taken."""
        with self._lock:
            if self._running >= self.longest_queue:
                raise BusyError
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def start(
        self, messages: Sequence[Message], options: dict[str, Any], *, detail: str = "auto"
    ) -> Reply:
        """Start the answer to the last of `messages`; its limit is cut to what the context holds.

        A model that has no switch for thinking does as it always does, whatever a client says: many
        send one setting to all models. Raises what `Conversation.ask` raises; `ContextError` where
        no answer has room.
        """
        budget = budget_of(self.pipeline, detail)
        digest = _digest(messages[:-1], budget)  # takes a while, and others look at the lock
        with self._lock:
            conversation = self._conversations.pop(digest, None)
        if conversation is None:
            conversation = self.pipeline.conversation(messages[:-1])
        usual = {"max_new_tokens": USUAL_TOKENS, "thinking": self.thinking}
        options = usual | options | {"picture_tokens": budget}
        if not self.pipeline.processor.has_switch:
            del options["thinking"]
        return ask_within_context(conversation, messages[-1], options)

    def remember(self, messages: Sequence[Message], reply: Reply, *, detail: str = "auto") -> None:
        """Keep the conversation of a finished answer for the question that may follow."""
        digest = _digest([*messages, reply.message], budget_of(self.pipeline, detail))
        with self._lock:
            self._conversations[digest] = reply.conversation
            while len(self._conversations) > REMEMBERED:
                self._conversations.popitem(last=False)


def budget_of(pipeline: VisionLanguagePipeline, detail: str) -> int | None:
    """Return the tokens of a picture that is looked at so closely; None for the pipeline's own."""
    pieces = pipeline.processor.pieces
    if detail == HIGH:
        return pieces.largest
    return max(LOW_TOKENS, pieces.tokens) if detail == LOW else None


def ask_within_context(conversation: Conversation, message: Message, options: Json) -> Reply:
    """Ask a question; the limit of its answer is cut to what the context holds."""
    try:
        return conversation.ask(message, **options)
    except ContextError as error:
        if not error.room:
            raise
        return conversation.ask(message, **options | {"max_new_tokens": error.room})


def _digest(messages: Sequence[Message], budget: int | None) -> bytes:
    """Return what tells conversations apart: roles, words and pixels, and the pictures' budget."""
    digest = hashlib.sha256(repr(budget).encode())
    for message in messages:
        text, pictures = content_of(message)
        digest.update(repr((message["role"], text.strip(), pictures)).encode())
        for picture in pictures_of(message):
            digest.update(repr(picture.size).encode())
            digest.update(picture.tobytes())
    return digest.digest()
