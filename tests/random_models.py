"""Random checkpoints of a family beside transformers' own model of them: written, read, compared.

A family's `write_random(folder, seed)` writes one and returns transformers' model. Differences are
shares of the largest value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from helpers.convert import conversion
from helpers.graphs.presets import find_preset
from helpers.inputs.messages import Message, user_message
from helpers.models import load_model
from helpers.models.exported import collate
from helpers.models.families import SmallTokenizer
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.shapes import tokenizers
from tests.tiny import seeded

PYTORCH, OPENVINO = 5e-6, 1e-4  # the largest differences; the second in ACCURACY mode
GREEDY = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
WAYS = {
    "greedy": GREEDY,
    "beams": GREEDY | {"num_beams": 3},
    "sampled": GREEDY | {"do_sample": True, "top_k": 0},
}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a picture of random pixels."""
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


PICTURES = (noise(300, 260, 1), noise(64, 512, 2), noise(700, 400, 3))
BETWEEN: Message = {
    "role": "user",
    "content": [
        {"type": "text", "text": "Here "},
        {"type": "image"},
        {"type": "text", "text": " and "},
        {"type": "image"},
        {"type": "image"},
        {"type": "text", "text": " what is it?"},
    ],
}
CASES = {
    "pictures between words": (BETWEEN, PICTURES),
    "one picture": (user_message("What is it?", 1), PICTURES[:1]),
    "text": (user_message("Who are you?"), ()),
}


