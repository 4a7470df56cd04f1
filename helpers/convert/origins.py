"""What a conversion is made of: its checkpoint, its settings, and the packages that made it."""

import hashlib
import platform
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from helpers.convert.manifests import file_hash
from helpers.errors import CheckpointError, system_reason
from helpers.graphs.presets import Preset
from helpers.inputs.images import reading
from helpers.inputs.questions import Sample
from helpers.models import load_processor
from helpers.models.families import family_of
from helpers.sources.checkpoints import Config, check_name, read_config
from helpers.sources.hub import checkpoint_name
from helpers.sources.tensors import weight_files

_PACKAGES = ("openvino", "nncf", "torch", "transformers")
_READ, _WORDS = (".json", ".model", ".jinja"), ("vocab.txt", "merges.txt")


def made_of(checkpoint: Path, preset: Preset, samples: Sequence[Sample] = ()) -> Config:
    """Return what a conversion depends on: its source, settings, and the packages' versions.

    Of `samples` that somebody chose for a calibration, the source has a hash.
    """
    versions = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    source = describe_source(Path(checkpoint))
    if samples:
        source["samples"] = _hash_of(samples)
    parts = load_processor(Path(checkpoint)).exported.files
    return {
        "source": source,
        "preset": preset.settings,
        "versions": versions,
        "parts": parts,
    }


def describe_source(checkpoint: Path) -> Config:
    """Return what tells one checkpoint from another: of each file that is read, what it holds.

    That is a small file's hash, and the size and time of one with weights. Other files of the
    folder do not count. Raises `CheckpointError` for a folder that is no checkpoint, and for a file
    that cannot be read.
    """
    check_name(checkpoint)
    family = family_of(checkpoint)
    config = checkpoint / "config.json"
    files: Config = {}
    for folder in (checkpoint, *family.other_folders(checkpoint, read_config(checkpoint))):
        prefix = "" if folder == checkpoint else f"{folder.name}/"
        try:
            files |= {prefix + name: content for name, content in _contents(folder)}
        except OSError as error:  # also of a link in a cache to what was removed there
            raise CheckpointError(
                f"{error.filename or folder} cannot be read ({system_reason(error)}); make it "
                "readable, or download it again."
            ) from None
    name = checkpoint_name(checkpoint)
    return {"name": name, "files": files, "config_sha256": file_hash(config)}


def _contents(folder: Path) -> Iterator[tuple[str, object]]:
    """Yield the name of each file of a folder that is read, with what tells it from another."""
    for path in sorted(folder.iterdir()):
        if path.suffix in _READ or path.name in _WORDS:
            yield path.name, file_hash(path)
    with suppress(CheckpointError):  # told when they are read
        for path in weight_files(folder):
            yield path.name, [path.stat().st_size, path.stat().st_mtime_ns]


def _hash_of(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for picture, text in samples:
        if isinstance(picture, Path):
            with reading(str(picture)):
                digest.update(picture.read_bytes())
        elif picture is not None:
            digest.update(picture.tobytes())
        digest.update(text.encode())
    return digest.hexdigest()
