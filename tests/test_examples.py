"""The examples of `docs/`: a unit of systemd and a Dockerfile, as their own checkers see them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HADOLINT = Path(sys.executable).with_name("hadolint")
EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_the_unit(tmp_path):
    text = (EXAMPLES / "vlm.service").read_text(encoding="utf-8")
    program = "/opt/vlm/.venv/bin/vlm"
    assert f"ExecStart={program} serve" in text
    unit = tmp_path / "vlm.service"
    unit.write_text(text.replace(program, "/bin/true"), encoding="utf-8")
    command = ["systemd-analyze", "verify", unit]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.skipif(not HADOLINT.exists(), reason="has no package for this system")
def test_the_dockerfile():
    command = [HADOLINT, EXAMPLES / "Dockerfile"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (0, "")