def filled(
    model: PreTrainedModel, is_zero_centred: Callable[[str], bool] = lambda name: False
) -> PreTrainedModel:
    """Return a model full of random numbers; weights of norms are around one, or around zero."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
        elif "norm" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, 0 if is_zero_centred(name) else 1, 0.1)
    return model


def write_model(
    folder: Path,
    seed: int,
    tokenizer: SmallTokenizer,
    new_model: Callable[[int], PreTrainedModel],
    *,
    has_template: bool = False,
) -> PreTrainedModel:
    """Write a small tokenizer and a random model into `folder`, and return the model.

    `new_model` makes it for so many tokens. Its files have the tokenizer's chat template or none.
    """
    train = tokenizers.TRAINERS[tokenizer.kind]
    vocabulary = train(tokenizers.corpus(300), folder, tokenizer.marks)
    with seeded(seed), torch.no_grad():
        model = new_model(vocabulary).eval()
    model.save_pretrained(folder)
    if has_template:
        path = folder / "chat_template.jinja"
        path.write_text(tokenizer.chat_template, encoding="utf-8")
    return model


@dataclass(frozen=True)
class Prompt:
    """A prompt's ids, its images, and what transformers' model takes for it."""

    ids: Tensor
    images: dict[str, Any]
    reference: dict[str, Any]


@dataclass(frozen=True)
class RandomModels:
    """A random checkpoint: transformers' model as `reference`, ours as `model`, the `pipeline`."""

    folder: Path
    reference: Any
    model: Any
    pipeline: VisionLanguagePipeline

    def prompt(self, message: Message, pictures: Sequence[Image.Image] = ()) -> Prompt:
        """Return the prompt of one message about pictures."""
        images = self.model.image_inputs(pictures) if pictures else {}
        return self.with_ids(self.model.processor.input_ids([message], images or None), images)

    def with_ids(self, ids: Tensor, images: dict[str, Any]) -> Prompt:
        """Return a prompt with these ids."""
        return Prompt(ids, images, self.model.processor.transformers_inputs(ids, images))

    def operations(self, part: str) -> list[str]:
        """Return the kinds of operations that run in a part of the pipeline."""
        nodes = self.pipeline.parts[part].get_runtime_model().get_ops()
        return [str(node.get_rt_info()["layerType"].astype(str)) for node in nodes]

    def expected_answer(self, reply: Any, pictures: Sequence[Image.Image]) -> list[int]:
        """Return what PyTorch answers in 6 tokens to a reply's whole prompt."""
        ids = torch.tensor([reply.prompt_ids])
        prompt = Prompt(ids, self.model.image_inputs(pictures) if pictures else {}, {})
        stop = self.pipeline.processor.stop_token_ids
        options = GREEDY | {"max_new_tokens": 6, "eos_token_id": stop}
        return answer_of(self.model, prompt, options)

    @torch.inference_mode()
    def check_logits(self, prompt: Prompt) -> None:
        """Compare features and logits: of a whole prompt in PyTorch, of its end on OpenVINO.

        Then of single tokens behind it, and of several at once behind those.
        """
        expected = self.reference(**prompt.reference).logits
        assert error(self.model(**prepared(self.model, prompt)).logits, expected) < PYTORCH
        compiled = features_of(self.pipeline, prompt)
        features = features_of(self.model, prompt)
        for ours, theirs in zip(compiled or (), features or (), strict=True):
            assert error(ours, theirs) < OPENVINO
            assert getattr(ours, "grid", None) == getattr(theirs, "grid", None)
        inputs = self.pipeline.prepare(prompt.ids, compiled)
        along = {name: inputs[name] for name in ("pictures",) if name in inputs}
        output = self.pipeline.language_model(**inputs)
        assert error(output.logits[:, -1], expected[:, -1]) < OPENVINO
        ids = prompt.ids
        for tokens in ([5], [100], [7], [8, 9, 10, 11, 12]):
            ids = torch.cat([ids, torch.tensor([tokens])], 1)
            expected = self.reference(**self.with_ids(ids, prompt.images).reference).logits
            output = self.pipeline.language_model(
                input_ids=ids[:, -len(tokens) :], past_key_values=output.past_key_values, **along
            )
            assert error(output.logits[:, -1], expected[:, -1]) < OPENVINO

    @torch.inference_mode()
    def check_tokens(self, prompt: Prompt, options: dict[str, Any]) -> None:
        """Compare the tokens of an answer with those of transformers, both of ours."""
        torch.manual_seed(7)
        expected = self.reference.generate(**prompt.reference, **options)
        expected = expected[0, prompt.ids.shape[1] :].tolist()
        for model in (self.model, self.pipeline):
            assert answer_of(model, prompt, options) == expected

    @torch.inference_mode()
    def check_batch(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """Compare answers to prompts of several lengths in one batch with those alone.

        Return what the language model takes for each.
        """
        language_model: Any = self.pipeline.language_model
        inputs = [prepared(self.pipeline, prompt) for prompt in prompts]
        alone = [language_model.generate(**prompt, **GREEDY)[0].tolist() for prompt in inputs]
        assert language_model.generate(**collate(inputs), **GREEDY).tolist() == alone
        return inputs

    def check_conversation(self, numbers: Sequence[int] = (1, 0, 2, 0)) -> None:
        """Compare each answer of a conversation with PyTorch's to its whole prompt.

        `numbers` are how many pictures each turn shows. Each question is asked, taken back and
        asked again.
        """
        conversation, earlier = self.pipeline.conversation(), []
        for turn, number in enumerate(numbers):
            pictures = [noise(60 + 40 * turn, 90, turn)] * number
            replies = []
            for attempt in range(2):
                reply = conversation.ask(f"What is it? {turn}", pictures, max_new_tokens=6)
                assert reply.token_ids == self.expected_answer(reply, earlier + pictures)
                replies.append(reply)
                if not attempt:
                    conversation.take_back(reply)
            first, second = replies
            assert (first.counts, first.token_ids) == (second.counts, second.token_ids)
            assert (second.counts.cached > 0) == (turn > 0)
            earlier += pictures


def random_models(
    folder: Path,
    write_random: Callable[[Path, int], Any],
    seed: int,
    *,
    picture_tokens: int | None = None,
    **options: Any,
) -> RandomModels:
    """Write a random checkpoint into `folder`, convert it, and return its models.

    `options` are the pipeline's.
    """
    reference = write_random(folder, seed)
    conversion.convert(folder, folder / "converted", find_preset("fp16"))
    model = load_model(folder, torch.float32)
    model.processor = model.processor.within(picture_tokens)
    pipeline = VisionLanguagePipeline(
        folder / "converted", accuracy=True, picture_tokens=picture_tokens, **options
    )
    return RandomModels(folder, reference, model, pipeline)


def error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def features_of(model: Any, prompt: Prompt) -> Any:
    """Return the features of a prompt's pictures, from a model or a pipeline."""
    return model.encode_images(**prompt.images) if prompt.images else None


def prepared(model: Any, prompt: Prompt) -> dict[str, Any]:
    """Return what a language model takes for a prompt."""
    inputs: dict[str, Any] = model.prepare(prompt.ids, features_of(model, prompt))
    return inputs


@torch.inference_mode()
def answer_of(model: Any, prompt: Prompt, options: dict[str, Any]) -> list[int]:
    """Return a model's, or a pipeline's, answer to a prompt."""
    inputs = prepared(model, prompt)
    torch.manual_seed(7)
    tokens: list[int] = model.language_model.generate(**inputs, **options)[0].tolist()
    return tokens
