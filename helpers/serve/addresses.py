"""Pictures that a client sends: data in their address, or https hosts that are allowed by name.

Never a path, and never an address of this computer or of its own network: a host is looked up once,
and that address is connected to, so that a second look-up cannot lead elsewhere. No redirects.

What this module does not know: what a picture is asked about.
"""

import base64
import binascii
import http.client
import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Collection
from urllib.parse import SplitResult, quote, unquote_to_bytes, urlsplit

from PIL import Image

from helpers.errors import PictureError, PictureSizeError
from helpers.inputs.images import MAXIMUM_PIXELS, open_picture, reading
from helpers.serve.protocol import Refusal

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # which Pillow opens; OpenAI takes the same
LARGEST = 20_000_000  # bytes of a picture, as OpenAI's limit was for years
MOST_PIXELS = 3 * MAXIMUM_PIXELS  # of all pictures of a request, 3 bytes each
TOO_MANY = (
    f"The pictures have more than {MOST_PIXELS // 1_000_000} megapixels altogether; send fewer or "
    "smaller ones."
)
LONGEST = 10.0  # seconds that a host has for a picture
HTTPS = 443
SAFE = "%:@!$&'()*+,;=~[]|"  # what stays as it is in a path, escapes included
PIECE = 65_536  # bytes that are read at once

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Pictures:
    """Opens the pictures of requests; those on `hosts`, exact names, are fetched."""

    def __init__(self, hosts: Collection[str] = ()) -> None:
        self.hosts = set(map(_host_name, hosts))

    def opener(self) -> Callable[[str], Image.Image]:
        """Return what opens the pictures of one request, which are in memory together."""
        left = MOST_PIXELS

        def open_next(address: str) -> Image.Image:
            nonlocal left
            picture = self.open(address, most_pixels=left)
            left -= picture.width * picture.height
            return picture

        return open_next

    def open(self, address: str, *, most_pixels: int = MOST_PIXELS) -> Image.Image:
        """Return the picture at an address as RGB and the right way up.

        Raises `Refusal` for an address that may not be opened, and for what is no picture or too
        large, or has more pixels than are left to its request.
        """
        data = _data(address) if address[:5].lower() == "data:" else self._fetched(address)
        try:
            with reading("The picture"), Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                if most_pixels < picture.width * picture.height <= MAXIMUM_PIXELS:
                    raise PictureSizeError(TOO_MANY)
                return open_picture(picture)
        except PictureSizeError as error:
            raise _refusal(str(error), 413) from None
        except PictureError as error:
            names = ", ".join(FORMATS)
            raise _refusal(f"{error} Pictures are in {names}.") from None

    def _fetched(self, address: str) -> bytes:
        try:
            parts = urlsplit(address)
            port = parts.port
        except ValueError:
            raise _refusal("The picture's address cannot be read.") from None
        host = _host_name(parts.hostname or "")
        if parts.scheme.lower() != "https" or host not in self.hosts or port not in (None, HTTPS):
            raise _refusal(
                "Pictures come as data: URLs"
                + (" or by https from the hosts that are allowed." if self.hosts else "."),
            )
        if parts.username is not None or parts.password is not None:
            raise _refusal("The picture's address should have no user and no password.")
        return _fetch(host, parts)


def _host_name(host: str) -> str:
    """Return a host's name in the letters that are looked up (IDNA)."""
    host = host.lower().rstrip(".")
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:  # none that there can be
        return host


def _path(parts: SplitResult) -> str:
    """Return the path and the query of an address, percent-encoded as a browser sends them."""
    path = quote(parts.path or "/", safe=f"/{SAFE}", errors="replace")
    query = quote(parts.query, safe=f"/?{SAFE}", errors="replace")
    return f"{path}?{query}" if query else path


def _data(address: str) -> bytes:
    """Return the bytes of a data URL (RFC 2397); refuse too many before they are decoded.

    Base64 has lines where `base64` of a shell or Python's `encodebytes` made it (RFC 2045, 6.8).
    """
    head, comma, payload = address[5:].partition(",")
    if not comma:
        raise _refusal("The picture's data: URL has no comma before its data.")
    if len(payload) * 3 // 4 > LARGEST:
        raise _too_large()
    encoded = unquote_to_bytes(payload) if "%" in payload else payload.encode("ascii", "replace")
    if not head.lower().endswith(";base64"):
        return encoded
    try:
        return base64.b64decode(encoded.translate(None, b"\r\n"), validate=True)
    except binascii.Error:
        raise _refusal("The picture's data: URL is not in base64.") from None


def is_public(address: Address) -> bool:
    """Return whether an address is one of the internet, also by what it stands for in IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in ipaddress.ip_network("64:ff9b::/96"):  # NAT64 (RFC 6052)
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def _public_address(host: str) -> str:
    """Return the address of a host, looked up once; refuse one that is not of the internet."""
    try:
        entries = socket.getaddrinfo(host, HTTPS, type=socket.SOCK_STREAM)
    except OSError:
        raise _refusal(f"The host {host} is not known.") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries]
    if not addresses or not all(map(is_public, addresses)):
        raise _refusal(f"The host {host} is not on the internet.")
    return str(addresses[0])


class _Connection(http.client.HTTPSConnection):
    """A connection to an address that was looked up, with the certificate of its host."""

    def __init__(self, host: str, address: str, *, timeout: float) -> None:
        self._address = address
        self._tls = ssl.create_default_context()
        super().__init__(host, HTTPS, timeout=timeout, context=self._tls)

    def connect(self) -> None:
        plain = socket.create_connection((self._address, HTTPS), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


def _fetch(host: str, parts: SplitResult) -> bytes:
    """Return what is at an https address; refuse redirects and what is too long or too slow."""
    end = time.monotonic() + LONGEST
    connection = _Connection(host, _public_address(host), timeout=LONGEST)
    try:
        connection.request("GET", _path(parts), headers={"Accept": "image/*"})
        response = connection.getresponse()
        if response.status != 200:
            raise _refusal(f"The host {host} answered {response.status} instead of a picture.")
        data = bytearray()
        while piece := response.read1(PIECE):
            data += piece
            if len(data) > LARGEST:
                raise _too_large()
            if time.monotonic() > end:
                raise TimeoutError
    except (OSError, http.client.HTTPException):
        raise _refusal(f"The host {host} gave no picture in {LONGEST:.0f} seconds.") from None
    finally:
        connection.close()
    return bytes(data)


def _too_large() -> Refusal:
    return _refusal(f"The picture has more than {LARGEST // 1_000_000} MB; reduce it first.", 413)


def _refusal(message: str, status: int = 400) -> Refusal:
    return Refusal(message, status=status, parameter="messages", code="invalid_image")
