"""Messages as chat programs keep them: a role, and a content of texts, pictures and videos.

`{"role": "user", "content": [{"type": "image", "image": ...}, {"type": "text", "text": "..."}]}`; a
content that is only text may be a string. A video, `{"type": "video", "video": ...}`, is a `Video`,
a list of its frames, or where it is.

What this module does not know: prompts, and how a picture is opened.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from helpers.errors import QuestionError
from helpers.inputs.images import Picture
from helpers.inputs.video import Choose, Video, open_video

Message = dict[str, Any]
SYSTEM_ROLE = "system"
ROLES = (SYSTEM_ROLE, "user", "assistant")
EMPTY = "The question is empty; ask something about the picture."


def content_of(message: Message) -> tuple[str, int]:
    """Return a message's text and how many pictures it has; `QuestionError` if it is none."""
    parts = parts_of(message)
    texts = "".join(str(part["text"]) for part in parts if part["type"] == "text")
    return texts, sum(part["type"] == "image" for part in parts)


def pictures_of(message: Message) -> list[Any]:
    """Return the pictures and videos of a message in their order, a video as `Video`.

    Raises `QuestionError` for a picture without what it shows.
    """
    pictures: list[Any] = []
    for part in parts_of(message):
        if part["type"] == "video":
            pictures.append(video_of(part["video"]))
        elif part["type"] == "image":
            if "image" not in part:
                raise QuestionError(
                    "A picture in a message lacks what it shows; give a file's path or a PIL "
                    'picture as {"type": "image", "image": ...}.'
                )
            pictures.append(part["image"])
    return pictures


def parts_of(message: Message) -> Sequence[Mapping[str, Any]]:
    """Return the parts of a message's content in their order; `QuestionError` if it is none."""
    has_role = isinstance(message, Mapping) and message.get("role") in ROLES
    content = message.get("content") if has_role else None
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, Sequence) and any(map(_is_audio, content)):
        raise QuestionError("No model here reads audio; leave it out, or write down what is said.")
    if not isinstance(content, Sequence) or not all(map(_is_part, content)):
        raise QuestionError(
            "A message needs a role, system, user or assistant, and a content: a text, or a list "
            'of {"type": "text", "text": ...} and {"type": "image", "image": ...}.'
        )
    return content


def _is_audio(part: object) -> bool:
    return isinstance(part, Mapping) and "audio" in str(part.get("type"))


def _is_part(part: object) -> bool:
    if not isinstance(part, Mapping):
        return False
    kind = part.get("type")
    if kind == "video":
        video = part.get("video")
        return isinstance(video, str | Path) or (
            isinstance(video, list | tuple | Video) and len(video) > 0
        )
    return kind == "image" or (kind == "text" and isinstance(part.get("text"), str))


def user_message(text: str, pictures: int = 0, *, frames: int = 0) -> Message:
    """Return a user's message with `pictures` pictures, or a video of `frames`, before its text."""
    content: list[Any] = [{"type": "image"}] * pictures
    if frames:
        content.append({"type": "video", "video": [None] * frames})
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def answer_message(text: str) -> Message:
    """Return an assistant's message."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


Pictures = Sequence[Picture] | Picture | None  # several, one, or none


def pictures_in(pictures: Pictures) -> list[Any]:
    """Return pictures as a list; whoever has one picture may give it as it is."""
    if pictures is None:
        return []
    is_one = isinstance(pictures, str | bytes | bytearray | memoryview) or hasattr(pictures, "read")
    several = isinstance(pictures, Sequence | Iterator) and not is_one
    return list(cast(Sequence[Picture], pictures)) if several else [pictures]


def video_of(video: Video | Pictures) -> Video:
    """Return a video as it is, or frames as a video."""
    return video if isinstance(video, Video) else Video(pictures_in(video))


def with_open_videos(message: Message, choose: Choose) -> Message:
    """Return a message whose videos in files are open, of which `choose` returns the frames."""
    parts = [
        {**part, "video": open_video(part["video"], choose)}
        if isinstance(part.get("video"), str | Path)
        else part
        for part in parts_of(message)
    ]
    return {**message, "content": parts}


def message_of(
    question: str | Message, images: Pictures, video: Video | Pictures | str | Path = ()
) -> Message:
    """Return a user's message with these pictures, and a video, before what it has itself.

    Raises `QuestionError` for an empty question or what is none, for pictures beside a message,
    which has its own in it, and for a video that is a file.
    """
    if question is None:
        raise QuestionError(EMPTY)
    if not isinstance(question, str | Mapping):
        raise QuestionError(
            f"A question is a text or a user's message, and not of type {type(question).__name__}; "
            "give it as one of them."
        )
    parts: list[object] = [{"type": "image", "image": image} for image in pictures_in(images)]
    if isinstance(video, str | Path | Video) or pictures_in(video):
        parts.append({"type": "video", "video": video})
    if isinstance(question, str):
        message: Message = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    elif parts:
        raise QuestionError("A message has its pictures in it; give them there and not beside it.")
    else:
        message = dict(question)
    text, _ = content_of(message)
    if message["role"] != "user":
        raise QuestionError(
            "The last message should be a user's, which is to be answered; end with it."
        )
    if not text.strip():
        raise QuestionError(EMPTY)
    check_characters(text)
    return message


def check_characters(question: str) -> None:
    """Raise a `QuestionError` for a question with halves of characters."""
    if has_halves(question):
        raise QuestionError("The question has halves of characters; give it whole ones.")


def has_halves(text: str) -> bool:
    """Return whether a text has halves of characters (surrogates), which no tokenizer takes."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def check_list(messages: Sequence[Message]) -> None:
    """Raise a `QuestionError` unless these are in a list, or something like one."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise QuestionError(
            f"Messages come in a list, and not as an object of type {type(messages).__name__}; put "
            "them in one, a single message too."
        )


def check_turns(messages: Sequence[Message]) -> None:
    """Raise a `QuestionError` unless these are a user's and an assistant's messages in turn.

    A system message may stand before them. Only a user's messages have pictures.
    """
    check_list(messages)
    for message in messages:
        has_words_only = all(part["type"] == "text" for part in parts_of(message))
        if message["role"] != "user" and not has_words_only:
            whose = "A system" if message["role"] == SYSTEM_ROLE else "An assistant's"
            raise QuestionError(f"{whose} message has words only; put its pictures in a question.")
    roles = [message["role"] for message in messages]
    if roles[:1] == [SYSTEM_ROLE]:
        roles = roles[1:]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise QuestionError(
            "The messages before a question should be a user's and an assistant's in turn; join or "
            "leave out others."
        )
