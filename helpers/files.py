"""Files that are written whole, or stay as they were.

What this module does not know: what is in them.
"""

import contextlib
import errno
import os
import shutil
import uuid
from pathlib import Path

# What a place says where a file can be written, but none beside it, or none in its stead: another
# user's folder, and a file that was mounted by itself.
_ONLY_IN_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)

_STREAMS = ("/dev", "/proc")  # what they name may be a shell's file, which others write to as well


def check_writable(folder: Path) -> None:
    """Write a file into a folder and remove it. Raises `OSError` where that is not possible.

    `tempfile` tries for ever on Windows, where `os.access` says of any folder that it may be
    written.
    """
    path = folder / f".vlm-{uuid.uuid4().hex}.part"
    try:
        path.write_bytes(b"\n")  # an empty file is made also on a full disk
    finally:
        with contextlib.suppress(OSError):  # it was never made
            path.unlink()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file beside `path` and let it take that name; text is UTF-8, with its line ends.

    A full disk, or the end of the process, leaves what was there. A link stays one, and a file
    keeps its mode. What is no file, such as a pipe, or stands where none can be made beside it, is
    written to as it is. Raises `OSError`.
    """
    content = content.encode() if isinstance(content, str) else content
    is_stream = any(path.is_relative_to(place) for place in _STREAMS)
    if is_stream or (path.exists() and not path.is_file()):
        path.write_bytes(content)
        return
    path = Path(os.path.realpath(path))
    aside = path.with_name(f".vlm-{uuid.uuid4().hex}.part")
    try:
        aside.touch()
        if path.exists():
            shutil.copymode(path, aside)  # before there is something to read in it
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        if error.errno not in _ONLY_IN_PLACE or not path.exists():
            raise
        path.write_bytes(content)
    finally:
        with contextlib.suppress(OSError):  # it has its name, or was never made
            aside.unlink()
