"""SIGTERM, and SIGHUP of a terminal that is closed, end a command as Ctrl-C does.

So what it started ends with it, and its temporary folders are removed. The exit codes are those
that shells have: 128 and the signal's number.
"""

import contextlib
import gc
import os
import signal
import stat
import sys
from typing import TextIO

# Windows has no SIGHUP.
SIGNALS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
PATIENCE = 5  # seconds that a killed process may take to be gone
_CONTROL_C = 128 + signal.SIGINT
_exit_code = _CONTROL_C


def handle() -> None:
    """Let these signals raise KeyboardInterrupt; after the first, another ends the program at once.

    One that is ignored stays so, as `nohup` wants it.
    """
    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _raise)


def exit_code() -> int:
    """Return the exit code of a program that is stopped: by Ctrl-C, or by a signal that came."""
    return _exit_code


def raise_again() -> None:
    """Raise KeyboardInterrupt again where a caught one was no Ctrl-C, and ends the program."""
    if _exit_code != _CONTROL_C:
        raise KeyboardInterrupt


def leave() -> None:
    """Let Ctrl-C change nothing any more, and these signals end the program at once.

    The interpreter then ends without a last look for garbage, which takes a second.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in SIGNALS:
        if signal.getsignal(number) == _raise:
            signal.signal(number, signal.SIG_DFL)
    gc.freeze()


def leave_closed_terminal() -> None:
    """Let output that went to a terminal which is closed go nowhere, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # it is no file, or closed
            number = stream.fileno()
            if stat.S_ISCHR(os.fstat(number).st_mode) and not os.isatty(number):
                silence(stream)


def silence(stream: TextIO) -> None:
    """Let what is written to a stream go nowhere, also what the interpreter writes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _raise(number: int, _: object) -> None:
    import psutil  # here, since `vlm` tells in a sentence which packages are missing

    global _exit_code
    _exit_code = 128 + number
    for other in SIGNALS:  # as a system's manager sends both
        if signal.getsignal(other) == _raise:
            signal.signal(other, signal.SIG_DFL)
    # Now, since a process that is just being started is known to nobody else.
    processes = psutil.Process().children(recursive=True)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=PATIENCE)  # they may write into folders that are removed
    leave_closed_terminal()
    raise KeyboardInterrupt
