"""The README's tables are the measured data; its pictures exist."""

import re

import pytest

from helpers.workshop.readme import ROOT, pages

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_made_from_the_data(path):
    made = pages()[path]
    assert path.read_text(encoding="utf-8") == made, "run: python -m helpers.workshop.readme"


def test_the_glossary_is_short():
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    terms = re.search(r"\| term \|.*?\n\n", contributing, flags=re.DOTALL)[0].splitlines()[2:]
    assert 6 <= len([line for line in terms if line]) <= 12


def test_pictures_exist_and_are_described():
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
    assert pictures
    for words, path in pictures:
        assert len(words.split()) > 3
        assert (ROOT / path).is_file()


def test_names_no_package_host_but_pytorchs_own():
    assert re.findall(r"https?://[^\s)]+", README) == ["https://download.pytorch.org/whl/cpu"]
