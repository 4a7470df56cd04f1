"""A server that answers in OpenAI's protocols: routes, limits, keys, and what a client is told.

A client that disconnects ends the computation of its answer. No log has a question, an answer or a
path in it.

What this module does not know: the protocols, and how an answer is computed.
"""

import asyncio
import contextlib
import hmac
import json
import signal
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Message as StarletteMessage
from starlette.types import Receive, Scope, Send

from helpers.errors import ContextError, PictureError, QuestionError, SettingsError, UserError
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.replies import Reply
from helpers.serve.addresses import Pictures
from helpers.serve.completions import ChatWriter, Writer
from helpers.serve.pages import build_pages, mount_pages
from helpers.serve.protocol import (
    ChatRequest,
    Json,
    OpenPicture,
    Refusal,
    model_body,
    parse_request,
)
from helpers.serve.responses import ResponseWriter, parse_response_request
from helpers.serve.service import BusyError, Service

LARGEST_BODY = 30_000_000  # bytes; pictures in base64 take a third more than their files
ALIVE = 15.0  # seconds between signs of life while a client waits
LOOK = 0.1  # seconds between looks whether a client is still there
GRACE = 30  # seconds that running answers get when the server is told to end
RETRY = "5"  # seconds after which a client should come again
ANSWERS_AT_ONCE = 4  # that are computed together
LOOPBACK = ("127.0.0.1", "localhost", "::1")

Parse = Callable[[object, OpenPicture], ChatRequest]
MakeWriter = Callable[[ChatRequest, str], Writer]
Report = Callable[[str], None]


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

    def find(self, name: str | None) -> tuple[str, Service]:
        """Return the model that a request names, the only one where it names none.

        Raises `Refusal` for a name that there is not, and for a model that is not loaded yet.
        """
        if name is None and len(self.services) == 1:
            name = next(iter(self.services))
        if name not in self.services:
            names = ", ".join(self.services)
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
            given = headers.get("authorization", "").removeprefix("Bearer ").strip()
            given = given or headers.get("api-key", "")
            if not hmac.compare_digest(given.encode(), self.key.encode()):
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


def create_app(models: Models, access: Access, *, report: Report = print) -> "Edge":
    """Return the application: `/v1/chat/completions`, `/v1/responses`, `/v1/models`, `/health`."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    open_picture = Pictures(access.picture_hosts).open
    answers = Answers(models, open_picture, report)

    @app.get("/health")
    async def health() -> JSONResponse:
        ready = models.are_ready
        return JSONResponse({"status": "ok" if ready else "loading"}, 200 if ready else 503)

    @app.get("/v1/models")
    async def list_models() -> Json:
        data = [model_body(name, models.created) for name in models.services]
        return {"object": "list", "data": data}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Json:
        if name not in models.services:
            models.find(name)
        return model_body(name, models.created)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await answers.answer(request, parse_request, ChatWriter)

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        return await answers.answer(request, parse_response_request, ResponseWriter)

    _tell_errors(app)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
    return Edge(app, access, report)


class Edge:
    """What every request passes: the check of its key, a number of its own, a line in the log."""

    def __init__(self, app: FastAPI, access: Access, report: Report) -> None:
        self.app, self.access, self.report = app, access, report

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
            if scope["method"] != "OPTIONS":  # which a browser sends before, without the key
                self.access.check(Headers(scope=scope), scope["path"])
            await self.app(scope, receive, send_numbered)
        except Refusal as refusal:
            await response_of(refusal)(scope, receive, send_numbered)
        except Exception as error:  # its client has been told, see `_tell_errors`
            self.report(f"{number}: a defect, {type(error).__name__} in {_place(error)}")
        finally:
            if scope["path"].startswith("/v1/"):  # the page asks for much
                path, seconds = ascii(scope["path"])[:100], time.perf_counter() - started
                self.report(f"{scope['method']} {path} {status} {seconds:.2f} s {number}")


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
        return response_of(Refusal(message, status=error.status_code, code="unknown_url"))


def response_of(refusal: Refusal) -> JSONResponse:
    """Return what a client is told in OpenAI's form."""
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


def defect() -> Refusal:
    """Return what a client is told of a defect; asking again would not help."""
    return Refusal(
        "The server has a defect; its log says where.",
        status=500,
        kind="server_error",
        headers={"x-should-retry": "false"},
    )


def _place(error: BaseException) -> str:
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


