"""Where a conversion grows until it is complete, and what there is left of ours or is another's.

Usually that is a folder beside the output, which takes its name in the end. A folder that exists
and cannot be renamed, such as a container's volume, holds it until then. Whatever stands at these
places without our mark is somebody else's and left alone: a folder is ours that has a manifest of
ours or says which process writes it, a lock that is empty and belongs to such a folder.
"""

import contextlib
import os
import shutil
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from helpers.convert.manifests import (
    MANIFEST,
    UNFINISHED_MANIFEST,
    exists,
    is_manifest,
    is_sound,
)
from helpers.errors import CheckpointError, OutputError
from helpers.graphs.part_names import FILES, LANGUAGE_MODEL
from helpers.sources.checkpoints import read_json

HOLDER = "held_by.txt"  # says which process writes an unfinished folder
HOLDS = "process "  # how it begins
COPIED = (".json", ".txt", ".model", ".jinja")  # files of a checkpoint that stand beside the parts
LEFT_OUT = (".index.json", "adapter_config.json")  # but these, which say of weights what was
ENDING = ".unfinished"
# What other runtimes read beside the parts.
TOKENIZER, DETOKENIZER = "openvino_tokenizer.xml", "openvino_detokenizer.xml"
GRAPH = "graph.pbtxt"


@dataclass(frozen=True)
class Place:
    """Where the conversion to `output` grows: in `folder`, beside the output or in it."""

    output: Path
    folder: Path

    @classmethod
    def beside(cls, output: Path) -> "Place":
        """Return the place beside `output`; in it if it has no name, as a disk's root."""
        name = f".{output.name}{ENDING}"
        return cls(output, output.with_name(name)) if output.name else cls.inside(output)

    @classmethod
    def inside(cls, output: Path) -> "Place":
        """Return the place in `output`."""
        return cls(output, output / ENDING)

    @classmethod
    def made(cls, output: Path) -> "Place":
        """Return a place that can be written, its folder made.

        Raises `OutputError` where something stands there that is not ours, and `OSError`.
        """
        beside, inside = cls.beside(output), cls.inside(output)
        if inside.folder.is_dir() or os.path.ismount(output):
            return inside._make()
        try:
            return beside._make()
        except OSError:
            if not output.is_dir():
                raise
            return inside._make()

    def _make(self) -> "Place":
        for path in (self.folder, self.replaced):
            if (path.exists() or path.is_symlink()) and not is_ours(path):
                raise _of_others(path)
        if (self.lock.exists() or self.lock.is_symlink()) and not self._lock_is_empty():
            raise _of_others(self.lock)
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    @property
    def replaced(self) -> Path:
        """What stood at the output, while the new folder takes its place."""
        return self._named(".replaced")

    @property
    def lock(self) -> Path:
        """The lock that the writing process holds."""
        return self._named(".lock")

    def _named(self, ending: str) -> Path:
        return self.folder.with_name(f"{self.folder.name.removesuffix(ENDING)}{ending}")

    def _lock_is_empty(self) -> bool:
        return not self.lock.is_symlink() and exists(self.lock) and not self.lock.stat().st_size

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing; the system lets go of it if this one dies."""
        lock = FileLock(self.lock)
        try:
            self._acquire(lock)
            yield
        finally:  # which Ctrl-C may interrupt, too
            try:
                with contextlib.suppress(OSError):  # Windows removes it when it is released
                    if lock.is_locked:
                        self.lock.unlink()
            finally:
                lock.release()

    def _acquire(self, lock: FileLock) -> None:
        """Take the lock, or raise `OutputError` with who has it."""
        try:
            lock.acquire(blocking=False)
        except Timeout:
            holder = "another process"
            with contextlib.suppress(OSError):  # it may have ended just now
                holder = (self.folder / HOLDER).read_text(encoding="utf-8")
            with contextlib.suppress(OSError):  # the other's has files in it
                self.folder.rmdir()
            raise OutputError(
                f"{self.output} is being written by {holder}; wait until it is done, or give "
                "another folder."
            ) from None
        except OSError:  # a lock of another user's, who alone can remove it
            with contextlib.suppress(OSError):
                self.folder.rmdir()
            raise

    def put_in_place(self) -> None:
        """Let the finished folder be the output.

        Killed in between, it is still whole and can be gone on from.
        """
        if self.folder.parent == self.output:
            self.move_in()
            return
        shutil.rmtree(self.replaced, ignore_errors=True)  # of a process that was killed here
        try:
            if self.output.exists():
                self.output.replace(self.replaced)
        except OSError:  # the same disk mounted twice, or a folder that is another user's
            self.move_in()
            return
        try:
            self.folder.replace(self.output)
        except OSError:
            if self.replaced.exists():
                self.replaced.replace(self.output)
            raise
        shutil.rmtree(self.replaced, ignore_errors=True)

    def move_in(self) -> None:
        """Move all files of the finished folder into the output, the manifest last.

        What stood there before is of a conversion that is replaced, whose manifest goes after its
        other files: without one, what is there has been moved in. The largest goes first, so that
        nothing has changed where another process keeps it, as it may on Windows.
        """
        names = [*read_json(self.folder / MANIFEST)["files"], MANIFEST]
        in_place = [name for name in names if not exists(self.folder / name)]
        exceptions = (*in_place, MANIFEST, self.lock.name)
        files = [
            path for path in self.output.iterdir() if path.is_file() and path.name not in exceptions
        ]
        for path in sorted(files, key=lambda path: path.stat().st_size, reverse=True):
            path.unlink()
        (self.output / MANIFEST).unlink(missing_ok=True)
        for name in names:
            if exists(self.folder / name):
                shutil.move(self.folder / name, self.output / name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def is_nearly_in_place(self) -> bool:
        """Return whether a process ended while it moved the files of a finished folder in."""
        names = _files_of(self.folder / MANIFEST)
        if not names or not self.output.is_dir():
            return False
        names |= {self.folder.name, self.lock.name}
        if exists(self.output / MANIFEST):  # of the conversion that is replaced
            replaced = _files_of(self.output / MANIFEST)
            if all(exists(self.output / name) for name in replaced):
                return False
            names |= {*replaced, MANIFEST}
        return all(path.name in names for path in self.output.iterdir())

    def leftovers(self) -> list[Path]:
        """Return what is ours here of conversions that did not end well."""
        paths = [path for path in (self.folder, self.replaced) if is_ours(path)]
        if not paths and self._lock_is_empty() and holds_conversion(self.output):
            return [self.lock]  # beside a folder it goes with that, without a word
        return paths

    def clean(self) -> Iterator[Path]:
        """Remove what is ours here, and yield each as it is gone; nothing while a process writes.

        Raises `OSError` for what may not be removed.
        """
        leftovers = self.leftovers()
        if not leftovers:
            return
        with self.held():  # its own lock is removed as it ends
            if self.is_nearly_in_place():
                self.move_in()
                return
            for path in leftovers:
                if path.is_dir():
                    shutil.rmtree(path)
                yield path


def _files_of(manifest: Path) -> set[str]:
    """Return the names of files that a manifest has; none of anybody's, who may name any file."""
    if not is_manifest(manifest) or not is_sound(content := read_json(manifest)):
        return set()
    return set(content["files"])


