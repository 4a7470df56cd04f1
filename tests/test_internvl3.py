"""InternVL2.5, 3 and 3.5 in their layouts, beside transformers' own model at other dimensions."""

import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from helpers.convert import conversion
from helpers.errors import CheckpointError, QuestionError
from helpers.graphs.presets import find_preset
from helpers.inputs.messages import user_message
from helpers.inputs.video import Video
from helpers.models import load_model, load_processor
from helpers.models.internvl2.chats import CHATS, SYSTEM_2_5
from helpers.models.reference import (
    feature_rows,
    load_reference,
    recorded_features,
    reference_class,
)
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.sources.checkpoints import BUNDLED, read_json, write_json
from tests.golden_checks import relative_error
from tests.tiny import picture, seeded

TOLERANCE = 5e-6  # of the largest logit; measured: up to 1e-6
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<IMG_CONTEXT>\n"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT_CONFIGS = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def reference_model(folder, model_type: str, *, tied: bool, vision: dict) -> torch.nn.Module:
    """Return transformers' model with random weights and a vocabulary of the folder's tokenizer."""
    rows = read_json(folder / "config.json")["llm_config"]["vocab_size"]
    text = TEXT_CONFIGS[model_type](
        vocab_size=rows,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16 if model_type == "qwen3" else 8,
        max_position_embeddings=600,
        tie_word_embeddings=tied,
    )
    config = InternVLConfig(
        vision_config={
            "hidden_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "intermediate_size": 72,
            "image_size": [56, 56],
            "patch_size": [14, 14],
            **vision,
        },
        text_config=text,
        image_token_id=read_json(folder / "added_tokens.json")["<IMG_CONTEXT>"],
        tie_word_embeddings=tied,
    )
    with seeded(1):
        model = InternVLForConditionalGeneration(config).eval()
        for name, parameter in model.named_parameters():
            std = 0.3 if parameter.dim() > 1 else 0.1
            torch.nn.init.normal_(parameter, mean="norm" in name and 1.0, std=std)
        model.tie_weights()
    return model


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """Return a folder with the bundled tokenizer's files, a chat template among them."""
    ignored = shutil.ignore_patterns("*.safetensors", "*.md", "accuracy.json", "bundled.json")
    target = tmp_path_factory.mktemp("tokenizer") / "files"
    return shutil.copytree(BUNDLED / "internvl2", target, ignore=ignored)


