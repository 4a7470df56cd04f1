"""Requests of any protocol that has a parser and a writer, answered streamed or whole.

A client that disconnects ends the computation of its answer.

What this module does not know: the protocols, who may ask, and how an answer is computed.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from helpers.convert.folders import Report
from helpers.errors import UserError
from helpers.run.replies import AnswerPiece, Reply
from helpers.serve.access import RETRY, Models, defect, place_of, refusal_of
from helpers.serve.addresses import Pictures
from helpers.serve.completions import Writer
from helpers.serve.protocol import ChatRequest, OpenPicture, Refusal, model_in
from helpers.serve.service import BusyError, Service

LARGEST_BODY = 30_000_000  # bytes; pictures in base64 take a third more than their files
ALIVE = 15.0  # seconds between signs of life while a client waits
READERS = 64  # threads that read requests, of which some wait for hosts of pictures
EVENTS = "text/event-stream"
IDENTITY = "identity"  # the encoding of a body that is not compressed (RFC 9110, 8.4)
MOST_NAMES, LONGEST_NAME = 20, 40  # of fields in the log, and characters of each
LOOK = 0.1  # seconds between looks whether a client is still there

Parse = Callable[[object, OpenPicture], ChatRequest]
MakeWriter = Callable[[ChatRequest, str], Writer]


class Responder:
    """Answers requests of any protocol that has a parser and a writer."""

    def __init__(self, models: Models, pictures: Pictures, report: Report) -> None:
        self.models, self.pictures, self.report = models, pictures, report
        self.readers = ThreadPoolExecutor(READERS)

    async def answer(self, request: Request, parse: Parse, writer_of: MakeWriter) -> Response:
        """Return the answer, streamed or whole; pictures are opened where it has a place only."""
        try:
            body = await _body(request)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        name, service = self.models.find(model_in(body))
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(service.place())
            except BusyError:
                raise _busy() from None
            loop, open_picture = asyncio.get_running_loop(), self.pictures.opener()
            question = await loop.run_in_executor(self.readers, parse, body, open_picture)
            if question.ignored:
                self.report(f"fields that change nothing here: {_in_words(question.ignored)}")
            reply = await asyncio.to_thread(self._start, service, question)
            writer = writer_of(question, name)
            if question.is_streamed:
                events = self._events(service, question, reply, writer, stack.pop_all())
                return StreamingResponse(
                    events,
                    media_type=EVENTS,
                    headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
                )
            return await self._whole(request, service, question, reply, writer)

    @staticmethod
    def _start(service: Service, question: ChatRequest) -> Reply:
        try:
            return service.start(question.messages, question.options, detail=question.detail)
        except UserError as error:
            raise refusal_of(error) from None

    async def _whole(
        self,
        request: Request,
        service: Service,
        question: ChatRequest,
        reply: Reply,
        writer: Writer,
    ) -> Response:
        """Return an answer in one piece; one whose client has gone is stopped."""
        try:
            while not await asyncio.to_thread(reply.wait, LOOK):
                if await request.is_disconnected():
                    reply.stop()
                    return Response(status_code=499)  # nobody reads it
            await _remember(service, question, reply)
            return JSONResponse(writer.whole(reply))
        except UserError as error:
            raise refusal_of(error) from None
        except asyncio.CancelledError:
            reply.stop()
            raise

    async def _events(
        self,
        service: Service,
        question: ChatRequest,
        reply: Reply,
        writer: Writer,
        place: contextlib.ExitStack,
    ) -> AsyncIterator[str]:
        """Yield the events of a streamed answer; it is stopped where they are read no more."""
        with place:
            try:
                for text in writer.beginning():
                    yield text
                async for piece in pieces_of(reply):
                    yield writer.piece(piece)
                await _remember(service, question, reply)
                for text in writer.end(reply):
                    yield text
            except Exception as error:
                if not isinstance(error, UserError):
                    self.report(f"a defect, {type(error).__name__} in {place_of(error)}")
                refusal = refusal_of(error) if isinstance(error, UserError) else defect()
                for text in writer.failure(refusal):
                    yield text
            finally:
                reply.stop()


def _in_words(names: Sequence[str]) -> str:
    """Return names that a client made up as a line of a log, not too long and without its end."""
    words = [ascii(name)[1:-1][:LONGEST_NAME] for name in names[:MOST_NAMES]]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(words) + more


async def _remember(service: Service, question: ChatRequest, reply: Reply) -> None:
    """Keep a conversation, in a thread: all pixels of its pictures are looked at."""
    remember = partial(service.remember, question.messages, reply, detail=question.detail)
    await asyncio.to_thread(remember)


async def _body(request: Request) -> object:
    """Return the JSON of a request's body, read in pieces up to a limit."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal("Send the body as Content-Type: application/json.", status=415)
    if request.headers.get("content-encoding", IDENTITY).strip().lower() not in ("", IDENTITY):
        raise Refusal("Send the body as it is, without Content-Encoding.", status=415)
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


async def pieces_of(reply: Reply) -> AsyncIterator[AnswerPiece]:
    """Yield an answer's pieces as they come, an empty one where none has come for a while.

    A thread of its own waits for them. An error of the computation is raised here.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[AnswerPiece | BaseException | None] = asyncio.Queue()

    def put(value: AnswerPiece | BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody reads
            loop.call_soon_threadsafe(pieces.put_nowait, value)

    def wait() -> None:
        try:
            for piece in reply.pieces():
                put(piece)
        except BaseException as error:  # raised where the pieces are read
            put(error)
        put(None)

    threading.Thread(target=wait, daemon=True).start()
    while True:
        try:
            value = await asyncio.wait_for(pieces.get(), ALIVE)
        except TimeoutError:
            value = AnswerPiece("")
        if value is None:
            return
        if isinstance(value, BaseException):
            raise value
        yield value
