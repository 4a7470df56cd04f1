"""The folder that a conversion writes: how it grows, what it holds, and who writes it.

A conversion grows in a folder beside its output and takes the output's name when it is complete.
Its manifest says what it was made of and holds the size and a hash of every file. While parts are
missing the manifest has another name, which no pipeline reads; it is what a conversion that was
interrupted goes on from.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from helpers.errors import CheckpointError, OutputError
from helpers.graphs.bit_widths import BitWidth
from helpers.sources.checkpoints import Config, read_json

MANIFEST = "manifest.json"
UNFINISHED_MANIFEST = "unfinished.json"
HOLDER = "held_by.txt"  # says which process writes an unfinished folder
FORMAT = 2  # of the manifest; a folder of another format is not read
_MADE_OF = ("format", "source", "preset", "versions", "parts")
_AGAIN = "run `python -m helpers convert` again"

Report = Callable[[str], None]


class Unfinished:
    """A conversion that grows in `folder`; `made_of` is what its parts have in common.

    It says under `parts` which part is in which file.
    """

    def __init__(self, folder: Path, made_of: Config) -> None:
        self.folder = folder
        self.manifest: Config = {"format": FORMAT} | made_of | {"bit_widths": {}, "files": {}}

    @property
    def parts(self) -> list[str]:
        """The names of the parts that are finished."""
        return list(self.manifest["bit_widths"])

    @property
    def bit_widths(self) -> dict[str, list[BitWidth]]:
        """The bit widths of the finished parts."""
        return bit_widths_of(self.manifest)

    @property
    def bytes(self) -> int:
        """The size of the finished parts."""
        return sum(file["bytes"] for file in self.manifest["files"].values())

    def start(self, *, resume: bool) -> None:
        """Empty the folder, except for parts that an interrupted conversion of the same finished.

        They are kept with `resume` only.
        """
        self.folder.mkdir(exist_ok=True)
        for name in (UNFINISHED_MANIFEST, MANIFEST) if resume else ():
            with contextlib.suppress(CheckpointError, KeyError, TypeError, AttributeError):
                self._take_over(read_json(self.folder / name))
        for path in self.folder.iterdir():
            if path.name not in self.manifest["files"]:
                path.unlink()
        holder = f"process {os.getpid()} on {platform.node()}"
        (self.folder / HOLDER).write_text(holder, encoding="utf-8")
        self._write()

    def _take_over(self, earlier: Config) -> None:
        if any(earlier[entry] != self.manifest[entry] for entry in _MADE_OF):
            return
        for part, widths in earlier["bit_widths"].items():
            files = {name: earlier["files"][name] for name in self.files_of(part)}
            if not _altered(self.folder, files):
                self.manifest["bit_widths"][part] = widths
                self.manifest["files"] |= files

    def add(self, part: str, widths: list[BitWidth]) -> None:
        """Record that a part's files are in the folder, whole."""
        self.manifest["bit_widths"][part] = [asdict(width) for width in widths]
        self.manifest["files"] |= _describe_files(self.folder, self.files_of(part))
        self._write()

    def files_of(self, part: str) -> list[str]:
        """Return the names of the files of a part."""
        return part_files(self.manifest, part)

    def finish(self) -> None:
        """Record all other files and give the manifest its name."""
        (self.folder / HOLDER).unlink()
        manifests = (MANIFEST, UNFINISHED_MANIFEST)
        names = sorted(path.name for path in self.folder.iterdir() if path.name not in manifests)
        self.manifest["files"] = _describe_files(self.folder, names)
        self.manifest["bit_widths"] = {
            part: self.manifest["bit_widths"][part] for part in self.manifest["parts"]
        }
        self._write().replace(self.folder / MANIFEST)

    def _write(self) -> Path:
        text = json.dumps(self.manifest, indent=1, ensure_ascii=False) + "\n"
        new = self.folder / f"{UNFINISHED_MANIFEST}.new"
        new.write_text(text, encoding="utf-8")
        return new.replace(self.folder / UNFINISHED_MANIFEST)


@contextlib.contextmanager
def written_aside(
    output: Path, made_of: Config, *, resume: bool = False, report: Report = lambda line: None
) -> Iterator[Unfinished]:
    """Give a folder to write into that takes the name `output` when all went well.

    A conversion that stands at `output` is replaced. Whatever goes wrong, Ctrl-C included, leaves
    `output` as it was; with `resume`, finished parts are kept aside and gone on from next time.
    Raises `OutputError` for a folder that cannot be written, that holds something else, or that
    another process is writing.
    """
    output = output.resolve()  # also where it is "." or a link
    try:
        is_empty = output.is_dir() and not any(output.iterdir())
        if output.exists() and not is_empty and not is_conversion(output):
            raise OutputError(f"{output} holds something else; give a new or an empty folder.")
        _aside(output).mkdir(parents=True, exist_ok=True)
        held = contextlib.ExitStack()
        held.enter_context(_held(output))
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{output} cannot be written ({reason}); give another folder.") from None
    with held:
        work = Unfinished(_aside(output), made_of)
        try:
            work.start(resume=resume)
            yield work
            work.finish()
            _put_in_place(work.folder, output)
        except BaseException as error:
            if resume and work.parts:
                report(f"what is finished is kept; `python -m helpers clean {output}` removes it")
            else:
                shutil.rmtree(work.folder, ignore_errors=True)
            if isinstance(error, OSError):
                reason = error.strerror or error
                raise OutputError(f"{output} could not be written ({reason}).") from None
            raise


def _aside(output: Path) -> Path:
    return output.with_name(f".{output.name}.unfinished")


