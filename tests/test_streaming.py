"""Streamed pieces are the text, for every tokenizer and many kinds of text."""

from types import SimpleNamespace

import pytest

from helpers.models.families import families, load_processor
from helpers.run.replies import Answer, AnswerStreamer, Counts
from helpers.run.sampling import Sampling
from helpers.run.thoughts import Thought

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


def streamed(tokenizer, ids: list[int]) -> tuple[list[str], str]:
    """Return the pieces of an answer with these tokens, and its text."""
    answer = Answer(Counts(0))
    request = SimpleNamespace(
        started=0.0,
        sampling=Sampling(),
        processor=SimpleNamespace(tokenizer=tokenizer),
        new_thought=lambda: Thought([], [], [], thinks=False),
    )
    streamer = AnswerStreamer(request, answer)
    for number in ids:
        streamer.put(number)
    streamer.end()
    pieces = [answer.pieces.get() for _ in range(answer.pieces.qsize())]
    return [piece.text for piece in pieces], streamer.decoder.text


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


@pytest.mark.parametrize("beams", [1, 2])
def test_an_answer_s_pieces(pipeline, beams):
    reply = pipeline.ask("What is in the picture?", max_new_tokens=60, num_beams=beams)
    assert "".join(reply).strip() == reply.text
