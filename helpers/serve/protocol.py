"""OpenAI's chat protocol as plain dictionaries: a request read.

Source of the fields and of the error form: OpenAI's API reference, "Chat completions", and what
its Python client expects of them.

What this module does not know: the web, how a picture's address becomes a picture, and models.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from PIL import Image

from helpers.errors import is_whole, shortened
from helpers.inputs.messages import SYSTEM_ROLE, Message, has_halves
from helpers.run.sampling import HIGHEST_SEED, INTEGERS, LONGEST_ANSWER, RANGES, is_within

Json = dict[str, Any]
OpenPicture = Callable[[str], Image.Image]

LOW, HIGH = "low", "high"  # how closely a picture is looked at; "auto" is as usual
ROLES = {"system": SYSTEM_ROLE, "developer": SYSTEM_ROLE, "user": "user", "assistant": "assistant"}
MOST_STOP_STRINGS = 16  # OpenAI allows 4
# OpenAI's seeds have a sign, and 0 of a temperature or a top_p is the least that there is. vLLM's
# top_k of -1 is what 0 is here: of all tokens.
CLIENT_RANGES = RANGES | {
    "seed": (-HIGHEST_SEED - 1, HIGHEST_SEED),
    "temperature": (0, RANGES["temperature"][1]),
    "top_p": (0, RANGES["top_p"][1]),
    "top_k": (-1, RANGES["top_k"][1]),
}
# Fields that are understood; others are ignored and told in the log.
FIELDS = frozenset(
    {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"}
    | {"temperature", "top_p", "top_k", "seed", "stop", "repetition_penalty", "response_format"}
    | {"n", "logprobs", "top_logprobs", "tools", "tool_choice", "functions", "function_call"}
    | {"audio", "modalities", "frequency_penalty", "presence_penalty", "logit_bias"}
    | {"chat_template_kwargs", "reasoning_effort"}
)


class Refusal(Exception):
    """A request that is not answered: what its client is told, in OpenAI's form."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        parameter: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(shortened(message))
        self.message, self.status, self.kind = str(self), status, kind
        self.parameter, self.code, self.headers = parameter, code, dict(headers or {})

    def body(self) -> Json:
        """Return the error as OpenAI's clients read it."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.parameter,
                "code": self.code,
            }
        }


@dataclass(frozen=True)
class ChatRequest:
    """What a client asks for: a conversation whose last message is to be answered.

    `options` are those of `Conversation.ask`; without `max_new_tokens` an answer may be as long as
    the model's context leaves room for. `detail` is how closely its pictures are looked at.
    `ignored` are the names of fields that are not understood and change no answer.
    """

    model: str | None
    messages: list[Message]
    options: Json
    is_streamed: bool = False
    with_usage: bool = False
    detail: str = "auto"
    ignored: list[str] = field(default_factory=list)


def parse_request(body: object, open_picture: OpenPicture) -> ChatRequest:
    """Return what the body of a chat completion asks for.

    `open_picture` is handed the address of each picture. Raises `Refusal` for what is missing, has
    another type, or would change the answer and is not supported.
    """
    body = object_of(body)
    model = model_in(body)
    _refuse_unsupported(body)
    for name in ("tools", "functions"):  # which may be there, and are not called
        value_of(body, name, list)
    details: list[str] = []
    messages = _messages(body.get("messages"), open_picture, details)
    is_streamed = value_of(body, "stream", bool) or False
    stream_options = value_of(body, "stream_options", dict) or {}
    with_usage = value_of(stream_options, "include_usage", bool, place="stream_options.")
    return ChatRequest(
        model=model,
        messages=messages,
        options=_options(body),
        is_streamed=is_streamed,
        with_usage=bool(with_usage),
        detail=detail_of(details),
        ignored=sorted(set(body) - FIELDS),
    )


def object_of(body: object) -> Json:
    """Return the body of a request; raise a `Refusal` for what is no JSON object."""
    if not isinstance(body, dict):
        raise Refusal("The body should be a JSON object.")
    return body


def model_in(body: object) -> str | None:
    """Return the model that a body names, None where it names none."""
    return cast(str | None, value_of(object_of(body), "model", str))


def _refuse_unsupported(body: Json) -> None:
    """Raise a `Refusal` that names a field which would change the answer."""
    unsupported = {
        "n": body.get("n") not in (None, 1),
        "logprobs": bool(body.get("logprobs")),
        "top_logprobs": bool(body.get("top_logprobs")),
        "tool_choice": body.get("tool_choice") not in (None, "none", "auto"),
        "function_call": body.get("function_call") not in (None, "none", "auto"),
        "audio": body.get("audio") is not None,
        "modalities": body.get("modalities") not in (None, ["text"]),
        "frequency_penalty": bool(body.get("frequency_penalty")),
        "presence_penalty": bool(body.get("presence_penalty")),
        "logit_bias": bool(body.get("logit_bias")),
    }
    for name, is_there in unsupported.items():
        if is_there:
            raise Refusal(
                f"{name} is {json.dumps(body[name])}, which is not supported; leave it out.",
                parameter=name,
                code="unsupported_parameter",
            )


def _options(body: Json) -> Json:
    """Return the options of `Conversation.ask` that a body sets."""
    options: Json = {}
    limits = [limit_of(body, name) for name in ("max_completion_tokens", "max_tokens")]
    limit = next((value for value in limits if value is not None), None)
    if limit is not None:
        options["max_new_tokens"] = limit
    temperature, top_p = _number(body, "temperature"), _number(body, "top_p")
    if temperature:
        # Below 0.01 the most probable token has all of the probability.
        options |= {"do_sample": True, "temperature": max(temperature, 0.01)}
        if top_p is not None:
            options["top_p"] = max(top_p, 0.01)
    for name in ("top_k", "repetition_penalty"):
        if (value := _number(body, name)) is not None:
            options[name] = max(value, 0)
    if (seed := _number(body, "seed")) is not None:
        options["seed"] = int(seed) & HIGHEST_SEED
    if (stop := body.get("stop")) is not None:
        options["stop_strings"] = _stop_strings(stop)
    schema = schema_of(value_of(body, "response_format", dict), "response_format")
    if schema is not None:
        options["schema"] = schema
    if (thinking := _thinking(body)) is not None:
        options["thinking"] = thinking
    return options


def limit_of(body: Json, name: str) -> int | None:
    """Return the limit of an answer in tokens, None where it is absent; a larger one is cut.

    Raises `Refusal` for what is no whole number from 1 on.
    """
    value = body.get(name)
    if value is None:
        return None
    if not is_whole(value) or value < 1:
        raise _wrong(name, "a whole number from 1 on")
    return min(int(value), LONGEST_ANSWER)


def _number(body: Json, name: str) -> Any:
    """Return the number in a field, None where it is absent; `Refusal` where it cannot be."""
    value, (low, high) = body.get(name), CLIENT_RANGES[name]
    if value is None:
        return None
    kind = "a whole number" if name in INTEGERS else "a number"
    if not is_within(name, value, (low, high)):
        raise _wrong(name, f"{kind} from {low} to {high}")
    return value


def _thinking(body: Json) -> bool | None:
    """Return whether a body asks for a thought before the answer; None where it says nothing.

    Clients say so as vLLM and SGLang read it, which hand `chat_template_kwargs` to the template, or
    as OpenAI does: any effort but none is a thought.
    """
    switches = value_of(body, "chat_template_kwargs", dict) or {}
    switch = value_of(switches, "enable_thinking", bool, place="chat_template_kwargs.")
    effort = value_of(body, "reasoning_effort", str)
    if switch is None and effort is not None:
        return bool(effort != "none")
    return cast(bool | None, switch)


def _stop_strings(stop: object) -> list[str]:
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or len(strings) > MOST_STOP_STRINGS:
        raise _wrong("stop", f"a text, or a list of at most {MOST_STOP_STRINGS}")
    if not all(isinstance(string, str) and string for string in strings):
        raise _wrong("stop", "texts that are not empty")
    return strings


def schema_of(form: Json | None, name: str) -> Json | None:
    """Return the JSON schema that the form of an answer asks for, if it asks for one.

    Raises a `Refusal` that names the field for another form.
    """
    if form is None or form.get("type") == "text":
        return None
    kind, described = form.get("type"), form.get("json_schema")
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema" and isinstance(described, dict):
        schema = described.get("schema", {"type": "object"})
        if isinstance(schema, dict):
            return schema
    raise _wrong(name, "text, json_object, or json_schema with its schema")


def _messages(value: object, open_picture: OpenPicture, details: list[str]) -> list[Message]:
    """Return messages as `Conversation` takes them, neighbours of one role joined.

    Front ends send two questions in a row where the answer to the first was an error.
    """
    if not isinstance(value, list) or not value:
        raise _wrong("messages", "a list of at least one message")
    messages: list[Message] = []
    for number, message in enumerate(value):
        name = f"messages[{number}]"
        role = ROLES.get(str(message.get("role"))) if isinstance(message, dict) else None
        if role is None:
            raise _wrong(f"{name}.role", f"one of {', '.join(ROLES)}")
        content = _content(message.get("content"), f"{name}.content", open_picture, details)
        if role != "user" and any(part["type"] == "image" for part in content):
            raise _wrong(f"{name}.content", "texts only, since its role is not user")
        if messages and messages[-1]["role"] == role:
            if role != "assistant":  # its answers are one text each
                content = [{"type": "text", "text": "\n"}, *content]
            messages[-1]["content"] += content
        else:
            messages.append({"role": role, "content": content})
    return _in_turn(messages)


def _in_turn(messages: list[Message]) -> list[Message]:
    """Return messages with the system's words first; a conversation begins with a user's."""
    system = [message for message in messages if message["role"] == SYSTEM_ROLE]
    turns = [message for message in messages if message["role"] != SYSTEM_ROLE]
    if not turns or turns[-1]["role"] != "user":
        raise _wrong("messages", "a conversation whose last message is a user's")
    if turns[0]["role"] != "user":
        raise _wrong("messages", "a conversation that a user begins")
    if len(system) > 1 or (system and messages[0] is not system[0]):
        raise _wrong("messages", "a conversation whose system message is the first one")
    return [*system, *turns]


def _content(value: object, name: str, open_picture: OpenPicture, details: list[str]) -> list[Json]:
    """Return the parts of a message; the detail of each picture is added to `details`."""
    if value is None or isinstance(value, str):
        return [{"type": "text", "text": _characters(value or "", name)}]
    if not isinstance(value, list):
        raise _wrong(name, "a text or a list of parts")
    parts: list[Json] = []
    for number, part in enumerate(value):
        place = f"{name}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text"):
            parts.append({"type": "text", "text": _characters(part.get("text"), f"{place}.text")})
        elif kind in ("image_url", "input_image"):
            address, detail = _address(part, place)
            details.append(detail)
            parts.append({"type": "image", "image": open_picture(address)})
        else:
            raise Refusal(
                f"{place} is {json.dumps(kind) if kind else 'without a type'}; texts and pictures "
                "are understood, as text and image_url.",
                parameter=place,
                code="unsupported_content",
            )
    return parts


def _address(part: Json, place: str) -> tuple[str, str]:
    """Return the address and the detail of a picture, in either form that there is."""
    value = part.get("image_url")
    detail = part.get("detail")
    if isinstance(value, dict):
        detail = value.get("detail", detail)
        value = value.get("url")
    if not isinstance(value, str):
        raise _wrong(f"{place}.image_url", "an object with a url")
    if detail not in (None, "auto", LOW, HIGH):
        raise _wrong(f"{place}.detail", "auto, low or high")
    return value, detail or "auto"


def _characters(text: object, name: str) -> str:
    """Return a text; what is none is refused, and one that no tokenizer takes."""
    if not isinstance(text, str) or has_halves(text):
        raise _wrong(name, "a text of whole characters")
    return text


def detail_of(details: Sequence[str]) -> str:
    """Return how closely all pictures of a conversation are looked at: as the closest asks."""
    if HIGH in details:
        return HIGH
    return LOW if details and set(details) == {LOW} else "auto"


def value_of(body: Json, name: str, kind: Any, *, place: str = "") -> Any:
    """Return a field of a body, or of the object at a `place` in it, None where it is absent.

    Raises `Refusal` where it has another type.
    """
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        names = {bool: "true or false", str: "a text", dict: "an object", list: "a list"}
        raise _wrong(place + name, names[kind])
    return value


def _wrong(name: str, right: str) -> Refusal:
    return Refusal(f"{name} should be {right}.", parameter=name, code="invalid_value")