class Answers:
    """Answers requests of any protocol that has a parser and a writer."""

    def __init__(self, models: Models, open_picture: OpenPicture, report: Report) -> None:
        self.models, self.open_picture, self.report = models, open_picture, report

    async def answer(self, request: Request, parse: Parse, writer_of: MakeWriter) -> Response:
        """Return the answer, streamed or whole."""
        body = await _body(request)
        asked = await asyncio.to_thread(parse, body, self.open_picture)
        if asked.ignored:
            self.report(f"fields that change nothing here: {', '.join(asked.ignored)}")
        name, service = self.models.find(asked.model)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(service.place())
            except BusyError:
                raise _busy() from None
            reply = await asyncio.to_thread(self._start, service, asked)
            writer = writer_of(asked, name)
            if asked.is_streamed:
                events = self._events(service, asked, reply, writer, stack.pop_all())
                return StreamingResponse(
                    events,
                    media_type="text/event-stream",
                    headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
                )
            return await self._whole(request, service, asked, reply, writer)

    @staticmethod
    def _start(service: Service, asked: ChatRequest) -> Reply:
        try:
            return service.start(asked.messages, asked.options, detail=asked.detail)
        except UserError as error:
            raise refusal_of(error) from None

    async def _whole(
        self,
        request: Request,
        service: Service,
        asked: ChatRequest,
        reply: Reply,
        writer: Writer,
    ) -> Response:
        """Return an answer in one piece; one whose client has gone is stopped."""
        try:
            while not await asyncio.to_thread(reply.wait, LOOK):
                if await request.is_disconnected():
                    reply.stop()
                    return Response(status_code=499)  # nobody reads it
            service.remember(asked.messages, reply, detail=asked.detail)
            return JSONResponse(writer.whole(reply))
        except UserError as error:
            raise refusal_of(error) from None
        except asyncio.CancelledError:
            reply.stop()
            raise

    async def _events(
        self,
        service: Service,
        asked: ChatRequest,
        reply: Reply,
        writer: Writer,
        held: contextlib.ExitStack,
    ) -> AsyncIterator[str]:
        """Yield the events of a streamed answer; it is stopped where they are read no more."""
        with held:
            try:
                for text in writer.beginning():
                    yield text
                async for piece in pieces_of(reply):
                    yield writer.piece(piece)
                service.remember(asked.messages, reply, detail=asked.detail)
                for text in writer.end(reply):
                    yield text
            except Exception as error:
                if not isinstance(error, UserError):
                    self.report(f"a defect, {type(error).__name__} in {_place(error)}")
                refusal = refusal_of(error) if isinstance(error, UserError) else defect()
                for text in writer.failure(refusal):
                    yield text
            finally:
                reply.stop()


async def _body(request: Request) -> object:
    """Return the JSON of a request's body, read in pieces up to a limit."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal("Send the body as Content-Type: application/json.", status=415)
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > LARGEST_BODY:
            limit = f"{LARGEST_BODY // 1_000_000} MB"
            raise Refusal(f"The body has more than {limit}; send smaller pictures.", status=413)
    try:
        return await asyncio.to_thread(json.loads, bytes(data))
    except (ValueError, RecursionError):
        raise Refusal("The body is not JSON.") from None


def _busy() -> Refusal:
    return Refusal(
        "Too many requests wait; come again later.",
        status=429,
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": RETRY},
    )


async def pieces_of(reply: Reply) -> AsyncIterator[str]:
    """Yield an answer's pieces as they come, an empty one where none has come for a while.

    A thread of its own waits for them. An error of the computation is raised here.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[str | BaseException | None] = asyncio.Queue()

    def put(value: str | BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody reads
            loop.call_soon_threadsafe(pieces.put_nowait, value)

    def wait() -> None:
        try:
            for piece in reply:
                put(piece)
        except BaseException as error:  # raised where the pieces are read
            put(error)
        put(None)

    threading.Thread(target=wait, daemon=True).start()
    while True:
        try:
            value = await asyncio.wait_for(pieces.get(), ALIVE)
        except TimeoutError:
            value = ""
        if value is None:
            return
        if isinstance(value, BaseException):
            raise value
        yield value


class Server(uvicorn.Server):
    """uvicorn's server, which ends with success when it is told to end."""

    loop: asyncio.AbstractEventLoop

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the process is told to end."""
        self.loop = asyncio.get_running_loop()
        await super().serve(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGTERM and Ctrl-C end the server; uvicorn itself would raise them once more."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(
    folders: Mapping[str, Callable[[], VisionLanguagePipeline]],
    access: Access,
    *,
    host: str,
    port: int,
    longest_queue: int,
    report: Report = print,
) -> None:
    """Serve models, each made by a function, until the process is told to end.

    They are loaded while the server answers already that they are not there yet. So many requests
    of a model, its `longest_queue`, wait or are answered. Raises what keeps one from being loaded.
    """
    models = Models(dict.fromkeys(folders))
    app = create_app(models, access, report=report)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    server = Server(config)
    errors: list[Exception] = []

    def load() -> None:
        try:
            for name, make_pipeline in folders.items():
                models.services[name] = Service(make_pipeline(), longest_queue=longest_queue)
                report(f"{name} is loaded")
            pages = build_pages(models.pipelines)
            mounting = mount_pages(app.app, pages, access.key)
            asyncio.run_coroutine_threadsafe(mounting, server.loop).result()
            report("its page is there")
        except Exception as error:  # raised below, in the main thread
            errors.append(error)
            server.should_exit = True

    threading.Thread(target=load, daemon=True).start()
    server.run()
    if errors:
        raise errors[0]
