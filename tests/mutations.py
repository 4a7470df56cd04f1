"""Damage a file as an accident or an attacker would, at random but the same for the same seed."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path

# What a value may become: other types, numbers beyond reason, paths, and empty or long things.
STRANGE = [
    *(None, True, False, "", "x", "a/b", "../..", "x" * 3000, [], {}, [1], [None], ["x"]),
    *(-1, 0, 1, 3, 0.5, -0.5, 1e308, float("nan"), float("inf")),
    *(10**6, 10**12, 2**63, 10**30, {"a": 1}, {"x": {"y": []}}),
]


def damage(path: Path, generator: random.Random) -> None:
    """Change a JSON file, a file of safetensors or one of PyTorch, mostly in its structure."""
    content = path.read_bytes()
    structured = generator.random() < 0.75
    if path.suffix == ".json":
        change = changed_json if structured else changed
        path.write_bytes(change(content, generator))
    elif path.suffix == ".safetensors" and structured:
        size = int.from_bytes(content[:8], "little")
        header, rest = changed_json(content[8 : 8 + size], generator), content[8 + size :]
        path.write_bytes(len(header).to_bytes(8, "little") + header + rest)
    else:  # the beginning, where the structure is
        path.write_bytes(changed(content[:4000], generator) + content[4000:])


def changed_json(content: bytes, generator: random.Random) -> bytes:
    """Return a JSON text in which one to three values are others or are gone."""
    document = json.loads(content)
    for _ in range(generator.choice([1, 1, 1, 2, 3])):
        places = [place for place in _places(document) if place]
        if not places:
            break
        *path, last = generator.choice(places)
        section, chance = _at(document, path), generator.random()
        if chance < 0.2:
            del section[last]
        elif chance < 0.9:
            section[last] = copy.deepcopy(generator.choice(STRANGE))
        else:  # a value from elsewhere in the same file
            section[last] = copy.deepcopy(_at(document, generator.choice(places)))
    return json.dumps(document).encode()


def _places(value: object, place: tuple = ()) -> Iterator[tuple]:
    yield place
    if isinstance(value, dict | list):
        names = value if isinstance(value, dict) else range(len(value))
        for name in names:
            yield from _places(value[name], (*place, name))


def _at(document: object, place: tuple | list):
    for name in place:
        document = document[name]
    return document


def changed(content: bytes, generator: random.Random) -> bytes:
    """Return bytes with some replaced, left out or added, or cut off."""
    damaged = bytearray(content)
    for _ in range(generator.choice([1, 1, 3, 10])):
        place, chance = generator.randrange(len(damaged) or 1), generator.random()
        if chance < 0.4 and damaged:
            damaged[place] = generator.randrange(256)
        elif chance < 0.6:
            del damaged[place : place + generator.randrange(1, 20)]
        elif chance < 0.9:
            damaged[place:place] = generator.randbytes(5)
        else:
            del damaged[place:]
    return bytes(damaged)
