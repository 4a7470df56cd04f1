"""The programs of `docs/clients/` as somebody would paste them, against a real server.

Those for clients with an environment of their own run in `make integration`, see test_clients.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes.questions import draw_questions
from tests.servers import serving

PAGES = Path(__file__).parent.parent / "docs" / "clients"
ADDRESS = "http://127.0.0.1:8000"
MODEL = "internvl2"
QUESTION = "What is in the picture?"

pytestmark = pytest.mark.slow


def programs_of(page: str, language: str, address: str) -> list[str]:
    """Return the programs of a page in a language, with the address of a server in them."""
    text = (PAGES / page).read_text(encoding="utf-8")
    programs = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return [program.replace(ADDRESS, address) for program in programs]


@pytest.fixture(scope="module")
def server(fork, internvl2_folder):
    """Return a server whose model is called as on the pages."""
    with serving(fork, internvl2_folder, "--name", MODEL) as server:
        yield server


@pytest.fixture
def expected(internvl2_folder, tmp_path, monkeypatch) -> str:
    """Save the picture that the pages name where the test runs; return what is in it."""
    monkeypatch.chdir(tmp_path)
    draw_questions(1, seed=9)[0][0].save("photograph.jpg", quality=95)
    return VisionLanguagePipeline(internvl2_folder).ask(QUESTION, ["photograph.jpg"]).text


def test_openais_client(server, expected, capsys):
    names: dict[str, object] = {}
    printed = []
    for program in programs_of("openai-python.md", "python", server.address):
        exec(program, names)
        printed.append(capsys.readouterr().out)
    streamed, second, parsed, several = printed
    assert streamed.strip() == expected
    cached, tokens = re.search(r"(\d+) of (\d+) tokens", second).groups()
    assert int(tokens) / 2 < int(cached) < int(tokens)
    assert re.search(r"colour='.*' is_round=(True|False)", parsed)
    assert several.strip() == repr([expected] * 4)


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl(server, expected):
    texts, picture = programs_of("curl.md", "bash", server.address)
    command = ["bash", "-euo", "pipefail", "-c"]
    assert f'"id":"{MODEL}"' in subprocess.check_output([*command, texts], text=True)
    printed = subprocess.check_output([*command, picture], text=True)
    assert f'"content":"{expected}"' in printed, printed
