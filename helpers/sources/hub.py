"""The checkpoints that can be chosen: bundled ones, the authors' on the Hugging Face hub, folders.

Sizes are those of the 16-bit files. What this module does not know: hubs other than Hugging
Face's, and older revisions of a checkpoint.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import psutil
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import tqdm

from helpers.errors import CheckpointError, SettingsError
from helpers.show.widgets import Choice, Option
from helpers.sources.checkpoints import bundled_checkpoints, read_config

# Weights, configs and tokenizers; no code, and no copies for other programs.
_WANTED = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*")
_UNWANTED = ("*.py", "*.onnx", "*.gguf", "original/*", "*training_args*", "*optimizer*")
FOLDER = "folder"
CONVERSION_MEMORY = 1.5 * 2**30  # bytes that a conversion takes beside the result, measured


@dataclass(frozen=True)
class Original:
    """A checkpoint that its authors published: its hub id, licence and size."""

    hub_id: str
    licence: str
    parameters: float  # billions
    extra: Sequence[str] = ()  # further hub ids that it needs, such as an image encoder's

    @property
    def download(self) -> float:
        """The size of the download in gigabytes, two bytes a parameter."""
        return self.parameters * 2


def find_checkpoint(name: str) -> Path:
    """Return the folder of a checkpoint: a bundled name, a folder, or a hub id, downloaded.

    Raises `CheckpointError` for a name that is none of these and for a download that fails.
    """
    bundled = bundled_checkpoints()
    if name in bundled:
        return bundled[name]
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return download(name)
    known = ", ".join(bundled)
    raise CheckpointError(
        f"{name} is neither a folder, nor a hub id such as OpenGVLab/InternVL2-1B, "
        f"nor a bundled checkpoint ({known})."
    )


def download(
    hub_id: str, *, wanted: Sequence[str] = _WANTED, report: Callable[[str], None] = print
) -> Path:
    """Download a checkpoint's `wanted` files and return their folder.

    `report` is told the size first; a bar shows the progress. Files that are there already are
    kept, and one whose connection breaks continues where it stopped. HF_HUB_OFFLINE=1 uses what was
    downloaded before. Raises `CheckpointError` with what to do, also where the disk is too small.
    """
    patterns = {"allow_patterns": list(wanted), "ignore_patterns": list(_UNWANTED)}
    try:
        size = _size_to_download(hub_id, **patterns)
        if size:
            free = free_disk(Path(huggingface_hub.constants.HF_HUB_CACHE))
            told = f"{hub_id} is {in_words(size)} to download; {in_words(free)} of disk are free"
            if size > free:
                raise CheckpointError(f"{told}: make room, or set HF_HOME to a larger disk.")
            report(f"{told}.")
        return Path(huggingface_hub.snapshot_download(hub_id, **patterns))
    except (HTTPError, OSError, ValueError) as error:
        raise CheckpointError(_what_to_do(hub_id, error)) from None


class _SilentBar(tqdm):
    """No bar, for asking how large something is."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options | {"disable": True})


def _size_to_download(hub_id: str, **patterns: list[str]) -> int:
    """Return how many bytes of a checkpoint are not here yet; 0 where the hub cannot be asked."""
    try:
        files = huggingface_hub.snapshot_download(
            hub_id, dry_run=True, tqdm_class=_SilentBar, **patterns
        )
    except DryRunError:
        return 0  # then it may be here, whole; if it is not, downloading says why
    return sum(file.file_size or 0 for file in files if file.will_download)


def free_disk(folder: Path) -> int:
    """Return the free bytes where `folder` is or will be."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(existing).free


def in_words(size: float) -> str:
    """Return a number of bytes as people read it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


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
    if isinstance(cause, LocalEntryNotFoundError):
        return (
            f"{hub_id} is not, or not wholly, on this computer and the hub cannot be reached; "
            "connect to the internet, unset HF_HUB_OFFLINE, or use a bundled checkpoint."
        )
    reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__).rstrip(".")
    return f"{hub_id} could not be downloaded ({reason}); try again."


def weight_bytes(folder: Path) -> int:
    """Return how many bytes of weights a checkpoint's files hold, an image encoder's included."""
    endings = ("safetensors", "bin")
    files = [path for ending in endings for path in Path(folder).rglob(f"*.{ending}")]
    return sum(path.stat().st_size for path in files)


def this_computer() -> str:
    """Return the free memory and disk of this computer in words."""
    memory = psutil.virtual_memory().available / 2**30
    disk = shutil.disk_usage(Path.cwd()).free / 1e9
    return f"{memory:.0f} GiB of memory and {disk:.0f} GB of disk are free here"


def choose_checkpoint(bundled: str, originals: Sequence[Original]) -> Choice:
    """Show the bundled checkpoint, the originals, and a folder named by VLM_FOLDER.

    VLM_CHECKPOINT sets the first choice: the bundled name, a hub id, or `folder`.
    """
    folder = bundled_checkpoints()[bundled]
    size = weight_bytes(folder) / 1e6
    options = [
        Option(
            bundled,
            f"{bundled}: bundled, knows drawn shapes, offline",
            f"bundled, {size:.1f} MB, Apache-2.0, knows drawn shapes and nothing else",
        )
    ]
    for original in originals:
        need = memory_needed(original.parameters)
        line = (
            f"{original.parameters:g} billion parameters, {original.licence}; "
            f"download {original.download:.1f} GB, memory about {need:.1f} GiB"
        )
        options.append(Option(original.hub_id, f"{original.hub_id}: {original.licence}", line))
    path = os.environ.get("VLM_FOLDER", "")
    options.append(
        Option(FOLDER, "a folder on this computer (set VLM_FOLDER)", path or "set VLM_FOLDER")
    )
    return Choice("Checkpoint", options, default=bundled, variable="VLM_CHECKPOINT")


def memory_needed(parameters: float) -> float:
    """Return about how many GiB converting a model of so many billion parameters to INT4 takes.

    Measured: the compressed size, 0.62 bytes a parameter, and what a conversion takes beside it.
    """
    return (parameters * 1e9 * 0.62 + CONVERSION_MEMORY) / 2**30


def chosen_folder(choice: Choice) -> Path:
    """Return the folder of the checkpoint that is chosen, downloading it where needed."""
    if choice.value != FOLDER:
        return find_checkpoint(choice.value)
    path = os.environ.get("VLM_FOLDER", "")
    if not path:
        raise SettingsError("Set the environment variable VLM_FOLDER to a checkpoint's folder.")
    read_config(Path(path))
    return Path(path)
