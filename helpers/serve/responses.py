"""OpenAI's responses protocol, the part without state: texts and pictures in, text events out.

Source: OpenAI's API reference, "Responses" and its streaming events. Nothing is stored, so that an
earlier response cannot be named.

What this module does not know: the web, and how an answer is computed.
"""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

from helpers.run.replies import STOP, AnswerPiece, Reply
from helpers.serve.completions import event, new_id
from helpers.serve.protocol import (
    ChatRequest,
    Json,
    OpenPicture,
    Refusal,
    limit_of,
    object_of,
    parse_request,
    schema_of,
    value_of,
)

# Fields that name what is stored elsewhere, or work that goes on without the client.
UNSUPPORTED = ("previous_response_id", "conversation", "background", "prompt", "top_logprobs")
SAME = ("model", "temperature", "top_p", "stream", "tools", "modalities", "chat_template_kwargs")
# Understood or without effect on the answer.
FIELDS = frozenset(
    {*SAME, *UNSUPPORTED, "input", "instructions", "max_output_tokens", "text", "reasoning"}
)


def parse_response_request(body: object, open_picture: OpenPicture) -> ChatRequest:
    """Return what the body of a response asks for, as the chat completion that it amounts to."""
    body = object_of(body)
    for name in UNSUPPORTED:
        if body.get(name):
            raise Refusal(
                f"{name} is not supported, since nothing is stored here; send the whole "
                "conversation as input.",
                parameter=name,
                code="unsupported_parameter",
            )
    chat: Json = {name: body[name] for name in SAME if name in body}
    chat["messages"] = _messages(body)
    if body.get("tool_choice") not in (None, "none", "auto"):
        chat["tool_choice"] = body["tool_choice"]
    # What has another name here is checked here, so that an error has the client's.
    chat["max_completion_tokens"] = limit_of(body, "max_output_tokens")
    reasoning = value_of(body, "reasoning", dict) or {}
    chat["reasoning_effort"] = value_of(reasoning, "effort", str, place="reasoning.")
    form = value_of(value_of(body, "text", dict) or {}, "format", dict, place="text.")
    if form is not None:
        chat["response_format"] = form | {"json_schema": form}
        schema_of(chat["response_format"], "text.format")
    try:
        request = parse_request(chat, open_picture)
    except Refusal as refusal:
        raise _of_input(refusal) from None
    request.ignored[:] = sorted(set(body) - FIELDS)
    return request


def _of_input(refusal: Refusal) -> Refusal:
    """Return an error of messages as one of the field that they have here; any other as it is."""
    place = re.match(r"messages(\[\d+\])?", refusal.parameter or "")
    if place is None:
        return refusal
    name = "input" + (refusal.parameter or "")[place.end() :]
    message = refusal.message.replace(refusal.parameter or "", name, 1)
    return Refusal(message, status=refusal.status, parameter=name, code=refusal.code)


def _messages(body: Json) -> list[Any]:
    """Return the messages of a body: its instructions, and its input in any of its forms."""
    instructions, value = value_of(body, "instructions", str), body.get("input")
    messages: list[Any] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(value, str):
        return [*messages, {"role": "user", "content": value}]
    if not isinstance(value, list):
        raise Refusal("input should be a text or a list of messages.", parameter="input")
    for item in value:
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "reasoning":  # thoughts of an earlier answer are not read again
            continue
        if kind != "message":
            what = f"of type {json.dumps(kind)}" if kind else "without a type"
            raise Refusal(f"input has an item {what}; only messages are understood.")
        messages.append(item)
    return messages


