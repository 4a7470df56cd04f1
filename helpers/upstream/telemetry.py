"""openvino_telemetry 2025.2: what OpenVINO's converter and NNCF would send to Google Analytics.

No variable and no option of `openvino.convert_model` or NNCF switches it off; the package has an
opt-out program of its own, which writes into the user's home folder instead.
"""

import contextlib


def switch_off() -> None:
    """Let the sender send nothing, for the whole process."""
    with contextlib.suppress(ImportError):
        from openvino_telemetry.utils.sender import TelemetrySender

        TelemetrySender.send = lambda *_, **__: None
