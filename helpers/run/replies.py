"""An answer while it is computed: its pieces as they come, its text when it is done.

What this module does not know: how an answer is computed, and what a conversation remembers of it.
"""

import contextlib
import queue
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, cast

from helpers.inputs.messages import Message, answer_message
from helpers.models.processors import Processor
from helpers.run.decoding import Decoder
from helpers.run.sampling import Sampling
from helpers.run.stop_strings import StopStrings
from helpers.run.thoughts import Thought
from helpers.run.worker import LONGEST_WAIT, LOOK, Task

if TYPE_CHECKING:
    from helpers.run.conversations import Conversation

# Why an answer ended, in OpenAI's words and one more.
STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"


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
    """Tokens: of the whole prompt, those of them that were in the cache, and of the answer.

    `thought` of the answer's tokens are those of the thought before it, with its marks.
    """

    prompt: int
    cached: int = 0
    answer: int = 0
    thought: int = 0


@dataclass(frozen=True)
class AnswerPiece:
    """A piece of text of an answer, or of the thought before it."""

    text: str
    is_thought: bool = False


@dataclass(frozen=True, eq=False)
class Request:
    """One question of a conversation: all that its answer is computed from.

    `prompt_ids` are those of the whole conversation, `image_inputs` those of the question's own
    pictures. `processor` wrote them. `earlier_tokens` counts what the conversation had before.
    """

    message: Message
    prompt_ids: list[int]
    image_inputs: dict[str, Any] | None
    sampling: Sampling
    earlier_tokens: int
    started: float  # the clock when the question was asked
    processor: Processor

    @property
    def kept_tokens(self) -> int:
        """How many of the prompt's tokens the next prompt begins with."""
        return len(self.prompt_ids) - len(self.processor.start_of_answer_ids)

    def kept_answer(self, answer: "Answer") -> list[int]:
        """Return those tokens of an answer that the next prompt has.

        A picture's token that a model wrote itself is left out: nothing would be there for it to
        show. An answer that a stop string has cut is what is left of it, and a thought is no part
        of it.
        """
        processor, tokens = self.processor, answer.token_ids
        if tokens and tokens[-1] in processor.stop_token_ids:
            tokens = tokens[:-1]
        if answer.is_cut or answer.counts.thought:
            encoding = processor.tokenizer(answer.text, add_special_tokens=False)
            tokens = cast(list[int], encoding["input_ids"])
        return [token for token in tokens if token not in processor.picture_token_ids]

    def new_thought(self) -> Thought:
        """Return what tells a thought from the answer to this question."""
        words = self.processor.words
        return Thought(*self.processor.thought_ids, self.prompt_ids, thinks=words.thinks)


@dataclass
class Answer:
    """What has been computed of an answer; `pieces` are its text as it comes, then None.

    `token_ids` are all that the model wrote, the `thought` before the `text` among them.
    `finish` is why it ended: `STOP`, by itself or at a stop string, `LENGTH` or `CANCELLED`.
    """

    counts: Counts
    finish: str = CANCELLED
    is_cut: bool = False  # before a stop string
    times: Times = field(default_factory=Times)
    text: str = ""
    thought: str = ""
    token_ids: list[int] = field(default_factory=list)
    pieces: "queue.SimpleQueue[AnswerPiece | None]" = field(default_factory=queue.SimpleQueue)


