"""Who answers the rows of a job: a folder on this computer or on a cluster, or servers.

What this module does not know: which rows there are, and how they are answered.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.errors import SettingsError
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
    device: str = "CPU",
    picture_tokens: int | None = None,
    untuned: bool = False,
    server: Sequence[str] = (),
    model: str | None = None,
    key_file: Path | None = None,
    ray: str | None = None,
) -> Answerer:
    """Return who answers with the `options` of `Conversation.ask`.

    It is the model in `folder`, here or on the cluster at the address `ray`, or the one of running
    servers. Raises `SettingsError` for neither and for both.
    """
    Sampling.of(**options)  # or it is an error
    if server:
        if folder or picture_tokens or ray:
            raise SettingsError(
                "A --server has its own folder and --picture-tokens; leave them and --ray out here."
            )
        from helpers.serve.remote import Servers

        return Servers(server, read_key(key_file), model, options, report)
    if folder is None:
        raise SettingsError("Give the folder of a model, or a --server that has it.")
    if ray:
        from helpers.serve.cluster import Cluster

        return Cluster(ray, folder, device, picture_tokens, options, report)
    from helpers.run.pipeline import VisionLanguagePipeline

    pipeline = VisionLanguagePipeline(
        folder,
        device,
        picture_tokens=picture_tokens,
        tuned=not untuned,
        answers_at_once=BATCH,
    )
    return Local(pipeline, fingerprint_of(folder, device, picture_tokens), options)
