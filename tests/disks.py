"""Disks of a test's own: small ones, full ones, folders that are mounted, and what they hold."""

import shutil
import subprocess
from pathlib import Path

import pytest


def tree(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder, by their paths in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def mount(place: Path, *arguments: str | Path) -> None:
    """Mount something at a folder; skip the test where nobody may."""
    command = ["mount", *arguments, place]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")


def mount_memory(place: Path, options: str) -> None:
    """Mount a disk in memory, such as one with the options `size=64k`."""
    mount(place, "-t", "tmpfs", "-o", options, "tmpfs")


def unmount(place: Path) -> None:
    """Take a disk away again."""
    subprocess.run(["umount", place], check=True)
