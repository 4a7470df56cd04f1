"""`vlm prove`: through the hub on this computer, with and without transformers' own class."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.__main__ import main
from helpers.errors import CheckpointError
from helpers.measure import proof
from helpers.measure.evaluation import Share
from helpers.measure.proof import Comparison, proof_questions
from helpers.models import load_model
from helpers.models.reference import feature_rows, load_reference, recorded_features
from tests.golden_checks import GOLDEN, relative_error
from tests.hub_server import Hub
from tests.random_qwen3_vl import Dimensions, write_random
from tests.test_hub import Client
from tests.tiny import picture
from tests.web_pages import assert_can_be_sent

HUB_ID = "Qwen/Qwen3-VL-Small"
PROVE = """
import sys
from helpers.__main__ import main
print()
sys.exit(main(["prove", *sys.argv[1:], "--json"]))
"""


@pytest.fixture(scope="module")
def qwen3_vl(tmp_path_factory):
    """Return a folder with a small random checkpoint of a family that transformers has."""
    folder = tmp_path_factory.mktemp("checkpoint")
    drawn = Dimensions.drawn(0)  # layers as wide as INT4's groups of weights
    write_random(
        folder, 0, replace(drawn, groups=2, heads=4, head_size=32, sections=(6, 5, 5)), 256
    )
    return folder


@pytest.mark.slow
def test_a_checkpoint_of_the_hub(qwen3_vl, tmp_path, fork_without_hub):
    """Ours and transformers' own class, FP16 and INT4, and a page of all answers."""
    with Hub({HUB_ID: qwen3_vl}).served() as endpoint:
        client = Client(tmp_path / "home", endpoint, fork_without_hub)
        options = ("--questions", "2", "--max-new-tokens", "3")
        page = tmp_path / "proof.html"
        report = json.loads(client.run(PROVE, HUB_ID, "--output", page, *options))
    ours, reference, fp16, int4 = report["comparisons"]
    assert report["holds"] and report["transformers' class"] == "Qwen3VLForConditionalGeneration"
    assert (ours["name"], ours["logits"]) == ("ours in PyTorch", None)
    assert reference["name"] == "Qwen3VLForConditionalGeneration"
    for comparison, tolerance in ((reference, 5e-6), (fp16, 1e-4)):
        assert max(comparison["features"], comparison["logits"]) < tolerance
        assert comparison["same_tokens"] == {"right": 2, "total": 2}
    assert int4["logits"] > 1e-3 and int4["tolerance"] is None
    assert len(report["answers"]) == 2 and len(report["answers"][0]) == 2 + 4
    text = page.read_text(encoding="utf-8")
    assert_can_be_sent(text, 2)
    assert "Qwen3-VL-Small" in text and report["answers"][0]["question"] in text
    assert "OpenVINO int4: 2 of 2 questions answered" in client.output


def test_a_family_without_a_class_in_transformers(checkpoint, tmp_path, capsys):
    """The folder is kept where one is named."""
    page = tmp_path / "proof.html"
    options = ["--questions", "2", "--max-new-tokens", "3", "--precision", "fp16"]
    options += ["--output", str(page), "--folder", str(tmp_path / "kept")]
    assert main(["prove", str(checkpoint), *options]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("But for rounding, the same as ours in PyTorch: OpenVINO fp16.\n")
    text = page.read_text(encoding="utf-8")
    assert "transformers has no class of its own for this checkpoint" in text
    assert_can_be_sent(text, 2)
    assert (tmp_path / "kept" / "fp16" / "manifest.json").exists()


def test_a_model_that_differs_fails_the_proof(checkpoint, tmp_path, capsys, monkeypatch):
    """As if a conversion lost a part of what a picture says."""
    encode = proof.VisionLanguagePipeline.encode_images

    def encode_less(self, **inputs):
        return encode(self, **inputs) * 0.9

    monkeypatch.setattr(proof.VisionLanguagePipeline, "encode_images", encode_less)
    options = ["--questions", "2", "--max-new-tokens", "2", "--precision", "fp16"]
    assert main(["prove", str(checkpoint), *options, "--output", str(tmp_path / "page")]) == 3
    assert "OpenVINO fp16 differ from ours" in capsys.readouterr().out


def test_a_conversion_is_no_checkpoint(converted, tmp_path, capsys):
    assert main(["prove", str(converted), "--output", str(tmp_path / "page")]) == 1
    assert "is a conversion already" in capsys.readouterr().err


def test_what_is_refused(tmp_path, capsys):
    for words, sentence in (
        (("--precision", "fp16,int3"), "int3"),
        (("--questions", "0"), "Ask at least one question"),
        (("--questions", "21"), "at most 20"),
        (("--max-new-tokens", "0"), "max_new_tokens is 0"),
    ):
        # What is wrong is told before anything is downloaded.
        arguments = ["prove", "qwen3-vl-2b", "--output", str(tmp_path / "page"), *words]
        assert main(arguments) == 1
        assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "page").exists()


def test_names_that_transformers_does_not_know_are_told(qwen3_vl, tmp_path):
    """It would begin them at random, and say so on the way only."""
    folder = shutil.copytree(qwen3_vl, tmp_path / "wrapped")
    (path,) = folder.glob("*.safetensors")
    save_file({f"_orig_mod.{name}": tensor for name, tensor in load_file(path).items()}, path)
    load_model(folder)
    with pytest.raises(CheckpointError, match="Transformers does not know the tensor _orig_mod."):
        load_reference(folder, torch.float32)


@torch.inference_mode()
def test_llama_beside_transformers_own_class(tmp_path):
    """Its layers' indices are one too high in transformers, which a proof has to know."""
    ignored = shutil.ignore_patterns("expected.safetensors")
    folder = shutil.copytree(GOLDEN / "mllama", tmp_path / "mllama", ignore=ignored)
    model, reference = load_model(folder), load_reference(folder, torch.float32)
    inputs = model.image_inputs([picture()])
    ids = torch.tensor([[1, model.processor.image_token_id, 5, 6, 7]])
    logits = model(**model.prepare(ids, model.encode_images(**inputs))).logits
    with recorded_features(reference) as features:
        expected = reference(**model.processor.transformers_inputs(ids, inputs)).logits
    assert relative_error(logits, expected) < 5e-6
    assert not features  # it has no call for them


def test_rows_of_features():
    features = [torch.ones(2, 3, 4), torch.zeros(1, 3, 4)]
    assert feature_rows(features).shape == (9, 4)
    assert feature_rows(["keys and values"]) is None


def test_the_questions_are_the_same_each_time():
    pairs = proof_questions()
    assert len(pairs) == 20 and len({question.kind for _, question in pairs}) == 7
    again = proof_questions()
    assert [question for _, question in pairs] == [question for _, question in again]
    assert all(a.tobytes() == b.tobytes() for (a, _), (b, _) in zip(pairs, again, strict=True))


def test_a_proof_of_fewer_bits_alone_proves_nothing():
    ours, int4 = Comparison("ours", Share(1, 2)), Comparison("int4", Share(1, 2), 0.1, 0.1)
    result = proof.Proof({}, "", "", None, [], [ours, int4], {})
    assert "they may differ" in result.verdict


@pytest.mark.parametrize(
    ("features", "logits", "tolerance", "holds"),
    [(1e-6, 1e-6, 1e-3, True), (1e-2, 0, 1e-3, False), (None, 2.0, None, True)],
)
def test_what_may_differ(features, logits, tolerance, holds):
    comparison = Comparison("model", Share(1, 2), features, logits, Share(0, 2), tolerance)
    assert comparison.holds is holds
