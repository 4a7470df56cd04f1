"""One chat page for all models: pictures, questions, answers that stream in.

The page is served to this computer only, loads nothing from elsewhere, and keeps one conversation
for each browser window. What its user can set is data: a sequence of `Slider`, `Tick` and `Radio`.
"""

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from PIL import Image

from helpers.convert.folders import Report
from helpers.errors import SettingsError
from helpers.inputs.messages import EMPTY
from helpers.inputs.questions import Question
from helpers.models.processors import Processor
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.serve.controls import SAMPLING, Control, Slider, Tick, effects, options_of
from helpers.serve.look import BUTTON, CSS, FOLDED_IF_NARROW, THEME
from helpers.serve.ports import free_port, not_free
from helpers.serve.reach import ways
from helpers.serve.windows import (
    Chat,
    Picture,
    Sessions,
    Window,
    respond,
    with_error,
    without_last_turn,
)
from helpers.upstream.gradio import BelowAnotherServer, new_folder, uploads_in
from helpers.upstream.proxies import without_proxies

MAXIMUM_UPLOAD = "20mb"
HOUR = 3600  # seconds
USUAL_LENGTH = 128  # tokens of an answer at most, until its user moves the slider
GENERAL_NOTICE = "Answers can be wrong. Nothing leaves this computer."


def _pictures_component(processor: Processor) -> gr.Image | gr.Gallery:
    """Return where pictures are uploaded: one, or several for a model that takes them."""
    sources: list[Literal["upload", "webcam", "clipboard"]] = ["upload", "clipboard"]
    component: gr.Image | gr.Gallery
    if processor.most_pictures == 1:
        component = gr.Image(label="Picture", sources=sources, elem_classes="pictures")
    else:
        component = gr.Gallery(
            label="Pictures",
            sources=sources,
            file_types=["image"],
            columns=2,
            height=300,
            elem_classes="pictures",
        )
    component.preprocess = _paths_of  # type: ignore[method-assign, assignment]
    return component


def _paths_of(payload: Any) -> list[str]:
    """Return the paths of what was uploaded: opening it, and telling errors, is ours."""
    if payload is None:
        return []
    several = getattr(payload, "root", None)
    if several is None:
        return [payload.path]
    # A gallery may be handed videos, too, which are told when they are opened.
    return [(getattr(item, "image", None) or item.video).path for item in several]


def _session(request: gr.Request) -> str:
    """Return what Gradio calls the session of a window; a program may come without one."""
    return request.session_hash or ""


