"""Build the archive of a release: `python -m helpers.workshop.release --output FOLDER`.

It holds every file of the repository, and each notebook executed, as HTML.

What this module does not know: where archives are published; a workflow does that.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from helpers.errors import UserError, writing
from helpers.workshop import notebooks
from helpers.workshop.notebooks import FOLDER, ROOT

CHANGELOG, SOURCE = ROOT / "CHANGELOG.md", ROOT / "helpers" / "__init__.py"


def version() -> str:
    """Return the version that stands in `helpers/__init__.py`."""
    (number,) = re.findall(r'^__version__ = "(.+)"$', SOURCE.read_text("utf-8"), flags=re.MULTILINE)
    return str(number)


class ReleaseError(UserError):
    """A release cannot be built as it was asked for."""


def check_tag(tag: str) -> None:
    """Raise `ReleaseError` unless a tag is that of this version and the changelog tells of it."""
    if tag != f"v{version()}":
        raise ReleaseError(f"The tag is {tag}, but helpers/__init__.py says {version()}.")
    if f"\n## {version()} (" not in CHANGELOG.read_text(encoding="utf-8"):
        raise ReleaseError(f"CHANGELOG.md has no section of {version()}.")


def files() -> list[Path]:
    """Return the files of the repository, in order; raise `ReleaseError` where it is none."""
    command = ["git", "ls-files", "-z"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise ReleaseError(
            "Which files belong to this collection only git knows; do this in a clone of it."
        ) from None
    return [Path(name) for name in sorted(filter(None, names.decode("utf-8").split("\0")))]


def execute(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Execute notebooks and return their HTML pages; raise `ReleaseError` where one fails."""
    for path in paths:
        if notebooks.main([str(path), "--output", str(folder)]):
            raise ReleaseError(f"{path.name} fails, so there is no release.")
    return [folder / f"{path.stem}.html" for path in paths]


def build(folder: Path, paths: Sequence[Path]) -> Path:
    """Write the archive into `folder`, with these notebooks executed, and return its path.

    Raises `ReleaseError` where a notebook fails, and `OutputError` where nothing can be written.
    """
    with writing(folder, "folder"):
        folder.mkdir(parents=True, exist_ok=True)
    name = f"vlm-notebooks-{version()}"
    archive = folder / f"{name}.zip"
    with tempfile.TemporaryDirectory() as place:
        pages = execute(paths, Path(place))
        with writing(archive), zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
            for path in files():
                content.write(ROOT / path, f"{name}/{path.as_posix()}")
            for page in pages:
                content.write(page, f"{name}/html/{page.name}")
    return archive


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the archive; say in a sentence why there is none."""
    parser = argparse.ArgumentParser(prog="python -m helpers.workshop.release", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the archive's folder")
    parser.add_argument("--tag", help="the release's tag, such as v0.2.0, which is checked first")
    options = parser.parse_args(arguments)
    try:
        if options.tag:
            check_tag(options.tag)
        print(build(options.output, sorted(FOLDER.glob("*.ipynb"))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
