"""OpenVINO 2026.4: numbers in an IR are written as the process's locale has them.

After `setlocale(LC_ALL, "de_DE.UTF-8")`, which Qt calls too, an IR holds `eps="9,99e-07"`, and
whoever reads it reads 9, since numbers are read with a point everywhere
(https://github.com/openvinotoolkit/openvino/issues/24370 is of the same kind). It may go when
`save_model` writes a point there too; `tests/test_locales.py` tells.
"""

import contextlib
import ctypes
import locale
import sys
from collections.abc import Iterator

# LC_NUMERIC_MASK of <locale.h>.
_NUMBERS = 1 << 4 if sys.platform == "darwin" else 1 << 1
_GLOBAL = ctypes.c_void_p(-1)  # LC_GLOBAL_LOCALE


@contextlib.contextmanager
def plain_numbers() -> Iterator[None]:
    """Let this thread, and no other, write and read numbers with a decimal point."""
    if sys.platform == "win32":
        with _windows():
            yield
        return
    library = ctypes.CDLL(None)
    for name in ("newlocale", "duplocale", "uselocale"):
        getattr(library, name).restype = ctypes.c_void_p
    plain = ctypes.c_void_p(library.newlocale(_NUMBERS, b"C", _duplicate(library)))
    before = ctypes.c_void_p(library.uselocale(plain))
    try:
        yield
    finally:
        library.uselocale(before)
        library.freelocale(plain)


def _duplicate(library: ctypes.CDLL) -> ctypes.c_void_p:
    return ctypes.c_void_p(library.duplocale(_GLOBAL))


@contextlib.contextmanager
def _windows() -> Iterator[None]:
    """Do the same with Windows' C library, which knows locales of threads as a mode."""
    library = ctypes.CDLL("ucrtbase")
    mode = library._configthreadlocale(1)  # _ENABLE_PER_THREAD_LOCALE
    before = locale.setlocale(locale.LC_NUMERIC)
    try:
        locale.setlocale(locale.LC_NUMERIC, "C")
        yield
    finally:
        locale.setlocale(locale.LC_NUMERIC, before)
        library._configthreadlocale(mode)