class Page:
    """One chat page: its components, what its events do, and the sessions of its windows.

    `heading` is Markdown.
    """

    def __init__(
        self,
        pipeline: VisionLanguagePipeline,
        title: str,
        heading: str,
        examples: Sequence[tuple[str, str]],
        controls: Sequence[Control],
    ) -> None:
        self.controls = controls
        self.folder = new_folder()  # of uploads: another page may have the same picture
        self.sessions = Sessions(pipeline, self.folder)
        with uploads_in(self.folder):
            self._build(title, heading, examples)

    def _build(self, title: str, heading: str, examples: Sequence[tuple[str, str]]) -> None:
        # Uploads go with their window; what a window left that closed too early, with the page.
        self.blocks = gr.Blocks(
            title=title, analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)
        )
        with self.blocks:
            gr.Markdown(heading)
            with gr.Row(elem_classes="parts"):
                self.pictures = _pictures_component(self.sessions.pipeline.processor)
                with gr.Column(elem_classes="chat"):
                    self._lay_out_chat()
                with gr.Accordion("Settings") as self.fold:
                    self._lay_out_settings()
            if examples:
                self._lay_out_examples(examples)
            self._connect()

    def _lay_out_chat(self) -> None:
        """Create the conversation, the field of the next question, and the buttons under it."""
        self.chat = gr.Chatbot(
            label="Conversation", height=380, buttons=["copy"], elem_classes="conversation"
        )
        self.question = gr.Textbox(
            label="Question", placeholder="Ask about the picture", lines=1, max_lines=4
        )
        with gr.Row():
            self.ask_button = gr.Button("Ask", variant="primary", min_width=BUTTON)
            self.stop_button = gr.Button("Stop", min_width=BUTTON)
            self.regenerate_button = gr.Button("Regenerate", min_width=BUTTON)
            self.clear_button = gr.Button("Clear", min_width=BUTTON)

    def _lay_out_settings(self) -> None:
        """Create what can be set; what changes nothing at first is greyed."""
        values = [control.value for control in self.controls]
        self.settings = [
            control.component(effect)
            for control, effect in zip(self.controls, effects(self.controls, values), strict=True)
        ]

    def _lay_out_examples(self, examples: Sequence[tuple[str, str]]) -> None:
        single = isinstance(self.pictures, gr.Image)
        samples = [[path if single else [path], text] for path, text in examples]
        gr.Examples(samples, [self.pictures, self.question])
        # An upload that equals an example is one file with it.
        self.sessions.uploaded("examples", map(str, self.folder.rglob("*.*")))

    def _connect(self) -> None:
        """Say which method an event calls, and with what."""
        # A question that is asked during an answer, or just after it was stopped, comes next.
        gr.on(
            [self.ask_button.click, self.question.submit],
            self.answer,
            [self.question, self.pictures, self.chat, *self.settings],
            [self.chat, self.question],
            api_name="ask",
            trigger_mode="always_last",
        )
        self.regenerate_button.click(self.regenerate, [self.chat, *self.settings], self.chat)
        self.stop_button.click(self.stop_answer, queue=False)
        clearing = [self.clear_button.click, self.chat.clear]  # the chat has its own
        gr.on(clearing, self.forget, None, self.chat, queue=False)
        self.pictures.upload(self.keep, self.pictures, queue=False, api_visibility="private")
        gr.on(
            [setting.change for setting in self.settings if not isinstance(setting, gr.Slider)],
            self.grey,
            self.settings,
            self.settings,
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
        self.blocks.load(None, None, self.fold, js=FOLDED_IF_NARROW)
        self.blocks.unload(self.leave)

    # What the events call. Gradio hands the request to a positional parameter of this type only,
    # and names its endpoints after the methods.

    def answer(
        self,
        request: gr.Request,
        text: str | None,
        pictures: list[str],
        history: Chat | None,
        *values: Any,
    ) -> Iterator[tuple[Any, Any]]:
        """Yield the chat with an answer as it grows, and the question's field, emptied once."""
        text = (text or "").strip()  # as `ask` and `chat` have it
        if not text:  # the second of two clicks, for one
            gr.Warning(EMPTY)
            yield gr.skip(), gr.skip()
            return
        window = self._window(request)
        field: Any = ""  # at once, and then it is left alone: the next one may be typed
        for chat in self._respond(window, text, pictures, history or [], values):
            yield chat, field
            field = gr.skip()

    def regenerate(self, request: gr.Request, history: Chat | None, *values: Any) -> Iterator[Chat]:
        """Yield the chat with another answer to its last question."""
        history = history or []
        window = self._window(request)
        question = window.take_back()
        if question is None:
            yield history
        else:
            yield from self._respond(window, *question, without_last_turn(history), values)

    def forget(self, request: gr.Request) -> Chat:
        """Forget the conversation of a window, and return the empty chat."""
        self.sessions.clear(_session(request))
        return []

    def stop_answer(self, request: gr.Request) -> None:
        """Stop the answer that a window waits for."""
        self._window(request).stop.set()

    def leave(self, request: gr.Request) -> None:
        """Drop everything of a window that is closed."""
        self.sessions.close(_session(request))

    def grey(self, *values: Any) -> list[dict[str, Any]]:
        """Return what greys the settings that change nothing, as all are set now."""
        return [gr.update(interactive=effect) for effect in effects(self.controls, values)]

    def keep(self, request: gr.Request, paths: list[str]) -> None:
        """Remember which files a window brought."""
        self.sessions.uploaded(_session(request), paths)

    def _respond(
        self,
        window: Window,
        text: str,
        pictures: Sequence[Picture],
        history: Chat,
        values: Sequence[Any],
    ) -> Iterator[Chat]:
        try:
            options = options_of(self.controls, values)
        except SettingsError as error:
            window.last_question = (text, pictures, None)  # so that it can be asked anew
            yield with_error(history, text, error)
        else:
            yield from respond(window, text, pictures, history, options)

    def _window(self, request: gr.Request) -> Window:
        return self.sessions.window(_session(request))


def build_page(
    pipeline: VisionLanguagePipeline,
    *,
    title: str,
    examples: Sequence[tuple[str, str]] = (),
    terms: str = "",
    controls: Sequence[Control] = SAMPLING,
) -> gr.Blocks:
    """Return the page; `examples` are paths of pictures, each with a question.

    `terms`, Markdown, are the model's terms of use; they are shown under the title. `controls` are
    what its user can set beside the length of answers.
    """
    heading = f"# {title}\n\n{pipeline.notice or GENERAL_NOTICE}\n\n{terms}".strip()
    length = Slider("max_new_tokens", "Maximum new tokens", 1, 512, value=USUAL_LENGTH, step=1)
    processor = pipeline.processor
    controls = (length, *thinking_control(processor), *controls, *_picture_budget(processor))
    return Page(pipeline, title, heading, examples, controls).blocks


def thinking_control(processor: Processor) -> list[Control]:
    """Return the switch for a thought before an answer, where there is one."""
    label = "Think before answering, within the maximum of tokens"
    return [Tick("thinking", label, processor.words.thinks)] if processor.has_switch else []


def _picture_budget(processor: Processor) -> list[Control]:
    """Return the control of how many tokens a picture has, where that can be chosen."""
    pieces = processor.pieces
    low, high = pieces.tokens, pieces.largest
    if low == high:
        return []
    value = pieces.tokens_within(processor.picture_tokens)
    label = "Tokens of a picture at most"
    return [Slider("picture_tokens", label, low, high, value=value, step=low)]


_OPEN: dict[str, gr.Blocks] = {}  # pages that were opened last, by their titles
ATTEMPTS = 5  # two pages that are opened at once may find the same port free


def open_page(page: gr.Blocks, *, port: int | None = None, report: Report = print) -> str:
    """Serve the page on this computer, until it is closed, and return its address.

    A page of the same title that this process opened before is closed, as where a notebook's cell
    runs again.
    `report` is told how to reach it where the browser may be on another computer. Raises
    `SettingsError` for a `port` that is taken or that there cannot be.
    """
    title = str(page.title)
    former = _OPEN.get(title, page)
    if port and (former is page or former.server_port != port):
        free_port(port)  # or the former would be closed for nothing
    if former is not page:
        _OPEN.pop(title).close(verbose=False)
    page.queue(default_concurrency_limit=None)  # the pipeline lets one answer at a time begin
    for attempt in range(ATTEMPTS):
        number = free_port(port)
        try:
            address = _served(page, number)
        except OSError:  # another program took it just now
            if port or attempt + 1 == ATTEMPTS:
                raise not_free(number, errno.EADDRINUSE) from None
        else:
            break
    _OPEN[title] = page
    for line in ways(number):
        report(line)
    return address


def _served(page: gr.Blocks, port: int) -> str:
    """Serve a page at a port, and return its address; `OSError` if another program has it."""
    with without_proxies(), uploads_in(page.GRADIO_CACHE):
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            quiet=True,
            inline=False,
            prevent_thread_lock=True,
            max_file_size=MAXIMUM_UPLOAD,
            footer_links=[],
            theme=THEME,
            css=CSS,
            app_kwargs={"middleware": [(BelowAnotherServer, (), {})]},
        )
    return str(address)


def save_examples(
    folder: Path, questions: Sequence[tuple[Image.Image, Question]]
) -> list[tuple[str, str]]:
    """Write the pictures of `questions` into `folder`; return their paths with the texts."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for number, (picture, question) in enumerate(questions, 1):
        path = folder / f"example-{number}.png"
        picture.save(path)
        examples.append((str(path), question.text))
    return examples
