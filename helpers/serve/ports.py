"""Ports of this computer that are free to be served.

What this module does not know: what is served there.
"""

import errno
import os
import socket

from helpers.errors import SettingsError

FIRST_PORT = 7860
OF_ANOTHER = (errno.EADDRNOTAVAIL, errno.EINVAL)  # the second for a link's without its `%eth0`
ANOTHER = "give another, or none for a free one"


def free_port(port: int | None, host: str = "127.0.0.1", *, advice: str = ANOTHER) -> int:
    """Return `port` if it can be served at `host`, or the first one that can, or any.

    Raises `SettingsError` for a port that is taken, whose `advice` says what to do, and for a host
    that is not of this computer.
    """
    if port is not None and not 1 <= port <= 65535:
        raise SettingsError(f"The port is {port}; it should be a number from 1 to 65535.")
    if not host:  # to the system that is every address
        raise no_address("An empty text")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in [port] if port else [*range(FIRST_PORT, FIRST_PORT + 100), 0]:
        with socket.socket(family) as free_socket:
            if os.name == "posix":  # where a server that just ended does not hold its port
                free_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free_socket.bind((host, candidate))
            except socket.gaierror:
                raise no_address(host) from None
            except OSError as error:
                if error.errno in OF_ANOTHER:
                    raise no_address(host) from None
                if port or not candidate:
                    raise not_free(candidate, error.errno, advice) from None
            else:
                return int(free_socket.getsockname()[1])
    raise AssertionError("port 0 is any free one")


def no_address(host: str) -> SettingsError:
    """Return the error for a host that is no address of this computer."""
    return SettingsError(
        f"{host} is no address of this computer; give --host 127.0.0.1, or its own."
    )


def not_free(port: int, number: int | None, advice: str = ANOTHER) -> SettingsError:
    """Return the error for a port that cannot be served, with the system's error `number`."""
    reason = "is taken" if number == errno.EADDRINUSE else "may not be used by this user"
    return SettingsError(f"The port {port} {reason}; {advice}.")
