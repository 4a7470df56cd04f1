"""One server as its client sees it: its model, and questions about pictures, streamed.

Answers are streamed so that a server that hangs is told from one that computes: it gives a sign of
life now and then.

What this module does not know: which rows there are, and which other servers.
"""

import base64
import io
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from helpers.convert.folders import Report
from helpers.errors import SettingsError
from helpers.inputs.images import name_of, open_picture, reading
from helpers.run.replies import Counts
from helpers.serve.addresses import FORMATS, LARGEST
from helpers.serve.columns import RowAnswer
from helpers.serve.completions import THOUGHT
from helpers.serve.protocol import Json, Refusal, object_of
from helpers.serve.rows import Row
from helpers.upstream.proxies import proxy_for, without_password, without_proxies

QUIET = 60.0  # seconds without a sign of life; `vlm serve` gives one each 15 seconds
LONGEST_LOADING = 600.0  # seconds that a server may take to load its model
AGAIN = 1.0  # seconds between two looks whether it has
END = "[DONE]"
QUALITIES = (95, 85, 70, 50)  # of JPEG, for a picture that has no room otherwise


class LostError(Exception):
    """A server does not answer; `is_ended` where it had begun to."""

    def __init__(self, message: str, *, is_ended: bool = False) -> None:
        super().__init__(message)
        self.is_ended = is_ended


class LaterError(Exception):
    """A server has no room now; it should be asked again after so many `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class RemoteServer:
    """A running `vlm serve`, by its address, with or without `/v1` at the end."""

    def __init__(self, address: str, key: str | None) -> None:
        address = address if "://" in address else f"http://{address}"
        self.address = address.rstrip("/").removesuffix("/v1")
        self.is_lost = False
        self.name: str | None = None
        value = f"Bearer {key}".encode("latin-1", "replace")
        headers = [(b"Authorization", value)] if key else []
        try:
            base_url = httpx.URL(f"{self.address}/v1/")
            is_right = base_url.host and base_url.scheme in ("http", "https")
            proxy = proxy_for(self.address)
        except (httpx.InvalidURL, ValueError):
            is_right = False
        if not is_right:
            raise SettingsError(
                f"{address} is no address of a server; give one such as http://computer:8000."
            )
        self.client = _client(base_url, headers, proxy)
        self.place = f"{self.address} through the proxy {without_password(proxy)}"
        self.place = self.place if proxy else self.address

    def find(self, model: str | None, report: Report) -> str:
        """Return the fingerprint of a server's model, the only one unless it is named.

        Waits for one that is loaded. Raises `LostError` for a server that does not answer,
        `SettingsError` for one that refuses, or has no such model.
        """
        end = time.monotonic() + LONGEST_LOADING
        while True:
            entry = self._entry(model)
            if (fingerprint := entry.get("fingerprint", "")) is not None:
                break
            if time.monotonic() > end:
                raise LostError(f"{self.address} has not loaded its model; see what it wrote.")
            report(f"{self.address} loads its model")
            time.sleep(AGAIN)
        if not fingerprint:
            raise SettingsError(
                f"{self.address} is no `vlm serve`, or one of an earlier release; start a new one."
            )
        self.name = entry["id"]
        return str(fingerprint)

    def is_there(self, fingerprint: str) -> bool:
        """Return whether the server answers, and has this model, under whichever name."""
        try:
            entries = self._entries()
        except (LostError, SettingsError):
            return False
        names = [name for name in entries if entries[name].get("fingerprint") == fingerprint]
        if names and self.name not in names:
            self.name = names[0]
        return bool(names)

    def _entry(self, model: str | None) -> Json:
        entries = self._entries()
        if model is None and len(entries) == 1:
            return next(iter(entries.values()))
        if model not in entries:
            names = ", ".join(entries)
            raise SettingsError(f"{self.address} has the models {names}; name one with --model.")
        return entries[model]

    def _entries(self) -> dict[str, Json]:
        """Return the server's models by name."""
        try:
            response = self.client.get("models")
            return {str(entry["id"]): dict(entry) for entry in response.json()["data"]}
        except httpx.HTTPError as error:
            raise LostError(f"{self.place} does not answer ({_reason(error)}).") from None
        except (ValueError, KeyError, TypeError):
            message = _message(response.content) or f"its answer is {response.status_code}"
            raise SettingsError(f"{self.address} refuses to answer: {message}") from None

    def ask(self, row: Row, options: Mapping[str, Any]) -> RowAnswer:
        """Return the answer to a row's question.

        Raises `PictureError` and `Refusal` for a row that cannot be answered, `SettingsError`
        where no row can, `LostError` and `LaterError` where the server is not there.
        """
        body = body_of(row, options) | {"model": self.name}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        is_begun, started = False, time.monotonic()
        try:
            with self.client.stream("POST", "chat/completions", json=body) as response:
                is_begun = True
                if response.status_code != 200:
                    raise self._refusal(response)
                return _answer_in(response.iter_lines(), started)
        except httpx.HTTPError as error:
            is_ended = is_begun or not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            words = f"{self.place} does not answer ({_reason(error)})."
            raise LostError(words, is_ended=is_ended) from None

    def _refusal(self, response: httpx.Response) -> Exception:
        """Return what it means that a server does not answer a row."""
        message = _message(response.read()) or f"The server answered {response.status_code}."
        if response.status_code in (401, 403, 404):
            return SettingsError(f"{self.address} refuses to answer: {message}")
        if response.status_code in (429, 503):
            try:
                return LaterError(float(response.headers.get("retry-after", AGAIN)))
            except ValueError:  # a date
                return LaterError(AGAIN)
        if response.status_code in (502, 504):
            return LostError(f"{self.address} does not answer ({response.status_code}).")
        return Refusal(message, status=response.status_code)

    def close(self) -> None:
        """Close all connections, so that the server computes nothing more."""
        self.client.close()


