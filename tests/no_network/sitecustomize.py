"""Refuse every connection that leaves this computer (see tests/offline.py).

Python imports a module of this name when it starts, so every Python process that has this folder
on PYTHONPATH is covered: kernels and other children too. An audit hook sees what any library asks
of Python's sockets; what it does not see is native code that opens sockets of its own.
"""

import os
import socket
import sys

RECORD = os.environ["NO_NETWORK_RECORD"]
HERE = {"", "localhost", "localhost.localdomain", "0.0.0.0", "::", "::1", socket.gethostname()}


def is_here(host: object) -> bool:
    """Say whether a host, as the socket functions take it, is this computer itself."""
    if host is None:
        return True
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    return name.lower() in HERE or name.startswith("127.")


def refuse(event: str, arguments: tuple) -> None:
    """Record and stop an attempt to look up or reach another computer."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        if not isinstance(address, tuple):  # a local socket's path, or a socket already connected
            return
        host = address[0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    else:
        return
    if not is_here(host):
        with open(RECORD, "a", encoding="utf-8") as record:  # noqa: PTH123 (pathlib is not loaded)
            record.write(f"{event} {host}\n")
        raise ConnectionRefusedError(f"No connection may leave this computer ({event} {host}).")


sys.addaudithook(refuse)
