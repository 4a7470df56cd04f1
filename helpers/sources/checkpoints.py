"""A checkpoint's folder: the bundled ones, and the `config.json` of any, its numbers checked.

What this module does not know: remote code, weights, and what a family's config means.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.errors import CheckpointError, is_whole, system_reason, unreadable
from helpers.sources.other_forms import refuse_experts, refuse_files, refuse_quantised

Config = dict[str, Any]  # what a JSON file such as config.json holds
BUNDLED = Path(__file__).parent.parent / "shapes" / "checkpoints"
CARD = "bundled.json"  # stands beside a bundled checkpoint that is trained: what it knows


def read_json(path: Path, *, cure: str = "download it again") -> Config:
    """Read a JSON object.

    Raises `CheckpointError` for a file that is missing or unreadable; its sentence ends with the
    `cure`, which is that of a checkpoint's file unless another is given.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}; {cure}.") from None
    except PermissionError:
        raise CheckpointError(unreadable(path)) from None
    except (OSError, RecursionError, UnicodeDecodeError, ValueError) as error:
        reason = system_reason(error)
        raise CheckpointError(f"{path} cannot be read as JSON ({reason}); {cure}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object; {cure}.")
    return content


def check_name(path: Path) -> None:
    """Raise a `CheckpointError` where a path is not UTF-8, which those who read weights need."""
    try:
        str(path.resolve()).encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"The name of {path} is not UTF-8; rename it.") from None


def write_json(path: Path, content: object) -> None:
    """Write JSON as a person can read it."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_config(folder: str | Path, *, quantised: bool = False) -> Config:
    """Read a checkpoint's `config.json`, and check the numbers that size a model.

    Raises `CheckpointError` for what is no folder of a checkpoint, or of one that is not read here:
    of `quantised` weights, unless they are asked for.
    """
    if not isinstance(folder, str | os.PathLike):
        raise CheckpointError(f"{folder!r} is no folder; give the path of a checkpoint's.")
    folder = Path(folder)
    try:
        refuse_files(folder)
        is_folder, has_config = folder.is_dir(), (folder / "config.json").exists()
    except PermissionError:
        raise CheckpointError(unreadable(folder)) from None
    if not is_folder:
        raise CheckpointError(f"{folder} is not a folder; give a checkpoint's folder.")
    if not has_config:
        raise CheckpointError(f"{folder} has no config.json; give a checkpoint's folder.")
    config = read_json(folder / "config.json")
    refuse_experts(folder, config)  # first, since their originals are not read either
    if not quantised:
        refuse_quantised(folder, config)
    check_sizes(config, folder / "config.json")
    return config


def preparation(
    folder: Path, kind: str = "image_processor", file: str = "preprocessor_config.json"
) -> Config:
    """Return what a folder says of preparing pictures, or another `kind` of input; {} if nothing.

    What transformers 5 writes for all kinds jointly comes before a `file` of one kind, which an
    older release may have left there.
    """
    path, joint = Path(folder) / file, Path(folder) / "processor_config.json"
    settings = read_json(joint).get(kind) if joint.exists() else None
    if isinstance(settings, dict):
        return settings
    return read_json(path) if path.exists() else {}


def stop_tokens(folder: Path, config: Config) -> list[int]:
    """Return the tokens that end an answer by a folder's files, `eos_token_id`; [] for none.

    Where there is no `generation_config.json`, the config says it, or the language model's part of
    it, which is where transformers looks when it makes that file.
    """
    path = Path(folder) / "generation_config.json"
    sections = [config.get(name) for name in _TEXT_SECTIONS]
    parts = [config, *(section for section in sections if isinstance(section, dict))]
    for settings in [read_json(path)] if path.exists() else parts:
        if (ids := settings.get("eos_token_id")) is not None:
            ids = ids if isinstance(ids, list) else [ids]
            return [number for number in ids if isinstance(number, int)]
    return []


_TEXT_SECTIONS = ("text_config", "llm_config")  # the second in InternVL's own layout
_PIXEL_FIELDS = (
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "resample",
)


def pixel_settings(settings: Config) -> Config:
    """Return what settings of pictures say of their pixels, as transformers' processors take it."""
    return {name: settings[name] for name in _PIXEL_FIELDS if settings.get(name) is not None}


# The most that a field of a config may ask for, far above any model that fits a computer: what
# follows from these numbers is built in loops and held in memory before any weight is looked at.
_LIMITS = {
    1_000: (
        "num_hidden_layers",
        "num_global_layers",
        "n_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "attention_heads",
        "n_heads",
        "expansion_ratio",
        "depth",
        "num_heads",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "min_dynamic_patch",
        "max_dynamic_patch",
        "max_slice_nums",
        "max_num_tiles",
    ),
    10_000: ("image_size", "force_image_size", "scale_resolution", "patch_size", "query_num"),
    1_000_000: ("hidden_size", "intermediate_size", "d_model", "head_dim", "vision_output_dim"),
    100_000_000: ("vocab_size", "max_position_embeddings", "max_seq_len"),
}
_CHANNELS = ("num_channels", "in_channels")
_LIMIT_OF = {name: limit for limit, names in _LIMITS.items() for name in names}


def check_sizes(config: Config, path: Path) -> None:
    """Raise a `CheckpointError` where a number that sizes something is none, or beyond reason.

    Looks into sections too. A field that is null counts as one that is not there.
    """
    for name, value in config.items():
        if isinstance(value, dict):
            check_sizes(value, path)
        if name in _CHANNELS and value not in (None, 3):
            raise CheckpointError(
                f"{name} in {path} is {as_json(value)}, and pictures have three colours here; "
                "use a checkpoint of the published kind."
            )
        limit = _LIMIT_OF.get(name)
        if limit is None or value is None:
            continue
        for number in value if isinstance(value, list) else [value]:
            if not is_whole(number) or not 1 <= number <= limit:
                raise CheckpointError(
                    f"{name} in {path} is {as_json(value)}, which should be a whole number "
                    f"from 1 to {limit:,}; download the checkpoint again."
                )


def check_choice(what: str, name: object, choices: Iterable[str]) -> None:
    """Raise a `CheckpointError` unless what `config.json` names is one of `choices`."""
    choices = list(choices)
    if name in choices:
        return
    names = ", ".join(choices)
    problem = f"The {what} {as_json(name)} in config.json is none of {names}"
    if not name:
        problem = f"config.json names no {what}, such as {names}"
    raise CheckpointError(f"{problem}; use a checkpoint that has one of them.")


def as_json(value: object) -> str:
    """Return a value as its file has it, for a sentence: its beginning, where it is long.

    Letters stay, and what cannot be printed is escaped, as halves of characters.
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)
    return text if len(text) <= 40 else f"{text[:40]}..."
