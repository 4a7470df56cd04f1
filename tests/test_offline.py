"""Nothing calls home: programs run with every outward connection refused."""

import sys

import pytest

from tests.offline import run_offline

NAME, ADDRESS = "example.org", "192.0.2.1"
CALLS = {
    "a web page": "import urllib.request; urllib.request.urlopen('https://example.org', timeout=5)",
    "a name": "import socket; socket.getaddrinfo('example.org', 443)",
    "an old lookup": "import socket; socket.gethostbyname('example.org')",
    "an address": "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)",
    "a datagram": """\
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'hello', ('192.0.2.1', 9))""",
    "asyncio": """\
import asyncio
asyncio.run(asyncio.wait_for(asyncio.open_connection('192.0.2.1', 80), 5))""",
    "a library": "import httpx; httpx.get('http://example.org', timeout=5)",
    "a child": """\
import subprocess, sys
call = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
sys.exit(subprocess.run([sys.executable, '-c', call]).returncode)""",
}

STAYS_HERE = """\
import socket, threading
import helpers
server = socket.create_server(("localhost", 0))
client = threading.Thread(target=lambda: socket.create_connection(server.getsockname()[:2]).close())
client.start()
server.accept()
client.join()
print("stayed here")
"""


@pytest.mark.parametrize("source", CALLS.values(), ids=CALLS)
def test_a_program_that_calls_out_is_stopped_and_recorded(source):
    run = run_offline([sys.executable, "-c", source], timeout=60)
    assert run.returncode != 0
    assert "No connection may leave this computer" in run.output
    (called,) = [word for word in (NAME, ADDRESS) if word in source]
    assert called in run.attempts[0]


def test_an_attempt_that_the_program_hides_is_still_recorded():
    source = "import contextlib, socket\nwith contextlib.suppress(OSError):\n    "
    run = run_offline([sys.executable, "-c", source + "socket.gethostbyname('example.org')"])
    assert run.returncode == 0
    assert run.attempts == ["socket.gethostbyname example.org"]


def test_a_program_that_talks_to_itself_is_left_alone():
    run = run_offline([sys.executable, "-c", STAYS_HERE])
    assert run == (0, "stayed here\n", [])


def test_settings_reach_the_program():
    run = run_offline(
        [sys.executable, "-c", "import os; print(os.environ['COLOUR'])"],
        environment={"COLOUR": "red"},
    )
    assert run.output == "red\n"
