"""What each browser window has asked, its conversation and its uploads, and answers as a chat.

What this module does not know: how a page looks.
"""

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from helpers.errors import PictureError, UserError
from helpers.inputs.box_drawing import draw_boxes
from helpers.inputs.boxes import boxes_in
from helpers.inputs.images import open_picture
from helpers.run.conversations import Conversation
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.run.replies import LENGTH, Reply
from helpers.upstream.gradio import FOLDER

AT_ONCE = "Beam search compares whole answers, so none streams; this one comes when it is done."

THOUGHT = "Thought"
CUT = "The limit of tokens ended the thought before there was an answer."
BOXES = "The picture with the boxes of this answer"
MOST_WINDOWS = 64  # whose conversations are kept; a program's are windows that nobody closes
LARGEST_DRAWING = 1024  # the longer side in pixels of a picture with boxes

Picture = Image.Image | str | Path  # or where it is
Chat = list[dict[str, Any]]  # messages as Gradio's chat has them


def _opened(picture: Picture) -> Image.Image:
    """Open a picture; an error names an upload as its user does, without our folder for it."""
    try:
        return open_picture(picture)
    except PictureError as error:
        name = Path(picture).name if isinstance(picture, str | Path) else ""
        raise PictureError(str(error).replace(str(picture), name)) from None


class Window:
    """What one browser window has asked since it was opened or cleared."""

    def __init__(self, pipeline: VisionLanguagePipeline, folder: Path = FOLDER) -> None:
        self.pipeline, self.folder = pipeline, folder
        self.drawings: list[Path] = []  # pictures with boxes, which `folder` keeps for the page
        self.conversation: Conversation | None = None
        # Sizes and pixels of the pictures that the conversation is about.
        self.content: tuple[tuple[tuple[int, int], bytes], ...] = ()
        # The last question with its pictures, and the answer if there is any.
        self.last_question: tuple[str, Sequence[Picture], Reply | None] | None = None
        self.stop = threading.Event()  # of the last answer
        self.cleared = False

    def ask(self, text: str, pictures: Sequence[Picture], options: dict[str, Any]) -> Reply:
        """Start an answer; other pictures than the last question's start a new conversation."""
        if self.conversation is not None:
            self.conversation.wait()  # what the last answer leaves decides whether pictures are new
        self.last_question, self.stop = (text, pictures, None), threading.Event()
        if self.cleared:
            self.stop.set()
        images = [_opened(picture) for picture in pictures]
        content = tuple((image.size, image.tobytes()) for image in images)
        if self.conversation is None or self.content != content:
            self.conversation, self.content = self.pipeline.conversation(), content
        new_images = [] if self.conversation.messages else images
        reply = self.conversation.ask(text, new_images, stop=self.stop, **options)
        self.last_question = (text, pictures, reply)
        return reply

    def take_back(self) -> tuple[str, Sequence[Picture]] | None:
        """Forget the last question and its answer; return the question and its pictures.

        None if there is none.
        """
        if self.last_question is None:
            return None
        self.stop.set()
        (text, pictures, reply), self.last_question = self.last_question, None
        if reply is not None:
            reply.conversation.take_back(reply)
        return text, pictures

    def draw_boxes(self, answer: str) -> Path | None:
        """Return a file with the picture and an answer's boxes on it; None without any.

        Of several pictures an answer does not say which one it means.
        """
        pictures = self.last_question[1] if self.last_question else ()
        boxes = boxes_in(answer)
        if not boxes or len(pictures) != 1:
            return None
        picture = _opened(pictures[0])
        picture.thumbnail((LARGEST_DRAWING, LARGEST_DRAWING))
        with tempfile.NamedTemporaryFile(suffix=".png", dir=self.folder, delete=False) as file:
            draw_boxes(picture, boxes).save(file, "png")
        self.drawings.append(Path(file.name))
        return self.drawings[-1]

    def clear(self) -> None:
        """End the running answer, and every one to come: a cleared window is not asked again."""
        self.cleared = True
        self.stop.set()
        while self.drawings:
            self.drawings.pop().unlink(missing_ok=True)


