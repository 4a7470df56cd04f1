"""One chat page for all models: pictures, questions, answers that stream in.

The page is served to this computer only, loads nothing from elsewhere, and keeps one conversation
for each browser window. What its user can set is data: a sequence of `Slider`, `Tick` and `Radio`.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from helpers.errors import PictureError, UserError
from helpers.inputs.images import open_picture
from helpers.models.base import Processor
from helpers.run.pipeline import EMPTY, Conversation, Reply, VisionLanguagePipeline

MAXIMUM_UPLOAD = "20mb"
HOUR = 3600  # seconds
# No web fonts: they would be fetched from elsewhere.
THEME = gr.themes.Default(
    primary_hue="blue",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(body_text_color_subdued="*neutral_600")  # the default has too little contrast for WCAG
# Gradio's button that adds to a gallery is a button around an input, which screen readers cannot
# tell apart. Several pictures can be chosen at once instead.
CSS = ".icon-button:has(input[type=file]) { display: none; }"
GENERAL_NOTICE = "Answers can be wrong. Nothing leaves this computer."
AT_ONCE = "Beam search compares whole answers, so none streams; this one comes when it is done."


@dataclass(frozen=True)
class Slider:
    """A number that the page's user sets: an `option` of `Conversation.ask` and where it starts.

    With a whole `step` the number is a whole one.
    """

    option: str
    label: str
    low: float
    high: float
    value: float
    step: float

    def component(self) -> gr.Slider:
        """Return what the page shows; to be called where it belongs."""
        return gr.Slider(self.low, self.high, self.value, step=self.step, label=self.label)

    def options(self, value: float) -> dict[str, Any]:
        """Return what a value means to `Conversation.ask`."""
        return {self.option: int(value) if isinstance(self.step, int) else value}


@dataclass(frozen=True)
class Tick:
    """An `option` of `Conversation.ask` that is on or off."""

    option: str
    label: str
    value: bool = False

    def component(self) -> gr.Checkbox:
        """Return what the page shows; to be called where it belongs."""
        return gr.Checkbox(self.value, label=self.label)

    def options(self, value: bool) -> dict[str, Any]:
        """Return what a value means to `Conversation.ask`."""
        return {self.option: value}


@dataclass(frozen=True)
class Radio:
    """One of several `ways` to answer, each with its options of `Conversation.ask`; a `note` helps.

    The first way is where it starts.
    """

    label: str
    ways: Mapping[str, Mapping[str, Any]]
    note: str = ""

    def component(self) -> gr.Radio:
        """Return what the page shows; to be called where it belongs."""
        ways = list(self.ways)
        return gr.Radio(ways, value=ways[0], label=self.label, info=self.note)

    def options(self, value: str) -> dict[str, Any]:
        """Return what a value means to `Conversation.ask`."""
        return dict(self.ways[value])


Control = Slider | Tick | Radio
Shown = Sequence[Image.Image | str | Path]  # pictures, or where they are
SAMPLING: tuple[Control, ...] = (
    Tick("do_sample", "Sample (otherwise the most probable token)"),
    Slider("temperature", "Temperature", 0.1, 2.0, value=0.7, step=0.1),
    Slider("top_p", "Top-p", 0.1, 1.0, value=0.9, step=0.05),
)


def options_of(controls: Sequence[Control], values: Sequence[Any]) -> dict[str, Any]:
    """Return what controls are set to; where two set the same option, the earlier one counts."""
    options: dict[str, Any] = {}
    for control, value in reversed([*zip(controls, values, strict=True)]):
        options |= control.options(value)
    return options


def _pictures_component(processor: Processor) -> gr.Component:
    """Return where pictures are uploaded: one, or several for a model that takes them."""
    sources = ["upload", "clipboard"]
    if processor.most_pictures == 1:
        component = gr.Image(label="Picture", sources=sources)
    else:
        component = gr.Gallery(
            label="Pictures", sources=sources, file_types=["image"], columns=2, height=300
        )
    component.preprocess = _paths_of
    return component


def _paths_of(payload) -> list[str]:
    """Return the paths of what was uploaded: opening it, and telling errors, is ours."""
    if payload is None:
        return []
    several = getattr(payload, "root", None)
    return [payload.path] if several is None else [item.image.path for item in several]


def _opened(shown: Image.Image | str | Path) -> Image.Image:
    """Open a picture; an error names an upload as its user does, without our folder for it."""
    try:
        return open_picture(shown)
    except PictureError as error:
        name = Path(shown).name if isinstance(shown, str | Path) else ""
        raise PictureError(str(error).replace(str(shown), name)) from None


class Window:
    """What one browser window has asked since it was opened or cleared."""

    def __init__(self, pipeline: VisionLanguagePipeline) -> None:
        self.pipeline = pipeline
        self.conversation: Conversation | None = None
        self.pictures: tuple = ()  # sizes and pixels of those that the conversation is about
        # The last question with its pictures, and the answer if there is any.
        self.asked: tuple[str, Shown, Reply | None] | None = None
        self.stop = threading.Event()  # of the last answer
        self.cleared = False

    def ask(self, text: str, shown: Shown, options: dict[str, Any]) -> Reply:
        """Start an answer; other pictures than the last question's start a new conversation."""
        self.asked, self.stop = (text, shown, None), threading.Event()
        if self.cleared:
            self.stop.set()
        pictures = [_opened(picture) for picture in shown]
        content = tuple((picture.size, picture.tobytes()) for picture in pictures)
        if self.conversation is None or self.pictures != content:
            self.conversation, self.pictures = self.pipeline.conversation(), content
        new = [] if self.conversation.ids else pictures
        reply = self.conversation.ask(text, new, stop=self.stop, **options)
        self.asked = (text, shown, reply)
        return reply

    def take_back(self) -> tuple[str, Shown] | None:
        """Forget the last question and its answer; return the question and its pictures.

        None if there is none.
        """
        if self.asked is None:
            return None
        self.stop.set()
        (text, shown, reply), self.asked = self.asked, None
        if reply is not None:
            reply.conversation.take_back(reply)
        return text, shown

    def clear(self) -> None:
        """End the running answer, and every one to come: a cleared window is not asked again."""
        self.cleared = True
        self.stop.set()


