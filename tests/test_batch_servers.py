"""Jobs whose rows running servers answer: two real processes, of which one stops or is killed."""

import base64
import http.server
import io
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from helpers.__main__ import main
from helpers.errors import SettingsError
from helpers.serve import requests
from helpers.serve.addresses import Pictures
from helpers.upstream.proxies import LOOPBACK, proxy_for, spare_loopback
from tests.jobs import QUESTIONS, asked, command, draw_pictures, without_times, written
from tests.servers import message, random_port, serving

pytestmark = pytest.mark.slow

KEY = "a key of the tests"
NUMBER = 30  # of pictures


@pytest.fixture(scope="module")
def folder(internvl2_folder):
    """Return the model of these tests."""
    return internvl2_folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Return a folder of drawn pictures."""
    return draw_pictures(tmp_path_factory.mktemp("pictures"), NUMBER)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory) -> Path:
    """Return a file with the servers' key."""
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text(KEY)
    return path


@pytest.fixture(scope="module")
def servers(fork, folder, key_file):
    """Return two servers; the second has a short queue and another name for the model."""
    first = serving(fork, folder, "--key-file", key_file)
    with (
        first as first,
        serving(fork, folder, "--key-file", key_file, "--queue", 2, "--name", "b") as second,
    ):
        yield first, second


@pytest.fixture
def job(servers, key_file, pictures, tmp_path):
    """Return the command line of a job for both servers; `output` is its file."""

    def words(*options: object, output: Path = tmp_path / "answers.jsonl") -> list[str]:
        addresses = [word for server in servers for word in ("--server", server.address)]
        keys = ("--key-file", key_file)
        return command(None, pictures, output, *asked(*QUESTIONS), *addresses, *keys, *options)

    return words


@pytest.fixture(scope="module")
def reference(folder, pictures, tmp_path_factory) -> dict[str, dict]:
    """Return the rows of a job on this computer."""
    output = tmp_path_factory.mktemp("reference") / "answers.jsonl"
    assert main(command(folder, pictures, output, *asked(*QUESTIONS))) == 3
    return written(output)


def check(rows: dict[str, dict], reference: dict[str, dict]) -> None:
    """Check that rows are those of a job on this computer.

    What is computed together may be rounded otherwise, and a few answers differ (not so in ACCURACY
    mode); errors and all other columns are the same.
    """
    rows, reference = without_times(rows), without_times(reference)
    assert rows.keys() == reference.keys()
    different = [name for name in rows if rows[name] != reference[name]]
    assert len(different) <= len(rows) // 10
    for name in different:
        assert rows[name]["answer"] and rows[name]["error"] is None is reference[name]["error"]


def test_servers_write_what_this_computer_would(
    job, servers, reference, folder, pictures, tmp_path, capsys
):
    output = tmp_path / "answers.jsonl"
    assert main(job("--json")) == 3
    check(written(output), reference)
    assert json.loads(capsys.readouterr().out) == {"rows": len(reference), "new": 66, "failed": 4}
    # Equal pictures are asked about once, and broken ones never leave this computer.
    number = len({(row["image"], row["question"]) for row in reference.values()}) - 6
    answered, end = [0, 0], time.monotonic() + 10
    while sum(answered) < number and time.monotonic() < end:  # a line follows its answer
        logs = [server.program.text("err") for server in servers]
        answered = [log.count("/v1/chat/completions' 200") for log in logs]
    assert min(answered) > 4 and sum(answered) == number
    assert "/v1/chat/completions' 429" in logs[1]  # its queue is short
    before = output.read_bytes()
    # This computer goes on with the servers' file, since its model is theirs.
    assert main(command(folder, pictures, output, *asked(*QUESTIONS))) == 3
    assert output.read_bytes() == before
    assert main(job("--max-new-tokens", 5)) == 1
    assert "another model, question or option" in capsys.readouterr().err


def test_schemas_and_openais_lines_reach_servers(job, servers, key_file, pictures, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"enum": ["one", "two"]}))
    lines = [{"image": "00.png", "question": "How many?"}, {"question": "Hello"}]
    body = {"model": "mine", "messages": [message("Hello")], "max_tokens": 3}
    lines += [{"custom_id": "a", "body": body}, {"custom_id": "b", "body": {"n": 2}}]
    lines += [{"custom_id": "c", "body": 5}]
    source = pictures / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    output = tmp_path / "answers.jsonl"
    options = ("--server", servers[0].address, "--key-file", key_file, "--schema", schema)
    assert main(command(None, source, output, *options)) == 3
    source.unlink()
    rows = {row.get("custom_id", row.get("question")): row for row in written(output).values()}
    assert json.loads(rows["How many?"]["answer"]) in ("one", "two")
    response = rows["a"]["response"]["body"]
    assert response["model"] == "mine" and response["usage"]["completion_tokens"] == 3
    assert response["choices"][0]["finish_reason"] == "length"
    assert (
        "n is 2" in rows["b"]["error"]["message"] and "JSON object" in rows["c"]["error"]["message"]
    )


