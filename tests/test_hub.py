"""Downloads with the real client from a server on this computer."""

import filecmp
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import huggingface_hub
import pytest

from helpers.errors import CheckpointError
from helpers.models.families import find_checkpoint
from helpers.sources.hub import checkpoint_bytes, download
from tests.golden_checks import GOLDEN, change_config
from tests.hub_server import Hub
from tests.programs import Fork

INTERNVL2, MINICPM = "OpenGVLab/InternVL2-1B", "openbmb/MiniCPM-V-2"
MOBILEVLM, MOBILEVLM_V2 = "mtgv/MobileVLM-1.7B", "mtgv/MobileVLM_V2-1.7B"
CLIP = "openai/clip-vit-large-patch14-336"
NOT_HERE = "mtgv/MobileVLM-9B"
LLAMA = "meta-llama/Llama-3.2-11B-Vision-Instruct"
LLAVA = "liuhaotian/LLaVA-Lightning-MPT-7B-preview"
NOT_READ = {  # what is not read here, by its config, and what is said of it
    "Qwen/Qwen3-VL-30B-A3B-Instruct-FP8": (
        {"model_type": "qwen3_vl_moe", "quantization_config": {"quant_method": "fp8"}},
        "holds a mixture of experts (qwen3_vl_moe)",
    ),
    "Qwen/Qwen3-VL-8B-Instruct-FP8": (
        {"model_type": "qwen3_vl", "quantization_config": {"quant_method": "fp8"}},
        "quantised already (fp8)",
    ),
    "google/gemma-4-31B-it": (
        {
            "model_type": "gemma4",
            "text_config": {"use_bidirectional_attention": "vision"},
            "vision_config": {"num_hidden_layers": 1},
        },
        "as in the larger Gemma 4 models",
    ),
    "openbmb/MiniCPM-V-4_5": (
        {"model_type": "minicpmv", "version": 4.5, "slice_config": {}},
        "holds MiniCPM-V 4.5",
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": ({"model_type": "qwen2_5_vl"}, "holds a 'qwen2_5_vl' model"),
}
SHARD = "model-00002-of-00002.safetensors"
LARGE = 24 * 2**20  # bytes; the client keeps 10 MiB at a time of what it has received
# What repositories also have and nobody here needs.
UNNEEDED = ("modeling_internvl_chat.py", "training_args.bin", "original/consolidated.00.pth")

# The same weights in another format, which is not read beside safetensors; and what is none.
SECOND = ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json")
BESIDE = "mm_projector.bin"
ADAPTER = "adapter_config.json"  # which a merged model kept

# The client reads its environment when it is imported, so it runs in a process of its own.
CLIENT = """
import json, sys
from helpers.errors import UserError
from helpers.models.families import find_checkpoint
answers = {}
for name in sys.argv[1:]:
    try:
        answers[name] = {"folder": str(find_checkpoint(name))}
    except UserError as error:
        answers[name] = {"error": str(error), "type": type(error).__name__}
print(json.dumps(answers))
"""
LOAD = """
import sys
from helpers.models import load_model
print(type(load_model(sys.argv[1])).__name__)
"""


class Client:
    """A computer with a cache of its own, on which downloads are started."""

    def __init__(self, home: Path, endpoint: str, fork: Fork) -> None:
        self.home, self.endpoint, self.fork = home, endpoint, fork
        self.output = ""

    def run(self, program: str, *arguments: str | Path, **environment: str) -> str:
        """Run a program and return the last line that it prints."""
        variables = {name: value for name, value in os.environ.items() if name[:3] != "HF_"}
        variables |= {
            "HF_HOME": str(self.home),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        result = self.fork.run("-c", program, *arguments, environment=variables | environment)
        assert result.returncode == 0, result.stderr
        self.output = result.stderr
        return result.stdout.splitlines()[-1]

    def find(self, names: Sequence[str], **environment: str) -> dict[str, dict[str, str]]:
        """Ask for checkpoints; give for each its folder or the error."""
        return json.loads(self.run(CLIENT, *names, **environment))


def repositories(root: Path) -> dict[str, Path]:
    """Lay out golden checkpoints as their authors' repositories."""
    names = {
        INTERNVL2: "internvl2_qwen2",
        MINICPM: "minicpm_v2",
        MOBILEVLM: "mobilevlm",
        MOBILEVLM_V2: "mobilevlm_v2",
        LLAMA: "mllama",
        LLAVA: "llava_mpt",
    }
    ignore = shutil.ignore_patterns("expected.safetensors", "clip")
    folders = {}
    for hub_id, name in names.items():
        folders[hub_id] = shutil.copytree(GOLDEN / name, root / hub_id, ignore=ignore)
        for file in UNNEEDED:
            (folders[hub_id] / file).parent.mkdir(exist_ok=True)
            (folders[hub_id] / file).write_text("not needed", encoding="utf-8")
    for hub_id in (INTERNVL2, MINICPM):
        for file in (*SECOND, BESIDE, ADAPTER):
            (folders[hub_id] / file).write_text("{}", encoding="utf-8")
    (folders[MINICPM] / SHARD).write_bytes(bytes(LARGE))
    for hub_id in (MOBILEVLM, MOBILEVLM_V2, LLAVA):
        change_config(folders[hub_id], mm_vision_tower=CLIP)
    for hub_id, (config, _) in NOT_READ.items():
        folders[hub_id] = root / hub_id
        folders[hub_id].mkdir(parents=True)
        (folders[hub_id] / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folders[hub_id] / "model.safetensors").write_bytes(bytes(100))
    folders[CLIP] = shutil.copytree(GOLDEN / "mobilevlm" / "clip", root / CLIP)
    return folders


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Hub:
    return Hub(
        repositories(tmp_path_factory.mktemp("hub")),
        gated={LLAMA},
        cut_once={SHARD},
        truncated={"pytorch_model.bin"},
        claimed_sizes={"pytorch_model-00001-of-00002.bin": 10**18},
    )


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory, fork_without_hub) -> Iterator[Client]:
    with hub.served() as endpoint:
        yield Client(tmp_path_factory.mktemp("home"), endpoint, fork_without_hub)


@pytest.fixture(scope="module")
def answers(client) -> dict[str, dict[str, str]]:
    """Return what a first visit gives, without a token."""
    return client.find([INTERNVL2, MINICPM, MOBILEVLM_V2, LLAMA, LLAVA, NOT_HERE])


def assert_one_sentence(error: str) -> None:
    assert error.endswith(".")
    assert "\n" not in error
    assert ". " not in error


@pytest.mark.parametrize("hub_id", [INTERNVL2, MINICPM])
def test_a_download_has_the_needed_files_only(hub, answers, hub_id):
    folder, original = Path(answers[hub_id]["folder"]), hub.repositories[hub_id]
    names = {path.name for path in original.iterdir()} - {"original", *UNNEEDED, *SECOND}
    assert BESIDE in names
    assert {path.name for path in folder.iterdir()} == names
    assert all(filecmp.cmp(folder / name, original / name, shallow=False) for name in names)
    paths = " ".join(path for _, path, _ in hub.requests)
    assert not any(name in paths for name in UNNEEDED)


def test_the_size_is_told_before(client, answers):
    line = rf"{INTERNVL2} is 0\.\d MB to download; \d+\.\d [MG]B of disk are free\."
    assert re.search(line, client.output)


def test_an_interrupted_download_continues_where_it_stopped(hub, answers):
    assert "folder" in answers[MINICPM]
    spans = [span for method, path, span in hub.requests if method == "GET" and SHARD in path]
    starts = {int(span.removeprefix("bytes=").removesuffix("-")) for span in spans if span}
    assert spans[0] is None
    assert len(starts) == 1 and 0 < starts.pop() <= LARGE // 2


def test_a_truncated_file(answers):
    error = answers[MOBILEVLM_V2]["error"]
    assert_one_sentence(error)
    assert "could not be downloaded (" in error and "pytorch_model.bin" in error
    assert error.endswith("try again.")


def test_a_gated_checkpoint(client, answers):
    error = answers[LLAMA]["error"]
    assert_one_sentence(error)
    assert f"accept its licence first: visit {client.endpoint}/{LLAMA}, then log in" in error


def test_a_disk_that_is_too_small(hub, answers):
    error = answers[LLAVA]["error"]
    assert_one_sentence(error.replace(" GB", ""))
    assert f"{LLAVA} is 1000000000.0 GB to download; " in error
    assert "make room, or set HF_HOME" in error
    assert not any(method == "GET" and f"large/{LLAVA}" in path for method, path, _ in hub.requests)


def test_what_is_not_read_is_told_before_its_weights_are_downloaded(hub, client):
    for hub_id, answer in client.find([*NOT_READ]).items():
        assert "\n" not in answer["error"]
        assert NOT_READ[hub_id][1] in answer["error"]
    assert "to download" not in client.output
    contents = [path for method, path, _ in hub.requests if method == "GET"]
    contents = [path for path in contents if any(name in path for name in NOT_READ)]
    assert contents and not any("model.safetensors" in path for path in contents)


def test_an_unknown_id(answers):
    error = answers[NOT_HERE]["error"]
    assert_one_sentence(error)
    assert "The hub has no mtgv/MobileVLM-9B" in error


def test_tokens(client, answers):
    error = client.find([MOBILEVLM], HF_TOKEN="hf_wrong")[MOBILEVLM]["error"]
    assert_one_sentence(error)
    assert "does not know your access token" in error
    other_answers = client.find([LLAMA, NOT_HERE], HF_TOKEN="hf_other")
    assert "accept its licence" in other_answers[LLAMA]["error"]
    assert "The hub has no" in other_answers[NOT_HERE]["error"]
    assert "folder" in client.find([LLAMA], HF_TOKEN="hf_valid")[LLAMA]


def test_offline(hub, client, answers):
    number = len(hub.requests)
    offline_answers = client.find([INTERNVL2, NOT_HERE], HF_HUB_OFFLINE="1")
    assert offline_answers[INTERNVL2] == answers[INTERNVL2]
    assert_one_sentence(offline_answers[NOT_HERE]["error"])
    assert "unset HF_HUB_OFFLINE" in offline_answers[NOT_HERE]["error"]
    assert len(hub.requests) == number


def test_a_hub_that_cannot_be_reached(client, answers):
    offline_answers = client.find([INTERNVL2, NOT_HERE], HF_ENDPOINT="http://127.0.0.1:9")
    assert offline_answers[INTERNVL2] == answers[INTERNVL2]
    assert "the hub cannot be reached" in offline_answers[NOT_HERE]["error"]


def test_a_second_visit_downloads_nothing(hub, client, answers):
    number = len(hub.requests)
    assert client.find([INTERNVL2])[INTERNVL2] == answers[INTERNVL2]
    assert "to download" not in client.output
    assert not any(
        method == "GET" and "resolve" in path for method, path, _ in hub.requests[number:]
    )


def test_the_image_encoder_comes_from_its_own_repository(hub, client):
    assert client.run(LOAD, hub.repositories[MOBILEVLM]) == "MobileVLM"
    assert any(CLIP in path for _, path, _ in hub.requests)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_weights_in_a_second_format_do_not_count(tmp_path, name):
    tower = tmp_path / "tower"
    tower.mkdir()
    for path, size in {
        tmp_path / name: 0,
        tmp_path / "model-00001-of-00001.safetensors": 5,
        tmp_path / SECOND[0]: 70,
        tmp_path / BESIDE: 3,
        tower / "pytorch_model.bin": 200,
    }.items():
        path.write_bytes(bytes(size))
    assert checkpoint_bytes(tmp_path) == 208


@pytest.mark.parametrize("name", ["no-such-folder", "./no/folder", "a/b/c"])
def test_names_that_are_nothing(name):
    with pytest.raises(CheckpointError, match="neither a folder, nor a hub id"):
        find_checkpoint(name)


def test_a_folder_and_a_bundled_name(tmp_path):
    assert find_checkpoint(str(tmp_path)) == tmp_path
    assert (find_checkpoint("internvl2") / "config.json").exists()


def test_downloads_of_another_user_that_may_not_be_read(tmp_path, monkeypatch, become_ordinary):
    cache = tmp_path / "hub"
    cache.mkdir(0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    become_ordinary()
    with pytest.raises(CheckpointError, match="hub may not be read by this user; ask its owner"):
        download(INTERNVL2)
