"""Names are nouns: what a pronoun or a participle stands for, a reader has to look up."""

import pytest

from tests.names import LIMIT, ROOT, sources, stored_names, vague_names


@pytest.mark.parametrize("place", ["helpers", "tests", "notebooks"])
def test_hardly_a_name_is_a_pronoun_or_a_participle(place):
    files = sources(place)
    total = sum(len(list(stored_names(source))) for source in files.values())
    vague = {path: vague_names(source) for path, source in files.items()}
    lines = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path, names in vague.items()
        for name, line in names
    ]
    assert total > 500 and 1000 * len(lines) <= LIMIT * total, "\n".join(lines)


def test_what_counts_as_a_name():
    source = "def f(seen):\n  for one in seen:\n    self.found = one\n  return [x for x in own]"
    assert vague_names(source) == [("seen", 1), ("one", 2), ("found", 3)]
    assert [name for name, _ in stored_names(source)] == ["seen", "one", "found", "x"]
