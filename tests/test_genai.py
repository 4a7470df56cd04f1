"""OpenVINO GenAI answers from the folders that conversion writes, token for token as we do.

GenAI is in an environment of its own, which `make genai` makes; only `make integration` runs this.
Each question is a conversation of its own: GenAI 2026.4's second turns are not to be compared with.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.convert import conversion
from helpers.graphs.presets import find_preset
from helpers.models import load_processor
from helpers.models.families import families
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes.questions import draw_questions
from helpers.sources.checkpoints import BUNDLED
from tests import random_gemma4

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv-genai" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
MOST = 40  # tokens of an answer
TILES = 12  # GenAI's, whatever the config says; an answer from other tiles is another one
NAMES = [
    family.bundled
    for family in families()
    if family.checkpoint and load_processor(family.checkpoint).runtime.loads
]


@pytest.fixture(scope="module", autouse=True)
def environment(request):
    """Skip unless these are the checks that need other environments."""
    if not request.config.getoption("integration"):
        pytest.skip("in `make integration`")
    assert PYTHON.exists(), "make genai"


RANDOM = {"gemma4, random": random_gemma4.write_random}  # families without a bundled model


@pytest.fixture(scope="module", params=[*NAMES, *RANDOM])
def cases(request, tmp_path_factory) -> tuple[Path, list[dict]]:
    """Return a folder of a bundled model, and questions with our answers in ACCURACY mode.

    Of a random one the prompts are several times longer than its windows.
    """
    place = tmp_path_factory.mktemp("genai")
    folder, checkpoint = place / request.param, BUNDLED / request.param
    if request.param in RANDOM:
        checkpoint = tmp_path_factory.mktemp("checkpoint")
        RANDOM[request.param](checkpoint, seed=1)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if "max_dynamic_patch" in config:
        checkpoint = shutil.copytree(checkpoint, tmp_path_factory.mktemp("tiles") / request.param)
        config |= {"max_dynamic_patch": TILES}
        (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    conversion.convert(checkpoint, folder, find_preset("int8"))
    pipeline = VisionLanguagePipeline(folder, accuracy=True)
    cases = []
    for number, (picture, question) in enumerate(draw_questions(8, seed=4)):
        path = place / f"{number}.npy"
        np.save(path, np.asarray(picture))
        reply = pipeline.ask(question.text, [picture], max_new_tokens=MOST)
        case = {"question": question.text, "picture": str(path), "most": MOST}
        cases.append(case | {"tokens": reply.token_ids})
    text = "How many shapes are there?"
    reply = pipeline.ask(text, max_new_tokens=MOST)
    cases.append({"question": text, "picture": None, "most": MOST, "tokens": reply.token_ids})
    return folder, cases


@pytest.mark.parametrize("backend", ["SDPA", "PA", "BATCH"])
def test_genai_gives_our_tokens(cases, backend, tmp_path):
    folder, cases = cases
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    script = Path(__file__).with_name("genai_answers.py")
    command = [PYTHON, script, folder, tmp_path / "cases.json", backend]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr
    answers = json.loads(process.stdout.splitlines()[-1])
    assert answers == [case["tokens"] for case in cases]
    assert len({tuple(answer) for answer in answers}) > 4
