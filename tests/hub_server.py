"""The part of the Hugging Face hub's HTTP API that a download uses, on this computer.

Repositories are folders. Weights are "large files": the hub redirects to another address for them,
and only that address gives parts of a file (a `Range`).
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_valid"
LARGE = (".safetensors", ".bin")


@dataclass
class Hub:
    """What is served, what goes wrong, and what was asked for: (method, path, range)."""

    repositories: dict[str, Path]
    gated: set[str] = field(default_factory=set)
    cut_once: set[str] = field(default_factory=set)  # files whose connection breaks half way
    truncated: set[str] = field(default_factory=set)  # files that end half way each time
    claimed_sizes: dict[str, int] = field(
        default_factory=dict
    )  # bytes that are reported for a file
    seconds: float = 0  # that the content of a large file takes
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    @contextmanager
    def served(self) -> Iterator[str]:
        """Serve while the context lasts; gives the address for HF_ENDPOINT."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        server.hub = self
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_) -> None:
        """Print nothing."""

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4])
        if parts[0] == "large":
            return self._content("/".join(parts[1:3]), "/".join(parts[3:]))
        return self._resolve("/".join(parts[:2]), "/".join(parts[4:]))

    def _refused(self, repository: str, *, files: bool) -> bool:
        """Refuse as the hub does, and return whether it did."""
        token = self.headers.get("Authorization")
        if token not in (None, f"Bearer {TOKEN}", "Bearer hf_other"):
            self._error(401, None, "Invalid credentials in Authorization header")
        elif repository not in self.hub.repositories:
            # Who has not logged in may not know either whether it exists.
            self._error(404 if token else 401, "RepoNotFound", "Repository not found")
        elif files and repository in self.hub.gated and token != f"Bearer {TOKEN}":
            self._error(403 if token else 401, "GatedRepo", f"Access to {repository} is restricted")
        else:
            return False
        return True

    def _error(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str | int]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": len(content)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self._write(content)

    def _write(self, content: bytes) -> None:
        """Write the content, slowly if it should take its time."""
        seconds = self.hub.seconds if self.path.startswith("/large/") else 0
        pieces = 20 if seconds else 1
        length = -(-len(content) // pieces) or 1
        for start in range(0, len(content), length):
            time.sleep(seconds / pieces)
            self.wfile.write(content[start : start + length])
            self.wfile.flush()

    def _api(self, repository: str, resource: str) -> None:
        """Answer what a repository's newest commit is, or which files it has."""
        if self._refused(repository, files=False):
            return
        paths = sorted(filter(Path.is_file, self.hub.repositories[repository].rglob("*")))
        if resource == "tree":
            answer = [self._entry(repository, path) for path in paths]
        else:
            answer = {"id": repository, "sha": COMMIT, "siblings": []}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _entry(self, repository: str, path: Path) -> dict:
        name = path.relative_to(self.hub.repositories[repository]).as_posix()
        entry = {"type": "file", "path": name, "size": self._size(path), "oid": _digest(path)[:40]}
        if path.suffix in LARGE:
            entry["lfs"] = {"oid": _digest(path), "size": self._size(path), "pointerSize": 134}
        return entry

    def _size(self, path: Path) -> int:
        return self.hub.claimed_sizes.get(path.name, path.stat().st_size)

    def _resolve(self, repository: str, name: str) -> None:
        """Answer with a small file, or with the address of a large one."""
        if self._refused(repository, files=True):
            return None
        path = self.hub.repositories[repository] / name
        headers = {"ETag": f'"{_digest(path)[:40]}"', "X-Repo-Commit": COMMIT}
        if path.suffix not in LARGE:
            return self._send(200, path.read_bytes(), headers)
        headers |= {
            "X-Linked-Size": self._size(path),
            "X-Linked-ETag": f'"{_digest(path)}"',
            # Another name of this computer: the client reads the headers above only if it sees
            # that the file is elsewhere.
            "Location": f"http://localhost:{self.server.server_port}/large/{repository}/{name}",
        }
        return self._send(302, b"", headers)

    def _content(self, repository: str, name: str) -> None:
        content = (self.hub.repositories[repository] / name).read_bytes()
        if name in self.hub.truncated:
            return self._send(200, content[: len(content) // 2], {})
        if name in self.hub.cut_once:
            self.hub.cut_once.remove(name)
            self.close_connection = True
            half = content[: len(content) // 2]
            return self._send(200, half, {"Content-Length": len(content)})
        if requested_range := self.headers.get("Range"):
            start = int(requested_range.removeprefix("bytes=").removesuffix("-"))
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._send(206, content[start:], {"Content-Range": span})
        return self._send(200, content, {})


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