def test_pictures_of_formats_that_servers_do_not_take(pictures, tmp_path):
    picture = Image.open(pictures / "00.png").convert("RGB")
    picture.save(tmp_path / "a.bmp")
    url = requests.data_url(tmp_path / "a.bmp")
    assert url.startswith("data:image/png;base64,")
    assert Pictures().open(url).tobytes() == picture.tobytes()


def test_pictures_that_are_too_large_for_servers(tmp_path, monkeypatch):
    """As a scanner's TIFF, or a camera's JPEG; a low limit stands for the servers'."""
    noise = Image.effect_noise((80, 60), 90).convert("RGB")
    noise.save(tmp_path / "a.tif")
    noise.save(tmp_path / "a.jpg", quality=100)
    file = io.BytesIO()
    noise.save(file, "JPEG", quality=95, subsampling=0)
    best = file.tell()
    for path, limit, kind in (
        (tmp_path / "a.tif", 10**6, "png"),
        (tmp_path / "a.tif", best, "jpeg"),
        (tmp_path / "a.tif", best - 1, "jpeg"),
        (tmp_path / "a.jpg", best - 1, "jpeg"),
    ):
        monkeypatch.setattr(requests, "LARGEST", limit)
        url = requests.data_url(path)
        assert url.startswith(f"data:image/{kind};base64,")
        data = base64.b64decode(url.partition(",")[2])
        assert (data == file.getvalue()) is (limit == best) and len(data) <= limit
        assert (Pictures().open(url).tobytes() == noise.tobytes()) is (kind == "png")


def test_a_telephones_picture_of_two_is_sent_as_it_is(tmp_path):
    pictures = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    pictures[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pictures[1:])
    url = requests.data_url(tmp_path / "a.jpg")
    assert url.startswith("data:image/jpeg;base64,")
    assert base64.b64decode(url.partition(",")[2]) == (tmp_path / "a.jpg").read_bytes()
    assert Pictures().open(url).getpixel((0, 0))[0] > 200


class Listing(http.server.BaseHTTPRequestHandler):
    """Says which models there are, as a server with two of them does."""

    def do_GET(self) -> None:
        models = [{"id": name, "fingerprint": f"print of {name}"} for name in ("a", "b")]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": models}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listing():
    """Return the address of a server with two models."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Listing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_of_several_models_joins_later(listing):
    """It was not there when the job began, so that its model has no name yet."""
    server = requests.RemoteServer(listing, None)
    assert not server.is_there("print of c") and server.name is None
    assert server.is_there("print of b") and server.name == "b"
    with pytest.raises(SettingsError, match="has the models a, b; name one"):
        server.find(None, print)


@pytest.mark.parametrize(
    "proxy", ["socks4://127.0.0.1:9", "socks://127.0.0.1:9", "http://127.0.0.1:9x"]
)
def test_a_proxy_that_cannot_be_used(listing, monkeypatch, proxy):
    """Only of a server that is asked through it; this computer is asked itself."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("no_proxy", "127.0.0.1,::1,near.example")
    assert requests.RemoteServer(listing, None).is_there("print of a")
    for address in ("near.example:8000", "http://[::1]:8000"):
        requests.RemoteServer(address, None)
    with pytest.raises(SettingsError, match=f"^far.example cannot .* proxy .*{proxy}, which .* NO"):
        requests.RemoteServer("far.example:8000", None)


def test_a_proxy_that_is_switched_off(monkeypatch):
    """A star stands for all computers where it is alone; where others are named, they stay."""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    for before, after in (("*", "*"), ("a.example", f"a.example,{','.join(LOOPBACK)}")):
        monkeypatch.setenv("no_proxy", before)
        spare_loopback()
        assert os.environ["no_proxy"] == after
        assert bool(proxy_for("http://far.example:8000")) == (before != "*")
        assert not proxy_for("http://127.0.0.1:8000")


