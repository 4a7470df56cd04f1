"""Reading weights: their files, their names, and what is said of files that are not right."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.errors import CheckpointError
from helpers.models import load_model, load_processor
from helpers.models.families import find_checkpoint
from helpers.models.internlm2_tokenizer import read_pieces
from helpers.sources.checkpoints import BUNDLED, as_json, read_config, read_json
from helpers.sources.key_mapping import Rule, load_tensors, original_tensors
from helpers.sources.tensors import open_tensors
from tests.bundled import BUNDLED_NAMES
from tests.golden_checks import change_config, change_tensors, loading_error

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}


def write_safetensors(tensors, path):
    save_file(tensors, path)


WRITERS = {"model.safetensors": write_safetensors, "pytorch_model.bin": torch.save}


@pytest.fixture(params=WRITERS)
def kind(request):
    return request.param


def write_sharded(folder, name) -> list[str]:
    """Write each of TENSORS into a shard of its own, and their index; return the names."""
    stem, ending = name.split(".")
    shards = [f"{stem}-0000{number}-of-00002.{ending}" for number in (1, 2)]
    for shard, (key, tensor) in zip(shards, TENSORS.items(), strict=True):
        WRITERS[name]({key: tensor}, folder / shard)
    index = {"weight_map": dict(zip(TENSORS, shards, strict=True))}
    (folder / f"{name}.index.json").write_text(json.dumps(index), encoding="utf-8")
    return shards


def assert_same(actual, expected) -> None:
    assert actual.keys() == expected.keys()
    assert all(actual[name].dtype == tensor.dtype for name, tensor in expected.items())
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


# Files


def test_one_file(tmp_path, kind):
    WRITERS[kind](TENSORS, tmp_path / kind)
    assert_same(open_tensors(tmp_path), TENSORS)


def test_a_file_of_torch_before_1_6(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    assert_same(open_tensors(tmp_path), TENSORS)


def test_shards(tmp_path, kind):
    write_sharded(tmp_path, kind)
    assert_same(open_tensors(tmp_path), TENSORS)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."]
)
def test_names_of_wrappers_are_taken_off(tmp_path, kind, prefix):
    WRITERS[kind]({prefix + name: tensor for name, tensor in TENSORS.items()}, tmp_path / kind)
    assert_same(open_tensors(tmp_path), TENSORS)


def test_a_prefix_of_some_names_stays(tmp_path, kind):
    tensors = {"module.a": TENSORS["a"], "b": TENSORS["b"]}
    WRITERS[kind](tensors, tmp_path / kind)
    assert_same(open_tensors(tmp_path), tensors)


def test_safetensors_come_first(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert_same(open_tensors(tmp_path), TENSORS)


def test_a_whole_file_comes_before_older_shards(tmp_path, kind):
    """As for transformers: what was trained on was saved into the folder it came from."""
    shards = write_sharded(tmp_path, kind)
    trained = {name: tensor + 1 for name, tensor in TENSORS.items()}
    WRITERS[kind](trained, tmp_path / kind)
    assert_same(open_tensors(tmp_path), trained)
    (tmp_path / shards[0]).unlink()
    assert_same(open_tensors(tmp_path), trained)


def test_a_missing_shard_is_named(tmp_path, kind):
    first, _ = write_sharded(tmp_path, kind)
    (tmp_path / first).unlink()
    with pytest.raises(CheckpointError, match=rf"not there \({first}\); download"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": 3}', "{", "[]"])
def test_an_index_that_names_nothing(tmp_path, kind, index):
    (tmp_path / f"{kind}.index.json").write_text(index, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"index\.json .*download"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("damage", [0, 5, 60, -7], ids=["empty", "5 bytes", "60 bytes", "cut off"])
def test_a_damaged_file_is_named(tmp_path, kind, damage):
    path = tmp_path / kind
    WRITERS[kind](TENSORS, path)
    path.write_bytes(path.read_bytes()[:damage])
    with pytest.raises(CheckpointError, match=f"{kind} is damaged") as caught:
        open_tensors(tmp_path)
    assert "\n" not in str(caught.value)


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('this code ran')",))


def write_pickle(content, path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [torch.save, write_pickle])
def test_code_in_a_pickle_is_not_run(tmp_path, write):
    write({"a": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is damaged or holds more than tensors"):
        open_tensors(tmp_path)


def test_an_error_without_words(tmp_path, monkeypatch):
    (tmp_path / "pytorch_model.bin").touch()
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(EOFError()))
    with pytest.raises(
        CheckpointError, match=r"holds more than tensors \(EOFError\); download it again\.$"
    ):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    "content", [{3: torch.ones(1)}, {"a": 3}, [torch.ones(1)], {"nested": {"a": torch.ones(1)}}]
)
def test_what_is_not_named_tensors(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="should hold named tensors and nothing else"):
        open_tensors(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors and no pytorch_model"):
        open_tensors(tmp_path)


# Folders


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no config.json; give a checkpoint's folder"),
        ("{", r"config\.json cannot be read as JSON"),
        ("[1]", r"config\.json should hold a JSON object"),
        ("{}", "has no model_type in its config.json .*; this reads llava_mpt, mobilevlm, int"),
        ('{"model_type": ""}', "has no model_type in its config.json that names a model; this"),
        ('{"model_type": "bert"}', "holds a 'bert' model; this reads"),
        ('{"model_type": ["bert"]}', "has no model_type in its config.json that names a"),
        (
            '{"model_type": "internvl_chat", "ps_version": "v2"}',
            "does not describe a model that can be built",
        ),
    ],
)
def test_a_folder_that_is_no_checkpoint(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_no_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_config(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match="none is not a folder"):
        load_model(tmp_path / "none")


def test_bundled_checkpoints_are_checkpoints():
    for name in BUNDLED_NAMES:
        assert read_config(BUNDLED / name)["model_type"]


# A whole model


@pytest.fixture
def copy(checkpoint, tmp_path):
    """Return a copy of the small model's folder, to be changed."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


