"""Who answers the rows of a job: a folder on this computer or on a cluster, or servers.

What this module does not know: which rows there are, and how they are answered.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.errors import SettingsError
from helpers.resources import freeze_objects
from helpers.run.sampling import Sampling
from helpers.serve.access import read_key
from helpers.serve.batch import Answerer
from helpers.serve.local import BATCH, Local
from helpers.serve.results import fingerprint_of


def answerer_for(
    options: Mapping[str, Any],
    report: Callable[[str], None],
    *,
    folder: Path | None = None,
    device: str | None = None,
    picture_tokens: int | None = None,
    untuned: bool = False,
    server: Sequence[str] = (),
    model: str | None = None,
    key_file: Path | None = None,
    ray: str | None = None,
) -> Answerer:
    """Return who answers with the `options` of `Conversation.ask`.

    It is the model in `folder`, here or on the cluster at the address `ray`, or the one of running
    servers. Raises `SettingsError` for neither, for both, and for what has no effect on the one.
    """
    Sampling.of(**options)  # or it is an error
    if server:
        own = {"folder": folder, "--device": device, "--picture-tokens": picture_tokens}
        _refuse(own | {"--untuned": untuned, "--ray": ray}, "which a --server has of its own")
        from helpers.serve.remote import Servers

        return Servers(server, read_key(key_file), model, options, report)
    if folder is None:
        raise SettingsError("Give the folder of a model, or a --server that has it.")
    _refuse({"--model": model, "--key-file": key_file}, "which only a --server needs")
    device = (device or "CPU").upper()
    if ray:
        from helpers.serve.cluster import Cluster

        return Cluster(ray, folder, device, picture_tokens, options, report, tuned=not untuned)
    from helpers.run.pipeline import VisionLanguagePipeline

    pipeline = VisionLanguagePipeline(
        folder,
        device,
        picture_tokens=picture_tokens,
        tuned=not untuned,
        answers_at_once=BATCH,
    )
    freeze_objects()
    return Local(pipeline, fingerprint_of(folder, device, picture_tokens), options)


def _refuse(settings: Mapping[str, Any], why: str) -> None:
    """Raise a `SettingsError` that names the settings that were given."""
    names = [name for name, value in settings.items() if value is not None and value is not False]
    if names:
        raise SettingsError(f"Leave out {' and '.join(names)}, {why}.")