class Reply:
    """An answer that is being computed: iterate for its pieces, or read `text` when it is done.

    `pieces()` has the thought before the answer too, where there is one.

    An answer that nobody waits for is stopped: when a loop over it is left before its end, when a
    wait for it is interrupted, and when the last reference to it goes.
    """

    def __init__(
        self, conversation: "Conversation", request: Request, answer: Answer, task: Task
    ) -> None:
        self.conversation = conversation
        self.request = request
        self._answer = answer
        self._task = task

    def __del__(self) -> None:
        self._task.stop.set()

    def __repr__(self) -> str:
        if self.is_running:
            return "Reply(running; its .text waits for the answer)"
        return f"Reply({self._answer.text!r}, finish={self._answer.finish!r})"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the answer is computed, at most `timeout` seconds; return whether it is.

        Raises what its computation raised.
        """
        done = self.conversation.pipeline.worker.wait(self._task, timeout)
        if self._task.error is not None:
            raise self._task.error
        return done

    def stop(self) -> None:
        """End the answer after its current token; what there is of it stays."""
        self._task.stop.set()

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens of the whole conversation up to where the answer starts."""
        return self.request.prompt_ids

    @property
    def times(self) -> Times:
        """The times so far."""
        return self._answer.times

    @property
    def text(self) -> str:
        """The whole answer, without the thought before it; waits until it is computed."""
        self.wait()
        return self._answer.text

    @property
    def thought(self) -> str:
        """The thought before the answer, empty where there is none; waits for the answer."""
        self.wait()
        return self._answer.thought

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the thought and of the answer; waits until they are computed."""
        self.wait()
        return self._answer.token_ids

    @property
    def message(self) -> Message:
        """The whole answer as an assistant's message; waits until it is computed."""
        return answer_message(self.text)

    @property
    def counts(self) -> Counts:
        """How many tokens there were; waits until the answer is computed."""
        self.wait()
        return self._answer.counts

    @property
    def finish(self) -> str:
        """Why the answer ended, "stop", "length" or "cancelled"; waits until it is computed."""
        self.wait()
        return self._answer.finish

    @property
    def is_running(self) -> bool:
        """Whether the answer waits for its turn or is being computed."""
        return not self._task.done.is_set()

    def places(self) -> Iterator[int]:
        """Give how many answers are computed before this one, as that changes, until its turn."""
        return self.conversation.pipeline.worker.places(self._task)

    def __iter__(self) -> Iterator[str]:
        """Give pieces of the answer as they come, without the thought before it."""
        with contextlib.closing(self.pieces()) as pieces:
            yield from (piece.text for piece in pieces if not piece.is_thought)

    def pieces(self) -> Generator[AnswerPiece]:
        """Give pieces of the thought and of the answer as they come.

        An error of the computation is raised here. An answer that is stopped before its turn has
        no pieces, and ends at once.
        """
        if self.is_running:
            self.conversation.pipeline.worker.check_process()
        try:
            while (piece := self._next_piece()) is not None:
                if piece.text:
                    yield piece
            if self._is_given_up():
                self.conversation.pipeline.worker.withdraw(self._task)
            else:
                self.wait()
        except BaseException:  # the loop is left, or interrupted
            self._task.stop.set()
            raise

    def _next_piece(self) -> AnswerPiece | None:
        pieces = self._answer.pieces
        while not self._is_given_up():
            if self._task.done.is_set() and pieces.empty():  # iterated before
                return None
            try:
                return pieces.get(timeout=LOOK if self._is_waiting() else LONGEST_WAIT)
            except queue.Empty:
                continue
        return None

    def _is_waiting(self) -> bool:
        """Return whether it waits for its turn; then the computation looks at the stop event."""
        return self.is_running and not self._task.started.is_set()

    def _is_given_up(self) -> bool:
        """Return whether it is stopped before its turn."""
        return self._is_waiting() and self._task.stop.is_set()


class AnswerStreamer:
    """Hand pieces of text to an answer as they are decoded, and note the time of each token.

    The tokens of the `thought` before the answer are decoded by themselves.
    """

    def __init__(self, request: Request, answer: Answer) -> None:
        tokenizer = request.processor.tokenizer
        self.decoder, self.thought_decoder = Decoder(tokenizer), Decoder(tokenizer)
        self.started, self.answer = request.started, answer
        self.thought = request.new_thought()
        self.stop_strings = StopStrings(request.sampling.stop_strings)
        self.token_ids: list[int] = []
        self.last: float | None = None
        self._has_text = False

    def put(self, token: int) -> None:
        """Take the next token."""
        now = time.perf_counter()
        if self.last is None:
            self.answer.times.first_token = now - self.started
        else:
            self.answer.times.next_tokens.append(now - self.last)
        self.last = now
        self.add([token])

    def add(self, token_ids: list[int]) -> None:
        """Pass on the text that tokens add, up to a stop string."""
        self.token_ids += token_ids
        of_answer = [token for token in token_ids if self._is_of_answer(token)]
        self._put(self.stop_strings.add(self.decoder.add(of_answer)))

    def _is_of_answer(self, token: int) -> bool:
        """Return whether a token belongs to the answer; the text of a thought is passed on."""
        if self.thought.takes(token):
            return True
        if not self.thought.is_mark(token):
            text = self.thought_decoder.add([token])
            self.answer.pieces.put(AnswerPiece(text, is_thought=True))
        return False

    def end(self) -> None:
        """Pass on what is left, and note the whole texts."""
        self._put(self.stop_strings.end())
        self.answer.text = self.stop_strings.text.strip()
        self.answer.is_cut = self.stop_strings.is_set()
        self.answer.thought = self.thought_decoder.text.strip()
        self.answer.counts.thought = self.thought.length

    def _put(self, text: str) -> None:
        """Pass on text of the answer; what stands between it and a thought is left out."""
        if self.thought.length and not self._has_text:
            text = text.lstrip()
        self._has_text = self._has_text or bool(text)
        self.answer.pieces.put(AnswerPiece(text))
