"""Proxies, other users, pages and servers: a page is there, and keeps what is its own."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import gradio
import httpx
import pytest
from fastapi import FastAPI
from gradio.routes import App
from gradio_client import Client, handle_file

from helpers.__main__ import main, parse
from helpers.errors import SettingsError
from helpers.serve import controls, reach
from helpers.serve.access import folders_by_name, key_for
from helpers.serve.demo import build_page, open_page
from helpers.serve.pages import mount_pages
from helpers.serve.ports import free_port
from helpers.upstream.gradio import BelowAnotherServer
from tests.tiny import picture
from tests.workers import WORKER

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.queueing")
USUAL = (8, False, 0.7, 0.9)
# Nothing answers there, so whoever asks it is refused. Each for requests of one kind, or of all.
PROXIES = (
    {
        "http_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "socks5h://127.0.0.1:9",
        "ALL_PROXY": "socks5://127.0.0.1:9",
    },
    {
        "HTTP_PROXY": "http://user:secret@127.0.0.1:9",
        "https_proxy": "http://[::1]:9",
        "all_proxy": "socks4://127.0.0.1:9",
        "NO_PROXY": "example.org",
    },
    # No addresses at all, and forms of NO_PROXY that not every program reads.
    {
        "http_proxy": "127.0.0.1:9",
        "HTTPS_PROXY": "http://[::1",
        "all_proxy": "what is this",
        "NO_PROXY": "[::1],10.0.0.0/8",
    },
)
PAGE = """
import sys, urllib.request
from helpers.serve import demo
from helpers.run.pipeline import VisionLanguagePipeline
page = demo.build_page(VisionLanguagePipeline(sys.argv[1]), title="Small shapes")
address = demo.open_page(page)
print("Small shapes" in urllib.request.urlopen(address).read().decode())
print(page.GRADIO_CACHE)
"""


def environment(**variables: str) -> dict[str, str]:
    """Return this process's variables, without proxies and without its own folder for uploads."""
    usual = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    del usual["GRADIO_TEMP_DIR"]
    return usual | variables