class Sessions:
    """The windows that are open, by what Gradio calls their session, and what they uploaded."""

    def __init__(self, pipeline: VisionLanguagePipeline) -> None:
        self.pipeline = pipeline
        self.uploads: dict[str, set[Path]] = {}
        self.windows: dict[str, Window] = {}

    def window(self, session: str) -> Window:
        """Return the window of a session."""
        return self.windows.setdefault(session, Window(self.pipeline))

    def uploaded(self, session: str, paths: Iterable[str]) -> None:
        """Remember which files a window brought."""
        self.uploads.setdefault(session, set()).update(map(Path, paths))

    def clear(self, session: str) -> None:
        """Forget what a window has asked."""
        self.windows.pop(session, Window(self.pipeline)).clear()

    def close(self, session: str) -> None:
        """Drop everything of a window that is gone, and its files unless another has the same."""
        self.clear(session)
        mine = self.uploads.pop(session, set())
        for path in mine.difference(*self.uploads.values()):
            path.unlink(missing_ok=True)


def respond(
    window: Window, text: str, shown: Shown, history: list, options: dict
) -> Iterator[list]:
    """Yield the chat with the answer so far; an error is shown as a sentence in the chat.

    Several beams cannot stream, which the chat says until their answer is there. When the window
    is cleared meanwhile, the last chat is empty.
    """
    history = [*history, {"role": "user", "content": text}]

    def chat(answer: str) -> list:
        return [*history, {"role": "assistant", "content": answer}]

    beams, said = options.get("num_beams", 1), ""
    begun = "" if beams == 1 else _small(AT_ONCE)
    yield chat(begun)
    started = time.perf_counter()
    try:
        reply = window.ask(text, shown, options)
        for place in reply.places():
            yield chat(_small(f"waiting; questions before this one: {place}"))
        yield chat(begun)
        for piece in reply:
            said += piece
            yield chat(said)
        taken = time.perf_counter() - started
        times = _times(reply) if beams == 1 else f"{beams} beams, all at once after {taken:.2f} s"
        yield chat(said.strip() + (times and f"\n\n{_small(times)}"))
    except UserError as error:
        yield chat(f"⚠️ {error}")
    # The page may show what was sent to it before it was cleared after it was cleared.
    if window.cleared:
        yield []


def _small(text: str) -> str:
    return f"<small>{text}</small>"


def _times(reply: Reply) -> str:
    first, rest = reply.times.first_token, reply.times.per_token
    if not first:
        return ""
    return f"first token {first * 1000:.0f} ms, then {rest * 1000:.1f} ms each"