def test_a_proxy_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    server = requests.RemoteServer("far.example:8000", None)
    words = "http://far.example:8000 through the proxy http://127.0.0.1:9 does not answer"
    with pytest.raises(requests.LostError, match=words):
        server.find(None, print)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--server", "http://127.0.0.1:1"), "does not answer"),
        (("--server", "http://"), "is no address of a server"),
        (("--server", "http://[::1:8000"), "is no address of a server"),
        (("--server", "127.0.0.1:1", "--device", "CPU", "--untuned"), "--device and --untuned"),
        (("--server", "127.0.0.1:1", "--picture-tokens", "0"), "Leave out --picture-tokens"),
        (("--server", "127.0.0.1:1", "--ray", "auto"), "Leave out --ray"),
        ((), "Give the folder"),
    ],
)
def test_servers_that_cannot_be_are_told(pictures, tmp_path, capsys, options, words):
    output = tmp_path / "answers.jsonl"
    assert main(command(None, pictures, output, *asked(QUESTIONS[0]), *options)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert words in error and error.endswith(".")
    assert not output.exists()


def test_a_wrong_key_and_another_model_are_told(
    fork, servers, pictures, bundled_folder, tmp_path, capsys, monkeypatch
):
    output = tmp_path / "answers.jsonl"
    words = command(None, pictures, output, *asked(QUESTIONS[0]), "--server", servers[0].address)
    assert main(words) == 1
    assert "The key is missing or wrong" in capsys.readouterr().err
    monkeypatch.setenv("VLM_KEY", KEY)
    assert main([*words, "--model", "another"]) == 1
    assert "name one with --model" in capsys.readouterr().err
    with serving(fork, bundled_folder("internvl2", "fp16")) as other:
        assert main([*words, "--server", other.address]) == 1
    assert "have other models" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows stops no process")
def test_a_server_that_hangs_loses_its_rows(job, servers, reference, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(requests, "QUIET", 3.0)
    hung = servers[1].program.number
    os.kill(hung, signal.SIGSTOP)
    try:
        assert main(job()) == 3
    finally:
        os.kill(hung, signal.SIGCONT)
    assert f"{servers[1].address} does not answer" in capsys.readouterr().err
    check(written(tmp_path / "answers.jsonl"), reference)


def test_a_row_that_ends_servers_is_an_error(servers, monkeypatch, pictures, tmp_path):
    ends: Counter[str] = Counter()

    def end(server, row, options):
        ends[row.question] += 1
        raise requests.LostError("It ended.", is_ended=True)

    monkeypatch.setattr("helpers.serve.remote.AGAIN", 0.1)
    monkeypatch.setattr(requests.RemoteServer, "ask", end)
    (tmp_path / "rows.jsonl").write_text('{"question": "Hello"}')
    monkeypatch.setenv("VLM_KEY", KEY)
    output = tmp_path / "answers.jsonl"
    words = command(None, tmp_path / "rows.jsonl", output, "--server", servers[0].address)
    assert main(words) == 3
    assert ends == {"Hello": 3}
    assert "3 times a server ended" in next(iter(written(output).values()))["error"]


def test_a_server_is_killed_and_its_rows_go_to_the_other(job, servers, reference, tmp_path, fork):
    output = tmp_path / "answers.jsonl"
    program = fork.start("-m", "helpers", *job())
    while not output.exists() or output.read_bytes().count(b"\n") < 6:
        time.sleep(0.01)
    servers[1].program.kill()
    assert program.wait() == 3
    assert f"{servers[1].address} does not answer" in program.text("err")
    check(written(output), reference)


def test_without_a_server_the_job_ends_with_a_sentence(
    folder, servers, pictures, tmp_path, monkeypatch, capsys
):
    def lose(server, row, options):
        raise requests.LostError("It does not answer.")

    addresses = ("--server", servers[0].address, "--server", f"127.0.0.1:{random_port()}")
    output = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patches:
        patches.setenv("VLM_KEY", KEY)
        patches.setattr("helpers.serve.remote.PATIENCE", 1.0)
        patches.setattr(requests.RemoteServer, "is_there", lambda server, fingerprint: False)
        patches.setattr(requests.RemoteServer, "ask", lose)
        assert main(command(None, pictures, output, *asked(QUESTIONS[0]), *addresses)) == 1
    assert "No server answers any more" in capsys.readouterr().err
    assert main(command(folder, pictures, output, *asked(QUESTIONS[0]))) == 3  # it goes on