def types_of(model) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


def test_a_model_keeps_its_type_in_the_file_or_takes_another(checkpoint):
    assert types_of(load_model(checkpoint)) == {torch.float16}
    assert types_of(load_model(checkpoint, torch.float32)) == {torch.float32}


def test_nothing_is_left_on_the_meta_device(torch_model):
    tensors = [*torch_model.parameters(), *torch_model.buffers()]
    assert not any(tensor.is_meta or tensor.requires_grad for tensor in tensors)
    assert not torch_model.training


def test_saving_is_the_inverse_of_loading(checkpoint):
    model = load_model(checkpoint)
    expected = load_file(checkpoint / "model.safetensors")
    assert_same(original_tensors(model, model.rules()), expected)


def test_missing_unexpected_and_mis_shaped_tensors_are_listed_in_one_error(copy):
    def change(tensors):
        del tensors["mlp1.0.weight"]
        tensors["mlp1.1.bias"] = torch.zeros(3)
        return tensors | {"mlp2.0.weight": torch.zeros(1)}

    assert loading_error(copy, change) == (
        "The checkpoint does not fit its config.json (mis-shaped mlp1.1.bias: (3,), not (128,); "
        "unexpected mlp2.0.weight; missing projector.layer_norm.weight); take both from one place."
    )


def test_a_long_list_is_cut(copy):
    change_tensors(copy, lambda tensors: {"mlp1.0.weight": tensors["mlp1.0.weight"]})
    with pytest.raises(CheckpointError, match=r"missing .*; and \d+ more\);") as caught:
        load_model(copy)
    assert str(caught.value).count("missing") == 12


def test_a_config_of_another_size(copy):
    config = read_config(copy)
    change_config(copy, llm_config=config["llm_config"] | {"intermediate_size": 512})
    with pytest.raises(CheckpointError, match=r"mis-shaped .*mlp.*\(256, 128\), not \(512, 128\)"):
        load_model(copy)


def test_buffers_that_the_authors_saved_are_passed_over(copy, torch_model):
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(copy, lambda tensors: tensors | {name: torch.ones(16)})
    actual = load_model(copy, torch.float32).state_dict()
    assert_same(actual, torch_model.state_dict())


# Rules

RULES = {
    "renamed": (
        Rule("old.{x}", "new.{x}"),
        {"new.weight": torch.arange(3.0), "new.bias": torch.ones(2)},
        {"old.weight", "old.bias"},
    ),
    "in equal parts": (
        Rule("layer.{n}.qkv.{x}", [f"blocks.{{n}}.{part}.{{x}}" for part in "qkv"]),
        {f"blocks.7.{part}.weight": torch.full((2, 2), index) for index, part in enumerate("qkv")},
        {"layer.7.qkv.weight"},
    ),
    "in unequal parts": (
        Rule("both", ["one", "two"], split=lambda tensor: tensor.split((1, 3))),
        {"one": torch.zeros(1, 2), "two": torch.ones(3, 2)},
        {"both"},
    ),
    "of another shape": (
        Rule(
            "flat",
            "square",
            split=lambda tensor: [tensor.reshape(2, 2)],
            join=lambda parts: parts[0].flatten(),
        ),
        {"square": torch.arange(4.0).reshape(2, 2)},
        {"flat"},
    ),
}


