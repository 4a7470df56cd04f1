"""Who answers the rows of a job: a folder on this computer or on a cluster, or servers.

What this module does not know: which rows there are, and how they are answered.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from helpers.convert.folders import Report
from helpers.errors import SettingsError
from helpers.run.sampling import Sampling
from helpers.serve.access import read_key
from helpers.serve.batch import Answerer
from helpers.serve.local import BATCH, Local, Model
from helpers.serve.results import check_place, kept_size


def answerer_for(
    options: Mapping[str, Any],
    report: Report,
    *,
    folder: Path | None = None,
    device: str | None = None,
    picture_tokens: int | None = None,
    untuned: bool = False,
    batch_size: int | None = None,
    output: Path | None = None,
    source: Path | None = None,
    server: Sequence[str] = (),
    model: str | None = None,
    key_file: Path | None = None,
    ray: str | None = None,
) -> Answerer:
    """Return who answers with the `options` of `Conversation.ask`.

    It is the model in `folder`, here or on the cluster at the address `ray`, or the one of running
    servers. A `batch_size` of 0 is measured, and kept beside the `output` of the job. Raises
    `SettingsError` for neither, for both, and for what has no effect on the one, `OutputError` for
    an `output` that can be no file or is the `source` of the rows.
    """
    Sampling.of(**options)  # or it is an error
    if output:
        check_place(output, source)
    if server:
        local_options = {"folder": folder, "--device": device, "--picture-tokens": picture_tokens}
        local_options |= {"--untuned": untuned, "--batch-size": batch_size, "--ray": ray}
        _refuse(local_options, "which a --server has of its own")
        from helpers.serve.remote import Servers

        return Servers(server, read_key(key_file, report), model, options, report)
    if folder is None:
        raise SettingsError("Give the folder of a model, or a --server that has it.")
    _refuse({"--model": model, "--key-file": key_file}, "which only a --server needs")
    local_model = Model(folder, (device or "CPU").upper(), picture_tokens, tuned=not untuned)
    size = BATCH if batch_size is None else batch_size
    if not ray:
        return _local(local_model, size, output, options, report)
    if not size:
        raise SettingsError("--batch-size auto measures this computer; give --ray a number.")
    from helpers.serve.cluster import Cluster

    return Cluster(ray, local_model, options, report, size)


def _local(
    model: Model,
    size: int,
    output: Path | None,
    options: Mapping[str, Any],
    report: Report,
) -> Answerer:
    """Return the model in a folder, loaded here; a batch `size` of 0 is measured."""
    from helpers.measure.batch_size import SIZES, fastest_batch_size

    pipeline = model.open(size or SIZES[-1])
    if not size:
        measure = partial(fastest_batch_size, pipeline, report=report)
        size = kept_size(output, measure) if output else measure()
    return Local(pipeline, model.fingerprint(), options, size)


def _refuse(settings: Mapping[str, Any], why: str) -> None:
    """Raise a `SettingsError` that names the settings that were given."""
    names = [name for name, value in settings.items() if value is not None and value is not False]
    if names:
        raise SettingsError(f"Leave out {' and '.join(names)}, {why}.")
