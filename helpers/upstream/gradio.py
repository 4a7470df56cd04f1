"""Gradio 6.31: proxies, its folder for uploads, uploads that fail, the address below a server.

- It asks for its own page through a proxy of the environment (see `proxies`).
- All programs of all users keep uploads in one folder, which is the first user's, so a second user
  has no page (https://github.com/gradio-app/gradio/issues/5109), and equal uploads of two programs
  are one file. It reads `GRADIO_TEMP_DIR` when it is imported and again for each page.
- An upload that a full disk ends, or a window that is closed, is a traceback in the log, and what
  there is of it stays on the disk.
- Below another server, jupyter-server-proxy for one, it believes to be at the root, unless a header
  of its own names the whole address; mounted by an application, it forgets where, too.

Each may go when a page works without it; `tests/test_neighbours.py` has a case for each, and
`tests/test_demo.py` for uploads.
"""

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from helpers.errors import SettingsError, system_reason
from helpers.upstream.proxies import without_proxies

_VARIABLE = "GRADIO_TEMP_DIR"


def _own_folder() -> Path:
    """Make a folder that only this user can enter and that goes with this process."""
    place = os.environ.get(_VARIABLE)
    try:
        if place:
            Path(place).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="vlm-page-", dir=place)).resolve()
    except OSError as error:
        variable = _VARIABLE if place else "TMPDIR"
        raise SettingsError(
            f"No folder for uploads can be made ({system_reason(error)}); set {variable} to a "
            "folder that you can write."
        ) from None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


FOLDER = _own_folder()
os.environ[_VARIABLE] = str(FOLDER)
with without_proxies():
    from gradio.route_utils import GradioMultiPartParser
_parse = GradioMultiPartParser.parse


async def _parse_or_refuse(self: GradioMultiPartParser) -> FormData:
    """Read an upload; one that cannot be kept is removed, and refused as one too large is."""
    try:
        return await _parse(self)
    except (OSError, ClientDisconnect) as error:
        if self.upload_progress is not None and self.upload_id is not None:
            self.upload_progress.set_done(self.upload_id)  # or a window asks for it for ever
        for file in self._files_to_close_on_error:
            with contextlib.suppress(OSError):  # what it has not written yet has no room either
                file.close()
            with contextlib.suppress(OSError):
                Path(file.name).unlink()
        is_disk = isinstance(error, OSError)
        reason = system_reason(error) if is_disk else "the window was closed"
        raise MultiPartException(f"The upload cannot be kept ({reason}).") from None


GradioMultiPartParser.parse = _parse_or_refuse  # type: ignore[method-assign]


def new_folder() -> Path:
    """Make a folder for the uploads of one page."""
    return Path(tempfile.mkdtemp(prefix="uploads-", dir=FOLDER))


@contextlib.contextmanager
def uploads_in(folder: str | Path) -> Iterator[None]:
    """Let pages that are built or opened meanwhile keep their uploads in `folder`."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(folder)
    try:
        yield
    finally:
        os.environ[_VARIABLE] = before or str(FOLDER)


Scope = MutableMapping[str, Any]
Asgi = Callable[[Scope, Any, Any], Awaitable[None]]
# What proxies call the path below which they answer: jupyter-server-proxy, and Traefik and others.
_PREFIXES = ("x-forwarded-context", "x-forwarded-prefix")
_HOST, _SCHEME, _ADDRESS = "x-forwarded-host", "x-forwarded-proto", "x-gradio-server"


class BelowAnotherServer:
    """Tells Gradio the address that a browser sees where another server hands requests on."""

    def __init__(self, app: Asgi) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer a request, or begin and end with the server (`lifespan`, which has no path)."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(raw=scope["headers"])
        path = next((_first(headers[name]) for name in _PREFIXES if headers.get(name)), "")
        path = path.strip("/")
        prefix = f"/{path}" if path else ""
        host = _first(headers.get(_HOST, ""))
        # Where an application mounted the page. GRADIO_ROOT_PATH, another server's path, is no part
        # of a request's own path.
        mounted = scope.get("root_path", "")
        mounted = mounted if scope["path"].startswith(mounted) else ""
        if (prefix or host) and _ADDRESS not in headers:
            root = prefix + mounted
            scheme = _first(headers.get(_SCHEME, "")) or scope.get("scheme", "http")
            address = f"{scheme}://{host or headers.get('host', '')}{root}"
            others = [(name, value) for name, value in headers.raw if name != _HOST.encode()]
            scope = {
                **scope,
                "root_path": root,
                "path": prefix + scope["path"],
                "headers": [*others, (_ADDRESS.encode(), address.encode("latin-1"))],
            }
        await self.app(scope, receive, send)


def _first(value: str) -> str:
    """Return what the server next to the browser has put into a header."""
    return value.partition(",")[0].strip()