@pytest.mark.parametrize(("rule", "native", "originals"), RULES.values(), ids=RULES)
def test_a_rule_works_in_both_directions(rule, native, originals):
    pairs = dict(filter(None, (rule.to_original(native, name) for name in native)))
    assert pairs.keys() == originals
    restored = {}
    for name, tensor in pairs.items():
        restored |= rule.to_native(name, tensor)
    assert_same(restored, native)


def test_a_rule_is_about_whole_names_only():
    rule = Rule("a.{x}", "b.{x}")
    assert rule.to_native("aa.weight", torch.ones(1)) is None
    assert rule.to_native("a.", torch.ones(1)) is None
    assert rule.to_native("axweight", torch.ones(1)) is None
    assert rule.to_original({"a.weight": torch.ones(1)}, "a.weight") is None


def test_a_tensor_that_cannot_be_cut_is_told():
    """Neither into rows, as a number has none, nor into three parts, as it has too few."""
    module = nn.ModuleDict({name: nn.Linear(2, 2) for name in "qkv"})
    rules = [Rule("qkv.{x}", ["q.{x}", "k.{x}", "v.{x}"])]
    for tensor in (torch.tensor(1.0), torch.zeros(4)):
        with pytest.raises(CheckpointError, match=r"mis-shaped qkv.bias: \("):
            load_tensors(module, {"qkv.bias": tensor}, rules)


def test_the_first_rule_that_knows_a_name_counts():
    module = nn.ModuleDict({"special": nn.Linear(2, 2), "usual": nn.Linear(2, 2)})
    rules = [Rule("x.first.{w}", "special.{w}"), Rule("x.{w}", "{w}")]
    names = {"x.first.weight": 1.0, "x.usual.weight": 2.0}
    tensors = {name: torch.full((2, 2), value) for name, value in names.items()}
    tensors |= {"x.first.bias": torch.ones(2), "x.usual.bias": torch.ones(2)}
    load_tensors(module, tensors, rules)
    assert module["special"].weight.unique() == 1 and module["usual"].weight.unique() == 2


@pytest.mark.parametrize("stem", ["model", "model.safetensors"])  # the second Qwen3.5's
def test_shards_without_their_index_are_told(stem, tmp_path):
    (tmp_path / f"{stem}-00001-of-00002.safetensors").write_bytes(b"")
    message = r"model\.safetensors\.index\.json is missing, which tells what the shards hold"
    with pytest.raises(CheckpointError, match=f"/{message}"):
        open_tensors(tmp_path)


def test_a_file_that_may_not_be_read(kind, tmp_path, become_ordinary):
    WRITERS[kind](TENSORS, tmp_path / kind)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "tokenizer.model").touch()
    readers = {
        kind: lambda path: dict(open_tensors(path.parent)),
        "config.json": read_json,
        "tokenizer.model": read_pieces,
    }
    for name in readers:
        (tmp_path / name).chmod(0)
    become_ordinary()
    for name, read in readers.items():
        with pytest.raises(CheckpointError, match=f"{name} may not be read by this user; ask its"):
            read(tmp_path / name)


def test_a_folder_that_may_not_be_looked_into(tmp_path, become_ordinary):
    (tmp_path / "checkpoint").mkdir(0)
    become_ordinary()
    with pytest.raises(CheckpointError, match="checkpoint may not be read by this user; ask its"):
        read_config(tmp_path / "checkpoint")


@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_a_model_leaves_its_config_as_it_was_read(name):
    folder = find_checkpoint(name)
    assert load_model(folder).processor.config == load_processor(folder).config


def test_a_value_in_a_sentence_is_as_its_file_has_it():
    values = {
        None: "null",
        True: "true",
        "été": '"été"',
        "\ud800\x9b\u2028": '"\\ud800\\u009b\\u2028"',
    }
    assert [as_json(value) for value in values] == [*values.values()]
