"""Disks of a test's own: small ones, full ones, and folders that are mounted."""

import shutil
import subprocess
from pathlib import Path

import pytest


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
