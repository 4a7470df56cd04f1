"""Questions and answers that build on each other.

A conversation keeps its KV cache between questions, so a second question about a picture costs
only its own tokens. What this module does not know: how a folder becomes a pipeline.
"""

import threading
import time
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import openvino as ov
import torch
from torch import Tensor

from helpers.graphs.core import Stopped
from helpers.inputs.messages import (
    Message,
    Pictures,
    answer_message,
    check_turns,
    message_of,
    pictures_of,
    with_open_videos,
)
from helpers.inputs.video import Video
from helpers.models.processors import Processor
from helpers.run.batches import BatchRow
from helpers.run.beams import search
from helpers.run.caches import Mark, StateCache
from helpers.run.choosing import Chooser
from helpers.run.prompt_lookup import answer_tokens
from helpers.run.replies import (
    CANCELLED,
    LENGTH,
    STOP,
    Answer,
    AnswerStreamer,
    Counts,
    Reply,
    Request,
)
from helpers.run.sampling import Sampling
from helpers.run.thoughts import BehindThought, Thought
from helpers.run.worker import Stop, Task

if TYPE_CHECKING:
    from helpers.run.pipeline import VisionLanguagePipeline


MARKS = 4  # of the last questions, which can be taken back without computing what was before


class Conversation:
    """Questions and answers that build on each other.

    `messages` are those before, asked and answered elsewhere. What several threads ask comes one
    after another.
    """

    def __init__(
        self, pipeline: "VisionLanguagePipeline", messages: Sequence[Message] = ()
    ) -> None:
        check_turns(messages)
        self.pipeline = pipeline
        self.messages: list[Message] = list(messages)
        self.ids: list[int] = []  # all tokens so far; text is never tokenised a second time
        self.turns: list[Request] = []
        self.features: dict[Request, list[Tensor]] = {}  # of the pictures of each turn
        self.cache: StateCache | None = None
        self.marks: dict[Request, Mark | None] = {}  # where the cache was before each question
        self.fork: Mark | None = None  # behind what is kept of the last prompt
        self.words = pipeline.processor.words  # of the last prompt
        self._infer_request: ov.InferRequest | None = None
        self._last_task: Task | None = None
        # Of whoever asks or takes back, so that a question is built on all that was before.
        self._lock = threading.RLock()

    def ask(
        self,
        question: str | Message,
        images: Pictures = (),
        *,
        video: Video | Pictures | str | Path = (),
        max_new_tokens: int = 256,
        picture_tokens: int | None = None,
        stop: threading.Event | None = None,
        **sampling: Any,
    ) -> "Reply":
        """Start an answer and return it; iterating over it gives pieces of text as they come.

        `question` is a text, or a user's message with its pictures in it; `video`, for models that
        read one, is a file, frames, or a `Video` of frames with their times. Each picture has at
        most `picture_tokens` tokens (None: what the pipeline says). `stop` ends the answer when
        set, in a running image encoder too.
        `sampling` are options of transformers' `generate`: do_sample, temperature,
        top_p, top_k, num_beams, repetition_penalty (of the answer's own tokens), `seed`,
        `stop_strings`, before the first of which the answer ends, `schema`, a JSON schema that
        the answer follows, `thinking`, whether there is a thought before the answer (None: as the
        model's template has it), and `prompt_lookup`, for answers that repeat the prompt.
        Raises `SettingsError` for options that cannot be, `QuestionError` for an empty question or
        one that does not fit into the context, `PictureError` for what is no picture, and
        `DeviceError` where the pipeline is closed, and in a process that was forked from its own.
        """
        self.pipeline.check_open()
        choose = self.pipeline.processor.choose_frames
        message = with_open_videos(message_of(question, images, video), choose)
        settings = Sampling.of(max_new_tokens=max_new_tokens, **sampling)
        if settings.prompt_lookup:
            self.pipeline.check_prompt_lookup()
        if settings.schema is not None:
            self.pipeline.grammars.follow(settings.schema)  # or it is an error
        with self._lock:
            return self._submit(message, settings, picture_tokens, Stop(stop))

    def _submit(
        self, message: Message, settings: Sampling, picture_tokens: int | None, stop: Stop
    ) -> "Reply":
        """Submit a question that is built on the last answer."""
        self.wait()
        processor = self.pipeline.processor.within(picture_tokens).thinking(settings.thinking)
        if not processor.words.begins_as(self.words):
            self.compute_anew()
        self.words = processor.words
        request = self._request(processor, message, settings)
        answer = Answer(Counts(len(request.prompt_ids)))
        task = Task(
            lambda: self._compute(request, answer, stop),
            stop,
            at_end=lambda: answer.pieces.put(None),
            at_withdrawal=lambda: self._append(request, answer, []),
        )
        self._last_task = task
        self.pipeline.worker.submit(task)
        return Reply(self, request, answer, task)

    def _request(self, processor: Processor, message: Message, sampling: Sampling) -> Request:
        """Return what a question is computed from; it is told here if it does not fit."""
        started = time.perf_counter()
        earlier: list[Message] = []
        if not self.ids:  # messages that come from elsewhere are not computed yet
            choose = processor.choose_frames
            earlier = [with_open_videos(turn, choose) for turn in self.messages]
        pictures = [picture for turn in (*earlier, message) for picture in pictures_of(turn)]
        inputs = processor.image_inputs(pictures) if pictures else None
        if earlier:
            ids = processor.input_ids([*earlier, message], inputs)[0].tolist()
        else:
            number = sum(len(pictures_of(part)) for part in self.messages)
            ids = self.ids + processor.turn_ids(
                message, inputs, first=not self.ids, earlier_pictures=number
            )
        processor.check_room(len(ids), sampling.max_new_tokens)
        return Request(message, ids, inputs, sampling, len(self.ids), started, processor)

    def take_back(self, reply: "Reply") -> None:
        """Forget the last answer and its question, pictures included, if `reply` is that answer.

        Waits for an answer that is still being computed. The cache returns to where it was before
        the question; where that is not known any more, it is computed anew with the next one.
        """
        with self._lock:
            self.wait()
            if self.turns and self.turns[-1] is reply.request:
                request = self.turns.pop()
                self.ids = self.ids[: request.earlier_tokens]
                self.features.pop(request, None)
                del self.messages[-2:]
                self._return_to(self.marks.pop(request, None))

    def _return_to(self, mark: Mark | None) -> None:
        """Bring the cache back to where it was."""
        if self.cache is not None and mark is not None:
            self.cache.return_to(mark)
        else:
            self.cache = None

    def clear(self) -> None:
        """Forget everything; waits for an answer that is still being computed."""
        with self._lock:
            self.wait()
            self.messages = []
            self.compute_anew()

    def compute_anew(self) -> None:
        """Forget all but the messages, as if they came from elsewhere; the request goes too."""
        with self._lock:
            self.ids, self.turns = [], []
            self.features, self.marks = {}, {}
            self.cache = self.fork = self._infer_request = None

    def wait(self) -> None:
        """Wait until the last answer, which the next question follows, is computed or failed."""
        if self._last_task is not None:
            self.pipeline.worker.wait(self._last_task)

    # In the worker's thread, one answer at a time

    def _compute(
        self, request: Request, answer: Answer, stop: Stop
    ) -> Generator[BatchRow, Tensor, None]:
        """Compute an answer, and remember it; yields each token but the last for its logits."""
        streamer = AnswerStreamer(request, answer)
        try:
            try:
                answer.token_ids = yield from self._generate(request, answer, streamer, stop)
            except Stopped:  # what was computed of the prompt is not all of it
                self._return_to(self.marks.get(request))
                answer.token_ids = streamer.token_ids
            answer.counts.answer = len(answer.token_ids)
            streamer.end()
            answer.finish = self._finish(answer, stop)
            self._remember(request, answer)
        except BaseException:
            self.cache = None  # nobody knows what it holds
            self.features.pop(request, None)
            self.marks.pop(request, None)
            raise

    def _generate(
        self, request: Request, answer: Answer, streamer: AnswerStreamer, stop: Stop
    ) -> Generator[BatchRow, Tensor, list[int]]:
        """Return the answer's tokens."""
        pipeline, sampling = self.pipeline, request.sampling
        cache = self._cache_for(sampling, stop)
        self.marks[request] = self.fork = cache.mark()
        if len(self.marks) > MARKS:
            del self.marks[next(iter(self.marks))]
        answer.counts.cached = cache.length
        features = self._encode_images(request, answer, stop)
        ids = torch.tensor([request.prompt_ids])
        prepared = pipeline.prepare(ids, features, past=cache.length)
        stop_ids = pipeline.processor.stop_token_ids
        if sampling.num_beams > 1:
            model = pipeline.language_model
            best = search(model, prepared, cache, sampling, stop=stop, stop_ids=stop_ids)
            answer.times.first_token = time.perf_counter() - request.started  # with all the others
            streamer.add(best)
            self.cache = None  # it holds the beams in their last order
            return best
        chooser = self._chooser(sampling, streamer.thought)
        logits = self._forward(prepared, cache, end=request.kept_tokens)
        self.fork = cache.mark()
        if request.kept_tokens < len(request.prompt_ids):
            logits = self._forward(prepared, cache, end=len(request.prompt_ids))
        tokens: list[int] = []

        def take(logits: Tensor) -> int:
            tokens.append(chooser.choose(logits, tokens))
            streamer.put(tokens[-1])
            return tokens[-1]

        try:
            yield from answer_tokens(
                logits,
                cache,
                prepared.get("pictures"),
                take,
                prompt=request.prompt_ids if sampling.prompt_lookup else None,
                is_over=lambda: (
                    tokens[-1] in stop_ids
                    or len(tokens) == sampling.max_new_tokens
                    or streamer.stop_strings.is_set()
                    or stop.is_set()
                ),
            )
            return tokens
        finally:
            pipeline.batch.leave(cache)
            cache.close_holes()

    def _chooser(self, sampling: Sampling, thought: Thought) -> Chooser:
        """Return what chooses an answer's tokens; a schema counts behind the thought."""
        if sampling.schema is None:
            return Chooser(sampling)
        grammar = self.pipeline.grammars.follow(sampling.schema)
        stop_ids = self.pipeline.processor.stop_token_ids
        return Chooser(sampling, BehindThought(thought, grammar, stop_ids))

    def _forward(self, prepared: dict[str, Any], cache: StateCache, *, end: int) -> Tensor:
        """Compute a prompt up to a place; return the logits (1, vocabulary) of its last token."""
        part = prepared | {
            "inputs_embeds": prepared["inputs_embeds"][:, cache.length : end],
            "attention_mask": prepared["attention_mask"][:, :end],
        }
        output = self.pipeline.language_model.forward(**part, past_key_values=cache)
        return cast(Tensor, output.logits)[:, -1]

    def _finish(self, answer: Answer, stop: Stop) -> str:
        """Return why an answer ended; one whose end is the last token that is allowed is whole."""
        stop_ids = self.pipeline.processor.stop_token_ids
        if answer.is_cut or any(token in stop_ids for token in answer.token_ids[-1:]):
            return STOP
        return CANCELLED if stop.is_set() else LENGTH

    def _encode_images(self, request: Request, answer: Answer, stop: Stop) -> list[Tensor]:
        """Return the features of all pictures; those are computed that are not there yet.

        An earlier question may have been stopped before its pictures were encoded.
        """
        start = time.perf_counter()
        features: list[Tensor] = []
        for turn in (*self.turns, request):
            if turn.image_inputs is None:
                continue
            if turn not in self.features:
                encode = partial(self.pipeline.encode_until, stop, turn.image_inputs)
                self.features[turn] = self.pipeline.pictures.find(turn.image_inputs, encode)
                answer.times.image_encoder = time.perf_counter() - start
            features += self.features[turn]
        return features

    def _cache_for(self, sampling: Sampling, stop: Stop) -> StateCache:
        language_model = self.pipeline.language_model
        if self._infer_request is None:
            self._infer_request = language_model.language_model.create_infer_request()
        if self.cache is None or sampling.num_beams > 1:
            self.cache = language_model.new_cache(self._infer_request)
        self.cache.stop = stop
        self.cache.settle(stop)
        return self.cache

    def _remember(self, request: Request, answer: Answer) -> None:
        """Remember a turn; after an answer stands what the template has there.

        So the next prompt has the ids that it would have if it were made of the messages. The last
        token of an answer is not in the cache yet, so a stop token may be another.
        """
        tokens = request.kept_answer(answer)
        is_cached = tokens in (answer.token_ids, answer.token_ids[:-1])
        if not is_cached or request.processor.start_of_answer_ids:
            self._return_to(self.fork)  # the cache holds other tokens
        self._append(request, answer, tokens)

    def _append(self, request: Request, answer: Answer, tokens: list[int]) -> None:
        """Append a turn, with no tokens where it was stopped before its turn; the cache stays."""
        prompt = request.prompt_ids[: request.kept_tokens]
        self.ids = prompt + tokens + request.processor.end_of_answer_ids
        self.turns.append(request)
        self.messages += [request.message, answer_message(answer.text)]
