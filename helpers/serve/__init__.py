"""A model for others to use: the chat page, and a server in OpenAI's protocols.

Knows windows, uploads and streaming. Does not know how an answer is computed.
"""

# Before any module of this room imports Gradio.
from helpers.upstream import gradio  # noqa: F401
