"""Pictures and questions in, streamed answers out, from a folder that `conversion` wrote.

A conversation keeps its KV cache between questions, so a second question about a picture costs
only its own tokens. Answers of several conversations are computed one after another.

What this module does not know: video, audio, and calling tools.
"""

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import openvino as ov
import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, TextStreamer
from transformers.generation import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
)

from helpers.convert.folders import read_manifest
from helpers.errors import DeviceError, OutputError, QuestionError, SettingsError, UserError
from helpers.graphs.stateful import keep_inputs
from helpers.graphs.tracing import FILES, IMAGE_ENCODER, LANGUAGE_MODEL, TEXT_EMBEDDINGS
from helpers.inputs.prompts import Message, content_of, pictures_of
from helpers.models import load_processor
from helpers.run.devices import check_device, core
from helpers.run.generation import StateCache, StatefulLanguageModel, StopOnEvent, Stopped
from helpers.sources.checkpoints import CARD, read_json


@dataclass
class Times:
    """Seconds of one answer: `first_token` counts from the question and includes the pictures."""

    image_encoder: float = 0.0
    first_token: float = 0.0
    next_tokens: list[float] = field(default_factory=list)

    @property
    def per_token(self) -> float:
        """The median time of the tokens after the first."""
        return median(self.next_tokens) if self.next_tokens else 0.0


@dataclass
class Counts:
    """Tokens: of the whole prompt, those of them that were in the cache, and of the answer."""

    prompt: int
    cached: int = 0
    answer: int = 0


