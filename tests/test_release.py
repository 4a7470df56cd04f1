"""The archive of a release: what is in it, and what is refused."""

import zipfile

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers.workshop import release
from helpers.workshop.release import version


def write_notebook(folder, source: str):
    path = folder / "toy.ipynb"
    (folder / "images").mkdir()
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A toy"), new_code_cell(source)]), path)
    return path


@pytest.mark.slow
def test_the_archive_has_every_file_and_the_executed_notebooks(tmp_path):
    notebook = write_notebook(tmp_path, "print('a red', 'star')")
    archive = release.build(tmp_path / "release", [notebook])
    assert archive.name == f"vlm-notebooks-{version()}.zip"
    with zipfile.ZipFile(archive) as content:
        top = archive.stem
        names = set(content.namelist())
        assert {f"{top}/{path.as_posix()}" for path in release.files()} < names
        assert "a red star" in content.read(f"{top}/html/toy.html").decode("utf-8")


@pytest.mark.slow
def test_a_notebook_that_fails_is_no_release(tmp_path):
    notebook = write_notebook(tmp_path, "1 / 0")
    with pytest.raises(release.ReleaseError, match="toy.ipynb fails, so there is no release"):
        release.build(tmp_path / "release", [notebook])


def test_the_tag_is_that_of_the_version(capsys, tmp_path):
    release.check_tag(f"v{version()}")
    assert release.main(["--tag", "v9.9", "--output", str(tmp_path)]) == 1
    expected = f"error: The tag is v9.9, but helpers/__init__.py says {version()}.\n"
    assert capsys.readouterr().err == expected


def test_a_place_that_is_no_folder(capsys, tmp_path):
    place = tmp_path / "file"
    place.touch()
    assert release.main(["--output", str(place)]) == 1
    assert f"error: {place} cannot be written (File exists); give" in capsys.readouterr().err
