"""Ctrl-C ends a program of this collection with a word and exit code 130, whenever it comes.

Importing this is enough for one that is starting, so `helpers` does it before anything else: of the
half second until a command begins, most is spent on imports. A program that only imports `helpers`
is left alone.
"""

import sys

EXIT_CODE = 130  # as shells have it: 128 and the number of SIGINT


def stop(exit_code: int = EXIT_CODE) -> int:
    """Say that the program is stopped, and return its exit code."""
    print("stopped", file=sys.stderr)
    return exit_code


def is_cause(error: BaseException | None) -> bool:
    """Return whether an error comes from Ctrl-C, as those of compiled packages do at import.

    It names its cause, or was raised while another error was handled, as packages of theirs do.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        context = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or context
    return error is not None


def handle() -> None:
    """Let Ctrl-C that nobody catches end this program without a traceback."""
    sys.excepthook = _stop_quietly
    sys.unraisablehook = _interrupt_again


def _stop_quietly(kind: type[BaseException], error: BaseException, *trace: object) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(stop())
    sys.__excepthook__(kind, error, error.__traceback__)


def _interrupt_again(lost: "sys.UnraisableHookArgs") -> None:
    """Repeat a Ctrl-C that came while Python was cleaning up an object, where it has no effect."""
    import contextlib
    import threading

    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    with contextlib.suppress(RuntimeError):  # the interpreter ends, and starts no thread
        threading.Timer(0.05, _interrupt_main_thread).start()


def _interrupt_main_thread() -> None:
    """Send the main thread a Ctrl-C of its own, which wakes it from what it waits for."""
    import _thread
    import signal
    import threading

    if sys.platform == "win32":  # it has no signals to threads
        _thread.interrupt_main()
    elif (number := threading.main_thread().ident) is not None:
        signal.pthread_kill(number, signal.SIGINT)


# While `python -m helpers` imports this package, `-m` stands for the program's name.
if sys.argv[0].replace("\\", "/").rpartition("/")[2] in ("vlm", "vlm.exe", "-m"):
    handle()
