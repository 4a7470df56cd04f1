"""Inferences that go on in the background, since nobody waits for them any more.

An answer that is stopped ends at once, but what its request computes cannot be given up: cancelled,
a request with states leaves the CPU plugin of OpenVINO 2026.4 with sizes that make a later one fail
or crash. So it is finished, and kept until then with its inputs, whose memory it shares.

What this module does not know: what is computed.
"""

from contextlib import suppress
from threading import Lock

import openvino as ov

from helpers.graphs.core import LOOK, Stoppable, Stopped

_lock = Lock()
_requests: list[tuple[ov.InferRequest, tuple[object, ...]]] = []


def keep(request: ov.InferRequest, *inputs: object) -> None:
    """Keep a request that is computing, and the objects its inputs are in, until it is over."""
    with _lock:
        _requests.append((request, inputs))


def has(request: ov.InferRequest) -> bool:
    """Return whether a request is computing in the background."""
    with _lock:
        _requests[:] = [pair for pair in _requests if not _is_over(pair[0])]
        return any(request is other for other, _ in _requests)


def wait(request: ov.InferRequest, stop: Stoppable | None = None) -> None:
    """Wait until a request is over; raises `Stopped` where `stop` is set before that."""
    while has(request):
        if not _is_over(request, LOOK) and stop is not None and stop.is_set():
            raise Stopped


def finish(stop: Stoppable | None = None) -> None:
    """Wait for all; raises `Stopped` where `stop` is set before that.

    Torn down with the program, one would end it in an abort.
    """
    with _lock:
        requests = [request for request, _ in _requests]
    for request in requests:
        wait(request, stop)


def _is_over(request: ov.InferRequest, milliseconds: int = 0) -> bool:
    with suppress(RuntimeError):  # raised by one that failed
        return bool(request.wait_for(milliseconds))
    return True
