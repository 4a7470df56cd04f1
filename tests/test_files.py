"""Files that are written whole, or stay as they were."""

import subprocess
import sys

import pytest

from helpers.files import write_whole
from tests.disks import mount, unmount

only_posix = pytest.mark.skipif(sys.platform == "win32", reason="modes, links and pipes")


def test_text_and_bytes_replace_what_there_was(tmp_path):
    path = tmp_path / "page.html"
    for content in ("é\n", b"\xff\r\n"):
        write_whole(path, content)
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(tmp_path.iterdir()) == [path]


@only_posix
def test_a_file_keeps_its_mode_and_a_link_what_it_names(tmp_path):
    path, link = tmp_path / "page.html", tmp_path / "link"
    path.touch(mode=0o600)
    link.symlink_to(path)
    write_whole(link, "new")
    assert link.is_symlink() and path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600


@only_posix
def test_a_pipe_is_written_to():
    code = "from helpers.files import *; write_whole(Path('/dev/stdout'), 'x')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout == b"x"


@only_posix
def test_a_file_where_none_can_be_made_beside_it(tmp_path):
    """As a container has a file that was mounted by itself."""
    outside, path = tmp_path / "outside", tmp_path / "page.html"
    outside.touch()
    path.touch()
    mount(path, "--bind", outside)
    try:
        write_whole(path, "new")
    finally:
        unmount(path)
    assert outside.read_text() == "new"
    assert {*tmp_path.iterdir()} == {outside, path}
