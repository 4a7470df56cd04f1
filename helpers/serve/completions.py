"""How a streamed or a whole answer is written in OpenAI's chat protocol, event by event.

What this module does not know: the web, and how an answer is computed.
"""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from helpers.run.replies import LENGTH, STOP, AnswerPiece, Counts, Reply
from helpers.serve.protocol import ChatRequest, Json, Refusal

THOUGHT = "reasoning_content"  # the field of a thought, as DeepSeek, vLLM and SGLang write it


def new_id(prefix: str = "chatcmpl") -> str:
    """Return an id that no other answer has."""
    return f"{prefix}-{uuid.uuid4().hex}"


def usage_of(counts: Counts) -> Json:
    """Return the tokens that an answer took as OpenAI's clients read them."""
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.answer,
        "total_tokens": counts.prompt + counts.answer,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
        "completion_tokens_details": {"reasoning_tokens": counts.thought},
    }


@dataclass(frozen=True)
class Completion:
    """What all parts of one answer have in common."""

    model: str
    id: str = field(default_factory=new_id)
    created: int = field(default_factory=lambda: int(time.time()))

    def _body(self, kind: str, choices: list[Json], counts: Counts | None) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": counts and usage_of(counts),
        }

    def whole(self, text: str, finish: str, counts: Counts, *, thought: str = "") -> Json:
        """Return an answer in one piece, with the thought before it, if there is one."""
        message = {"role": "assistant", "content": text, "refusal": None}
        message |= {THOUGHT: thought} if thought else {}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return self._body("chat.completion", [choice], counts)

    def chunk(self, delta: Json, finish: str | None = None) -> Json:
        """Return a piece of a streamed answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._body("chat.completion.chunk", [choice], None)

    def usage_chunk(self, counts: Counts) -> Json:
        """Return the last piece of a streamed answer for a client that asked for the counts."""
        return self._body("chat.completion.chunk", [], counts)


def model_body(name: str, created: int, fingerprint: str | None) -> Json:
    """Return a model as the list of models has it.

    Its `fingerprint`, which tells models apart, is ours; it is None until the model is loaded.
    """
    body = {"id": name, "object": "model", "created": created, "owned_by": "vlm"}
    return body | {"fingerprint": fingerprint}


class Writer(Protocol):
    """Writes one answer in a protocol: as one object, or as server-sent events."""

    def beginning(self) -> Iterator[str]:
        """Give the events before the first piece."""

    def piece(self, piece: AnswerPiece) -> str:
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


def finish_of(reply: Reply) -> str:
    """Return why an answer ended in OpenAI's words; one that was cancelled is not whole."""
    return STOP if reply.finish == STOP else LENGTH


class ChatWriter:
    """Writes chat completions; `model` is the name that the client knows."""

    def __init__(self, request: ChatRequest, model: str) -> None:
        self.request, self.completion = request, Completion(model)

    def beginning(self) -> Iterator[str]:
        """Give the role at once: some clients give up without a first chunk."""
        yield event(self.completion.chunk({"role": "assistant", "content": ""}))

    def piece(self, piece: AnswerPiece) -> str:
        """Return a chunk with a piece of text, or with nothing."""
        name = THOUGHT if piece.is_thought else "content"
        return event(self.completion.chunk({name: piece.text} if piece.text else {}))

    def end(self, reply: Reply) -> Iterator[str]:
        """Give why the answer ended, the counts where they are asked for, and the last mark."""
        yield event(self.completion.chunk({}, finish_of(reply)))
        if self.request.with_usage:
            yield event(self.completion.usage_chunk(reply.counts))
        yield "data: [DONE]\n\n"

    def failure(self, refusal: Refusal) -> Iterator[str]:
        """Give the error, which the official client raises."""
        yield event(refusal.body())
        yield "data: [DONE]\n\n"

    def whole(self, reply: Reply) -> Json:
        """Return the chat completion."""
        finish = finish_of(reply)
        return self.completion.whole(reply.text, finish, reply.counts, thought=reply.thought)
