"""Forms of a model that are not read: each is told in one sentence that says what to do."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.convert.folders import read_manifest
from helpers.errors import CheckpointError, OutputError
from helpers.models import load_model, load_processor
from helpers.models.checks import check_processor
from helpers.sources.checkpoints import BUNDLED
from tests.test_files_of_others import FAMILIES

ORIGINAL = r"give the folder of the original checkpoint, in 16 or 32 bits"


@pytest.fixture
def folder(checkpoint, tmp_path):
    """Return a copy of the small checkpoint, to be made another form of."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def set_in_config(folder, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values))


@pytest.mark.parametrize("method", ["fp8", "awq", "gptq", "bitsandbytes"])
@pytest.mark.parametrize("place", ["the model", "its language model"])
def test_quantised_weights(folder, method, place):
    settings = {"quantization_config": {"quant_method": method}}
    if place == "the model":
        set_in_config(folder, **settings)
    else:
        llm = json.loads((folder / "config.json").read_text("utf-8"))["llm_config"]
        set_in_config(folder, llm_config=llm | settings)
    with pytest.raises(CheckpointError, match=rf"quantised already \({method}\); {ORIGINAL}"):
        load_model(folder)


@pytest.mark.parametrize("field", ["quantization", "compression_config"])
def test_quantised_weights_by_another_name(folder, field):
    set_in_config(folder, **{field: {"group_size": 64, "bits": 4}})
    with pytest.raises(CheckpointError, match=rf"quantised already \(unnamed\); {ORIGINAL}"):
        load_model(folder)


@pytest.mark.parametrize(
    "name", ["quant_config.json", "quantize_config.json", "hf_quant_config.json"]
)
def test_the_file_of_a_quantiser(folder, name):
    (folder / name).write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"quantised already \({name}\); {ORIGINAL}"):
        load_model(folder)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "uint8", "int8", "int32"])
def test_quantised_weights_without_a_word_in_the_config(kind, folder):
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
    tensors[name] = tensors[name].to(getattr(torch, kind))
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=rf"quantised already \({kind}\); {ORIGINAL}"):
        load_model(folder)


