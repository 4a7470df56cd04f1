"""What is said once of each family, beside its code: one `Family` entry in each family's module.

The command line, conversion, benchmark, random checkpoints, training and tests read the entries;
none of them names a family. A package that is not this one adds a family by an entry point of the
group `vlm.families` that leads to its `Family`.

What this module does not know: what is special to any family.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch

from helpers.errors import CheckpointError, SettingsError, unreadable
from helpers.models.base import VisionLanguageModel, describing_a_model
from helpers.models.processors import Processor
from helpers.resources import path_of
from helpers.sources.checkpoints import BUNDLED, CARD, Config, read_config, read_json
from helpers.sources.hub import download
from helpers.sources.other_forms import refuse_files, refuse_quantised, without_quantisation

GROUP = "vlm.families"  # of entry points
# Modules of this package that hold an entry, in the order of their notebooks.
MODULES = (
    "llava_mpt",
    "mobilevlm",
    "internvl2",
    "minicpm_v2",
    "mllama",
    "qwen3_vl",
    "qwen3_5",
    "gemma4",
    "minicpm_v4_6",
)
CONFIGS = Path(__file__).parent / "originals"


@dataclass(frozen=True)
class SmallTokenizer:
    """How a small tokenizer of an original's kind is trained, for small and for random models.

    `kind` is the name of a function in `helpers.shapes.tokenizers`; `words` are those of the
    prompt's template, which a tokenizer should have whole, and `marks` its special tokens.
    `chat_template` is a Jinja program that writes a prompt, where the original has one.
    """

    kind: str
    words: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    chat_template: str = ""


@dataclass(frozen=True)
class Original:
    """A checkpoint that its authors published.

    `name` is its own on the command line, and that of the file in `originals/` with what its
    `config.json` says where it matters for its size. `tokenizer` is of the kind that it has;
    `token_ids` returns, for the number of tokens of a small one, the fields of the config that hold
    ids of tokens.
    `picture` is the size in pixels, width and height, of a picture that it usually gets.
    `constant` returns, by a tensor's name and shape, the number that it is filled with where others
    are random, or None for a random one.
    """

    name: str
    hub_id: str
    licence: str
    parameters: float  # billions
    tokenizer: SmallTokenizer
    token_ids: Callable[[int], Mapping[str, int]] = lambda size: {}
    picture: tuple[int, int] = (448, 448)
    constant: Callable[[str, Sequence[int]], float | None] = lambda name, shape: None

    @property
    def download(self) -> float:
        """The size of the download in gigabytes, two bytes a parameter."""
        return self.parameters * 2

    @property
    def config(self) -> Config:
        """What its `config.json` says, where it matters for its size."""
        return read_json(CONFIGS / f"{self.name}.json")


@dataclass(frozen=True)
class Family:
    """A family of checkpoints, and what is known of it without its code.

    `name` is that of its notebook and on the command line; `model_type` is how the authors'
    `config.json` names it; `bundled` is the folder of its small checkpoint, if it has one.
    `vocabulary` are the places in a config, each a path of names, where the number of tokens
    belongs; `token_ids` returns, for the number of tokens of a small tokenizer, the fields of the
    config that hold ids of tokens. `other_model_types` are those of other layouts that its code
    reads; `other_folders` returns what is read beside a checkpoint's own folder, by its config.
    """

    name: str
    model_type: str
    model: type[VisionLanguageModel[Any]]
    bundled: str = ""
    originals: tuple[Original, ...] = ()
    tokenizer: SmallTokenizer | None = None
    vocabulary: tuple[tuple[str, ...], ...] = field(default=(("vocab_size",),))
    token_ids: Callable[[int], Mapping[str, int]] = lambda size: {}
    other_model_types: tuple[str, ...] = ()
    other_folders: Callable[[Path, Config], list[Path]] = lambda folder, config: []

    @property
    def model_types(self) -> tuple[str, ...]:
        """All model types that its code reads."""
        return (self.model_type, *self.other_model_types)

    @property
    def checkpoint(self) -> Path | None:
        """The folder of its bundled checkpoint; None where there is none, or it is not trained."""
        folder = BUNDLED / self.bundled
        return folder if self.bundled and (folder / CARD).exists() else None

    def is_called(self, name: str) -> bool:
        """Return whether `name` means this family: its own, or its folder's, hyphens or not."""
        return _plain(name) in (_plain(self.name), _plain(self.bundled or self.name))


def _plain(name: str) -> str:
    return name.replace("_", "-").replace(".", "-").lower()


@functools.cache
def families() -> tuple[Family, ...]:
    """Return the entries of all families: those here, then those of other packages."""
    entries = [import_module(f"helpers.models.{module}").FAMILY for module in MODULES]
    return (*entries, *_entries_of_other_packages().values())


@functools.cache
def _entries_of_other_packages() -> dict[str, Family]:
    entries = {_words(point): _load(point) for point in metadata.entry_points(group=GROUP)}
    return {words: entry for words, entry in entries.items() if isinstance(entry, Family)}


def _load(point: metadata.EntryPoint) -> object:
    try:
        return point.load()
    except Exception as error:  # another package's code can fail in any way
        return error


def _words(point: metadata.EntryPoint) -> str:
    return f"{point.name} = {point.value}"


