"""One chat page for all models: pictures, questions, answers that stream in.

The page is served to this computer only, loads nothing from elsewhere, and keeps one conversation
for each browser window. What its user can set is data: a sequence of `Slider`, `Tick` and `Radio`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from helpers.inputs.messages import EMPTY
from helpers.inputs.questions import Question
from helpers.models.base import Processor
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.serve.controls import SAMPLING, Control, Slider, options_of
from helpers.serve.windows import Chat, Sessions, Window, respond

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


def _pictures_component(processor: Processor) -> gr.Image | gr.Gallery:
    """Return where pictures are uploaded: one, or several for a model that takes them."""
    sources: list[Literal["upload", "webcam", "clipboard"]] = ["upload", "clipboard"]
    component: gr.Image | gr.Gallery
    if processor.most_pictures == 1:
        component = gr.Image(label="Picture", sources=sources)
    else:
        component = gr.Gallery(
            label="Pictures", sources=sources, file_types=["image"], columns=2, height=300
        )
    component.preprocess = _paths_of  # type: ignore[method-assign, assignment]
    return component


def _paths_of(payload: Any) -> list[str]:
    """Return the paths of what was uploaded: opening it, and telling errors, is ours."""
    if payload is None:
        return []
    several = getattr(payload, "root", None)
    return [payload.path] if several is None else [item.image.path for item in several]


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
        self.sessions = Sessions(pipeline)
        # Uploads go with their window; what a window left that closed too early, with the page.
        self.blocks = gr.Blocks(
            title=title, analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)
        )
        with self.blocks:
            gr.Markdown(heading)
            with gr.Row():
                with gr.Column(scale=1):
                    self.pictures = _pictures_component(pipeline.processor)
                    self.settings = [control.component() for control in controls]
                with gr.Column(scale=2):
                    self._lay_out_chat()
            if examples:
                self._lay_out_examples(examples)
            self._connect()

    def _lay_out_chat(self) -> None:
        """Create the conversation, the field of the next question, and the buttons under it."""
        self.chat = gr.Chatbot(label="Conversation", height=380, buttons=["copy"])
        self.question = gr.Textbox(
            label="Question", placeholder="Ask about the picture", lines=1, max_lines=4
        )
        with gr.Row():
            self.ask_button = gr.Button("Ask", variant="primary", min_width=90)
            self.stop_button = gr.Button("Stop", min_width=90)
            self.regenerate_button = gr.Button("Regenerate", min_width=90)
            self.clear_button = gr.Button("Clear", min_width=90)

    def _lay_out_examples(self, examples: Sequence[tuple[str, str]]) -> None:
        single = isinstance(self.pictures, gr.Image)
        samples = [[path if single else [path], text] for path, text in examples]
        gr.Examples(samples, [self.pictures, self.question])
        # An upload that equals an example is one file with it.
        self.sessions.uploaded("examples", map(str, Path(get_upload_folder()).rglob("*.*")))

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
        if not (text or "").strip():  # the second of two clicks, for one
            gr.Warning(EMPTY)
            yield gr.skip(), gr.skip()
            return
        window, options = self._window(request), options_of(self.controls, values)
        field: Any = ""  # at once, and then it is left alone: the next one may be typed
        for chat in respond(window, text or "", pictures, history or [], options):
            yield chat, field
            field = gr.skip()

    def regenerate(self, request: gr.Request, history: Chat, *values: Any) -> Iterator[Chat]:
        """Yield the chat with another answer to its last question."""
        window, options = self._window(request), options_of(self.controls, values)
        question = window.take_back()
        if question is None:
            yield history
        else:
            yield from respond(window, *question, history[:-2], options)

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

    def keep(self, request: gr.Request, paths: list[str]) -> None:
        """Remember which files a window brought."""
        self.sessions.uploaded(_session(request), paths)

    def _window(self, request: gr.Request) -> Window:
        return self.sessions.window(_session(request))


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
    heading = f"# {title}\n\n{pipeline.notice or GENERAL_NOTICE}\n\n{terms}".strip()
    length = Slider("max_new_tokens", "Maximum new tokens", 1, 512, value=maximum_tokens, step=1)
    return Page(pipeline, title, heading, examples, (length, *controls)).blocks


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