def run_page(*command: object, **variables: str) -> list[str]:
    result = subprocess.run(
        [*map(str, command)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize("proxies", PROXIES)
def test_a_page_where_a_proxy_refuses(fork, converted, proxies):
    result = fork.run("-c", PAGE, converted, environment=environment(**proxies))
    assert result.stdout.splitlines()[:1] == ["True"], result.stderr


DOWNLOAD = """
import sys
from helpers.__main__ import main
sys.exit(main(["convert", "OpenGVLab/InternVL2-1B", "--output", sys.argv[1], "--json"]))
"""


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "socks5://127.0.0.1:9"),
        ("https_proxy", "http://user:secret@127.0.0.1:9", "http://127.0.0.1:9"),
        ("HTTPS_PROXY", "http://user:se#cret@127.0.0.1:9", "http://127.0.0.1:9"),
        ("HTTPS_PROXY", "socks4://127.0.0.1:9", "socks4://127.0.0.1:9"),
    ],
)
def test_a_download_through_a_proxy_that_does_not_answer(
    fork_without_hub, tmp_path, variable, value, shown
):
    variables = {variable: value, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    result = fork_without_hub.run(
        "-c", DOWNLOAD, tmp_path / "made", environment=environment(**variables)
    )
    assert (result.returncode, result.stdout) == (1, "")
    error = result.stderr.splitlines()[-1]
    assert error.startswith(f"error: The hub cannot be reached through the proxy {shown} (")
    assert "se" + "cret" not in error and "Traceback" not in result.stderr


# Other users, other pages


@pytest.mark.skipif(not shutil.which("setpriv"), reason="no other user can be had here")
def test_a_second_user(converted, tmp_path):
    """The temporary folder is everybody's, and another user's `gradio` stands in it."""
    if os.getuid():
        pytest.skip("only the administrator can become another user")
    (tmp_path / "gradio").mkdir(mode=0o755)
    tmp_path.chmod(0o1777)
    for folder in tmp_path.parents[: 3 if WORKER else 2]:  # those of the run
        folder.chmod(0o755)
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    script = tmp_path / "page.py"
    script.write_text(
        PAGE.split("page = ")[0] + "from pathlib import Path\n"
        "from helpers.upstream.gradio import FOLDER\nprint(oct(FOLDER.stat().st_mode & 0o777))\n"
        "import gradio as gr\nwith gr.Blocks() as page: gr.Markdown('x')\n"
        "print(bool(demo.open_page(page)))\nprint(FOLDER)\n",
        encoding="utf-8",
    )
    lines = run_page(*user, sys.executable, script, TMPDIR=str(tmp_path), HOME=str(tmp_path))
    assert lines[:2] == ["0o700", "True"]
    assert Path(lines[2]).parent == tmp_path and not Path(lines[2]).exists()


def test_no_temporary_folder(tmp_path):
    (tmp_path / "file").touch()
    result = subprocess.run(
        [sys.executable, "-c", "from helpers.serve import demo"],
        env=environment(GRADIO_TEMP_DIR=str(tmp_path / "file")),
        capture_output=True,
        text=True,
        check=False,
    )
    last = result.stderr.splitlines()[-1]
    assert "SettingsError: No folder for uploads can be made (File exists); set GRADIO_TEMP" in last


def test_two_pages_keep_the_same_picture_apart(pipeline, tmp_path):
    picture().save(tmp_path / "photo.png")
    pages = [build_page(pipeline, title=title) for title in ("One", "Two")]
    clients = [Client(open_page(page), verbose=False, analytics_enabled=False) for page in pages]
    file = [{"image": handle_file(tmp_path / "photo.png"), "caption": None}]
    try:
        chats = [
            client.predict("What?", file, [], *USUAL, api_name="/ask")[0] for client in clients
        ]
        clients[0].close()
        pages[0].close()
        chat = clients[1].predict("And?", file, chats[1], *USUAL, api_name="/ask")[0]
        assert len(chat) == 4 and "⚠️" not in str(chat)
        folders = {Path(page.GRADIO_CACHE) for page in pages}
        assert len(folders) == 2 and all(folder.stat().st_mode & 0o77 == 0 for folder in folders)
    finally:
        clients[1].close()
        pages[1].close()


# Ports and fields


@pytest.mark.parametrize("port", [99999, 0, -1])
def test_a_port_that_there_cannot_be(pipeline, port):
    with pytest.raises(SettingsError, match=f"The port is {port}; it should be a number from 1 to"):
        open_page(build_page(pipeline, title="x"), port=port)


@pytest.mark.skipif(not shutil.which("setpriv"), reason="no lesser rights can be had here")
def test_a_port_that_is_the_administrator_s(converted):
    first = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if first.exists() and int(first.read_text()) <= 80:
        pytest.skip("every port is everybody's here")
    rights = ("--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service")
    lesser = ("setpriv", *rights) if os.getuid() == 0 else ()
    command = [*lesser, sys.executable, "-m", "helpers", "demo", converted, "--port", "80"]
    result = subprocess.run(
        [*map(str, command)], env=environment(), capture_output=True, text=True, check=False
    )
    error = "error: The port 80 may not be used by this user; give another, or none for a free one."
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, error)


def test_a_port_that_is_taken(pipeline):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(SettingsError, match=f"The port {port} is taken; give another, or none"):
            open_page(build_page(pipeline, title="x"), port=port)


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b", "1:2:3", "fe80::1"])
def test_a_host_that_is_not_this_computer(host):
    with pytest.raises(SettingsError, match=f"^{host} is no address of this computer; give --host"):
        free_port(8000, host)


def test_an_empty_host_is_not_every_address(monkeypatch):
    monkeypatch.delenv("VLM_KEY", raising=False)
    assert key_for("", None) is None  # what is wrong is not a missing key
    with pytest.raises(SettingsError, match="An empty text is no address of this computer"):
        free_port(8000, "")


def test_a_host_in_the_brackets_of_an_address():
    assert parse(["serve", "folder", "--host", "[::1]"]).host == "::1"


def test_a_model_s_name_that_no_client_can_send(converted):
    with pytest.raises(SettingsError, match="has halves of characters; give each folder a --name"):
        folders_by_name([converted], ["W\udcc3\udca9ll"])


