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


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file beside `path` and let it take that name; text is UTF-8, with its line ends.

    A full disk, or the end of the process, leaves what was there. A link stays one, and a file
    keeps its mode. What is no file, such as a pipe, is written to. Raises `OSError`.
    """
    content = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = Path(os.path.realpath(path))
    aside = path.with_name(f".vlm-{uuid.uuid4().hex}.part")
    try:
        aside.write_bytes(content)
        if path.exists():
            shutil.copymode(path, aside)
        aside.replace(path)
    except OSError as error:
        if error.errno not in _ONLY_IN_PLACE or not path.exists():
            raise
        path.write_bytes(content)
    finally:
        with contextlib.suppress(OSError):  # it has its name, or was never made
            aside.unlink()
