"""A server that answers in OpenAI's protocols: routes, limits, keys, and what a client is told.

A client that disconnects ends the computation of its answer. No log has a question, an answer or a
path in it.

What this module does not know: the protocols, and how an answer is computed.
"""

import asyncio
import contextlib
import signal
import socket
import threading
import time
import uuid
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as StarletteMessage

from helpers import ends
from helpers.convert.folders import Report
from helpers.errors import SettingsError
from helpers.resources import freeze_objects
from helpers.run.devices import check_device
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.serve.access import Access, Models, defect, ending, place_of
from helpers.serve.addresses import Pictures
from helpers.serve.answers import EVENTS, Responder
from helpers.serve.completions import ChatWriter, event
from helpers.serve.pages import build_pages, mount_pages
from helpers.serve.protocol import Json, Refusal, parse_request
from helpers.serve.responses import ResponseWriter, parse_response_request
from helpers.serve.results import fingerprint_of
from helpers.serve.service import Service

READING = ["GET", "HEAD"]  # whatever is read may be looked for (RFC 9110, 9.1)
GRACE = 30  # seconds that running answers get when the server is told to end
LAST_WORDS = 5  # seconds in which the others are told
LOOK = 0.5  # seconds between looks whether the server should end
ANSWERS_AT_ONCE = 4  # that are computed together


def create_app(models: Models, access: Access, *, report: Report = print) -> "Edge":
    """Return the application: `/v1/chat/completions`, `/v1/responses`, `/v1/models`, `/health`."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    responder = Responder(models, Pictures(access.picture_hosts), report)

    @app.api_route("/health", methods=READING)
    async def health() -> JSONResponse:
        ready = models.are_ready
        return JSONResponse({"status": "ok" if ready else "loading"}, 200 if ready else 503)

    @app.api_route("/v1/models", methods=READING)
    async def list_models() -> Json:
        return {"object": "list", "data": [models.body(name) for name in models.services]}

    @app.api_route("/v1/models/{name:path}", methods=READING)
    async def one_model(name: str) -> Json:
        if name not in models.services:
            models.find(name)
        return models.body(name)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await responder.answer(request, parse_request, ChatWriter)

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        return await responder.answer(request, parse_response_request, ResponseWriter)

    _tell_errors(app)
    return Edge(app, access, report)


class Edge:
    """What every request passes: the check of its key, a number of its own, a line in the log."""

    def __init__(self, app: FastAPI, access: Access, report: Report) -> None:
        self.app, self.access, self.report = app, access, report
        self.handle: ASGIApp = self._handle
        if access.origins:  # outside of the check, so that a browser shows its refusals too
            self.handle = CORSMiddleware(
                self._handle,
                allow_origins=list(access.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, as ASGI says."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, number, status = time.perf_counter(), uuid.uuid4().hex, 0

        async def send_numbered(message: StarletteMessage) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", number.encode())]
            await send(message)

        try:
            await self.handle(scope, receive, send_numbered)
        except Exception as error:  # its client has been told, see `_tell_errors`
            self.report(f"{number}: a defect, {type(error).__name__} in {place_of(error)}")
        finally:
            if scope["path"].startswith("/v1/"):  # the page asks for much
                path, seconds = ascii(scope["path"])[:100], time.perf_counter() - started
                self.report(f"{scope['method'][:20]} {path} {status} {seconds:.2f} s {number}")

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.access.check(Headers(scope=scope), scope["path"])
        except Refusal as refusal:
            await response_of(refusal)(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer; one whose time is over is told so (`Server.shutdown`)."""
        kind: str | None = None  # of the response, once there is one

        async def send_with_kind(message: StarletteMessage) -> None:
            nonlocal kind
            if message["type"] == "http.response.start":
                kind = Headers(raw=message["headers"]).get("content-type", "")
            await send(message)

        try:
            await self.app(scope, receive, send_with_kind)
        except asyncio.CancelledError:
            if kind is None:
                await response_of(ending())(scope, receive, send)
            elif kind.startswith(EVENTS):  # which clients in both protocols raise
                body = event(ending().body()).encode()
                await send({"type": "http.response.body", "body": body, "more_body": False})