def test_a_server_s_port_that_is_taken(converted, capsys):
    """Without a port it would be the one that is taken, too."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert main(["serve", str(converted), "--port", str(port)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: The port {port} is taken; give another with --port."


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ((None, False, 0.7, 0.9), "Maximum new tokens is empty; it should be from 1 to 512."),
        ((8, True, None, 0.9), "Temperature is empty; it should be from 0.1 to 2."),
        ((8, True, 9, 0.9), "Temperature is 9; it should be from 0.1 to 2."),
        ((0, False, 0.7, 0.9), "Maximum new tokens is 0; it should be from 1 to 512."),
        (("x", False, 0.7, 0.9), "Maximum new tokens is 'x'; it should be from 1 to 512."),
    ],
)
def test_a_field_that_was_cleared(pipeline, values, sentence):
    page = build_page(pipeline, title="x")
    client = Client(open_page(page), verbose=False, analytics_enabled=False)
    try:
        chat, _ = client.predict("What?", [], [], *values, api_name="/ask")
        assert sentence in str(chat[-1]) and len(chat) == 2
        chat, _ = client.predict("What?", [], chat, 8, True, 2, 0.9, api_name="/ask")
        assert "⚠️" not in str(chat[-1]) and len(chat) == 4
    finally:
        client.close()
        page.close()


def test_a_slider_s_whole_number():
    slider = controls.Slider("seed", "Seed", 0, 10, value=0, step=1)
    assert slider.options(3.0) == {"seed": 3}


# A browser on another computer


def test_how_a_page_is_reached(monkeypatch):
    monkeypatch.setattr(reach.getpass, "getuser", lambda: "ana")
    assert reach.ways(7860, {}) == []
    (line,) = reach.ways(7860, {"SSH_CONNECTION": "10.0.0.2 50000 10.0.0.9 22"})
    assert line.endswith(": ssh -N -L 7860:127.0.0.1:7860 ana@10.0.0.9")
    (line,) = reach.ways(7860, {"SSH_CONNECTION": "10.0.0.2 50000 10.0.0.9 2222"})
    assert line.endswith(": ssh -N -L 7860:127.0.0.1:7860 -p 2222 ana@10.0.0.9")
    (line,) = reach.ways(7860, {"JUPYTERHUB_SERVICE_PREFIX": "/user/ana/"})
    assert "/user/ana/proxy/7860/ instead of /user/ana/lab" in line
    monkeypatch.setattr(reach, "find_spec", lambda name: None)
    (line,) = reach.ways(7860, {"JUPYTERHUB_SERVICE_PREFIX": "/user/ana/"})
    assert "jupyter-server-proxy" in line


@pytest.mark.parametrize("root", ["", "/set/for/gradio"])
def test_a_server_s_page_below_another_server(root, monkeypatch):
    monkeypatch.setenv("GRADIO_ROOT_PATH", root)
    jupyter = {"x-forwarded-context": "/user/ana/proxy/8000"}
    host = {"x-forwarded-host": "models.example, 10.0.0.9", "x-forwarded-proto": "https"}
    addresses = {
        "http://127.0.0.1:8000": {},
        "http://127.0.0.1:8000/user/ana/proxy/8000": jupyter,
        "https://models.example": host,
        "https://models.example/llm": host | {"x-forwarded-prefix": "/llm/"},
    }
    paths = "/", "/page/model", "/page/model/config", "/page/model/gradio_api/info"

    async def check() -> None:
        app = FastAPI()
        await mount_pages(app, {"model": gradio.Blocks()}, None)
        transport, base = httpx.ASGITransport(app), "http://127.0.0.1:8000"
        async with httpx.AsyncClient(transport=transport, base_url=base) as client:
            for address, headers in addresses.items():
                answers = [await client.get(path, headers=headers) for path in paths]
                first, bare, config, other = answers
                assert first.headers["location"] == "page/model/"
                assert bare.headers["location"] == "model/"
                assert config.json()["root"] == f"{address}/page/model"
                assert other.status_code == 200

    asyncio.run(check())


def test_a_page_whose_path_gradio_is_told(monkeypatch):
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/told")
    middleware = {"middleware": [(BelowAnotherServer, (), {})]}
    transport = httpx.ASGITransport(App.create_app(gradio.Blocks(), app_kwargs=middleware))

    async def check() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            answer = await client.get("/config", headers={"x-forwarded-context": "/user/ana"})
            assert answer.json()["root"] == "http://127.0.0.1/told"

    asyncio.run(check())


@pytest.mark.slow
def test_below_jupyter_s_server(pipeline, tmp_path):
    page = build_page(pipeline, title="Small shapes")
    port = httpx.URL(open_page(page)).port
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        jupyter = free_socket.getsockname()[1]
    command = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={jupyter}", "--ServerApp.base_url=/user/ana/"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}"]
    command += ["--ServerApp.disable_check_xsrf=True"]
    below = f"http://127.0.0.1:{jupyter}/user/ana/proxy/{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(120):
                time.sleep(0.5)
                try:
                    config = httpx.get(f"{below}/config").json()
                    break
                except (httpx.HTTPError, ValueError):
                    pass
            assert config["root"] == below
            client = Client(f"{below}/", verbose=False, analytics_enabled=False)
            chat, _ = client.predict("What?", [], [], *USUAL, api_name="/ask")
            assert len(chat) == 2 and "⚠️" not in str(chat)
            client.close()
        finally:
            server.terminate()
            page.close()
