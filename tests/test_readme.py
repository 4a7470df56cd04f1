"""The README's tables are the measured data; its pictures exist."""

import re

from helpers.workshop.readme import ROOT, filled

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_made_from_the_data():
    assert filled(README) == README, "run: python -m helpers.workshop.readme"


def test_pictures_exist_and_are_described():
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
    assert pictures
    for words, path in pictures:
        assert len(words.split()) > 3
        assert (ROOT / path).is_file()


def test_names_no_package_host_but_pytorchs_own():
    assert re.findall(r"https?://[^\s)]+", README) == ["https://download.pytorch.org/whl/cpu"]
