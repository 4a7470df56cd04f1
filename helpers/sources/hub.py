"""Downloading the authors' checkpoints from the Hugging Face hub.

What this module does not know: other hubs, and older revisions of a checkpoint.
"""

import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

import huggingface_hub
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import tqdm

from helpers.errors import CheckpointError, UserError, unreadable
from helpers.resources import free_disk, in_words
from helpers.upstream.proxies import proxy_for, without_password

# Weights, configs and tokenizers; no code, and no copies for other programs.
_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*")
# With one of these, a folder's weights in PyTorch's own format are not read.
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_BIN = "pytorch_model*.bin*"
_UNNEEDED = ("*.py", "*.onnx", "*.gguf", "original/*", "*training_args*", "*optimizer*")
_SMALL = ("*.json", "*.jinja", "*.txt", "*.model")  # what says which kind of model it is
_OF_WEIGHTS = ("*.index.json", "adapter*")  # which say nothing without those beside them


def download(
    hub_id: str,
    *,
    files: Sequence[str] = _FILES,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Download a checkpoint's `files`, given as patterns, and return their folder.

    Before weights are, `check` gets a folder with the small files; what it raises ends the
    download. The size is told first, and a bar shows the progress. Of weights in two formats, the
    one that is read is downloaded. Files that are there already are kept, and one whose connection
    breaks continues where it stopped. HF_HUB_OFFLINE=1 uses what was downloaded before. Raises
    `CheckpointError` with what to do, also where the disk is too small.
    """
    patterns: dict[str, Any] = {"allow_patterns": list(files), "ignore_patterns": list(_UNNEEDED)}
    try:
        listing = _listing(hub_id, **patterns)
        if _has_safetensors(hub_id, listing):
            patterns["ignore_patterns"].append(_BIN)
            listing = [file for file in listing if not fnmatch(file.filename, _BIN)]
        size = sum(file.file_size or 0 for file in listing if file.will_download)
        if size:
            if check and any(file.filename == "config.json" for file in listing):
                check(_small_files(hub_id))
            free = free_disk(Path(huggingface_hub.constants.HF_HUB_CACHE))
            sizes = f"{hub_id} is {in_words(size)} to download; {in_words(free)} of disk are free"
            if size > free:
                raise CheckpointError(f"{sizes}: make room, or set HF_HOME to a larger disk.")
            # Where the bar is too; standard output may be read as JSON.
            print(f"{sizes}.", file=sys.stderr, flush=True)
        return Path(huggingface_hub.snapshot_download(hub_id, **patterns))
    except UserError:
        raise
    except Exception as error:  # the client's, and those of the libraries that it connects with
        raise CheckpointError(_what_to_do(hub_id, error)) from None


def _small_files(hub_id: str) -> Path:
    """Return a folder with a checkpoint's small files, which are downloaded."""
    folder = huggingface_hub.snapshot_download(
        hub_id,
        allow_patterns=list(_SMALL),
        ignore_patterns=[*_UNNEEDED, *_OF_WEIGHTS],
        tqdm_class=_SilentBar,
    )
    return Path(folder)


class _SilentBar(tqdm):
    """No bar, for asking how large something is."""

    def __init__(self, *args: Any, **options: Any) -> None:
        cast(Any, super()).__init__(*args, **options | {"disable": True})


def _has_safetensors(hub_id: str, listing: Sequence[Any]) -> bool:
    """Return whether a checkpoint has such weights, by what is here where there is no listing."""
    if listing:
        return any(file.filename in _SAFETENSORS for file in listing)
    cached = (huggingface_hub.try_to_load_from_cache(hub_id, name) for name in _SAFETENSORS)
    return any(isinstance(path, str) for path in cached)


def _listing(hub_id: str, **patterns: Any) -> list[Any]:
    """Return a checkpoint's files and what is not here yet; [] where the hub cannot be asked."""
    try:
        files: list[Any] = huggingface_hub.snapshot_download(
            hub_id, dry_run=True, tqdm_class=_SilentBar, **patterns
        )
    except DryRunError:
        return []  # then it may be here, whole; if it is not, downloading says why
    return files


def _what_to_do(hub_id: str, error: Exception) -> str:
    """Return one sentence on why a download failed and what helps."""
    # The client says "not found locally" of all that went wrong before, and names it as the cause.
    cause = error
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        cause = error.__cause__
    page = f"{huggingface_hub.constants.ENDPOINT}/{hub_id}"
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if isinstance(cause, GatedRepoError) or status == 403:
        return (
            f"{hub_id} asks you to accept its licence first: visit {page}, then log in with "
            "`hf auth login`."
        )
    if isinstance(cause, HFValidationError):
        return f"{hub_id} is no name that the hub can have; give it as owner/name."
    if isinstance(cause, RepositoryNotFoundError):
        return f"The hub has no {hub_id}, or not for you; check the name at {page}."
    if status == 401:
        return "The hub does not know your access token; log in again with `hf auth login`."
    proxy = _proxy()
    if proxy and (status in _OF_PROXIES or _is_before_an_answer(cause)):
        return (
            f"The hub cannot be reached through the proxy {proxy} ({_reason(cause)}), which "
            "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names; correct or unset it, or use a bundled "
            "checkpoint."
        )
    if isinstance(cause, LocalEntryNotFoundError):
        cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
        try:
            next(cache.iterdir(), None)
        except PermissionError:  # the client takes what it may not read for what is not there
            return unreadable(cache)
        except OSError:
            pass
        return (
            f"{hub_id} is not, or not wholly, on this computer and the hub cannot be reached; "
            "connect to the internet, unset HF_HUB_OFFLINE, or use a bundled checkpoint."
        )
    return f"{hub_id} could not be downloaded ({_reason(cause)}); try again."


_OF_PROXIES = (407, 502, 503, 504)  # statuses with which a proxy says that it does not help


def _proxy() -> str:
    """Return the proxy through which the hub is asked, without name and password; "" if none."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return ""
    return without_password(proxy_for(huggingface_hub.constants.ENDPOINT))


def _is_before_an_answer(cause: Exception) -> bool:
    """Return whether a download failed before a server said anything, and not on the disk."""
    return isinstance(cause, LocalEntryNotFoundError) or not isinstance(cause, OSError)


def _reason(cause: Exception) -> str:
    """Return the first line of what went wrong; what a setting holds may be a secret."""
    if isinstance(cause, LocalEntryNotFoundError) and cause.__cause__ is not None:
        return _reason(cast(Exception, cause.__cause__))
    if type(cause).__name__ == "InvalidURL":
        return "its address cannot be read"
    return next(iter(str(cause).strip().splitlines()), type(cause).__name__).rstrip(".")


def checkpoint_name(folder: Path) -> str:
    """Return what a checkpoint's folder is called; in the hub's cache that is its model's name."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        return folder.parents[1].name.split("--", 2)[-1]
    return folder.name


def checkpoint_bytes(folder: Path) -> int:
    """Return how many bytes of weights a checkpoint's files hold, an image encoder's included.

    Those that are there in a second format, which is not read, do not count.
    """
    files = [
        path for ending in ("safetensors", "bin") for path in Path(folder).rglob(f"*.{ending}")
    ]
    return sum(path.stat().st_size for path in files if not _is_second(path))


def _is_second(path: Path) -> bool:
    return path.match(_BIN) and any((path.parent / name).exists() for name in _SAFETENSORS)
