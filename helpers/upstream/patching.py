"""Replacing attributes of another package for a while."""

import contextlib
import threading
from collections.abc import Iterator

# What is replaced is the whole process's, so two threads take turns.
_LOCK = threading.RLock()


@contextlib.contextmanager
def replaced(owner: object, **values: object) -> Iterator[None]:
    """Give `owner`, a module or a class, other attributes until the end.

    An attribute that it does not have, in another release say, is left out.
    """
    with _LOCK:
        before = {name: getattr(owner, name) for name in values if hasattr(owner, name)}
        try:
            for name in before:
                setattr(owner, name, values[name])
            yield
        finally:
            for name, value in before.items():
                setattr(owner, name, value)
