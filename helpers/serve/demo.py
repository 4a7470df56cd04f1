"""One chat page for all models: pictures, questions, answers that stream in.

The page is served to this computer only, loads nothing from elsewhere, and keeps one conversation
for each browser window. What its user can set is data: a sequence of `Slider`, `Tick` and `Radio`.
"""

from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from helpers.inputs.messages import EMPTY
from helpers.models.base import Processor
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.serve.controls import SAMPLING, Control, Slider, options_of
from helpers.serve.windows import Sessions, respond

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
