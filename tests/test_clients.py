"""Other clients ask a real server: LangChain, LiteLLM, instructor, curl, and OpenAI's for Node.

They are in environments of their own, which `make clients` makes; only `make integration` runs
this.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes.questions import draw_questions
from tests.programs import output_of
from tests.servers import data_url, message, serving
from tests.test_client_pages import programs_of

ROOT = Path(__file__).parent.parent
PLACE = ROOT / ".venv-clients"
PYTHON = PLACE / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
NAME = "shapes"
QUESTION = "What is in the picture?"  # of tests/client_answers.py too
NODE = """
import OpenAI from "openai";
import fs from "node:fs";
const [address, model, file] = process.argv.slice(2);
const client = new OpenAI({ baseURL: address, apiKey: "none" });
const url = fs.readFileSync(file, "utf-8");
const content = [{ type: "image_url", image_url: { url } }, { type: "text", text: QUESTION }];
const messages = [{ role: "user", content }];
const whole = await client.chat.completions.create({ model, messages });
const stream = await client.chat.completions.create({ model, messages, stream: true });
let text = "";
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
console.log(JSON.stringify([whole.choices[0].message.content, text.trim()]));
"""


@pytest.fixture(scope="module", autouse=True)
def environment(request):
    """Skip unless these are the checks that need other environments."""
    if not request.config.getoption("integration"):
        pytest.skip("in `make integration`")
    assert PYTHON.exists(), "make clients"


@pytest.fixture(scope="module")
def server(fork, internvl2_folder):
    """Return a server of the bundled InternVL2."""
    with serving(fork, internvl2_folder, "--name", NAME) as server:
        yield server


@pytest.fixture(scope="module")
def picture():
    """Return a picture of the drawn world."""
    return draw_questions(1, seed=9)[0][0]


@pytest.fixture(scope="module")
def expected(internvl2_folder, picture) -> str:
    """Return the answer of our own pipeline."""
    pipeline = VisionLanguagePipeline(internvl2_folder)
    return pipeline.ask(QUESTION, [picture]).text


@pytest.fixture
def picture_file(picture, tmp_path) -> Path:
    """Return a file with the picture as a data URL."""
    path = tmp_path / "picture.txt"
    path.write_text(data_url(picture), encoding="utf-8")
    return path


def test_python_clients(server, picture_file, expected):
    script = Path(__file__).with_name("client_answers.py")
    address = f"{server.address}/v1"
    answers = json.loads(output_of(PYTHON, script, address, NAME, picture_file).splitlines()[-1])
    texts = ("langchain", "langchain streamed", "litellm")
    assert {answers[name].strip() for name in texts} == {expected}
    assert answers["langchain tokens"] and answers["instructor"]
    assert "Context" in answers["too long"] or "BadRequest" in answers["too long"]


@pytest.mark.parametrize("page", ["langchain.md", "litellm.md"])
def test_the_pages_programs(server, picture, internvl2_folder, page, tmp_path):
    picture.save(tmp_path / "photograph.jpg", quality=95)
    (program,) = programs_of(page, "python", server.address)
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    program = program.replace("internvl2", NAME)
    printed = output_of(PYTHON, "-c", program, cwd=tmp_path, env=environment)
    pipeline = VisionLanguagePipeline(internvl2_folder)
    assert printed.strip() == pipeline.ask(QUESTION, [tmp_path / "photograph.jpg"]).text


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_with_a_body_of_two_megabytes(server, picture, expected, tmp_path):
    body = {"messages": [message(QUESTION, picture)], "metadata": {"long": "x" * 2_000_000}}
    (tmp_path / "body.json").write_text(json.dumps(body), encoding="utf-8")
    kind = "Content-Type: application/json"
    address = f"{server.address}/v1/chat/completions"
    data = f"@{tmp_path / 'body.json'}"
    answer = json.loads(output_of("curl", "-sS", address, "-H", kind, "--data-binary", data))
    assert answer["choices"][0]["message"]["content"] == expected


@pytest.mark.skipif(not shutil.which("npm"), reason="needs Node.js")
def test_the_client_for_node(server, picture_file, expected, tmp_path):
    npm = shutil.which("npm")
    output_of(npm, "install", "--silent", "--no-audit", "--no-fund", "openai@7.59.0", cwd=tmp_path)
    (tmp_path / "ask.mjs").write_text(NODE.replace("QUESTION", json.dumps(QUESTION)))
    node = shutil.which("node")
    printed = output_of(node, "ask.mjs", f"{server.address}/v1", NAME, picture_file, cwd=tmp_path)
    assert json.loads(printed) == [expected, expected]
