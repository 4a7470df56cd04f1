"""openvino_telemetry 2025.2: what OpenVINO's converter and NNCF would send to Google Analytics.

It is sent unless the user opts out (https://github.com/openvinotoolkit/openvino/pull/20290). No
variable and no option of `openvino.convert_model` or NNCF does that; the package has a program of
its own, which writes into the user's home folder instead.
"""

import contextlib


def switch_off() -> None:
    """Let the sender send nothing, for the whole process."""
    with contextlib.suppress(ImportError):
        from openvino_telemetry.utils.sender import TelemetrySender

        TelemetrySender.send = lambda *_, **__: None
