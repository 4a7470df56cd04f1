"""Who may ask a server, which models it has, and what it says of errors.

What this module does not know: what is asked.
"""

import hmac
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from helpers.convert.folders import Report, read_manifest
from helpers.errors import (
    ContextError,
    PictureError,
    QuestionError,
    SettingsError,
    UserError,
    system_reason,
)
from helpers.inputs.messages import has_halves
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.serve.completions import model_body
from helpers.serve.protocol import Json, Refusal
from helpers.serve.service import Service
from helpers.upstream.proxies import LOOPBACK

RETRY = "5"  # seconds after which a client should come again
_BEARER = re.compile(r"^\s*bearer(\s+|$)", re.IGNORECASE)  # in any letters (RFC 7235)


@dataclass
class Models:
    """The models of a server by name; None is one that is not loaded yet."""

    services: dict[str, Service | None]
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def are_ready(self) -> bool:
        """Whether all of them are loaded."""
        return all(self.services.values())

    @property
    def pipelines(self) -> dict[str, VisionLanguagePipeline]:
        """The pipelines of the models that are loaded."""
        services = self.services.items()
        return {name: service.pipeline for name, service in services if service is not None}

    def body(self, name: str) -> Json:
        """Return a model as the list of models has it."""
        service = self.services[name]
        return model_body(name, self.created, None if service is None else service.fingerprint)

    def find(self, name: str | None) -> tuple[str, Service]:
        """Return the model that a request names, the only one where it names none.

        Raises `Refusal` for a name that there is not or that several models need, and for a model
        that is not loaded yet.
        """
        names = ", ".join(self.services)
        if name is None and len(self.services) != 1:
            raise Refusal(f"The request has no model; name one of {names}.", parameter="model")
        name = next(iter(self.services)) if name is None else name
        if name not in self.services:
            raise Refusal(
                f"The model {name!r} does not exist; this server has {names}.",
                status=404,
                parameter="model",
                code="model_not_found",
            )
        service = self.services[name]
        if service is None:
            raise Refusal(
                f"The model {name} is not loaded yet; come again in a moment.",
                status=503,
                kind="server_error",
                code="model_loading",
                headers={"Retry-After": RETRY},
            )
        return name, service


def folders_by_name(folders: Sequence[Path], names: Sequence[str]) -> dict[str, Path]:
    """Return converted folders by what clients call them: by these names, or by their own.

    Raises `SettingsError` for names that are not one for each or that no client can send, and
    `OutputError` for another folder.
    """
    names = names or [folder.resolve().name for folder in folders]
    if len(set(names)) != len(folders) or len(names) != len(folders):
        raise SettingsError("Give each folder a --name of its own, in their order.")
    if any(map(has_halves, names)):
        raise SettingsError(
            "A model's name has halves of characters; give each folder a --name in ASCII."
        )
    for folder in folders:
        read_manifest(folder)  # or it is an error before the server begins
    return dict(zip(names, folders, strict=True))


@dataclass(frozen=True)
class Access:
    """Who may ask: with which key, from which origins in a browser, and from which hosts pictures.

    Without a key only requests to this computer itself are answered: a page of another site that
    leads a browser here has another `Host`.
    """

    key: str | None = None
    origins: Sequence[str] = ()
    picture_hosts: Sequence[str] = ()

    def check(self, headers: Mapping[str, str], path: str) -> None:
        """Raise a `Refusal` for a request without the key, or to another host.

        The page asks for the key itself.
        """
        if self.key is not None:
            if not path.startswith("/v1/"):
                return
            sent_key = _BEARER.sub("", headers.get("authorization", "")).strip()
            sent_key = sent_key or headers.get("api-key", "").strip()
            if not hmac.compare_digest(sent_key.encode(), self.key.encode()):
                raise Refusal(
                    "The key is missing or wrong; send it as a bearer token.",
                    status=401,
                    kind="authentication_error",
                    code="invalid_api_key",
                )
        elif host_of(headers.get("host", "")) not in LOOPBACK:
            raise Refusal(
                "This server answers requests to 127.0.0.1 only.", status=403, code="wrong_host"
            )


def host_of(value: str) -> str:
    """Return the name in a `Host` header, without its port."""
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0].lower()


def read_key(path: Path | None, report: Report = lambda line: None) -> str | None:
    """Return the key in a file, else the environment's VLM_KEY, if there is one.

    A file that others can read is reported where this user can change that.

    Raises `SettingsError` for a file without one, and for one that no header can hold: clients
    differ in the bytes that other characters become.
    """
    if path is None:
        # Windows' `set VLM_KEY=abc && vlm ...` leaves a space at its end.
        key, place = os.environ.get("VLM_KEY", "").strip(), "VLM_KEY"
    else:
        key, place = "", str(path)
        try:
            key = path.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError:
            pass  # what is no text holds no key
        except OSError as error:
            reason = system_reason(error)
            raise SettingsError(f"{path} cannot be read ({reason}); give another file.") from None
        if not key:
            raise SettingsError(f"{path} holds no key; write one line of text into it.")
        if os.name == "posix" and path.stat().st_mode & 0o044 and os.access(path, os.W_OK):
            report(
                f"note: other users of this computer may read {path}; `chmod 600 {path}` ends that"
            )
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(
            f"The key of {place} has characters that no client can send; write one line of letters "
            "from A to Z, digits and signs."
        )
    return key or None


def key_for(host: str, path: Path | None, report: Report = lambda line: None) -> str | None:
    """Return the key that clients of a host send: of a file, else of the environment's VLM_KEY.

    Raises `SettingsError` for a file without one, for one that cannot be sent, and where other
    computers would need none.
    """
    key = read_key(path, report)
    if host and host not in LOOPBACK and key is None:
        raise SettingsError(
            f"Serving {host} needs a key, which everybody who asks has to send; give a file with "
            "--key-file."
        )
    return key


def defect() -> Refusal:
    """Return what a client is told of a defect; asking again would not help."""
    return Refusal(
        "The server has a defect; its log says where.",
        status=500,
        kind="server_error",
        headers={"x-should-retry": "false"},
    )


def ending() -> Refusal:
    """Return what a client is told whose answer takes longer than the server has."""
    return Refusal(
        "The server ends; ask again when it is there.",
        status=503,
        kind="server_error",
        code="server_ends",
        headers={"Retry-After": RETRY},
    )


def place_of(error: BaseException) -> str:
    """Return where in the code an error was raised, without the folder."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    code = trace and trace.tb_frame.f_code
    return f"{code.co_qualname}, line {trace.tb_lineno}" if trace and code else "unknown code"


def refusal_of(error: UserError) -> Refusal:
    """Return what a client is told of an error that it, or the person at the server, can mend."""
    message = str(error)
    if isinstance(error, ContextError):
        return Refusal(message, parameter="messages", code="context_length_exceeded")
    if isinstance(error, QuestionError | PictureError):
        return Refusal(message, parameter="messages", code="invalid_value")
    if isinstance(error, SettingsError):
        return Refusal(message, code="invalid_value")
    return Refusal(
        "The model cannot answer on this computer; the server's log says why.",
        status=500,
        kind="server_error",
        headers={"x-should-retry": "false"},
    )