class Sessions:
    """The windows that are open, by what Gradio calls their session, and what they uploaded."""

    def __init__(self, pipeline: VisionLanguagePipeline, folder: Path = FOLDER) -> None:
        self.pipeline, self.folder = pipeline, folder
        self.uploads: dict[str, set[Path]] = {}
        self.windows: OrderedDict[str, Window] = OrderedDict()  # the longest unused first
        self.lock = threading.Lock()

    def window(self, session: str) -> Window:
        """Return the window of a session; of too many, the longest unused is forgotten.

        What is computed for it goes on, and its drawings stay for a page that may show them.
        """
        with self.lock:
            window = self.windows.setdefault(session, Window(self.pipeline, self.folder))
            self.windows.move_to_end(session)
            while len(self.windows) > MOST_WINDOWS:
                self.windows.popitem(last=False)
        return window

    def uploaded(self, session: str, paths: Iterable[str]) -> None:
        """Remember which files a window brought."""
        with self.lock:
            self.uploads.setdefault(session, set()).update(map(Path, paths))

    def clear(self, session: str) -> None:
        """Forget what a window has asked."""
        with self.lock:
            window = self.windows.pop(session, None)
        if window is not None:
            window.clear()

    def close(self, session: str) -> None:
        """Drop everything of a window that is gone, and its files unless another has the same."""
        self.clear(session)
        with self.lock:
            mine = self.uploads.pop(session, set())
            paths = mine.difference(*self.uploads.values())
        for path in paths:
            path.unlink(missing_ok=True)


def respond(
    window: Window,
    text: str,
    pictures: Sequence[Picture],
    history: Chat,
    options: dict[str, Any],
) -> Iterator[Chat]:
    """Yield the chat with the answer so far; an error is shown as a sentence in the chat.

    Several beams cannot stream, which the chat says until their answer is there. When the window
    is cleared meanwhile, the last chat is empty.
    """

    def chat(content: str | list[Any]) -> Chat:
        return _with_turn(history, text, content, thought, is_open=not answer)

    beams, answer, thought = options.get("num_beams", 1), "", ""
    placeholder = "" if beams == 1 else _small(AT_ONCE)
    yield chat(placeholder)
    try:
        reply = window.ask(text, pictures, options)
        for place in reply.places():
            yield chat(_small(f"waiting; questions before this one: {place}"))
        yield chat(placeholder)
        for piece in reply.pieces():
            if piece.is_thought:
                thought += piece.text
            else:
                answer += piece.text
            yield chat(answer)
        times = _times(reply, beams)
        is_cut = thought and reply.finish == LENGTH
        answer = answer.strip() or (_small(CUT) if is_cut else "")
        words = answer + (times and f"\n\n{_small(times)}")
        drawing = window.draw_boxes(answer)
        yield chat(words if drawing is None else [words, {"path": str(drawing), "alt_text": BOXES}])
    except UserError as error:
        yield with_error(history, text, error)
    # The page may show what was sent to it before it was cleared after it was cleared.
    if window.cleared:
        yield []


def with_error(history: Chat, text: str, error: UserError) -> Chat:
    """Return the chat with a question and the sentence on why it has no answer."""
    return _with_turn(history, text, f"⚠️ {error}")


def _with_turn(
    history: Chat, text: str, answer: str | list[Any], thought: str = "", *, is_open: bool = False
) -> Chat:
    """Return the chat with a question, and its answer below the thought, folded when it is over."""
    turn: Chat = [{"role": "user", "content": text}]
    if thought:
        metadata = {"title": THOUGHT, "status": "pending" if is_open else "done"}
        turn.append({"role": "assistant", "content": thought, "metadata": metadata})
    return [*history, *turn, {"role": "assistant", "content": answer}]


def without_last_turn(history: Chat) -> Chat:
    """Return the chat without its last question and what followed it."""
    roles = [message["role"] for message in history]
    return history[: len(roles) - 1 - roles[::-1].index("user")] if "user" in roles else []


def _small(text: str) -> str:
    return f"<small>{text}</small>"


def _times(reply: Reply, beams: int) -> str:
    first, rest = reply.times.first_token, reply.times.per_token
    if not first:
        return ""
    if beams > 1:
        return f"{beams} beams, all at once after {first:.2f} s"
    words = f"first token {first * 1000:.0f} ms"
    return f"{words}, then {rest * 1000:.1f} ms each" if rest else words
