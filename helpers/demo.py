"""One chat page for all models: a picture, questions, answers that stream in.

The page is served to this computer only, loads nothing from elsewhere, and keeps one conversation
for each browser window.
"""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from helpers.errors import UserError
from helpers.pipeline import Conversation, Reply, VisionLanguagePipeline

MAXIMUM_UPLOAD = "20mb"
# No web fonts: they would be fetched from elsewhere.
THEME = gr.themes.Default(
    primary_hue="blue",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)
GENERAL_NOTICE = "Answers can be wrong. Nothing leaves this computer."


class Sessions:
    """The conversation and the running answer of each browser window."""

    def __init__(self, pipeline: VisionLanguagePipeline) -> None:
        self.pipeline = pipeline
        self.conversations: dict[str, Conversation] = {}
        self.stops: dict[str, threading.Event] = {}
        self.pictures: dict[str, tuple] = {}

    def ask(
        self, session: str, text: str, picture: Image.Image | None, options: dict[str, Any]
    ) -> Reply:
        """Start an answer; another picture than the last question's starts a new conversation."""
        content = (picture.mode, picture.size, picture.tobytes()) if picture is not None else ()
        if session not in self.conversations or self.pictures.get(session) != content:
            self.conversations[session] = self.pipeline.conversation()
            self.pictures[session] = content
        conversation = self.conversations[session]
        new = [picture] if picture is not None and not conversation.ids else []
        self.stops[session] = threading.Event()
        return conversation.ask(text, new, stop=self.stops[session], **options)

    def stop(self, session: str) -> None:
        """End the running answer of a window."""
        if session in self.stops:
            self.stops[session].set()

    def forget(self, session: str) -> None:
        """Stop and drop everything of a window."""
        self.stop(session)
        for kept in (self.conversations, self.stops, self.pictures):
            kept.pop(session, None)


def respond(
    sessions: Sessions, session: str, text: str, picture, history: list, options: dict
) -> Iterator[list]:
    """Yield the chat with the answer so far; an error is shown as a sentence in the chat."""
    history = [*history, {"role": "user", "content": text}]
    answer = {"role": "assistant", "content": ""}
    yield [*history, answer]
    try:
        reply = sessions.ask(session, text, picture, options)
        for piece in reply:
            answer["content"] += piece
            yield [*history, answer]
        answer["content"] = answer["content"].strip() + _times(reply)
    except UserError as error:
        answer["content"] = f"⚠️ {error}"
    yield [*history, answer]


def _times(reply: Reply) -> str:
    first, rest = reply.times.first_token, reply.times.per_token
    if not first:
        return ""
    return f"\n\n<small>first token {first * 1000:.0f} ms, then {rest * 1000:.1f} ms each</small>"


def build_page(
    pipeline: VisionLanguagePipeline,
    *,
    title: str,
    examples: Sequence[tuple[str, str]] = (),
    maximum_tokens: int = 128,
) -> gr.Blocks:
    """Return the page; `examples` are paths of pictures, each with a question."""
    sessions = Sessions(pipeline)
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}\n\n{pipeline.notice or GENERAL_NOTICE}")
        with gr.Row():
            with gr.Column(scale=1):
                picture = gr.Image(label="Picture", type="pil", sources=["upload", "clipboard"])
                tokens = gr.Slider(1, 512, maximum_tokens, step=1, label="Maximum new tokens")
                sample = gr.Checkbox(False, label="Sample (otherwise the most probable token)")
                temperature = gr.Slider(0.1, 2.0, 0.7, step=0.1, label="Temperature")
                top_p = gr.Slider(0.1, 1.0, 0.9, step=0.05, label="Top-p")
            with gr.Column(scale=2):
                chat = gr.Chatbot(label="Conversation", height=380, buttons=["copy"])
                question = gr.Textbox(
                    label="Question", placeholder="Ask about the picture", lines=1, max_lines=4
                )
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary")
                    stop = gr.Button("Stop")
                    clear = gr.Button("Clear")
        if examples:
            gr.Examples([list(example) for example in examples], [picture, question])

        # Gradio hands the request to a positional parameter of this type only.
        def answer(text, image, history, tokens, sample, temperature, top_p, request: gr.Request):
            options = {"max_new_tokens": int(tokens), "do_sample": sample}
            options |= {"temperature": temperature, "top_p": top_p}
            for chat_now in respond(
                sessions, request.session_hash, text, image, history or [], options
            ):
                yield chat_now, ""

        def forget(request: gr.Request) -> list:
            sessions.forget(request.session_hash)
            return []

        def stop_answer(request: gr.Request) -> None:
            sessions.stop(request.session_hash)

        def leave(request: gr.Request) -> None:
            sessions.forget(request.session_hash)

        inputs = [question, picture, chat, tokens, sample, temperature, top_p]
        gr.on([ask.click, question.submit], answer, inputs, [chat, question], api_name="ask")
        stop.click(stop_answer, queue=False)
        clear.click(forget, None, chat, queue=False)
        page.unload(leave)
    return page


def open_page(page: gr.Blocks, *, wait: bool = False, port: int | None = None) -> str:
    """Serve the page on this computer and return its address; `wait` blocks until it is closed."""
    page.queue(default_concurrency_limit=4)
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