def _client(base_url: httpx.URL, headers: list[tuple[bytes, bytes]], proxy: str) -> httpx.Client:
    """Return what asks a server; httpx itself fails for a proxy of another address too."""
    limits = httpx.Limits(max_connections=None)
    try:
        with without_proxies():
            return httpx.Client(
                base_url=base_url,
                headers=headers,
                timeout=QUIET,
                limits=limits,
                proxy=proxy or None,
            )
    except (httpx.InvalidURL, ValueError, ImportError):
        raise SettingsError(
            f"{base_url.host} cannot be asked through the proxy {without_password(proxy)}, which "
            "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names; correct or unset it, or name the server's "
            "computer in NO_PROXY."
        ) from None


def body_of(row: Row, options: Mapping[str, Any]) -> Json:
    """Return the body of a row's request in OpenAI's protocol; a line of its file is its own."""
    body: Json = {"max_tokens": options["max_new_tokens"]}
    if "schema" in options:
        schema = {"name": "answer", "schema": options["schema"]}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if options.get("thinking") is not None:
        body["chat_template_kwargs"] = {"enable_thinking": options["thinking"]}
    if row.is_openai:
        columns = object_of(row.columns["body"])
        if columns.get("max_completion_tokens") is not None:
            del body["max_tokens"]
        return body | {name: value for name, value in columns.items() if value is not None}
    content: list[Json] = [{"type": "text", "text": row.question}]
    if row.image is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": data_url(row.image)}})
    return body | {"messages": [{"role": "user", "content": content}]}


def data_url(path: Path) -> str:
    """Return a picture as an address; one that servers do not take as it is becomes another file.

    That is of a format of its own, or too large: a PNG, which is the same picture, or a JPEG where
    that is too large too. Raises `PictureError` for what is no picture, before anything is sent.
    """
    picture = open_picture(path)
    with reading(name_of(path)), Image.open(path) as file:
        kind = file.format or ""
    kind = "JPEG" if kind == "MPO" else kind  # of a telephone: a JPEG with a second one behind it
    if kind in FORMATS and path.stat().st_size <= LARGEST:
        data = path.read_bytes()
    else:
        kind, data = _smaller(picture, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


def _smaller(picture: Image.Image, kind: str) -> tuple[str, bytes]:
    """Return a format and a picture in it, the first that servers take; a PNG loses nothing."""
    formats = [("JPEG", {"quality": quality, "subsampling": 0}) for quality in QUALITIES]
    if kind != "JPEG":  # whose pixels are several times as many bytes as a PNG
        formats.insert(0, ("PNG", {}))
    for name, options in formats:
        file = io.BytesIO()
        picture.save(file, name, **options)
        if file.tell() <= LARGEST:
            break
    return name, file.getvalue()


def _answer_in(lines: Iterator[str], started: float) -> RowAnswer:
    """Return what a stream of events says; raises `httpx.ReadError` where its end is missing."""
    text, thought, finish, counts, is_whole = "", "", "", Counts(0), False
    for line in lines:
        data = line.removeprefix("data: ")
        if data == END:
            is_whole = True
        elif data != line:
            event = json.loads(data)
            if "error" in event:
                raise Refusal(str(event["error"].get("message")))
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                thought += choice["delta"].get(THOUGHT) or ""
                finish = choice["finish_reason"] or finish
            if usage := event.get("usage"):
                counts = Counts(
                    usage["prompt_tokens"],
                    usage["prompt_tokens_details"]["cached_tokens"],
                    usage["completion_tokens"],
                    usage["completion_tokens_details"]["reasoning_tokens"],
                )
    if not is_whole:
        raise httpx.ReadError("the answer has no end")
    seconds = time.monotonic() - started
    return RowAnswer(text.strip(), finish, counts, seconds, thought.strip())


def _message(content: bytes) -> str:
    """Return the sentence of an error in OpenAI's form, empty where there is none."""
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