class Turns:
    """Lets one answer at a time be computed, in the order in which they were asked."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[object] = []  # the first one's answer is being computed

    def join(self, who: object) -> None:
        """Stand at the end."""
        self._waiting.append(who)

    def place(self, who: object) -> int:
        """Return how many are before `who`."""
        waiting = list(self._waiting)
        return waiting.index(who) if who in waiting else 0

    def places(self, who: object) -> Iterator[int]:
        """Give how many are before `who`, as that changes, until nobody is."""
        shown = 0
        while place := self.place(who):
            if place != shown:
                yield place
            shown = place
            with self._changed:
                self._changed.wait(_LOOK)

    def wait(self, who: object, stop: threading.Event) -> None:
        """Return when it is the turn of `who`, or once `stop` is set."""
        while self.place(who) and not stop.is_set():
            with self._changed:
                self._changed.wait(_LOOK)

    def leave(self, who: object) -> None:
        """Let the next one begin."""
        with self._changed:
            self._waiting.remove(who)
            self._changed.notify_all()


_LOOK = 0.05  # seconds after which those who wait look whether they were stopped


class VisionLanguagePipeline:
    """A converted model on a device; `accuracy` computes as PyTorch does, more slowly.

    `properties` are further ones of OpenVINO's `compile_model`, such as INFERENCE_NUM_THREADS.

    Raises `OutputError` for a folder without a finished conversion, and `DeviceError` for a device
    that does not exist or cannot run it.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "CPU",
        *,
        accuracy: bool = False,
        properties: Mapping[str, object] | None = None,
    ) -> None:
        folder = Path(folder)
        self.name = read_manifest(folder)["source"]["name"]
        self.folder, self.device = folder, check_device(device)
        self.processor = load_processor(folder)
        card = folder / CARD
        self.notice = str(read_json(card).get("notice", "")) if card.exists() else ""
        options: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY"}
        if accuracy:
            options["EXECUTION_MODE_HINT"] = "ACCURACY"
        options |= properties or {}
        kept = {LANGUAGE_MODEL: self.processor.kept_inputs}
        compiled = {
            name: self._compile(folder / file, options, kept.get(name, []))
            for name, file in FILES.items()
        }
        self.image_encoder = compiled[IMAGE_ENCODER]
        self.language_model = StatefulLanguageModel(
            compiled[TEXT_EMBEDDINGS],
            compiled[LANGUAGE_MODEL],
            generation=GenerationConfig(),
            prefill_again_beyond=self.processor.prefill_again_beyond,
        )
        self.turns = Turns()

    def _compile(
        self, path: Path, options: dict[str, object], kept: Sequence[str]
    ) -> ov.CompiledModel:
        try:
            model = core().read_model(path)
        except RuntimeError:
            raise OutputError(f"{path} is damaged; convert the checkpoint again.") from None
        keep_inputs(model, kept)
        try:
            return core().compile_model(model, self.device, options)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DeviceError(f"{self.device} cannot run {path.name}: {reason}") from None

    # The calls that a PyTorch model has too

    def image_inputs(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Turn PIL pictures into the inputs of `encode_images`."""
        return self.processor.image_inputs(pictures)

    def encode_images(self, **image_inputs: Tensor) -> Sequence[Tensor]:
        """Return picture features; iterating gives those of each tile, slice or picture."""
        return self.processor.encode_exported(self._run_image_encoder, image_inputs)

    def _run_image_encoder(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {port.any_name for port in self.image_encoder.inputs}
        feed = {name: value.numpy() for name, value in inputs.items() if name in names}
        results = self.image_encoder(feed)
        return {
            port.any_name: torch.from_numpy(results[port].copy())
            for port in self.image_encoder.outputs
        }

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings of tokens, (batch, length, hidden)."""
        return self.language_model.embed_tokens(input_ids)

    def prepare(
        self, input_ids: Tensor, features: Sequence[Tensor] | None = None, *, past: int = 0
    ) -> dict:
        """Return all that `language_model` takes for a prompt with these picture features.

        The first `past` positions are in its cache already.
        """
        return self.processor.prepare_exported(input_ids, self.embed_tokens, features, past=past)

    # Asking

    def conversation(self, messages: Sequence[Message] = ()) -> "Conversation":
        """Return a new conversation, which remembers its pictures, words and KV cache.

        `messages` are what was asked and answered before, elsewhere. Raises `QuestionError` unless
        they are a user's and an assistant's in turn.
        """
        return Conversation(self, messages)

    def ask(self, text: str, images: Sequence[Image.Image] = (), **options) -> "Reply":
        """Ask one question in a conversation of its own."""
        return self.conversation().ask(text, images, **options)

    def chat(self, messages: Sequence[Message], **options) -> "Reply":
        """Answer the last of `messages`, a whole conversation as chat programs keep it."""
        if not messages:
            raise QuestionError("There are no messages; give at least one of a user.")
        return self.conversation(messages[:-1]).ask(messages[-1], **options)


class Conversation:
    """Questions and answers that build on each other."""

    def __init__(self, pipeline: VisionLanguagePipeline, messages: Sequence[Message] = ()) -> None:
        for message in messages:
            content_of(message)  # or it is an error
        roles = [message["role"] for message in messages]
        if len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
            raise QuestionError(
                "The messages before a question should be a user's and an assistant's in turn."
            )
        self.pipeline = pipeline
        self.ids: list[int] = []  # all tokens so far; text is never tokenised a second time
        self.features: list[Tensor] = []
        self.messages: list[Message] = list(messages)
        self.turns: list[tuple[int, int]] = []  # tokens and pictures' features before each
        self.cache: StateCache | None = None
        self._request: ov.InferRequest | None = None
        self._last: Reply | None = None

    def ask(
        self,
        question: str | Message,
        images: Sequence[Image.Image] = (),
        *,
        max_new_tokens: int = 256,
        stop: threading.Event | None = None,
        **sampling,
    ) -> "Reply":
        """Start an answer and return it; iterating over it gives pieces of text as they come.

        `question` is a text, or a user's message with its pictures in it. `stop` ends the answer
        when set; an image encoder that runs is not interrupted, so the next answer waits for it.
        `sampling` are options of transformers' `generate`: do_sample, temperature,
        top_p, top_k, num_beams, repetition_penalty (of the answer's own tokens), and `seed`.
        Raises `QuestionError` for an empty question or one that does not fit into the context,
        and `PictureError` for what is no picture.
        """
        message = _message(question, images)
        options = generation_options(max_new_tokens, **sampling)
        self._wait()
        started = time.perf_counter()
        earlier = [] if self.ids else self.messages  # not computed yet
        pictures = [picture for one in (*earlier, message) for picture in pictures_of(one)]
        inputs = self.pipeline.image_inputs(pictures) if pictures else None
        processor = self.pipeline.processor
        if earlier:
            ids = processor.input_ids([*earlier, message], inputs)[0].tolist()
        else:
            ids = self.ids + processor.turn_ids(message, inputs, first=not self.ids)
        limit = processor.context_length
        if len(ids) + max_new_tokens > limit:
            raise QuestionError(
                f"The conversation would need {len(ids)} tokens and {max_new_tokens} for the "
                f"answer, but the model's context holds {limit}; ask less or start a new one."
            )
        stop = stop or threading.Event()
        before = (len(self.ids), len(self.features))
        self._last = Reply(self, message, ids, inputs, options, stop, started, before)
        return self._last

    def take_back(self, reply: "Reply") -> None:
        """Forget the last answer and its question, pictures included, if `reply` is that answer.

        Waits for an answer that is still being computed. What remains is computed anew with the
        next question, since a cache's end cannot be cut off.
        """
        self._wait()
        if self.turns and self.turns[-1] is reply.before:
            tokens, features = self.turns.pop()
            self.ids, self.features = self.ids[:tokens], self.features[:features]
            del self.messages[-2:]
            self.cache = None

    def clear(self) -> None:
        """Forget everything; waits for an answer that is still being computed."""
        self._wait()
        self.__init__(self.pipeline)

    def _wait(self) -> None:
        """Wait for the last answer, which the next question follows."""
        if self._last is not None:
            self._last._thread.join()

    def _generate(self, reply: "Reply", streamer: "_Streamer") -> list[int]:
        """Compute the answer's tokens; called in the reply's thread, one at a time."""
        pipeline = self.pipeline
        features = list(self.features)
        if reply.inputs is not None:
            begun = time.perf_counter()
            features += list(pipeline.encode_images(**reply.inputs))
            reply.times.image_encoder = time.perf_counter() - begun
        cache = self._cache_for(reply)
        reply._counts.cached = cache.length
        ids = torch.tensor([reply.prompt_ids])
        prepared = pipeline.prepare(ids, features, past=cache.length)
        if (seed := reply.options.pop("seed", None)) is not None:
            torch.manual_seed(seed)
        # Given as an option, it would warn of each answer that the prompt is not penalised.
        penalty = reply.options.pop("repetition_penalty")
        penalties = [] if penalty == 1 else [RepetitionPenaltyLogitsProcessor(float(penalty))]
        try:
            output = pipeline.language_model.generate(
                **prepared,
                past_key_values=cache,
                generation_config=GenerationConfig(
                    **reply.options,
                    eos_token_id=pipeline.processor.stop_token_ids,
                    pad_token_id=pipeline.processor.stop_token_ids[0],
                ),
                streamer=streamer if reply.options["num_beams"] == 1 else None,
                stopping_criteria=StoppingCriteriaList([StopOnEvent(reply.stop)]),
                logits_processor=LogitsProcessorList(penalties),
            )
            tokens = output[0].tolist()
        except Stopped:
            self.cache = None  # a step that was given up leaves its state half-written
            tokens = streamer.tokens
        if reply.options["num_beams"] > 1:
            self.cache = None  # it holds the beams in their last order
        self.features = features
        return tokens

    def _cache_for(self, reply: "Reply") -> StateCache:
        language_model = self.pipeline.language_model
        if self._request is None:
            self._request = language_model.language_model.create_infer_request()
        if self.cache is None or reply.options["num_beams"] > 1:
            self.cache = language_model.new_cache(self._request)
        self.cache.stop = reply.stop
        return self.cache

    def _finish(self, reply: "Reply", tokens: list[int]) -> None:
        """Remember a turn; an answer that was cut short gets the end that it lacks."""
        ended = bool(tokens) and tokens[-1] in self.pipeline.processor.stop_token_ids
        end = [] if ended else self.pipeline.processor.end_of_answer_ids
        self.ids = reply.prompt_ids + tokens + end
        self.turns.append(reply.before)
        self.messages += [reply.question, _answer(reply._text)]


def _message(question: str | Message, images: Sequence[Image.Image]) -> Message:
    """Return a user's message with these pictures before what it has itself."""
    if not isinstance(question, str | Mapping):
        raise QuestionError(EMPTY)
    parts = [{"type": "image", "image": picture} for picture in images]
    if isinstance(question, str):
        message = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    elif parts:
        raise QuestionError("A message has its pictures in it; give them there and not beside it.")
    else:
        message = dict(question)
    text, _ = content_of(message)
    if message["role"] != "user":
        raise QuestionError("The last message should be a user's, which is to be answered.")
    if not text.strip():
        raise QuestionError(EMPTY)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise QuestionError("The question has halves of characters; paste its text again.")
    return message


EMPTY = "The question is empty; ask something about the picture."


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


class Reply:
    """An answer that is being computed: iterate for its pieces, or read `text` when it is done."""

    def __init__(self, conversation, question, ids, inputs, options, stop, started, before) -> None:
        self.conversation = conversation
        self.question, self.prompt_ids, self.inputs = question, ids, inputs
        self.options, self.stop, self.before = options, stop, before
        self.times, self._counts = Times(), Counts(len(ids))
        self._text, self._tokens = "", []
        self._pieces: queue.Queue[str | None] = queue.Queue()
        self._error: BaseException | None = None
        self._started = started
        conversation.pipeline.turns.join(self)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """The whole answer; waits until it is computed."""
        self._wait()
        return self._text

    @property
    def token_ids(self) -> list[int]:
        """The answer's tokens; waits until it is computed."""
        self._wait()
        return self._tokens

    @property
    def message(self) -> Message:
        """The whole answer as an assistant's message; waits until it is computed."""
        return _answer(self.text)

    @property
    def counts(self) -> Counts:
        """How many tokens there were; waits until the answer is computed."""
        self._wait()
        return self._counts

    @property
    def is_running(self) -> bool:
        """Whether the answer waits for its turn or is being computed."""
        return self._thread.is_alive()

    def places(self) -> Iterator[int]:
        """Give how many answers are computed before this one, as that changes, until its turn."""
        return self.conversation.pipeline.turns.places(self)

    def __iter__(self) -> Iterator[str]:
        """Give pieces of the answer as they come; an error of the computation is raised here.

        An answer that is stopped before its pictures are encoded has none, and ends at once.
        """
        while not self._is_given_up():
            try:
                piece = self._pieces.get(timeout=_LOOK)
            except queue.Empty:
                continue
            if piece is None:
                self._pieces.put(None)  # so that iterating again ends at once
                self._wait()
                return
            if piece:
                yield piece

    def _is_given_up(self) -> bool:
        encoding = self.inputs is not None and not self.times.image_encoder
        return encoding and self.stop.is_set() and self.is_running

    def _wait(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        pipeline = self.conversation.pipeline
        streamer = _Streamer(pipeline.processor.tokenizer, self)
        try:
            pipeline.turns.wait(self, self.stop)
            if self.stop.is_set():
                return  # as if it had never been asked
            ids = self._tokens = self.conversation._generate(self, streamer)
            self._counts.answer = len(ids)
            self._text = pipeline.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
            if self.options["num_beams"] > 1:
                self._pieces.put(self._text)
            self.conversation._finish(self, self._tokens)
        except BaseException as error:  # handed to whoever reads the answer
            self.conversation.cache = None
            self._error = error if isinstance(error, UserError) else _explain(error)
        finally:
            pipeline.turns.leave(self)
            self._pieces.put(None)


def _explain(error: BaseException) -> BaseException:
    """Turn what the device says into one sentence; everything else is a defect and stays."""
    if isinstance(error, RuntimeError) and "openvino" in str(error).lower():
        return DeviceError(
            f"The device could not compute the answer: {str(error).splitlines()[-1]}"
        )
    return error


class _Streamer(TextStreamer):
    """Hand pieces of text to a reply as they are decoded, and note the time of each token."""

    def __init__(self, tokenizer, reply: Reply) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.reply = reply
        self.tokens: list[int] = []
        self.last: float | None = None

    def put(self, value: Tensor) -> None:
        """Take the prompt first, then one token at a time."""
        if not self.next_tokens_are_prompt:
            now = time.perf_counter()
            if self.last is None:
                self.reply.times.first_token = now - self.reply._started
            else:
                self.reply.times.next_tokens.append(now - self.last)
            self.last = now
            self.tokens += value.flatten().tolist()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass a piece on."""
        self.reply._pieces.put(text)


_SAMPLING = ("temperature", "top_p", "top_k")
_RANGES = {
    "max_new_tokens": (1, 100_000),
    "num_beams": (1, 16),
    "temperature": (0.01, 5.0),
    "top_p": (0.01, 1.0),
    "top_k": (0, 100_000),
    "repetition_penalty": (0.1, 10.0),
    "seed": (0, 2**63 - 1),
}
_WHOLE = ("max_new_tokens", "num_beams", "top_k", "seed")


def generation_options(
    max_new_tokens: int,
    *,
    do_sample: bool = False,
    num_beams: int = 1,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    **sampling: float,
) -> dict:
    """Return options of `generate`; one that does not exist or is out of range is an error."""
    options = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
    options |= {"repetition_penalty": repetition_penalty}
    options |= {} if seed is None else {"seed": seed}
    unknown = sorted(set(sampling) - set(_SAMPLING))
    if unknown:
        known = ", ".join((*_RANGES, "do_sample"))
        raise SettingsError(f"The option {unknown[0]!r} does not exist; use {known}.")
    for name, value in (options | sampling).items():
        low, high = _RANGES[name]
        kind = "a whole number " if name in _WHOLE else ""
        if not isinstance(value, int if kind else int | float) or not low <= value <= high:
            raise SettingsError(f"{name} is {value!r}; it should be {kind}from {low} to {high}.")
    return options | {"do_sample": do_sample} | (sampling if do_sample else {})