def test_a_later_model_of_the_same_model_type(tmp_path):
    config = {"model_type": "minicpmv", "version": 2.6, "slice_config": {"max_slice_nums": 9}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for load in (load_model, load_processor):
        with pytest.raises(
            CheckpointError, match=r"holds MiniCPM-V 2\.6, whose.*; take openbmb/Mi"
        ):
            load(tmp_path)


QUANTISED = {"quantization_config": {"quant_method": "awq"}}
NOT_READ = {
    "MiniCPM-V 2.6": (
        {"model_type": "minicpmv", "version": 2.6, "slice_config": {}},
        "V 2.6, whose",
    ),
    "MiniCPM-V 1": ({"model_type": "minicpmv", "query_num": 64}, "a model before MiniCPM-V 2"),
    "Qwen2.5-VL": ({"model_type": "qwen2_5_vl"}, "holds a 'qwen2_5_vl' model; this reads"),
    "Gemma 4 31B": (
        {"model_type": "gemma4", "text_config": {"use_bidirectional_attention": "vision"}}
        | {"vision_config": {}},
        "use_bidirectional_attention .*larger Gemma 4 models",
    ),
}


@pytest.mark.parametrize(("config", "reason"), NOT_READ.values(), ids=NOT_READ)
@pytest.mark.parametrize("load", [load_model, load_processor])
def test_what_is_not_read_otherwise_either_is_told_first(load, config, reason, tmp_path):
    """Or one would fetch the original of quantised weights in vain."""
    (tmp_path / "config.json").write_text(json.dumps(config | QUANTISED), encoding="utf-8")
    with pytest.raises(CheckpointError, match=reason):
        load(tmp_path)


def test_a_field_of_a_quantiser_that_is_empty_says_nothing(folder):
    set_in_config(folder, quantization_config={})
    load_model(folder)


def test_a_language_model_without_a_name(folder):
    llm = json.loads((folder / "config.json").read_text("utf-8"))["llm_config"]
    del llm["architectures"]
    set_in_config(folder, llm_config=llm)
    with pytest.raises(CheckpointError, match="config.json names no language model, such as Qwen2"):
        load_model(folder)


def test_gguf(tmp_path):
    file = tmp_path / "model-q4_0.gguf"
    file.write_bytes(b"GGUF")
    for place in (tmp_path, file):
        with pytest.raises(CheckpointError, match=f"holds GGUF.* llama.cpp; {ORIGINAL}"):
            load_model(place)


def test_metas_own_layout(tmp_path):
    (tmp_path / "params.json").write_text("{}", encoding="utf-8")
    (tmp_path / "consolidated.00.pth").touch()
    with pytest.raises(CheckpointError, match="in Meta's own layout .*; take config.json, model"):
        load_model(tmp_path)


FORMS = {
    "GGUF": ("model.gguf", "holds GGUF"),
    "an adapter": ("adapter_config.json", "an adapter without its base model"),
    "Meta's layout": ("consolidated.00.pth", "Meta's own layout"),
    "quantised": ("config.json", "quantised already .gptq."),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_cannot_be_converted_is_told_where_a_conversion_is_asked_for(form, tmp_path):
    file, words = FORMS[form]
    content = '{"quantization_config": {"quant_method": "gptq"}}'
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(OutputError, match=words):
        read_manifest(tmp_path)


def test_an_adapter_without_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/model"}')
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(CheckpointError, match="an adapter without its base model; merge both"):
        load_model(tmp_path)


def test_an_adapter_beside_its_base(folder):
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    load_model(folder)  # a merged model may have kept it
    (folder / "adapter_model.safetensors").touch()
    with pytest.raises(CheckpointError, match="adapter beside a whole model; merge both first"):
        load_model(folder)


def test_an_adapter_between_the_weights(folder):
    path = next(folder.glob("*.safetensors"))
    name = "language_model.base_model.model.layers.0.q_proj.lora_A.default.weight"
    save_file(load_file(path) | {name: torch.zeros(2, 2)}, path)
    with pytest.raises(CheckpointError, match=r"not merged \(language_model.*; merge it first"):
        load_model(folder)


@pytest.mark.parametrize("model_type", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_a_mixture_of_experts(folder, model_type):
    set_in_config(folder, model_type=model_type)
    with pytest.raises(CheckpointError, match=rf"experts \({model_type}\).*take a dense model"):
        load_model(folder)


@pytest.mark.parametrize("is_quantised", [False, True])
def test_a_language_model_of_experts(is_quantised, folder):
    """It is told first, since the original of a quantised one is not read either."""
    llm = json.loads((folder / "config.json").read_text("utf-8"))["llm_config"]
    settings = {"quantization_config": {"quant_method": "fp8"}} if is_quantised else {}
    set_in_config(folder, llm_config=llm | {"model_type": "qwen3_moe"} | settings)
    with pytest.raises(CheckpointError, match=r"experts \(qwen3_moe\).*take a dense model"):
        load_processor(folder)


TEXT_ONLY = {  # templates of texts alone, which fine-tunes keep
    "lists": "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}"
    "{% endfor %}",
    "texts": "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}",
    "damaged": "{% for m in messages %}{{ m.",
}


@pytest.mark.parametrize("text", TEXT_ONLY.values(), ids=TEXT_ONLY)
@pytest.mark.parametrize("family", ["qwen3_vl", "minicpm_v4_6", "gemma4"])
def test_a_chat_template_without_pictures_is_told(family, text, tmp_path):
    FAMILIES[family](tmp_path, 0)
    (tmp_path / "chat_template.jinja").write_text(text, encoding="utf-8")
    with pytest.raises(
        CheckpointError,
        match=r"which should write a picture and each text once, cannot be used .*; take that",
    ):
        check_processor(load_processor(tmp_path))


@pytest.mark.parametrize("name", ["mobilevlm", "qwen3_5"])
def test_a_tokenizer_without_words_is_told(name, tmp_path):
    """As transformers makes it where it knows the class and there are no files of it."""
    folder = shutil.copytree(BUNDLED / name, tmp_path / "model")
    for file in ("tokenizer.model", "tokenizer.json"):
        (folder / file).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="has no words, so its files are missing"):
        check_processor(load_processor(folder))


def test_the_command_line_tells_it_in_one_line(fork, folder, tmp_path):
    set_in_config(folder, quantization_config={"quant_method": "awq"})
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for source in (folder, tmp_path / "model.gguf"):
        output = tmp_path / "converted"
        result = fork.run("-m", "helpers", "convert", source, "--output", output)
        assert result.returncode == 1
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
        assert "give the folder of the original checkpoint" in result.stderr
