"""What the notebooks import: from a PyTorch checkpoint to an OpenVINO model that answers."""

import contextlib
import os

# Nothing here calls home. These libraries do unless told not to, and read the switch when they
# are first imported, which is why it is set before anything else is.
for _switch, _value in {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_switch, _value)

# What OpenVINO's converter and NNCF would send goes through this one; no variable switches it off.
with contextlib.suppress(ImportError):
    from openvino_telemetry.utils.sender import TelemetrySender

    TelemetrySender.send = lambda *_, **__: None
