"""What the notebooks import: from a PyTorch checkpoint to an OpenVINO model that answers."""

import os

# Nothing here calls home. These libraries do unless told not to, and read the switch when they
# are first imported, which is why it is set before anything else is.
for _switch, _value in {
    "OPENVINO_TELEMETRY_OPTOUT": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_switch, _value)
