"""The family of `docs/a-family-of-your-own.md`, from a package that is not this one."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from helpers.shapes import tokenizers
from tests.tiny import picture

PAGE = Path(__file__).parent.parent / "docs" / "a-family-of-your-own.md"
WRITE = """
import json, sys
from pathlib import Path
import torch
from helpers.models.families import without_weights
from helpers.sources.saving import save_tensors
folder = Path(sys.argv[1])
config = json.loads((folder / "config.json").read_text())
model = without_weights(config)
torch.manual_seed(0)
for files in model.layout():
    list(save_tensors([files.tensors], folder, files.ending,
                      fill=lambda name, empty: torch.randn(empty.shape) * 0.1))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, fork):
    """Return a function that runs Python where the page's package is installed."""
    site = tmp_path_factory.mktemp("site")
    text = PAGE.read_text(encoding="utf-8")
    (module,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (entry,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    (group, point) = re.search(r'entry-points\."(.+?)"\]\n(.+?) = "', entry).groups()
    (site / "plain_patches.py").write_text(module, encoding="utf-8")
    metadata = site / "plain_patches-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-patches\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{point} = plain_patches:FAMILY\n")

    def run_python(*arguments: object) -> subprocess.CompletedProcess:
        return fork.run(*arguments, environment=os.environ | {"PYTHONPATH": str(site)})

    return run_python


@pytest.fixture(scope="module")
def checkpoint(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    size = tokenizers.llama(tokenizers.corpus(300), folder, ())
    text = {
        "vocab_size": size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    config = {"model_type": "plain_patches", "text_config": text}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    result = run("-c", WRITE, folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_it_is_converted_and_asked(run, checkpoint, tmp_path):
    output, photo = tmp_path / "plain", tmp_path / "picture.png"
    picture().save(photo)
    command = ("-m", "helpers", "convert", checkpoint, "--precision", "int8", "--output", output)
    result = run(*command, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["bit_widths"]["language model"][0]["type"] == "u8"
    question = ("--image", photo, "--question", "What is in the picture?", "--max-new-tokens", 5)
    result = run("-m", "helpers", "ask", output, *question, "--json")
    assert result.returncode == 0, result.stderr
    assert 1 <= json.loads(result.stdout)["tokens"] <= 5


def test_without_its_package_it_is_not_known(checkpoint, capsys, tmp_path):
    from helpers.__main__ import main

    assert main(["convert", str(checkpoint), "--output", str(tmp_path / "plain")]) == 1
    assert "holds a 'plain_patches' model; this reads llava_mpt" in capsys.readouterr().err


@pytest.mark.slow
def test_a_broken_package_disturbs_no_other_family_and_is_told(run, checkpoint, tmp_path):
    site = Path(run("-c", "import plain_patches; print(plain_patches.__file__)").stdout).parent
    metadata = site / "broken-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[vlm.families]\nbroken = nowhere:FAMILY\n")
    command = ("-m", "helpers", "convert", checkpoint, "--precision", "int8", "--output")
    assert run(*command, tmp_path / "plain").returncode == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "other"}', encoding="utf-8")
    result = run("-m", "helpers", "convert", other, "--output", tmp_path / "output")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "holds a 'other' model" in result.stderr
    assert "The entry point broken = nowhere:FAMILY of vlm.families leads to no" in result.stderr