def _tell_errors(app: FastAPI) -> None:
    """Let all errors have OpenAI's form, those of unknown routes too."""

    @app.exception_handler(Refusal)
    async def refuse(_: Request, refusal: Refusal) -> JSONResponse:
        return response_of(refusal)

    @app.exception_handler(Exception)
    async def refuse_defect(_: Request, __: Exception) -> JSONResponse:
        return response_of(defect())

    @app.exception_handler(HTTPException)
    async def refuse_route(_: Request, error: HTTPException) -> JSONResponse:
        words = {
            404: "There is nothing at this address.",
            405: "This address takes another method.",
        }
        message = words.get(error.status_code, str(error.detail))
        status, headers = error.status_code, error.headers  # among them the methods it takes
        return response_of(Refusal(message, status=status, code="unknown_url", headers=headers))


def response_of(refusal: Refusal) -> JSONResponse:
    """Return what a client is told in OpenAI's form."""
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


class Server(uvicorn.Server):
    """uvicorn's server, which ends with success when it is told to end.

    Requests that take longer than its grace are ended by itself: uvicorn would log a traceback of
    each, and send its client a text.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, app: ASGIApp, settings: "Settings", report: Report) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE + LAST_WORDS,
        )
        super().__init__(config)
        self.report = report

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the process is told to end."""
        self.loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def complete(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do some work where requests are answered; False where the server ends before that."""
        if self.should_exit:
            work.close()
            return False
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        while not (self.should_exit or future.done()):
            wait([future], LOOK)
        if not self.should_exit:
            future.result()  # or its error
        return not self.should_exit

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and wait for those that there are."""
        end = self.loop.call_later(GRACE, self._end_requests)
        try:
            await super().shutdown(sockets)
        finally:
            end.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, without a word to a terminal that is closed."""
        ends.leave_closed_terminal()
        super().handle_exit(sig, frame)

    def _end_requests(self) -> None:
        tasks = list(self.server_state.tasks)
        if tasks:
            self.report(f"requests that take longer than {GRACE} s are ended: {len(tasks)}")
        for task in tasks:
            task.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let Ctrl-C and what ends programs end the server; uvicorn would raise it once more."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ignored = [number for number in ends.SIGNALS if signal.getsignal(number) == signal.SIG_IGN]
        numbers = {signal.SIGINT, *ends.SIGNALS}.difference(ignored)  # as SIGHUP is in `nohup`
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class Settings:
    """Where a server is, and how its models answer.

    So many requests of a model, its `longest_queue`, wait or are answered. Raises `SettingsError`
    for a queue or a device that cannot be.
    """

    host: str
    port: int
    longest_queue: int
    device: str = "CPU"
    picture_tokens: int | None = None
    tuned: bool = True
    thinking: bool | None = None

    def __post_init__(self) -> None:
        if self.longest_queue < 1:
            raise SettingsError(f"The queue is {self.longest_queue}; it should be 1 or more.")
        check_device(self.device)

    @property
    def address(self) -> str:
        """Where clients ask."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v1"


def load_service(folder: Path, settings: Settings) -> Service:
    """Load a converted folder, and return the service that it is."""
    pipeline = VisionLanguagePipeline(
        folder,
        settings.device,
        picture_tokens=settings.picture_tokens,
        tuned=settings.tuned,
        answers_at_once=ANSWERS_AT_ONCE,
    )
    fingerprint = fingerprint_of(folder, settings.device, settings.picture_tokens)
    return Service(
        pipeline,
        longest_queue=settings.longest_queue,
        fingerprint=fingerprint,
        thinking=settings.thinking,
    )


def serve(
    folders: Mapping[str, Path], access: Access, settings: Settings, *, report: Report = print
) -> None:
    """Serve converted folders by name until the process is told to end.

    They are loaded while the server answers already that they are not there yet. Raises what keeps
    one from being loaded.
    """
    models = Models(dict.fromkeys(folders))
    app = create_app(models, access, report=report)
    server = Server(app, settings, report)
    errors: list[Exception] = []

    def load() -> None:
        try:
            for name, folder in folders.items():
                if server.should_exit:
                    return
                models.services[name] = load_service(folder, settings)
                report(f"{name} is loaded")
            pages = build_pages(models.pipelines)
            if server.complete(mount_pages(app.app, pages, access.key)):
                freeze_objects()
                report("its page is there")
        except Exception as error:  # raised below, in the main thread
            if not server.should_exit:  # the loop has ended with the server
                errors.append(error)
            server.should_exit = True

    loading = threading.Thread(target=load, daemon=True)
    loading.start()
    try:
        server.run()
    finally:
        server.should_exit = True
        try:
            if loading.is_alive():
                report("ends when what is being loaded is there")
        finally:
            loading.join()  # OpenVINO cannot be left within it
    if errors:
        raise errors[0]
