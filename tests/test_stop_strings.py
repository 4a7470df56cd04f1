"""Stop strings: a text is cut before the first of them, however it is divided into pieces."""

from hypothesis import example, given
from hypothesis import strategies as st

from helpers.run.stop_strings import StopStrings

TEXTS = st.text(alphabet="ab ", max_size=12)


def test_a_string_over_two_pieces_is_not_shown():
    strings = StopStrings(["END"])
    assert [strings.add(piece) for piece in ("one E", "N", "D two")] == ["one ", "", ""]
    assert (strings.is_set(), strings.end(), strings.text) == (True, "", "one ")


def test_what_turns_out_to_be_no_string_is_shown():
    strings = StopStrings(["END"])
    assert [strings.add(piece) for piece in ("one EN", "O")] == ["one ", "ENO"]
    assert (strings.add("E"), strings.end(), strings.is_set()) == ("", "E", False)


@given(st.lists(TEXTS, max_size=8), st.lists(TEXTS.filter(bool), max_size=3))
@example(["aba"], ["b", "aba"])  # the one that begins later is complete first
def test_pieces_together_are_the_text_before_the_first_string(pieces, strings):
    stopping = StopStrings(strings)
    result = "".join([*map(stopping.add, pieces), stopping.end()])
    text = "".join(pieces)
    is_met = any(string in text for string in strings)
    ends = [end for end in range(len(text) + 1) if any(s in text[:end] for s in strings)]
    if is_met:  # the answer ends with the first string that is complete
        beginning = text[: ends[0]]
        text = min((beginning[: beginning.find(s)] for s in strings if s in beginning), key=len)
    assert (result, stopping.text, stopping.is_set()) == (text, text, is_met)