def build_page(
    pipeline: VisionLanguagePipeline,
    *,
    title: str,
    examples: Sequence[tuple[str, str]] = (),
    maximum_tokens: int = 128,
    terms: str = "",
    controls: Sequence[Control] = SAMPLING,
) -> gr.Blocks:
    """Return the page; `examples` are paths of pictures, each with a question.

    `terms`, Markdown, are the model's terms of use; they are shown under the title. `controls` are
    what its user can set beside the length of answers.
    """
    sessions = Sessions(pipeline)
    length = Slider("max_new_tokens", "Maximum new tokens", 1, 512, value=maximum_tokens, step=1)
    controls = (length, *controls)
    # Uploads go with their window; what a window left that closed too early, with the page.
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as page:
        gr.Markdown(f"# {title}\n\n{pipeline.notice or GENERAL_NOTICE}\n\n{terms}".strip())
        with gr.Row():
            with gr.Column(scale=1):
                pictures = _pictures_component(pipeline.processor)
                settings = [control.component() for control in controls]
            with gr.Column(scale=2):
                chat = gr.Chatbot(label="Conversation", height=380, buttons=["copy"])
                question = gr.Textbox(
                    label="Question", placeholder="Ask about the picture", lines=1, max_lines=4
                )
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", min_width=90)
                    stop = gr.Button("Stop", min_width=90)
                    again = gr.Button("Regenerate", min_width=90)
                    clear = gr.Button("Clear", min_width=90)
        if examples:
            one = isinstance(pictures, gr.Image)
            samples = [[path if one else [path], text] for path, text in examples]
            gr.Examples(samples, [pictures, question])
            # An upload that equals an example is one file with it.
            sessions.uploaded("examples", map(str, Path(get_upload_folder()).rglob("*.*")))

        # Gradio hands the request to a positional parameter of this type only.
        def answer(request: gr.Request, text, image, history, *values):
            if not (text or "").strip():  # the second of two clicks, for one
                gr.Warning(EMPTY)
                yield gr.skip(), gr.skip()
                return
            window, options = sessions.window(request.session_hash), options_of(controls, values)
            question_now = ""  # at once, and then it is left alone: the next one may be typed
            for chat_now in respond(window, text, image, history or [], options):
                yield chat_now, question_now
                question_now = gr.skip()

        def regenerate(request: gr.Request, history, *values):
            window, options = sessions.window(request.session_hash), options_of(controls, values)
            last = window.take_back()
            if last is None:
                yield history
            else:
                yield from respond(window, *last, history[:-2], options)

        def forget(request: gr.Request) -> list:
            sessions.clear(request.session_hash)
            return []

        def stop_answer(request: gr.Request) -> None:
            sessions.window(request.session_hash).stop.set()

        def leave(request: gr.Request) -> None:
            sessions.close(request.session_hash)

        def keep(request: gr.Request, shown) -> None:
            sessions.uploaded(request.session_hash, shown)

        # A question that is asked during an answer, or just after it was stopped, comes next.
        gr.on(
            [ask.click, question.submit],
            answer,
            [question, pictures, chat, *settings],
            [chat, question],
            api_name="ask",
            trigger_mode="always_last",
        )
        again.click(regenerate, [chat, *settings], chat)
        stop.click(stop_answer, queue=False)
        gr.on([clear.click, chat.clear], forget, None, chat, queue=False)  # the chat has its own
        pictures.upload(keep, pictures, queue=False, api_visibility="private")
        page.unload(leave)
    return page


def open_page(page: gr.Blocks, *, wait: bool = False, port: int | None = None) -> str:
    """Serve the page on this computer and return its address; `wait` blocks until it is closed."""
    page.queue(default_concurrency_limit=None)  # the pipeline lets one answer at a time begin
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        quiet=True,
        inline=False,
        prevent_thread_lock=not wait,
        max_file_size=MAXIMUM_UPLOAD,
        footer_links=[],
        theme=THEME,
        css=CSS,
    )
    return address


def save_examples(
    folder: Path, asked: Sequence[tuple[Image.Image, object]]
) -> list[tuple[str, str]]:
    """Write pictures into `folder` and return their paths with their questions."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for number, (picture, question) in enumerate(asked, 1):
        path = folder / f"example-{number}.png"
        picture.save(path)
        examples.append((str(path), question.text))
    return examples