def broken_entry_points() -> list[str]:
    """Return a sentence on each entry point that leads to no `Family`.

    Such a package disturbs nobody until a checkpoint is of no other family.
    """
    points = [_words(point) for point in metadata.entry_points(group=GROUP)]
    return [
        f"The entry point {point} of {GROUP} leads to no Family; repair or uninstall its package."
        for point in points
        if point not in _entries_of_other_packages()
    ]


def find_family(model_type: object) -> Family | None:
    """Return the family that `config.json` names; None if there is none."""
    return next((family for family in families() if model_type in family.model_types), None)


def find_family_by_name(name: str) -> Family:
    """Return the family called `name`; another name is a `SettingsError`."""
    for family in families():
        if family.is_called(name):
            return family
    names = ", ".join(family.name for family in families())
    raise SettingsError(f"There is no family {name!r}; use {names}.")


def family_of(folder: str | Path) -> Family:
    """Return the family of the checkpoint in `folder`; `CheckpointError` if it has none.

    Of quantised weights the error says to take the original only if that can be read.
    """
    config, folder = read_config(folder, quantised=True), Path(folder)
    model_type = config.get("model_type")
    family = find_family(model_type)
    if family is None:
        supported = ", ".join(name for family in families() for name in family.model_types)
        holds = f"holds a {model_type!r} model"
        if not isinstance(model_type, str) or not model_type:
            holds = "has no model_type in its config.json that names a model"
        sentence = f"{folder} {holds}; this reads {supported}, so take one of these."
        raise CheckpointError(" ".join([sentence, *broken_entry_points()]))
    try:
        refuse_quantised(folder, config)
    except CheckpointError:
        with describing_a_model(folder):
            # A processor refuses what its family does not read, some when the config is looked at.
            _ = family.model.processor_class(folder, without_quantisation(config)).context_length
        raise
    return family


def load_model(folder: str | Path, dtype: torch.dtype | None = None) -> VisionLanguageModel[Any]:
    """Read an original checkpoint, memory-mapped; `dtype` None keeps the files' own type.

    Where files have several, the language model gets the type that most of its numbers have, and
    all else jointly that of most of theirs. Raises `CheckpointError` for what cannot be read here.
    """
    model = family_of(folder).model.load(folder, dtype)
    model.compute_in_one_type()
    return model


def load_processor(folder: str | Path) -> Processor:
    """Return what turns pictures and messages into inputs, without any weights.

    Raises `CheckpointError` for a folder that cannot be read here.
    """
    processor_class, config = family_of(folder).model.processor_class, read_config(folder)
    with describing_a_model(Path(folder)):
        return processor_class(folder, config)


def on_meta_device(folder: str | Path) -> VisionLanguageModel[Any]:
    """Return the model of a checkpoint's or a converted folder, without memory for weights.

    Raises `CheckpointError` for a folder that cannot be read here.
    """
    model, config = family_of(folder).model, read_config(folder)
    with describing_a_model(Path(folder)), torch.device("meta"):
        return model(config, model.processor_class(folder, config))


def without_weights(config: Config) -> VisionLanguageModel[Any]:
    """Return the model that `config` describes on the meta device, which takes no memory.

    It has weights of 16 bits, as all originals have. Raises `CheckpointError` for a model type that
    no family has.
    """
    family = find_family(config["model_type"])
    if family is None:
        raise CheckpointError(f"There is no family of the model type {config['model_type']!r}.")
    with torch.device("meta"):
        model = family.model(config, family.model.processor_class(Path(), config))
    return model.to(torch.bfloat16)


def find_original(name: str) -> Original:
    """Return the original called `name`, by its own name or its hub id; else a `SettingsError`.

    A family's name means its first original.
    """
    originals = {original.name: original for family in families() for original in family.originals}
    for original in originals.values():
        if _plain(name) in (_plain(original.name), _plain(original.hub_id)):
            return original
    for family in families():
        if family.is_called(name) and family.originals:
            return family.originals[0]
    raise SettingsError(f"There is no model {name!r} to measure; use {', '.join(originals)}.")


def family_of_original(original: Original) -> Family:
    """Return the family that an original belongs to."""
    return next(family for family in families() if original in family.originals)


def find_checkpoint(name: str | os.PathLike[str]) -> Path:
    """Return the folder of a checkpoint: a bundled name, a folder, or a hub id, downloaded.

    An original's own name, such as internvl2-1b, means its hub id. Raises `CheckpointError` for a
    name that is none of these, for a folder that this user may not enter, for a download that
    fails, and before the weights of a model are downloaded that is not read here.
    """
    if not isinstance(name, str | os.PathLike):
        raise CheckpointError(f"{name!r} is no folder and no name; give one of a checkpoint.")
    name = os.fspath(name)
    for family in families():
        if family.checkpoint is not None and family.is_called(name):
            return family.checkpoint
    folder = path_of(name)
    try:
        if folder.is_dir():
            return folder
        refuse_files(folder)
    except PermissionError:
        raise CheckpointError(unreadable(folder)) from None
    except (OSError, ValueError):  # of names that no folder can have
        pass
    originals = [original for family in families() for original in family.originals]
    for original in originals:
        if _plain(name) == _plain(original.name):
            return download(original.hub_id, check=on_meta_device)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return download(name, check=on_meta_device)
    names = ", ".join(family.name for family in families() if family.checkpoint is not None)
    raise CheckpointError(
        f"{name[:80]} is neither a folder, nor a hub id such as OpenGVLab/InternVL2-1B, "
        f"nor a bundled checkpoint ({names})."
    )
