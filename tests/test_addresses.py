"""Addresses of pictures that clients send: what is opened, and that nothing else is fetched."""

import base64
import contextlib
import http.client
import http.server
import io
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest
from PIL import Image

from helpers.serve import addresses
from helpers.serve.addresses import LARGEST, Pictures, is_public
from helpers.serve.protocol import Refusal

HOST = "pictures.example"


def encoded(kind: str = "PNG", size: tuple[int, int] = (8, 6), **options) -> str:
    """Return a small picture in base64."""
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind, **options)
    return base64.b64encode(file.getvalue()).decode()


def bomb() -> str:
    """Return a picture of few bytes and a billion pixels, in base64."""
    file = io.BytesIO()
    Image.new("1", (40_000, 25_000)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_data_is_opened(kind):
    picture = Pictures().open(f"data:image/{kind.lower()};base64,{encoded(kind)}")
    assert (picture.size, picture.mode) == ((8, 6), "RGB")


def test_data_may_be_escaped():
    escaped = encoded().replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    assert Pictures().open(f"DATA:;base64,{escaped}").size == (8, 6)


@pytest.mark.parametrize("end", ["\n", "\r\n", "%0A"])
def test_base64_may_have_lines(end):
    text = encoded()
    lines = end.join(text[start : start + 76] for start in range(0, len(text), 76))
    assert Pictures().open(f"data:image/png;base64,{lines}{end}").size == (8, 6)
    spaced = f"{text[:8]}    {text[8:]}"  # a form's plus signs
    with pytest.raises(Refusal, match="is not in base64"):
        Pictures().open(f"data:image/png;base64,{spaced}")


@pytest.fixture
def listener() -> Iterator[list[str]]:
    """Serve this computer at a port, and return what it was requests for."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    requests.append(str(server.server_port))
    yield requests
    server.shutdown()
    server.server_close()


# {port} is one of this computer that would answer.
HOSTILE = [
    "http://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    "http://localhost:{port}/",
    "http://[::1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://0.0.0.0:{port}/",
    "http://0:{port}/",
    "http://2130706433:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0x7f.1:{port}/",
    "http://127.1:{port}/",
    "http://169.254.169.254/latest/meta-data/",
    "http://10.0.0.1/",
    "http://192.168.0.1/",
    "https://[fd00::1]/",
    "https://pictures.example@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/#pictures.example",
    "https://pictures.example.evil.example/",
    "https://evil.example/pictures.example",
    "http://pictures.example/a.png",
    "https://pictures.example:{port}/a.png",
    "https://user:secret@pictures.example/a.png",
    "https://pictures.example\\@127.0.0.1:{port}/",
    "https://[pictures.example/",
    "HTTP://PICTURES.EXAMPLE/",
    "ftp://pictures.example/a.png",
    "file:///etc/passwd",
    "/etc/passwd",
    "C:\\Windows\\win.ini",
    "//127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_GET",
    "",
    "data:image/png;base64",
    "data:image/png;base64,!!!!",
    "data:image/png;base64,aGVsbG8=",
    "data:text/html,<script>1</script>",
    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'/>",
]


@pytest.mark.parametrize("address", HOSTILE)
def test_hostile_addresses_are_refused_and_nothing_is_fetched(address, listener):
    with pytest.raises(Refusal) as refusal:
        Pictures([HOST]).open(address.replace("{port}", listener[0]))
    assert refusal.value.status in (400, 413)
    assert "/etc" not in refusal.value.message
    assert len(listener) == 1


def test_bombs_are_refused_before_they_are_decoded():
    with pytest.raises(Refusal) as refusal:
        Pictures().open(f"data:image/png;base64,{bomb()}")
    assert refusal.value.status == 413
    with pytest.raises(Refusal) as refusal:
        Pictures().open("data:image/png;base64," + "A" * (LARGEST * 4 // 3 + 8))
    assert refusal.value.status == 413


def test_the_pictures_of_a_request_are_bounded_altogether(monkeypatch):
    monkeypatch.setattr(addresses, "MOST_PIXELS", 100)
    url = f"data:image/png;base64,{encoded(size=(8, 6))}"
    pictures = Pictures()
    for open_picture in (pictures.opener(), pictures.opener()):  # of two requests
        assert [open_picture(url).size for _ in range(2)] == [(8, 6)] * 2
        with pytest.raises(Refusal, match="megapixels altogether; send fewer") as refusal:
            open_picture(url)
        assert refusal.value.status == 413


def test_formats_that_clients_do_not_send_are_refused():
    for kind in ("TIFF", "BMP", "PPM"):
        with pytest.raises(Refusal):
            Pictures().open(f"data:image/{kind.lower()};base64,{encoded(kind)}")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd12::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_addresses_of_the_internet_are_told_apart(address, expected):
    assert is_public(ipaddress.ip_address(address)) is expected


def answers(*addresses_of_host: str) -> list[tuple]:
    """Return what a resolver says."""
    return [
        (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 443))
        for a in addresses_of_host
    ]


@pytest.mark.parametrize(
    "resolved", [("127.0.0.1",), ("93.184.216.34", "10.0.0.1"), ("::ffff:127.0.0.1",), ("fe80::1",)]
)
def test_an_allowed_host_that_leads_home_is_refused(resolved, monkeypatch):
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: answers(*resolved))
    with pytest.raises(Refusal, match="not on the internet"):
        Pictures([HOST]).open(f"https://{HOST}/a.png")


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/grüße/a b.png", "/gr%C3%BC%C3%9Fe/a%20b.png"),
        ("/a%20b.png?name=grüße x&size=1/2?", "/a%20b.png?name=gr%C3%BC%C3%9Fe%20x&size=1/2?"),
        ("", "/"),
        ("/\ud800.png#part", "/%3F.png"),
    ],
)
@pytest.mark.parametrize("host", ["bücher.example", "xn--bcher-kva.example", "BÜCHER.example."])
def test_addresses_are_sent_as_a_browser_does(host, address, path, monkeypatch):
    sent = []

    def send(
        connection: http.client.HTTPSConnection, method: str, target: str, **_: object
    ) -> None:
        connection._validate_path(target)
        sent.append((method, connection.host, target.encode("ascii").decode()))
        raise ConnectionRefusedError

    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: answers("93.184.216.34"))
    monkeypatch.setattr(http.client.HTTPSConnection, "request", send)
    for allowed in ("bücher.example", "xn--bcher-kva.example"):
        with pytest.raises(Refusal, match="gave no picture"):
            Pictures([allowed]).open(f"https://{host}{address}")
    assert sent == [("GET", "xn--bcher-kva.example", path)] * 2


def test_a_host_is_looked_up_once_and_that_address_is_connected_to(monkeypatch):
    """A resolver that first says a public address and then this computer's (DNS rebinding)."""
    looked_up, connected = [], []

    def look_up(host: str, *_: object, **__: object) -> list[tuple]:
        looked_up.append(host)
        return answers("93.184.216.34" if len(looked_up) == 1 else "127.0.0.1")

    def connect(address: tuple[str, int], *_: object) -> None:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(addresses.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(addresses.socket, "create_connection", connect)
    with pytest.raises(Refusal, match="gave no picture"):
        Pictures([HOST]).open(f"https://{HOST}/a.png")
    assert (looked_up, connected) == ([HOST], [("93.184.216.34", 443)])


class Host(http.server.BaseHTTPRequestHandler):
    """A host of pictures; what else is asked of it is to be refused."""

    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        kind = self.path.removeprefix("/")
        self.send_response({"moved": 302, "partial": 206, "gone": 404}.get(kind, 200))
        if kind == "moved":
            self.send_header("Location", "/a.png")
        self.end_headers()
        with contextlib.suppress(OSError):  # whoever has enough closes the connection
            for _ in range(20 if kind == "slow" else 1):
                self.wfile.write(PICTURE)
                time.sleep(0.05 * (kind == "slow"))

    def log_message(self, *_: object) -> None:
        """Write no log."""


PICTURE = base64.b64decode(encoded())


@pytest.fixture
def picture_host(monkeypatch):
    """Let what is fetched come from a server of this computer, without encryption."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def connect_plainly(connection: http.client.HTTPSConnection) -> None:
        connection.sock = socket.socket()
        connection.sock.settimeout(connection.timeout)
        connection.sock.connect(server.server_address)

    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: answers("93.184.216.34"))
    monkeypatch.setattr(addresses._Connection, "connect", connect_plainly)
    Host.requests.clear()
    yield Pictures([HOST])
    server.shutdown()
    server.server_close()


def test_a_picture_of_an_allowed_host_is_fetched_up_to_a_size(picture_host, monkeypatch):
    monkeypatch.setattr(addresses, "LARGEST", len(PICTURE))
    assert picture_host.open(f"https://{HOST}/a.png").size == (8, 6)
    monkeypatch.setattr(addresses, "LARGEST", len(PICTURE) - 1)
    with pytest.raises(Refusal, match="has more than 0 MB") as refusal:
        picture_host.open(f"https://{HOST}/a.png")
    assert refusal.value.status == 413


@pytest.mark.parametrize(("kind", "status"), [("moved", 302), ("partial", 206), ("gone", 404)])
def test_whatever_is_no_picture_of_its_own_is_refused(picture_host, kind, status):
    with pytest.raises(Refusal, match=f"answered {status} instead of a picture"):
        picture_host.open(f"https://{HOST}/{kind}")
    assert Host.requests == [f"/{kind}"]


@pytest.mark.parametrize("place", [f"user@{HOST}", f"user:word@{HOST}", f"{HOST}:8443"])
def test_a_host_is_asked_without_a_user_and_at_its_usual_port(picture_host, place):
    with pytest.raises(Refusal):
        picture_host.open(f"https://{place}/a.png")
    assert Host.requests == []


def test_a_host_that_never_ends_is_refused(picture_host, monkeypatch):
    monkeypatch.setattr(addresses, "LONGEST", 0.2)
    with pytest.raises(Refusal, match="gave no picture in 0 seconds"):
        picture_host.open(f"https://{HOST}/slow")