VARIANTS = {
    "3, Qwen2.5": ("original", "qwen2", False, {}),
    "3.5, Qwen3": ("original", "qwen3", False, {"attention_bias": True}),
    "fine-tuned and tied": ("original", "qwen2", True, {}),
    "norms of the 6B": ("original", "qwen3", False, {"use_qk_norm": True, "norm_type": "rms_norm"}),
    "HF, Qwen2.5": ("hf", "qwen2", False, {"attention_bias": True}),
    "HF, Qwen3, tied": ("hf", "qwen3", True, {}),
    "HF, Llama": ("hf", "llama", False, {}),
    "HF, older names": ("older hf", "qwen2", False, {}),
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def pair(request, tokenizer_folder, tmp_path_factory):
    """Return transformers' model, the `reference`, and the `folder` of its weights in a layout."""
    layout, model_type, tied, vision = request.param
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    shutil.copytree(tokenizer_folder, folder)
    model = reference_model(folder, model_type, tied=tied, vision=vision)
    if layout == "original":
        write_original(model, folder, model_type)
    else:
        write_transformers(model, folder, older_names=layout == "older hf")
    return SimpleNamespace(reference=model, folder=folder)


def write_original(model, folder, model_type: str) -> None:
    """Write the authors' layout: their config, and names that are told here once more."""
    vision, text = model.config.vision_config, model.config.text_config.to_dict()
    config = read_json(folder / "config.json") | {
        "template": "internvl2_5",
        "force_image_size": 56,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 4,
    }
    config["llm_config"] = text | {"architectures": [ARCHITECTURES[model_type]]}
    config["vision_config"] = vision.to_dict() | {
        "image_size": 56,
        "patch_size": 14,
        "qkv_bias": vision.attention_bias,
        "qk_normalization": vision.use_qk_norm,
    }
    write_json(folder / "config.json", config)
    save_file(original_names(model.state_dict(), text["tie_word_embeddings"]), folder / WEIGHTS)


WEIGHTS = "model.safetensors"
RENAMED = {
    r"model\.language_model\.": "language_model.model.",
    r"^lm_head\.": "language_model.lm_head.",
    r"model\.multi_modal_projector\.layer_norm\.": "mlp1.0.",
    r"model\.multi_modal_projector\.linear_1\.": "mlp1.1.",
    r"model\.multi_modal_projector\.linear_2\.": "mlp1.3.",
    r"model\.vision_tower\.embeddings\.cls_token": "vision_model.embeddings.class_embedding",
    r"model\.vision_tower\.embeddings\.position_embeddings": (
        "vision_model.embeddings.position_embedding"
    ),
    r"model\.vision_tower\.embeddings\.patch_embeddings\.projection\.": (
        "vision_model.embeddings.patch_embedding."
    ),
    r"model\.vision_tower\.encoder\.layer\.": "vision_model.encoder.layers.",
    r"\.attention\.(q_norm|k_norm)\.": r".attn.\1.",
    r"\.attention\.projection_layer\.": ".attn.proj.",
    r"\.layernorm_before\.": ".norm1.",
    r"\.layernorm_after\.": ".norm2.",
    r"\.lambda_1": ".ls1",
    r"\.lambda_2": ".ls2",
}


def original_names(state: dict[str, Tensor], tied: bool) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in state.items():
        if tied and name == "lm_head.weight":
            continue
        if match := re.search(r"(.*vision_tower.*)\.attention\.([qkv])_proj\.(\w+)$", name):
            if match[2] != "q":
                continue
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            name, tensor = f"{match[1]}.attn.qkv.{match[3]}", torch.cat(parts)
        for pattern, new in RENAMED.items():
            name = re.sub(pattern, new, name)
        tensors[name] = tensor.contiguous().clone()
    return tensors


def write_transformers(model, folder, *, older_names: bool) -> None:
    for name in ("config.json", WEIGHTS):
        (folder / name).unlink(missing_ok=True)
    model.save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {"crop_to_patches": False, "min_patches": 1, "max_patches": 4},
    )
    path = folder / "tokenizer_config.json"
    write_json(path, read_json(path) | {"chat_template": CHAT_TEMPLATE})
    if older_names:
        state = model.state_dict()
        tensors = {
            re.sub(r"^model\.language_model\.", "language_model.model.", name)
            .replace("model.vision_tower", "vision_tower")
            .replace("model.multi_modal_projector", "multi_modal_projector")
            .replace("lm_head.", "language_model.lm_head."): tensor.clone()
            for name, tensor in state.items()
        }
        save_file(tensors, folder / WEIGHTS)


def prompt(model, number: int) -> tuple[Tensor, dict]:
    inputs = model.image_inputs([picture(index) for index in range(number)])
    ids = model.processor.input_ids([user_message("What is in the picture?", number)], inputs)
    return ids, inputs


