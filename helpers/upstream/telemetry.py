"""openvino_telemetry 2025.2: what OpenVINO's converter and NNCF would send to Google Analytics.

It is sent unless the user opts out (https://github.com/openvinotoolkit/openvino/pull/20290). No
variable and no option of `openvino.convert_model` or NNCF does that; the package has a program of
its own, which writes into the user's home folder instead. So do an id and counts of what is used,
with a warning where that folder cannot be written.
"""

import contextlib


def switch_off() -> None:
    """Let nothing be sent, and nothing be written for it, for the whole process."""
    with contextlib.suppress(ImportError):
        from openvino_telemetry.utils.sender import TelemetrySender

        TelemetrySender.send = lambda *_, **__: None
    with contextlib.suppress(ImportError):
        from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker

        # What was declined makes neither an id nor counts.
        OptInChecker.check = lambda *_, **__: ConsentCheckResult.DECLINED
