"""The errors that a user can cause: one sentence that says what is wrong and what to do."""

import contextlib
import errno
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any

# What libraries say where memory runs out, PyTorch on Windows the fourth, or threads do.
WORDS_OF_LIMITS = (
    "bad_alloc",
    "annot allocate memory",
    "can't allocate memory",
    "ot enough memory",
    "can't start new thread",
    "Resource temporarily unavailable",
)
OF_WINDOWS = (8, 14, 1455)  # its errors for memory that it has not, and for a paging file too small
LONGEST = 1200  # characters of a message; a damaged file may hold names of any length


def shortened(message: str) -> str:
    """Return a message without the middle of what is too long in it."""
    half = LONGEST // 2
    fits = len(message) <= LONGEST
    return message if fits else f"{message[:half]} ... {message[-half:]}"


class UserError(Exception):
    """The base of all errors that a user can cause and put right."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


class CheckpointError(UserError):
    """A checkpoint cannot be read as its authors meant it."""


class PictureError(UserError):
    """A file or an object is not a picture that can be used."""


class PictureSizeError(PictureError):
    """A picture has more pixels than are worked on."""


class QuestionError(UserError):
    """A question cannot be asked, for example because it is empty."""


class ContextError(QuestionError):
    """A conversation does not fit into the context; an answer has `room` for so many tokens."""

    def __init__(self, message: str, room: int) -> None:
        super().__init__(message)
        self.room = max(0, room)


class DeviceError(UserError):
    """A device does not exist here or cannot run the model."""


class ResourcesError(DeviceError):
    """Memory or threads ran out, by the `error` of a library."""

    def __init__(self, error: Exception) -> None:
        super().__init__(
            f"Memory or threads ran out ({reason_of(error)}); end other programs, raise limits "
            "(`ulimit -a`), or take a smaller model."
        )


class OutputError(UserError):
    """A folder cannot be written, or does not hold a finished conversion."""


class SettingsError(UserError):
    """A setting, such as a precision or a sampling value, is not one that exists here."""


def is_number(value: object) -> bool:
    """Return whether a setting is a number, of NumPy's kinds too; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Return whether a setting is a whole number, which may be written as `2.0`."""
    return is_number(value) and bool(value % 1 == 0)


def system_reason(error: Exception) -> str:
    """Return what the system says of an error, without the path that a sentence names anyway."""
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "larger than `ulimit -f` or the format of the disk allows"
    return getattr(error, "strerror", None) or str(error)


def unreadable(path: object) -> str:
    """Return the sentence for a file or folder that is there, but not for this user to read."""
    return f"{path} may not be read by this user; ask its owner for the right to."


def reason_of(error: Exception) -> str:
    """Return the type of an error from a library, and its first line, or OpenVINO's last."""
    lines = str(error).strip().splitlines() or [""]
    line = lines[-1] if lines[0].startswith("Exception from ") else lines[0]
    return " ".join(f"{type(error).__name__}: {line}".split()).rstrip(":")


def problem_of(error: UserError) -> str:
    """Return what is wrong, of a sentence that also says what to do about it."""
    return str(error).rpartition("; ")[0] or str(error).removesuffix(".")


def ran_out(error: Exception) -> bool:
    """Return whether an error says, in whatever words, that there is no memory or thread left."""
    text = str(error)
    if isinstance(error, OSError):  # whose path may say anything
        text = error.strerror or ""
        if error.errno == errno.ENOMEM or getattr(error, "winerror", None) in OF_WINDOWS:
            return True
    return isinstance(error, MemoryError) or any(words in text for words in WORDS_OF_LIMITS)


def check_resources(error: Exception) -> None:
    """Raise a `ResourcesError` where that is what an error says: it is not of what was read."""
    if isinstance(error, ResourcesError):
        raise error
    if ran_out(error):
        raise ResourcesError(error) from None


@contextlib.contextmanager
def writing(path: Path, kind: str = "file") -> Iterator[None]:
    """Turn an error of writing a file, or another `kind` of place, into an `OutputError`."""
    try:
        yield
    except OSError as error:
        reason = system_reason(error)
        raise OutputError(f"{path} cannot be written ({reason}); give another {kind}.") from None
