"""A job on two nodes of a Ray cluster on this computer, of which one is killed in the middle.

Ray is in an environment of its own, which `make cluster` makes; only `make integration` runs this.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from helpers.__main__ import main
from helpers.errors import SettingsError
from helpers.serve.cluster import room_in
from tests.jobs import QUESTIONS, asked, command, draw_pictures, without_times, written

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv-cluster" / "bin" / "python"
NUMBER = 40  # of pictures
START = 240  # seconds that a cluster may take to start

# Starts two nodes, says their address, and kills the second one for a line of input.
NODES = """
import sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 2, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
node = cluster.add_node(wait=False, num_cpus=2)
cluster.wait_for_nodes(timeout=120)
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.remove_node(node, allow_graceful=False)
print("killed", flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


def node(processors: int, *, alive: bool = True) -> dict:
    """Return a node as Ray lists it."""
    return {"Alive": alive, "Resources": {"CPU": float(processors)} if processors else {}}


def test_a_processor_of_each_node_is_left_to_ray():
    assert room_in([node(0), node(4), node(4)]) == (3, 2)
    assert room_in([node(3), node(8), node(9, alive=False)]) == (2, 4)
    with pytest.raises(SettingsError, match="1 CPU, and Ray needs one"):
        room_in([node(4), node(1)])
    with pytest.raises(SettingsError, match="No node"):
        room_in([node(0)])


@pytest.fixture(scope="module")
def cluster(request) -> Iterator[SimpleNamespace]:
    """Return a cluster's `address`, and what ends one of its nodes."""
    if not request.config.getoption("integration"):
        pytest.skip("in `make integration`")
    if sys.platform == "win32":
        pytest.skip("Ray's nodes cannot share a computer on Windows")
    assert PYTHON.exists(), "make cluster"
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    environment["RAY_raylet_start_wait_time_s"] = "120"  # a busy computer takes more than its 30
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(
        [PYTHON, "-c", NODES], env=environment, text=True, start_new_session=True, **pipes
    )
    lines = (line.strip() for line in process.stdout)
    address = next((line for line in lines if re.fullmatch(r"[\d.]+:\d+", line)), None)
    assert address, "the cluster has not started"

    def kill() -> None:
        process.stdin.write("\n")
        process.stdin.flush()
        assert next(line for line in lines if line == "killed")

    yield SimpleNamespace(address=address, kill=kill)
    children = psutil.Process(process.pid).children(recursive=True)
    process.stdin.close()
    process.wait(60)
    for child in psutil.wait_procs(children, timeout=5)[1]:
        child.kill()


@pytest.fixture(scope="module")
def folder(internvl2_folder):
    """Return the model of these tests."""
    return internvl2_folder


def on_cluster(words: list[str]) -> subprocess.Popen:
    """Start a job with the environment that has Ray."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [PYTHON, "-m", "helpers", *words], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_without_ray_or_a_cluster_a_sentence_says_so(folder, tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"question": "Hello"}))
    words = command(folder, source, tmp_path / "answers.jsonl", "--ray", "127.0.0.1:1")
    assert main(words) == 1
    assert "make cluster" in capsys.readouterr().err


@pytest.mark.slow
def test_a_node_is_killed_and_all_rows_are_there_once(cluster, folder, tmp_path):
    pictures = draw_pictures(tmp_path / "pictures", NUMBER)
    reference, output = tmp_path / "reference.jsonl", tmp_path / "answers.jsonl"
    assert main(command(folder, pictures, reference, *asked(*QUESTIONS))) == 3
    ray = ("--ray", cluster.address)
    program = on_cluster(command(folder, pictures, output, *asked(*QUESTIONS), *ray))
    end = time.monotonic() + START
    while not output.exists() or output.read_bytes().count(b"\n") < 20:
        assert program.poll() is None and time.monotonic() < end, program.stderr.read()
        time.sleep(0.05)
    cluster.kill()
    errors = program.communicate(timeout=START)[1]
    assert program.returncode == 3, errors
    assert "2 computers answer, each with 1 threads" in errors
    rows, expected = without_times(written(output)), without_times(written(reference))
    assert rows.keys() == expected.keys()
    # Batches are the same as on this computer; fewer threads may round otherwise.
    assert sum(rows[name] != expected[name] for name in rows) <= len(rows) // 10
    # This computer goes on with the file: its model is the cluster's.
    before = output.read_bytes()
    assert main(command(folder, pictures, output, *asked(*QUESTIONS))) == 3
    assert output.read_bytes() == before
