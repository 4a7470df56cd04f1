"""The checkpoints that can be chosen: bundled ones, the authors' on the Hugging Face hub, folders.

Sizes are those of the 16-bit files. What this module does not know: hubs other than Hugging
Face's, and older revisions of a checkpoint.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import psutil
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from helpers.checkpoints import bundled_checkpoints, read_config
from helpers.errors import CheckpointError, SettingsError
from helpers.widgets import Choice, Option

# Weights, configs and tokenizers; no code, and no second copy in another format.
_WANTED = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*")
_UNWANTED = ("*.py", "*.onnx", "*.gguf", "original/*", "*training_args*", "*optimizer*")
FOLDER = "folder"


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


def download(hub_id: str) -> Path:
    """Download a checkpoint's files (only what is missing) and return their folder.

    HF_HUB_OFFLINE=1 uses what was downloaded before. Raises `CheckpointError` with what to do.
    """
    try:
        folder = huggingface_hub.snapshot_download(
            hub_id, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED)
        )
    except GatedRepoError:
        raise CheckpointError(
            f"{hub_id} asks you to accept its licence first: visit its page on the hub, then log "
            "in with `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(f"The hub has no {hub_id}; check the name and its letters.") from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{hub_id} is not on this computer and the hub cannot be reached; connect to the "
            "internet, unset HF_HUB_OFFLINE, or use a bundled checkpoint."
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{hub_id} could not be downloaded ({reason}); try again.") from None
    return Path(folder)


def weight_bytes(folder: Path) -> int:
    """Return how many bytes of weights a checkpoint's files hold."""
    files = [path for ending in ("safetensors", "bin") for path in Path(folder).glob(f"*.{ending}")]
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

    Measured: the compressed size, 0.62 bytes a parameter, and 1.5 GiB for everything else.
    """
    return parameters * 1e9 * 0.62 / 2**30 + 1.5


def chosen_folder(choice: Choice) -> Path:
    """Return the folder of the checkpoint that is chosen, downloading it where needed."""
    if choice.value != FOLDER:
        return find_checkpoint(choice.value)
    path = os.environ.get("VLM_FOLDER", "")
    if not path:
        raise SettingsError("Set the environment variable VLM_FOLDER to a checkpoint's folder.")
    read_config(Path(path))
    return Path(path)
