"""A server of its own process for tests, and what clients send to it."""

import base64
import contextlib
import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
from PIL import Image

from tests.programs import Fork

START = 120  # seconds that a server has to load its model


def random_port() -> int:
    """Return a port that is free, and not the one that a neighbour finds next."""
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        return free_socket.getsockname()[1]


@contextlib.contextmanager
def serving(
    fork: Fork, folder: Path, *options: object, **started: object
) -> Iterator[SimpleNamespace]:
    """Serve a folder; gives the server's `address` and its `program`."""
    port = random_port()
    program = fork.start("-m", "helpers", "serve", folder, "--port", port, *options, **started)
    try:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + START
        statuses = set()
        while 200 not in statuses:
            with contextlib.suppress(httpx.TransportError):
                statuses.add(httpx.get(f"{address}/health").status_code)
            assert time.monotonic() < end, program.text("err")
            time.sleep(0.05)
        assert statuses <= {200, 503}
        yield SimpleNamespace(address=address, program=program)
        assert "Traceback" not in program.text("err") + program.text("out")
    finally:
        program.end()


def data_url(picture: Image.Image, kind: str = "PNG") -> str:
    """Return a picture as clients send it."""
    file = io.BytesIO()
    picture.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def message(text: str, *pictures: Image.Image) -> dict:
    """Return a user's message as clients send it."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(p)}} for p in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
