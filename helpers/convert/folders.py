"""The folder that a conversion writes: how it grows, what it holds, and who writes it.

A conversion grows elsewhere (`places`) and takes the output's name when it is complete. Its
manifest says what it was made of and holds the size and a hash of every file. While parts are
missing the manifest has another name, which no pipeline reads; it is what a conversion that was
interrupted goes on from.
"""

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from helpers.convert.manifests import (
    FORMAT,
    MADE_OF,
    MANIFEST,
    UNFINISHED_MANIFEST,
    altered,
    bit_widths_of,
    check_readable,
    describe_files,
    exists,
    is_sound,
    part_files,
    resized,
)
from helpers.convert.places import HOLDER, HOLDS, Place, check_free
from helpers.errors import CheckpointError, OutputError, system_reason, unreadable, writing
from helpers.graphs.bit_widths import BitWidth
from helpers.graphs.part_names import FILES, LANGUAGE_MODEL
from helpers.sources.checkpoints import Config, read_config, read_json
from helpers.sources.other_forms import refuse_files

_AGAIN = "run `vlm convert` again"

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
        # From the first moment on, the folder says whose it is.
        holder = f"{HOLDS}{os.getpid()} on {platform.node()}"
        (self.folder / HOLDER).write_text(holder, encoding="utf-8")
        for name in (UNFINISHED_MANIFEST, MANIFEST) if resume else ():
            with contextlib.suppress(CheckpointError):
                self._take_over(read_json(self.folder / name))
        names = (*self.manifest["files"], HOLDER, UNFINISHED_MANIFEST)
        for path in self.folder.iterdir():
            if path.name not in names:
                path.unlink()
        self._write()

    def _take_over(self, earlier: Config) -> None:
        is_same = all(earlier.get(entry) == self.manifest[entry] for entry in MADE_OF)
        if not (is_same and is_sound(earlier)):
            return
        for part, widths in earlier["bit_widths"].items():
            files = {name: earlier["files"][name] for name in self.files_of(part)}
            if not altered(self.folder, files):
                self.manifest["bit_widths"][part] = widths
                self.manifest["files"] |= files

    def add(self, part: str, widths: list[BitWidth]) -> None:
        """Record that a part's files are in the folder, whole."""
        self.manifest["bit_widths"][part] = [asdict(width) for width in widths]
        self.manifest["files"] |= describe_files(self.folder, self.files_of(part))
        self._write()

    def files_of(self, part: str) -> list[str]:
        """Return the names of the files of a part."""
        return part_files(self.manifest, part)

    def finish(self) -> None:
        """Record all other files and give the manifest its name.

        A part's files are as they were recorded, so that gigabytes are not read again.
        """
        (self.folder / HOLDER).unlink()
        manifests = (MANIFEST, UNFINISHED_MANIFEST)
        names = sorted(path.name for path in self.folder.iterdir() if path.name not in manifests)
        others = [name for name in names if name not in self.manifest["files"]]
        files = self.manifest["files"] | describe_files(self.folder, others)
        self.manifest["files"] = {name: files[name] for name in names}
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
    `output` as it was, or, where that cannot be renamed and its files were being replaced, whole
    with the next `convert` or `clean`; with `resume`, finished parts are kept aside and gone on
    from next time.
    Raises `OutputError` for a folder that cannot be written, that holds something else, or that
    another process is writing.
    """
    output = output.resolve()  # also where it is "." or a link
    complete(output)
    with contextlib.ExitStack() as lock:
        with writing(output, "folder"):
            check_free(output)
            place = Place.made(output)
            lock.enter_context(place.held())
        work = Unfinished(place.folder, made_of)
        try:
            work.start(resume=resume)
            yield work
            work.finish()
            place.put_in_place()
        except BaseException as error:
            if (resume and work.parts) or place.is_nearly_in_place():
                report(f"what is finished is kept; `vlm clean {output}` removes it")
            else:
                shutil.rmtree(work.folder, ignore_errors=True)
            if isinstance(error, OSError):
                reason = system_reason(error)
                raise OutputError(
                    f"{output} could not be written ({reason}); write to another place."
                ) from None
            raise


def complete(output: Path) -> None:
    """Finish what a process ended in: moving the files of a whole conversion into `output`."""
    output = output.resolve()
    for place in (Place.beside(output), Place.inside(output)):
        with writing(output, "folder"):
            if place.is_nearly_in_place():
                with place.held():
                    place.move_in()


def absolute(folder: str | Path) -> Path:
    """Return a folder's whole path; what can be none, as a name too long, is an `OutputError`.

    So is what this user may not look for.
    """
    if not isinstance(folder, str | os.PathLike):
        raise OutputError(f"{folder!r} is no folder; give the path of one that was converted.")
    try:
        folder = Path(folder).resolve()
        folder.exists()
    except PermissionError:
        raise OutputError(unreadable(folder)) from None
    except (OSError, ValueError) as error:
        reason = system_reason(error)
        raise OutputError(
            f"{str(folder)[:80]!r} is no path of a folder ({reason}); give another folder."
        ) from None
    return folder


def is_conversion(folder: Path) -> bool:
    """Return whether `folder` holds a finished conversion."""
    return exists(Path(folder) / MANIFEST)


def read_manifest(folder: str | Path) -> Config:
    """Return the manifest of a finished conversion after checking that every file is there.

    Raises `OutputError` for a folder without one, of another format, or with a file missing or of
    another size or not readable by this user; `verify` also looks into the files.
    """
    absolute(folder)  # or it is told
    folder = Path(folder)
    check_readable(folder / MANIFEST)
    if not is_conversion(folder):
        raise OutputError(_what_it_is(folder))
    damaged = OutputError(f"The manifest of {folder} is damaged; {_AGAIN}.")
    try:
        manifest = read_json(folder / MANIFEST)
    except CheckpointError:
        raise damaged from None
    if manifest.get("format") != FORMAT:
        raise OutputError(f"{folder} was made by another version of this collection; {_AGAIN}.")
    if not is_sound(manifest) or manifest["bit_widths"].keys() != manifest["parts"].keys():
        raise damaged
    missing = resized(folder, manifest["files"])
    if missing:
        raise OutputError(f"{missing[0]} in {folder} is missing or damaged; {_AGAIN}.")
    check_readable(*(folder / name for name in manifest["files"]))
    return manifest


def _what_it_is(folder: Path) -> str:
    """Return in a sentence what a folder without a finished conversion is, and what to do."""
    place, inside = Place.beside(folder.resolve()), Place.inside(folder.resolve())
    for unfinished in (place.folder / UNFINISHED_MANIFEST, inside.folder / UNFINISHED_MANIFEST):
        if exists(unfinished):
            lacks = ", ".join(_missing_parts(unfinished)) or "its last files"
            return (
                f"The conversion to {folder} was interrupted and lacks {lacks}; {_AGAIN} to go on."
            )
    if exists(folder / FILES[LANGUAGE_MODEL]):
        return (
            f"{folder} holds no finished conversion but OpenVINO files without {MANIFEST}, as "
            "other tools write them; run `vlm convert` on the original checkpoint."
        )
    # What `convert` does not read either is told at once; a name that is too long has no files.
    with contextlib.suppress(OSError):
        try:
            refuse_files(folder)
            if exists(folder / "config.json"):
                read_config(folder)
        except CheckpointError as error:
            return str(error)
    checkpoint = folder if exists(folder / "config.json") else "CHECKPOINT"
    output = "OUTPUT" if exists(folder / "config.json") else folder
    return (
        f"{folder} holds no finished conversion; "
        f"`vlm convert {checkpoint} --output {output}` makes one."
    )


def _missing_parts(unfinished: Path) -> list[str]:
    """Return the parts that an interrupted conversion did not finish."""
    with contextlib.suppress(CheckpointError, KeyError, TypeError):
        manifest = read_json(unfinished)
        return [part for part in manifest["parts"] if part not in manifest["bit_widths"]]
    return []


def verify(folder: Path, *, report: Report = lambda line: None) -> list[str]:
    """Read every file of a finished conversion and return their names.

    Raises `OutputError` that names those that are not as they were written.
    """
    files = read_manifest(folder)["files"]
    changed = []
    for name, file in files.items():
        report(f"{name}: {file['bytes']:,} bytes")
        changed += altered(Path(folder), {name: file})
    if changed:
        raise OutputError(f"{', '.join(changed)} in {folder} changed since written; {_AGAIN}.")
    return list(files)


def clean(folder: Path, *, report: Report = lambda line: None) -> list[Path]:
    """Remove what interrupted conversions to `folder` and to folders in it left behind.

    Returns what was removed; `report` is told of each path as it is gone. What another process is
    still writing is left alone, and so is what has not our mark. Raises `OutputError` for what may
    not be removed, and where there is neither the folder nor what a conversion to it left.
    """
    folder = absolute(folder)
    check_readable(folder, Place.beside(folder).folder)
    names = {
        path.name[1:].rpartition(".")[0]
        for ending in ("unfinished", "replaced", "lock")
        for path in folder.glob(f".?*.{ending}")
    }
    outputs = [folder, *(folder / name for name in sorted(names))]
    places = [Place.beside(output) for output in outputs]
    places += [Place.inside(path.parent) for path in _inside(folder)]
    if not folder.is_dir() and not places[0].leftovers():
        raise OutputError(
            f"{folder} is no folder, and no conversion to it was interrupted; give what a "
            "conversion was to write, or a folder above it."
        )
    removed, problems = [], []
    for place in places:
        try:
            with contextlib.suppress(OutputError):  # another process writes there
                for path in place.clean():
                    removed.append(path)
                    report(str(path))
        except OSError as error:  # another user's, which does not keep ours from going
            path = place.folder if place.folder.exists() else place.replaced
            problems.append(f"{path} cannot be removed ({system_reason(error)})")
    if problems:
        raise OutputError(f"{problems[0]}; remove it as its owner.")
    return removed


def _inside(folder: Path) -> list[Path]:
    """Return the folders in which conversions grow inside their outputs."""
    ending = Place.inside(folder).folder.name
    return [*folder.glob(ending), *sorted(folder.glob(f"*/{ending}"))]


def folder_bytes(folder: Path) -> dict[str, int]:
    """Return the size on disk in bytes of each part of a finished conversion."""
    return _bytes_by_part(folder, (".bin", ".xml"))


def weight_bytes(folder: Path) -> dict[str, int]:
    """Return the size on disk in bytes of the weights of each part of a finished conversion."""
    return _bytes_by_part(folder, (".bin",))


def _bytes_by_part(folder: Path, endings: tuple[str, ...]) -> dict[str, int]:
    manifest = read_manifest(folder)
    return {
        part: sum(
            manifest["files"][name]["bytes"]
            for name in part_files(manifest, part)
            if name.endswith(endings)
        )
        for part in manifest["parts"]
    }
