"""A converted model on a device: pictures and questions in, streamed answers out.

Answers of several conversations are computed by one thread, one after another or together.

What this module does not know: audio, and calling tools.
"""

import copy
import threading
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import openvino as ov
from PIL import Image
from torch import Tensor

from helpers.convert.folders import read_manifest
from helpers.convert.processors import read_notice, read_processor
from helpers.errors import (
    DeviceError,
    OutputError,
    QuestionError,
    SettingsError,
    check_resources,
    is_whole,
)
from helpers.graphs.attention_masks import add_masks
from helpers.graphs.core import (
    ACCURACY,
    Stoppable,
    Stopped,
    cannot_run,
    compile_model,
    core,
    run_model,
)
from helpers.graphs.last_logits import return_last_logits
from helpers.graphs.part_names import FILES, LANGUAGE_MODEL, NEXT_TOKENS, PROMPTS, TEXT_EMBEDDINGS
from helpers.graphs.single_token import expect_single_token
from helpers.inputs.messages import Message, Pictures, check_list
from helpers.inputs.video import Video
from helpers.models.exported import Features
from helpers.resources import return_freed_memory
from helpers.run import background
from helpers.run.batches import Batch
from helpers.run.conversations import Conversation
from helpers.run.devices import check_device, check_properties
from helpers.run.generation import StatefulLanguageModel
from helpers.run.prefill_again import language_model_of
from helpers.run.prompt_lookup import LONGEST
from helpers.run.remembered_pictures import RememberedPictures
from helpers.run.replies import Reply
from helpers.run.tuning import Properties, fits_twice, read_tuning
from helpers.run.worker import Worker

if TYPE_CHECKING:
    from helpers.run.grammar import Grammars

# Inputs and outputs that every family's files have; what a family adds is its own.
ALWAYS = {
    FILES[TEXT_EMBEDDINGS]: {"input", "inputs_embeds"},
    FILES[LANGUAGE_MODEL]: {"inputs_embeds", "attention_mask", "position_ids", "logits"},
}


def _closed() -> DeviceError:
    return DeviceError("This pipeline is closed; load the folder anew to ask.")


def _check(properties: object, answers_at_once: Any) -> None:
    """Raise an error, before anything is read, for arguments that are none."""
    check_properties(properties)
    if not is_whole(answers_at_once) or answers_at_once < 1:
        raise SettingsError(f"answers_at_once is {answers_at_once!r}; give a whole number from 1.")


