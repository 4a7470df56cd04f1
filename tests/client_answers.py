"""Answers that other clients get from a server: `python client_answers.py ADDRESS MODEL PICTURE`.

Runs in the clients' own environment. PICTURE is a file with a data URL; what each client gets is
printed as JSON.
"""

import json
import os
import sys
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it calls home when it is imported

import instructor
import litellm
import openai
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict

QUESTION = "What is in the picture?"


class Description(BaseModel):
    """What is asked of `instructor`; with more allowed, a small model would not come to an end."""

    model_config = ConfigDict(extra="forbid")
    is_round: bool


def main(address: str, model: str, picture: str) -> dict[str, object]:
    """Return what each client got."""
    parts = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": QUESTION},
    ]
    messages = [{"role": "user", "content": parts}]
    chat = ChatOpenAI(base_url=address, api_key="none", model=model, stream_usage=True)
    pieces = list(chat.stream([HumanMessage(parts)]))
    completion = litellm.completion(
        model=f"openai/{model}", api_base=address, api_key="none", messages=messages
    )
    client = instructor.from_openai(
        openai.OpenAI(base_url=address, api_key="none"), mode=instructor.Mode.JSON_SCHEMA
    )
    described = client.chat.completions.create(
        model=model, messages=messages, response_model=Description, max_tokens=60
    )
    try:
        chat.invoke([HumanMessage("red " * 5000)])
        too_long = ""
    except Exception as error:
        too_long = type(error).__name__
    return {
        "langchain": chat.invoke([HumanMessage(parts)]).content,
        "langchain streamed": "".join(piece.content for piece in pieces),
        "langchain tokens": pieces[-1].usage_metadata is not None
        or any(piece.usage_metadata for piece in pieces),
        "litellm": completion.choices[0].message.content,
        "instructor": isinstance(described, Description),
        "too long": too_long,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:3], Path(sys.argv[3]).read_text(encoding="utf-8"))))