@torch.inference_mode()
@pytest.mark.parametrize("number", [1, 2])
def test_logits_equal_transformers(pair, number):
    reference, model = pair.reference, load_model(pair.folder, torch.float32)
    ids, inputs = prompt(model, number)
    assert inputs["tiles"].min() > 1
    logits = model(**model.prepare(ids, model.encode_images(**inputs))).logits
    expected = reference(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
    assert relative_error(logits, expected) <= TOLERANCE
    assert logits.std() > 0.1


@torch.inference_mode()
def test_transformers_own_class_of_a_folder(pair):
    """It reads its own layout alone, and takes our inputs."""
    is_its_own = read_json(pair.folder / "config.json")["model_type"] == "internvl"
    assert reference_class(pair.folder) == is_its_own * "InternVLForConditionalGeneration"
    if not is_its_own:
        return
    reference = load_reference(pair.folder, torch.float32)
    model = load_model(pair.folder, torch.float32)
    ids, inputs = prompt(model, 1)
    features = model.encode_images(**inputs)
    logits = model(**model.prepare(ids, features)).logits
    with recorded_features(reference) as recorded:
        expected = reference(**model.processor.transformers_inputs(ids, inputs)).logits
    assert relative_error(logits, expected) <= TOLERANCE
    assert relative_error(feature_rows(features), feature_rows(recorded[0])) <= TOLERANCE


@pytest.fixture(scope="module")
def pipeline(pair, tmp_path_factory):
    """Return the pair's checkpoint on OpenVINO."""
    output = tmp_path_factory.mktemp("converted") / "model"
    conversion.convert(pair.folder, output, find_preset("fp16"))
    return VisionLanguagePipeline(output, accuracy=True)


@torch.inference_mode()
def test_openvino_equals_pytorch(pair, pipeline):
    reference, model = pair.reference, load_model(pair.folder, torch.float32)
    ids, inputs = prompt(model, 1)
    assert torch.equal(prompt(pipeline, 1)[0], ids)
    prepared = pipeline.prepare(ids, pipeline.encode_images(**inputs))
    logits = pipeline.language_model(**prepared).logits[:, -1]
    expected = reference(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[:, -1]
    assert relative_error(logits, expected) <= 1e-4
    reply = pipeline.ask("What is in the picture?", [picture()], max_new_tokens=12)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    options["eos_token_id"] = model.processor.stop_token_ids
    tokens = reference.generate(input_ids=ids, pixel_values=inputs["pixel_values"], **options)
    assert reply.token_ids == tokens[0, ids.shape[1] :].tolist()


# Video


@torch.inference_mode()
def test_a_video_equals_transformers(pair):
    """The frames are pictures of one tile each, with their numbers before them."""
    reference, model = pair.reference, load_model(pair.folder, torch.float32)
    inputs = model.image_inputs([Video([picture(index) for index in range(3)])])
    assert inputs["tiles"].tolist() == [1, 1, 1]
    ids = model.processor.input_ids([user_message("What moves?", frames=3)], inputs)
    text = model.processor.tokenizer.decode(ids[0])
    tile = f"<img>{'<IMG_CONTEXT>' * model.processor.tokens_per_tile}</img>"
    assert f"Frame1: {tile}\nFrame2: {tile}\nFrame3: {tile}\nWhat moves?" in text
    logits = model(**model.prepare(ids, model.encode_images(**inputs))).logits
    expected = reference(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
    assert relative_error(logits, expected) <= TOLERANCE


def test_a_model_that_reads_no_video_says_so():
    processor = load_processor(BUNDLED / "mobilevlm")
    with pytest.raises(QuestionError, match="reads no video; give it single pictures"):
        processor.image_inputs([Video([picture()])])


# Prompts


def test_the_words_of_2_5():
    template = CHATS["internvl2_5"].template(None)
    question = [user_message("What?", 1)]
    assert template.render(question) == (
        f"<|im_start|>system\n{SYSTEM_2_5}<|im_end|>\n<|im_start|>user\n<image>\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_words_of_the_config(tokenizer_folder):
    config = read_json(tokenizer_folder / "config.json") | {"template": "internvl2_5"}
    folder = tokenizer_folder.parent / "words"
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    write_json(folder / "config.json", config | {"system_message": "You see."})
    text = load_processor(folder).template.render([user_message("What?")])
    assert text.startswith("<|im_start|>system\nYou see.<|im_end|>\n<|im_start|>user\nWhat?")


def test_a_chat_template_is_what_transformers_renders(tokenizer_folder, tmp_path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "model")
    model = reference_model(folder, "qwen2", tied=False, vision={})
    write_transformers(model, folder, older_names=False)
    processor = load_processor(folder)
    messages = [
        user_message("What is it?", 1),
        {"role": "assistant", "content": "A star."},
        user_message("And now?"),
    ]
    text = processor.template.render(messages).replace("<image>", "<IMG_CONTEXT>")
    tokenizer = processor.tokenizer
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == expected


def test_a_second_turn_has_the_ids_of_its_messages(pipeline):
    conversation, processor = pipeline.conversation(), pipeline.processor
    first = conversation.ask("What?", max_new_tokens=3)
    first.wait()
    second = conversation.ask("And now?", max_new_tokens=3)
    answer = [token for token in first.token_ids if token not in processor.stop_token_ids]
    expected = first.prompt_ids + answer + processor.end_of_answer_ids
    assert second.prompt_ids[: len(expected)] == expected


# What is refused


@pytest.mark.parametrize("change", [{"flash_relative_threshold": 0.8}])
def test_flash_variants_are_refused(tmp_path, change):
    copy = shutil.copytree(BUNDLED / "internvl2", tmp_path / "flash")
    write_json(copy / "config.json", read_json(copy / "config.json") | change)
    with pytest.raises(CheckpointError, match="Flash variant .* not supported; use the checkpoint"):
        load_model(copy)
