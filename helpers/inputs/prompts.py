"""Conversation templates, and how messages become token ids.

Words of a template that are ordinary text (`USER:` in MobileVLM's) cannot be told from the same
words in a question; special tokens can, and a question that contains them is encoded as text.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from helpers.errors import SettingsError
from helpers.inputs.messages import SYSTEM_ROLE, Message, content_of, parts_of

IMAGE = "<image>"  # where a picture stands in a prompt, before a family puts its tokens there
SYSTEM_WORDS = "{system}"  # where the words of a system message stand in a template


@dataclass(frozen=True)
class PromptPiece:
    """A piece of a prompt: text of the template, text of a person, or a picture."""

    kind: str  # "template", "text" or "image"
    text: str


@dataclass(frozen=True)
class Template:
    """The words around each turn of a conversation.

    A prompt is `system`, then for each turn `user` and its content, `user_end`, `assistant`,
    `before_answer` and the answer, `assistant_end`; it ends after the last `assistant` with
    `answer_start`, which earlier answers do not have: an empty thought, say. Where the messages
    begin with a system message, `system_form` stands instead of `system`, with the words of that
    message at `SYSTEM_WORDS`; where it is None, they stand before the first question. `image` is
    what stands for a picture, {i} its number; where a message has several, `images` is used
    instead. `frame` stands for each frame of a video; where it is None, the whole video is one
    picture. Template text around a picture is written in the same string. Where texts are
    `trimmed`, they stand in a prompt without the spaces and line ends around them.

    Some models write a thought before their answer, between two marks, `thought`; earlier answers
    stand in a prompt without theirs. `thinks` says whether these words ask for one, and `otherwise`
    are the words that set it the other way, where there is such a switch.
    """

    system: str
    user: str
    user_end: str
    assistant: str
    assistant_end: str
    image: str = IMAGE + "\n"
    images: str = "Image-{i}: " + IMAGE + "\n"
    frame: str | None = "Frame{i}: " + IMAGE + "\n"  # of a video, where a family reads one
    before_answer: str = ""  # a space that the model itself puts before its answer, say
    answer_start: str = ""
    system_form: str | None = None
    trimmed: bool = False
    thought: tuple[str, str] | None = None
    thinks: bool = False
    otherwise: "Template | None" = None

    def thinking(self, on: bool | None) -> "Template":
        """Return the words with which a model thinks before it answers, or not; None: these.

        Raises `SettingsError` where the model has no such switch.
        """
        if on in (None, self.thinks):
            return self
        if self.otherwise is None:
            way = "never thinks" if on else "always thinks"
            raise SettingsError(
                f"thinking is {on}, but this model {way} before it answers; leave it out."
            )
        return self.otherwise

    def begins_as(self, other: "Template") -> bool:
        """Return whether a conversation begins with the same words as with `other`."""
        return (self.system, self.system_form) == (other.system, other.system_form)

    def writes_as(self, other: "Template") -> bool:
        """Return whether prompts are those of `other`, a switch of both in either way."""
        parts = [{"type": "image"}, {"type": "text", "text": "Q"}]
        question: Message = {"role": "user", "content": parts}
        talk: list[Message] = [question, {"role": "assistant", "content": "A"}, question]
        talks = talk, [{"role": SYSTEM_ROLE, "content": "S"}, *talk]
        pairs = (self, other), (self.otherwise, other.otherwise)
        return all(
            words.render(talk) == others.render(talk)
            for words, others in pairs
            if words is not None and others is not None
            for talk in talks
        )

    def pieces(self, messages: Sequence[Message], *, first: bool = True) -> list[PromptPiece]:
        """Return the prompt of `messages`, whose last one is the user's.

        Unless the `first` of them begins the conversation, the system message is left out.
        """
        has_system = bool(messages) and messages[0]["role"] == SYSTEM_ROLE
        if has_system:
            words, _ = content_of(messages[0])
            words = self._text(words)
            messages = messages[1:]
            if self.system_form is None:
                messages = [_with_text(words + "\n", messages[0]), *messages[1:]]
        pieces: list[PromptPiece] = []
        if first and has_system and self.system_form is not None:
            before, after = self.system_form.split(SYSTEM_WORDS)
            pieces = [
                PromptPiece("template", before),
                PromptPiece("text", words),
                PromptPiece("template", after),
            ]
        elif first:
            pieces = [PromptPiece("template", self.system)]
        for message in messages:
            if message["role"] == "user":
                pieces += [PromptPiece("template", self.user), *self._content(parts_of(message))]
                pieces += [PromptPiece("template", self.user_end + self.assistant)]
            else:
                text, _ = content_of(message)
                pieces += [PromptPiece("template", self.before_answer)]
                pieces += [PromptPiece("text", self._text(self._without_thought(text)))]
                pieces += [PromptPiece("template", self.assistant_end)]
        if self.answer_start:
            pieces.append(PromptPiece("template", self.answer_start))
        return pieces

    def _text(self, text: str) -> str:
        """Return a person's or the model's text as it stands in a prompt."""
        return text.strip() if self.trimmed else text

    def _without_thought(self, answer: str) -> str:
        """Return an answer without the thought that a program may have kept in it."""
        _, mark, rest = answer.rpartition(self.thought[1]) if self.thought else ("", "", "")
        return rest.lstrip("\n") if mark else answer

    def _content(self, parts: Sequence[Mapping[str, Any]]) -> Iterator[PromptPiece]:
        """Yield the pieces of a user's texts, pictures and videos in their order."""
        several = sum(part["type"] == "image" for part in parts) > 1
        numbers = itertools.count(1)
        for part in parts:
            if part["type"] == "text":
                yield PromptPiece("text", self._text(part["text"]))
            elif part["type"] == "image":
                form = self.images.format(i=next(numbers)) if several else self.image
                yield from _around_picture(form)
            elif self.frame is None:
                yield from _around_picture(self.image)
            else:
                for number in range(1, len(part["video"]) + 1):
                    yield from _around_picture(self.frame.format(i=number))

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt as one string, each picture as `<image>`."""
        return "".join(piece.text for piece in self.pieces(messages))


def _with_text(text: str, message: Message) -> Message:
    """Return a message with a text before its content."""
    return {**message, "content": [{"type": "text", "text": text}, *parts_of(message)]}


def _around_picture(form: str) -> tuple[PromptPiece, ...]:
    before, after = form.split(IMAGE)
    return (
        PromptPiece("template", before),
        PromptPiece("image", IMAGE),
        PromptPiece("template", after),
    )


def encode(
    tokenizer: PreTrainedTokenizerBase,
    pieces: Sequence[PromptPiece],
    images: Sequence[str | list[int]],
    *,
    first: bool = True,
) -> list[int]:
    """Return the token ids of a prompt; `images` are the strings of special tokens for pictures.

    The prompt is encoded whole, as the authors do, since tokens may span the seams; only a text
    that contains a special token's own words is encoded by itself, as plain text. Where `images`
    are ids, the text between two pictures is encoded by itself too.
    """
    special = set(tokenizer.get_added_vocab())
    image_tokens = iter(images)
    ids: list[int] = []
    pending = ""

    def flush(text: str, *, plain: bool = False) -> None:
        nonlocal first
        if text:
            options = {"add_special_tokens": first, "split_special_tokens": plain}
            ids.extend(cast(list[int], tokenizer(text, **options)["input_ids"]))
            first = False

    for piece in pieces:
        content = next(image_tokens) if piece.kind == "image" else piece.text
        if isinstance(content, list):
            flush(pending)
            ids.extend(content)
            pending = ""
        elif piece.kind == "text" and any(token in content for token in special):
            flush(pending)
            flush(content, plain=True)
            pending = ""
        else:
            pending += content
    flush(pending)
    return ids