def _of_others(path: Path) -> OutputError:
    return OutputError(
        f"{path} is in the way, and not one of ours; rename it, or give another folder."
    )


def is_ours(folder: Path) -> bool:
    """Return whether a folder was made here, or has nothing in it that could be lost."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    entries = list(folder.iterdir())
    if any(entry.is_dir() for entry in entries):
        return False
    is_begun = is_manifest(folder / UNFINISHED_MANIFEST) or _names_holder(folder / HOLDER)
    return not entries or is_begun or holds_conversion(folder)


def _names_holder(path: Path) -> bool:
    try:
        return path.read_text(encoding="utf-8").startswith(HOLDS)
    except (OSError, UnicodeDecodeError):
        return False


def holds_conversion(folder: Path) -> bool:
    """Return whether a folder holds a conversion, be it damaged.

    A manifest alone does not say so: other programs have files of that name.
    """
    if not exists(folder / MANIFEST):
        return False
    return is_manifest(folder / MANIFEST) or exists(folder / FILES[LANGUAGE_MODEL])


def has_runtime_files(names: Container[str]) -> bool:
    """Return whether a folder with files of these names has what other runtimes read."""
    return TOKENIZER in names and GRAPH in names


def check_free(output: Path) -> None:
    """Raise an `OutputError` if anything stands at `output` that a conversion may not replace."""
    if not output.exists():
        return
    inside = Place.inside(output)
    ours = [inside.lock, *filter(is_ours, [inside.folder])]
    entries = [path for path in output.iterdir() if path not in ours] if output.is_dir() else None
    if entries == []:
        return
    if entries is None or not holds_conversion(output):
        raise OutputError(f"{output} holds something else; give a new or an empty folder.")
    others = sorted(path.name for path in entries if path.name not in _names_of(output))
    if others:
        raise OutputError(
            f"{output} holds more than a conversion ({', '.join(others[:3])}); move that "
            "elsewhere, or give another folder."
        )


def _names_of(output: Path) -> set[str]:
    """Return the names of files that a conversion has; copies by their endings if it is damaged."""
    parts = {path.name for path in output.glob("openvino_*_model.*")}
    parts |= {f"{name[:-4]}{end}" for name in (TOKENIZER, DETOKENIZER) for end in (".xml", ".bin")}
    parts.add(GRAPH)
    try:
        files = set(read_json(output / MANIFEST)["files"])
    except (CheckpointError, KeyError, TypeError):
        copies = (path for path in output.iterdir() if path.suffix in COPIED)
        files = {path.name for path in copies if path.is_file()}
    return parts | files | {MANIFEST}