class VisionLanguagePipeline:
    """A converted model on a device; `accuracy` computes as PyTorch does, more slowly.

    Of one picture, at most `picture_tokens` tokens reach the language model, in tiles, slices or
    pixels, as the family has them; None: as many as is usual, which the family says.
    On the CPU, each part has the properties that `vlm tune` chose for it on this computer, unless
    it is not to be `tuned`; `tuning` holds them. `properties` are further ones of OpenVINO's
    `compile_model` for all parts, such as INFERENCE_NUM_THREADS. Where `vlm tune` found that faster
    and there is memory for it, the language model is compiled twice, for prompts and for next
    tokens, unless the latter are not to be apart (`next_tokens_apart`): a single answer would gain
    less than that takes, and answers that are computed together or with drafts gain nothing. So
    many `answers_at_once` are computed together, where several people ask.

    `close`, or the end of a `with` block, frees the memory; otherwise it is freed with the last
    reference to the pipeline or to one of its conversations.

    Raises `OutputError` for a folder without a finished conversion, `DeviceError` for a device
    that does not exist or cannot run it, and `SettingsError` for fewer tokens than a picture has,
    for no answer at once, and for properties that are none.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "CPU",
        *,
        accuracy: bool = False,
        picture_tokens: int | None = None,
        tuned: bool = True,
        properties: Mapping[str, Any] | None = None,
        answers_at_once: int = 1,
        next_tokens_apart: bool = True,
    ) -> None:
        _check(properties, answers_at_once)
        self.name = read_manifest(folder)["source"]["name"]
        folder = Path(folder)
        self.folder, self.device = folder, check_device(device)
        processor = read_processor(folder)
        usual = processor.usual_picture_tokens
        self.processor = processor.within(usual if picture_tokens is None else picture_tokens)
        self.notice = read_notice(folder)
        is_tuned = tuned and not accuracy and self.device == "CPU"
        self.tuning = read_tuning(folder) if is_tuned else None
        self.answers_at_once = int(answers_at_once)
        mode, further = ACCURACY if accuracy else {}, dict(properties or {})
        self.properties = {
            name: mode | of_part | further
            for name, of_part in self._tuned_properties(next_tokens_apart).items()
        }
        self._use({name: self._compile(name) for name in self.properties})

    def _tuned_properties(self, next_tokens_apart: bool) -> dict[str, Properties]:
        """Return what `vlm tune` chose for each part that is to be compiled, or nothing."""
        choices = self.tuning.properties if self.tuning else {}
        parts = {name: choices.get(name, {}) for name in self.processor.exported.files}
        if NEXT_TOKENS in choices and next_tokens_apart and fits_twice(self.folder):
            parts[NEXT_TOKENS] = choices[NEXT_TOKENS]
            # Next tokens of several answers are computed where prompts are.
            if PROMPTS in choices and self.answers_at_once == 1:
                parts[LANGUAGE_MODEL] = choices[PROMPTS]
        return parts

    def _use(self, parts: dict[str, ov.CompiledModel]) -> None:
        """Answer with these parts from now on."""
        self.parts = parts
        token_parts = self.processor.exported.token_parts
        tables = {row: parts[name] for name, row in token_parts.items()}
        self._language_model: StatefulLanguageModel | None = language_model_of(
            tables, parts[LANGUAGE_MODEL], self.processor.exported, parts.get(NEXT_TOKENS)
        )
        self.requests = {
            name: part.create_infer_request()
            for name, part in parts.items()
            if name not in (*token_parts, LANGUAGE_MODEL, NEXT_TOKENS)
        }
        self.pictures = RememberedPictures()
        self._conversations, self._lock = weakref.WeakSet[Conversation](), threading.Lock()
        self.batch = Batch(self.language_model)
        self.worker = Worker(
            self.batch.compute, at_once=self.answers_at_once, at_close=background.finish
        )
        self.worker.close_with(self)

    def close(self) -> None:
        """End all answers, and free the memory of the models and of all conversations' caches.

        Answers that are not finished are "cancelled"; texts and messages stay. Asking afterwards
        raises a `DeviceError`, and closing again changes nothing; nor does it in a process that was
        forked. What another pipeline shares (`with_parts`) stays there.
        """
        if not self.worker.is_of_this_process:
            return
        self.worker.close()
        self.parts, self.requests, self.pictures = {}, {}, RememberedPictures()
        with self._lock:
            conversations = list(self._conversations)
        for conversation in conversations:
            conversation.compute_anew()
        self._language_model = None
        for name in ("batch", "grammars"):
            self.__dict__.pop(name, None)
        return_freed_memory()

    def check_open(self) -> None:
        """Raise a `DeviceError` where nothing can be computed any more."""
        self.worker.check_process()
        if not self.parts:
            raise _closed()

    @property
    def language_model(self) -> StatefulLanguageModel:
        """What writes tokens; a `DeviceError` says where the pipeline is closed."""
        if (language_model := self._language_model) is None:  # another thread may close it
            raise _closed()
        return language_model

    def __enter__(self) -> Self:
        """Return the pipeline, which is closed at the end of the `with` block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def with_parts(self, properties: Mapping[str, Properties]) -> Self:
        """Return a pipeline whose parts of these names have these `properties` only.

        All others are shared. With another language model, next tokens are compiled apart only
        where they are named too.
        """
        self.check_open()
        other, parts = copy.copy(self), dict(self.parts)
        if not parts:  # another thread closed it just now
            raise _closed()
        other.properties = dict(self.properties)
        if LANGUAGE_MODEL in properties:
            for of_next_tokens in (other.properties, parts):
                of_next_tokens.pop(NEXT_TOKENS, None)
        for name, of_part in properties.items():
            is_shared = name in parts and of_part == self.properties[name]
            other.properties[name] = of_part
            parts[name] = parts[name] if is_shared else other._compile(name)
        other._use(parts)
        return other

    def _compile(self, name: str) -> ov.CompiledModel:
        """Return the part called `name` compiled with its properties for answers one by one."""
        exported = self.processor.exported
        path = self.folder / exported.files[LANGUAGE_MODEL if name == NEXT_TOKENS else name]
        try:
            model = core().read_model(path)
            names = {name for port in (*model.inputs, *model.outputs) for name in port.names}
        except RuntimeError as error:
            check_resources(error)
            names = set()
        if not names or not ALWAYS.get(path.name, set()) <= names:
            raise OutputError(f"{path} is damaged; convert the checkpoint again.")
        if name in (LANGUAGE_MODEL, NEXT_TOKENS):
            exported.adapt(model)
        if name == LANGUAGE_MODEL:
            return_last_logits(model, 1 + LONGEST)
        add_masks(model)
        options = {"PERFORMANCE_HINT": "LATENCY", **self.properties[name]}
        if "CACHE_DIR" in options:  # or a table that stays on disk would be written there again
            options.setdefault("CACHE_MODE", "OPTIMIZE_SIZE")
        try:
            if name == NEXT_TOKENS:
                expect_single_token(model)
            return compile_model(model, self.device, **options)
        except RuntimeError as error:
            advice = []
            if self.tuning and self.tuning.properties.get(name):
                advice = ["`vlm tune` chose its settings, so tune again or compute --untuned"]
            raise cannot_run(self.device, path.name, error, *advice) from None

    # The calls that a PyTorch model has too

    def image_inputs(self, pictures: Sequence[Image.Image | Video]) -> dict[str, Any]:
        """Turn PIL pictures into the inputs of `encode_images`."""
        return self.processor.image_inputs(pictures)

    def encode_images(self, **image_inputs: Any) -> Features:
        """Return picture features; iterating gives those of each tile, slice or picture."""
        return self.encode_until(None, image_inputs)

    def encode_until(self, stop: Stoppable | None, image_inputs: Mapping[str, Any]) -> Features:
        """Return picture features; raises `Stopped` where `stop` is set before they are there."""
        self.check_open()
        requests, parts = self.requests, self.parts  # others once another thread closes it
        if not parts:
            raise _closed()

        def run_part(name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            if name not in requests:
                del parts[name]  # before the new one takes as much memory
                parts[name] = self._compile(name)
                requests[name] = parts[name].create_infer_request()
            try:
                outputs = run_model(requests[name], inputs, stop)
            except Stopped:
                # The CPU plugin of OpenVINO 2026.4 keeps sizes of what was cancelled, in the whole
                # compiled model, and takes them for those of the next picture.
                del requests[name]
                raise
            parts[name].release_memory()  # of activations, which may be more than the weights
            return outputs

        return self.processor.exported.encode_images(run_part, dict(image_inputs))

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings of tokens, (batch, length, hidden), and what else they have."""
        self.check_open()
        return self.language_model.embed_tokens(input_ids)

    def prepare(
        self, input_ids: Tensor, features: Features | None = None, *, past: int = 0
    ) -> dict[str, Any]:
        """Return all that `language_model` takes for a prompt (1, length) with these features.

        The first `past` positions are in its cache already.
        """
        return self.processor.exported.prepare(input_ids, self.embed_tokens, features, past=past)

    @cached_property
    def grammars(self) -> "Grammars":
        """Grammars that an answer of this model can follow."""
        from helpers.run.grammar import Grammars

        vocabulary = self.language_model.config.vocab_size
        return Grammars(self.processor.tokenizer, vocabulary, self.processor.stop_token_ids)

    def check_prompt_lookup(self) -> None:
        """Raise a `SettingsError` where what was drafted and rejected would leave a trace."""
        exported = self.processor.exported
        if self.language_model.is_recurrent or not exported.can_skip_places:
            raise SettingsError(
                "Prompt lookup leaves gaps in the cache, and this model counts or changes what is "
                "between two tokens; ask without it."
            )

    # Asking

    def conversation(self, messages: Sequence[Message] = ()) -> Conversation:
        """Return a new conversation, which remembers its pictures, words and KV cache.

        `messages` are what was asked and answered before, elsewhere. Raises `QuestionError` unless
        they are a user's and an assistant's in turn.
        """
        self.check_open()
        conversation = Conversation(self, messages)
        with self._lock:
            self._conversations.add(conversation)
        return conversation

    def ask(self, text: str, images: Pictures = (), **options: Any) -> Reply:
        """Ask one question in a conversation of its own.

        `options` are those of `Conversation.ask`, which says what is raised.
        """
        return self.conversation().ask(text, images, **options)

    def chat(self, messages: Sequence[Message], **options: Any) -> Reply:
        """Answer the last of `messages`, a whole conversation as chat programs keep it.

        `options` are those of `Conversation.ask`. Raises `QuestionError` for no messages, and as
        `conversation` and `Conversation.ask` do.
        """
        check_list(messages)
        if not messages:
            raise QuestionError("There are no messages; give at least one of a user.")
        return self.conversation(messages[:-1]).ask(messages[-1], **options)