class ResponseWriter:
    """Writes a response; each event has the next `sequence_number`.

    Its items are the thought, if there is one, and the message; each begins with its first piece.
    """

    def __init__(self, request: ChatRequest, model: str) -> None:
        self.request, self.model = request, model
        self.id, self.item_id, self.thought_id = new_id("resp"), new_id("msg"), new_id("rs")
        self.created = int(time.time())
        self.number = 0
        self.text, self.thought = "", ""
        self.has_message = False

    def _event(self, kind: str, **fields: Any) -> str:
        body = {"type": kind, "sequence_number": self.number, **fields}
        self.number += 1
        return event(body, kind)

    @property
    def place(self) -> int:
        """The message's place among the items."""
        return int(bool(self.thought))

    def _part_event(self, kind: str, **fields: Any) -> str:
        place = {"item_id": self.item_id, "output_index": self.place, "content_index": 0}
        return self._event(kind, **place, **fields)

    def _thought_event(self, kind: str, **fields: Any) -> str:
        place = {"item_id": self.thought_id, "output_index": 0, "content_index": 0}
        return self._event(f"response.reasoning_text.{kind}", **place, **fields)

    def _thought_item(self, status: str) -> Json:
        content = [{"type": "reasoning_text", "text": self.thought}]
        item = {"id": self.thought_id, "type": "reasoning", "status": status, "summary": []}
        return item | {"content": content if status != "in_progress" else []}

    def _response(self, status: str, **fields: Any) -> Json:
        options = self.request.options
        body: Json = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "model": self.model,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": options.get("max_new_tokens"),
            "metadata": {},
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": options.get("temperature", 0),
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": options.get("top_p", 1),
            "truncation": "disabled",
            "usage": None,
        }
        return body | fields

    def _item(self, status: str) -> Json:
        content = [self._part()] if status != "in_progress" else []
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _part(self) -> Json:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}

    def beginning(self) -> Iterator[str]:
        """Give the response that begins."""
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))

    def piece(self, piece: AnswerPiece) -> str:
        """Return the events of a piece of text; without any, that it is still in progress."""
        if not piece.text:
            return self._event("response.in_progress", response=self._response("in_progress"))
        if piece.is_thought:
            return "".join(self._piece_of_thought(piece.text))
        beginning = "".join(self._beginning_of_message())
        self.text += piece.text
        delta = self._part_event("response.output_text.delta", delta=piece.text, logprobs=[])
        return beginning + delta

    def _piece_of_thought(self, text: str) -> Iterator[str]:
        if not self.thought:
            item = self._thought_item("in_progress")
            yield self._event("response.output_item.added", output_index=0, item=item)
        self.thought += text
        yield self._thought_event("delta", delta=text)

    def _beginning_of_message(self) -> Iterator[str]:
        """Give the end of a thought and the beginning of the message, unless it has begun."""
        if self.has_message:
            return
        self.has_message = True
        if self.thought:
            yield self._thought_event("done", text=self.thought)
            item = self._thought_item("completed")
            yield self._event("response.output_item.done", output_index=0, item=item)
        item = self._item("in_progress")
        yield self._event("response.output_item.added", output_index=self.place, item=item)
        yield self._part_event("response.content_part.added", part=self._part())

    def end(self, reply: Reply) -> Iterator[str]:
        """Give the whole text, the message and the response."""
        yield from self._beginning_of_message()
        yield self._part_event("response.output_text.done", text=self.text, logprobs=[])
        yield self._part_event("response.content_part.done", part=self._part())
        response = self._finished(reply)
        item = response["output"][-1]
        yield self._event("response.output_item.done", output_index=self.place, item=item)
        yield self._event(f"response.{response['status']}", response=response)

    def failure(self, refusal: Refusal) -> Iterator[str]:
        """Give the response that failed."""
        error = {"code": "server_error", "message": refusal.message}
        yield self._event("response.failed", response=self._response("failed", error=error))

    def whole(self, reply: Reply) -> Json:
        """Return the response."""
        self.text, self.thought = reply.text, reply.thought
        return self._finished(reply)

    def _finished(self, reply: Reply) -> Json:
        is_whole = reply.finish == STOP
        status = "completed" if is_whole else "incomplete"
        counts = reply.counts
        return self._response(
            status,
            output=[self._thought_item("completed")] * self.place + [self._item(status)],
            incomplete_details=None if is_whole else {"reason": "max_output_tokens"},
            usage={
                "input_tokens": counts.prompt,
                "input_tokens_details": {"cached_tokens": counts.cached},
                "output_tokens": counts.answer,
                "output_tokens_details": {"reasoning_tokens": counts.thought},
                "total_tokens": counts.prompt + counts.answer,
            },
        )
