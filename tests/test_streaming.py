"""Streamed pieces are the text, for every tokenizer and many kinds of text."""

import math
from types import SimpleNamespace

import pytest
import torch

from helpers.models.families import families, load_processor
from helpers.run.replies import Answer, AnswerStreamer, Counts
from helpers.run.sampling import Sampling
from helpers.run.thoughts import BehindThought, Thought

TEXTS = [
    "A red star.",
    "a\n  indented\n - item\n   - nested\n",
    "def f(x):\n    if x:\n        return 1\n\n\n",
    '{"a": [1,\n   2],\n "b": {}}',
    "\ttabs\t\tand  two   spaces ",
    "line\r\nbreaks\r\n  of Windows\rand of old",
    "\n\n  leading",
    "   ",
    "no_spaces_at_all_but_long",
    "l'été, naïve, Straße, Ærø",
    "e\u0301 a\u0308 combining",
    "👨‍👩‍👧‍👦 a family 👩🏽‍🚀",
    "😀😀😀",
    "flags 🇩🇪🇯🇵 and ❤️ 1️⃣",
    "图片里有一个红色的星星。",
    "ひらがなとカタカナのぶんしょう",
    "漢字とかなの混ざった文、です。",
    "ภาษาไทยไม่มีช่องว่าง",
    "한국어 문장입니다.",
    "نص عربي مع فراغات",
    "עברית \u200fימין",
    "हिन्दी में वाक्य",
    "Привет, мир!",
    "x² + y² ≤ √z → ∞",
    "don't, can't; he 's , they 've . no ?",
    "zero\u200bwidth\u200djoiner\u2060s\ufeff",
    "non\u00a0breaking\u2003em\u3000wide",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𠀀",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "<b>html</b> &amp; <|im_end|> as words",
    "a\u0000b\u0007c",
]
FOLDERS = {family.name: family.checkpoint for family in families() if family.checkpoint}


@pytest.fixture(scope="module", params=FOLDERS)
def tokenizer(request):
    return load_processor(FOLDERS[request.param]).tokenizer


def streamer_of(tokenizer, ids: list[int], thought: Thought) -> AnswerStreamer:
    """Return what an answer with these tokens has gone through."""
    request = SimpleNamespace(
        started=0.0,
        sampling=Sampling(),
        processor=SimpleNamespace(tokenizer=tokenizer),
        new_thought=lambda: thought,
    )
    streamer = AnswerStreamer(request, Answer(Counts(0)))
    for number in ids:
        streamer.put(number)
    streamer.end()
    return streamer


def streamed(tokenizer, ids: list[int]) -> tuple[list[str], str]:
    """Return the pieces of an answer with these tokens, and its text."""
    streamer = streamer_of(tokenizer, ids, Thought([], [], [], thinks=False))
    pieces = streamer.answer.pieces
    return [pieces.get().text for _ in range(pieces.qsize())], streamer.decoder.text


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces, answer = streamed(tokenizer, ids)
    assert "".join(pieces) == answer == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", TEXTS)
def test_cut_anywhere_pieces_are_the_text(tokenizer, text):
    """The limit of tokens may cut a character; what there is of it is left out."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for length in range(len(ids)):
        pieces, answer = streamed(tokenizer, ids[:length])
        assert "".join(pieces) == answer and "\ufffd" not in answer
        assert tokenizer.decode(ids, skip_special_tokens=True).startswith(answer)


@pytest.mark.parametrize(
    "text", ["ひらがなとカタカナのぶんしょう", "ภาษาไทยไม่มีช่องว่าง", "图片里有一个"]
)
def test_writing_without_spaces_comes_as_it_is_decoded(tokenizer, text):
    pieces, _ = streamed(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    assert sum(bool(piece) for piece in pieces) >= len(text) // 2


def test_spaces_before_marks_stay_where_a_checkpoint_asks_to_clean_them_up(tokenizer, monkeypatch):
    """Words come as they are decoded then too, and nothing is taken away again."""
    monkeypatch.setattr(tokenizer, "clean_up_tokenization_spaces", True)
    name = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    monkeypatch.setattr(tokenizer, name, True)
    text = "he 's , they 've . 图片里有一个"
    pieces, answer = streamed(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    assert "".join(pieces) == answer == text and sum(map(bool, pieces)) > 15


def test_an_answer_goes_on_behind_a_byte_that_is_no_character(tokenizer):
    """Where bytes in a row are decoded together, it spoils the character before it."""
    star, end = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a 😀", " red")
    )
    pieces, answer = streamed(tokenizer, [*star, star[-2], *end])
    assert "".join(pieces) == answer
    assert answer.startswith("a 😀\ufffd") and answer.endswith("\ufffd red")


@pytest.mark.parametrize(
    ("prompt", "letters", "end", "thought", "text"),
    [
        ("q", "<bhm>yes", ">", "hm", "yes"),
        ("q<b", "hm>yes", ">", "hm", "yes"),
        (">q<b", "hm>yes", ">", "hm", "yes"),  # the last mark of a prompt counts
        ("<b>q", "hm>yes", ">", "", "hm>yes"),
        ("q<b", "<bhm>yes", ">", "<bhm", "yes"),  # in a thought, the mark that begins one is text
        ("q", "<hmb>yes", ">", "hmb", "yes"),
        ("q", "yes<bhm>", ">", "", "yes<bhm>"),  # and behind the first token
        ("q<b", "hm/>yes", "/>", "", "hm/>yes"),  # the tokenizer has no mark
    ],
)
def test_which_tokens_are_a_thought_s(prompt, letters, end, thought, text):
    """A thought that the model begins is one whether it should think or not."""
    codes = [[ord(letter) for letter in part] for part in ("<b", end, prompt, letters)]
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(map(chr, ids)))
    for thinks in (True,) if prompt.endswith("<b") else (True, False):
        answer = streamer_of(tokenizer, codes[3], Thought(*codes[:3], thinks=thinks)).answer
        assert (answer.thought, answer.text) == (thought, text)
        assert answer.counts.thought == (letters.index(">") + 1 if thought else 0)


def test_a_thought_may_begin_with_the_first_token_alone():
    """It is free then, but for the end of the answer; behind it a grammar decides."""
    stop, begin, end, word = range(4)
    thought = Thought([begin], [end], [], thinks=True)
    chooser = BehindThought(thought, lambda _, scores: torch.zeros_like(scores), [stop])
    scores, no_ids = [], torch.zeros(1, 0, dtype=torch.int64)
    for token in (begin, word, end):
        scores += chooser(no_ids, torch.ones(1, 4)).tolist()
        thought.takes(token)
    scores += chooser(no_ids, torch.ones(1, 4)).tolist()
    free = [-math.inf, 1, 1, 1]
    assert scores == [[0, 1, 0, 0], free, free, [0, 0, 0, 0]]


@pytest.mark.parametrize("beams", [1, 2])
def test_an_answer_s_pieces(pipeline, beams):
    reply = pipeline.ask("What is in the picture?", max_new_tokens=60, num_beams=beams)
    assert "".join(reply).strip() == reply.text