def _replaced(output: Path) -> Path:
    return output.with_name(f".{output.name}.replaced")


def _lock(output: Path) -> Path:
    return output.with_name(f".{output.name}.lock")


def _put_in_place(folder: Path, output: Path) -> None:
    """Rename `folder` to `output`; killed in between, it is still whole and can be gone on from."""
    replaced = _replaced(output)
    shutil.rmtree(replaced, ignore_errors=True)  # of a process that was killed here
    if output.exists():
        output.replace(replaced)
    folder.replace(output)
    shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def _held(output: Path) -> Iterator[None]:
    """Keep other processes from writing `output`; the system lets go of it if this one dies."""
    path = _lock(output)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = "another process"
        with contextlib.suppress(OSError):  # it may have ended just now
            holder = (_aside(output) / HOLDER).read_text(encoding="utf-8")
        with contextlib.suppress(OSError):  # the other's has files in it
            _aside(output).rmdir()
        raise OutputError(
            f"{output} is being written by {holder}; wait until it is done, or give another folder."
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes it when it is released
            path.unlink()
        lock.release()


def is_conversion(folder: Path) -> bool:
    """Return whether `folder` holds a finished conversion."""
    return _exists(Path(folder) / MANIFEST)


def read_manifest(folder: Path) -> Config:
    """Return the manifest of a finished conversion after checking that every file is there.

    Raises `OutputError` for a folder without one, of another format, or with a file missing or of
    another size; `verify` also looks into the files.
    """
    folder = Path(folder)
    if not is_conversion(folder):
        if _exists(_aside(folder.resolve()) / UNFINISHED_MANIFEST):
            lacks = ", ".join(_missing_parts(folder))
            raise OutputError(
                f"The conversion to {folder} was interrupted and lacks {lacks}; {_AGAIN} to go on."
            )
        raise OutputError(f"{folder} holds no finished conversion; {_AGAIN}.")
    damaged = OutputError(f"The manifest of {folder} is damaged; {_AGAIN}.")
    try:
        manifest = read_json(folder / MANIFEST)
    except CheckpointError:
        raise damaged from None
    if manifest.get("format") != FORMAT:
        raise OutputError(f"{folder} was made by another version of this collection; {_AGAIN}.")
    if not manifest.keys() >= {*_MADE_OF, "bit_widths", "files"}:
        raise damaged
    try:
        missing = _resized(folder, manifest["files"])
    except (AttributeError, KeyError, TypeError):
        raise damaged from None
    if missing:
        raise OutputError(f"{missing[0]} in {folder} is missing or damaged; {_AGAIN}.")
    return manifest


def _missing_parts(folder: Path) -> list[str]:
    """Return the parts that an interrupted conversion did not finish."""
    with contextlib.suppress(CheckpointError, KeyError, TypeError):
        manifest = read_json(_aside(folder.resolve()) / UNFINISHED_MANIFEST)
        return [part for part in manifest["parts"] if part not in manifest["bit_widths"]]
    return []


def verify(folder: Path, *, report: Report = lambda line: None) -> list[str]:
    """Read every file of a finished conversion and return their names.

    Raises `OutputError` that names those that are not as they were written.
    """
    files = read_manifest(folder)["files"]
    altered = []
    for name, file in files.items():
        report(f"{name}: {file['bytes'] / 1e6:.1f} MB")
        altered += _altered(Path(folder), {name: file})
    if altered:
        raise OutputError(f"{', '.join(altered)} in {folder} changed since written; {_AGAIN}.")
    return list(files)


def clean(folder: Path) -> list[Path]:
    """Remove what interrupted conversions to `folder` and to folders in it left behind.

    Returns what was removed. What another process is still writing is left alone.
    """
    folder = Path(folder).resolve()
    leftovers = [path(folder) for path in (_aside, _replaced, _lock)]
    leftovers += [
        path
        for ending in ("unfinished", "replaced", "lock")
        for path in sorted(folder.glob(f".*.{ending}"))
    ]
    removed = []
    for path in leftovers:
        output = path.with_name(path.name[1:].rpartition(".")[0])
        with contextlib.suppress(OutputError):
            if path.exists():
                with _held(output):  # its own lock is removed as it ends
                    if path.is_dir():
                        shutil.rmtree(path)
                removed.append(path)
    return removed


def bit_widths_of(manifest: Config) -> dict[str, list[BitWidth]]:
    """Return the bit widths by part that a manifest records."""
    parts = manifest["bit_widths"].items()
    return {part: [BitWidth(**width) for width in widths] for part, widths in parts}


def part_files(manifest: Config, part: str) -> list[str]:
    """Return the names of the files of a part."""
    file = str(manifest["parts"][part])
    return [file, f"{file.removesuffix('.xml')}.bin"]


def folder_bytes(folder: Path) -> dict[str, int]:
    """Return the size on disk in bytes of each part of a finished conversion."""
    manifest = read_manifest(folder)
    return {
        part: sum(manifest["files"][name]["bytes"] for name in part_files(manifest, part))
        for part in manifest["parts"]
    }


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that cannot be entered
        return False


def _describe_files(folder: Path, names: list[str]) -> dict[str, Config]:
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        for name in names
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _resized(folder: Path, files: dict[str, Config]) -> list[str]:
    """Return the names of files that are missing or of another size than `files` says."""
    return [
        name
        for name, file in files.items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != file["bytes"]
    ]


def _altered(folder: Path, files: dict[str, Config]) -> list[str]:
    """Return the names of files that do not hold what `files` says."""
    resized = _resized(folder, files)
    return resized + [
        name
        for name, file in files.items()
        if name not in resized and _sha256(folder / name) != file["sha256"]
    ]
