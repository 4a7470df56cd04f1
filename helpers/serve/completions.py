"""How a streamed or a whole answer is written in OpenAI's chat protocol, event by event.

What this module does not know: the web, and how an answer is computed.
"""

import json
from collections.abc import Iterator
from typing import Protocol

from helpers.run.replies import LENGTH, Reply
from helpers.serve.protocol import ChatRequest, Completion, Json, Refusal, Usage


class Writer(Protocol):
    """Writes one answer in a protocol: as one object, or as server-sent events."""

    def beginning(self) -> Iterator[str]:
        """Give the events before the first piece."""

    def piece(self, text: str) -> str:
        """Return the event of a piece of text; an empty one keeps the connection alive."""

    def end(self, reply: Reply) -> Iterator[str]:
        """Give the events after the last piece."""

    def failure(self, refusal: Refusal) -> Iterator[str]:
        """Give the events of an answer that fails after it has begun."""

    def whole(self, reply: Reply) -> Json:
        """Return the whole answer as one object."""


def event(data: Json, name: str | None = None) -> str:
    """Return a server-sent event (HTML standard, 9.2)."""
    first = f"event: {name}\n" if name else ""
    return f"{first}data: {json.dumps(data, ensure_ascii=False)}\n\n"


def usage_of(reply: Reply) -> Usage:
    """Return the tokens that a finished answer took."""
    counts = reply.counts
    return Usage(counts.prompt, counts.answer, counts.cached)


def finish_of(reply: Reply) -> str:
    """Return why an answer ended in OpenAI's words; one that was cancelled is not whole."""
    return "stop" if reply.finish == "stop" else LENGTH


class ChatWriter:
    """Writes chat completions; `model` is the name that the client knows."""

    def __init__(self, request: ChatRequest, model: str) -> None:
        self.request, self.completion = request, Completion(model)

    def beginning(self) -> Iterator[str]:
        """Give the role at once: some clients give up without a first chunk."""
        yield event(self.completion.chunk({"role": "assistant", "content": ""}))

    def piece(self, text: str) -> str:
        """Return a chunk with a piece of text, or with nothing."""
        return event(self.completion.chunk({"content": text} if text else {}))

    def end(self, reply: Reply) -> Iterator[str]:
        """Give why the answer ended, the counts where they are asked for, and the last mark."""
        yield event(self.completion.chunk({}, finish_of(reply)))
        if self.request.with_usage:
            yield event(self.completion.usage_chunk(usage_of(reply)))
        yield "data: [DONE]\n\n"

    def failure(self, refusal: Refusal) -> Iterator[str]:
        """Give the error, which the official client raises."""
        yield event(refusal.body())
        yield "data: [DONE]\n\n"

    def whole(self, reply: Reply) -> Json:
        """Return the chat completion."""
        return self.completion.whole(reply.text, finish_of(reply), usage_of(reply))
