"""What the notebooks import: from a PyTorch checkpoint to an OpenVINO model that answers."""

from helpers import interrupts  # noqa: F401  so that Ctrl-C counts from here on

# isort: split
import os
from typing import TYPE_CHECKING

from helpers.upstream import proxies, telemetry

if TYPE_CHECKING:
    from helpers.run.pipeline import VisionLanguagePipeline

__all__ = ["VisionLanguagePipeline"]
__version__ = "0.2.0"

# Nothing here calls home. These libraries do unless told not to, and read the switch when they
# are first imported, which is why it is set before anything else is.
for _switch, _value in {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_switch, _value)

telemetry.switch_off()
proxies.spare_loopback()


def __getattr__(name: str) -> object:
    """Import the pipeline when it is first asked for, since it takes a second or two."""
    if name == "VisionLanguagePipeline":
        from helpers.run.pipeline import VisionLanguagePipeline

        return VisionLanguagePipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
