"""How near an answer is to the right ones, as the papers of public question sets define it.

Each metric takes an answer and all right ones, and returns 0 to 1.

What this module does not know: where answers come from, and the mean over questions.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal

Metric = Callable[[str, Sequence[str]], float]


def exact(answer: str, right: Sequence[str]) -> float:
    """Return 1 where the answer is one of the right ones, but for white space around it."""
    return float(answer.strip() in {text.strip() for text in right})


# A number that differs by so much of itself is right: "within 5% of the gold answer".
TOLERANCE = Decimal("0.05")


def relaxed(answer: str, right: Sequence[str]) -> float:
    """Return 1 where |answer - right| <= 0.05 |right|; words are to be the same, in any case.

    Relaxed accuracy of ChartQA (A. Masry et al., 2022, arXiv:2203.10244, section 5.1), after
    Methani et al. (2020). What the paper leaves open is as in Pix2Struct's evaluation, which later
    ones took over: 5% is the number 0.05, and 1,000 with its comma is no number but a word.
    """
    return float(any(_is_near(answer.strip(), text.strip()) for text in right))


def _is_near(answer: str, right: str) -> bool:
    number, target = _number(answer), _number(right)
    if number is None or target is None:
        return answer.lower() == right.lower()
    return abs(number - target) <= TOLERANCE * abs(target)


def _number(text: str) -> Decimal | None:
    """Return a text as a number, exactly; a binary fraction would miss the 5 % of some."""
    try:
        number = Decimal(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ArithmeticError:
        return None
    return number if number.is_finite() and abs(number.adjusted()) < 1000 else None


def edit_distance(first: str, second: str) -> int:
    """Return how many characters are inserted, left out or replaced to make one the other.

    V. I. Levenshtein, 1966; row by row, as R. A. Wagner and M. J. Fischer compute it
    (doi:10.1145/321796.321811).
    """
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, 1):
        corner, row[0] = row[0], number
        for place, other in enumerate(second, 1):
            step = corner + (letter != other)
            corner = row[place]
            row[place] = min(step, corner + 1, row[place - 1] + 1)
    return row[-1]


def similarity(first: str, second: str) -> float:
    """Return 1 - edit distance / length of the longer text: 1 for equal ones, 0 for no likeness."""
    longer = max(len(first), len(second))
    return 1 - edit_distance(first, second) / longer if longer else 1.0


THRESHOLD = 0.5  # of the distance, from which an answer is another one


def anls(answer: str, right: Sequence[str]) -> float:
    """Return the similarity to the nearest right answer, 0 where that is not above a half.

    Its mean is ANLS, average normalized Levenshtein similarity (A. F. Biten et al., ICDAR 2019
    competition on scene text VQA, arXiv:1907.00490, equation 1), which DocVQA has too (M. Mathew
    et al., arXiv:2007.00398). Capitals and repeated white space do not count, as in PyPI's `anls`.
    """
    values = [similarity(_plain(answer), _plain(text)) for text in right]
    best = max(values, default=0.0)
    return best if 1 - best < THRESHOLD else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


ENOUGH = 3  # people whose answer is wholly right


def vqa_accuracy(answer: str, right: Sequence[str]) -> float:
    """Return min(1, people with this answer / 3), the mean over all sets without one person.

    `right` has an answer of each person, ten of them in TextVQA (A. Singh et al., 2019,
    arXiv:1904.08920), which takes it from VQA (S. Antol et al., 2015, arXiv:1505.00468). Texts are
    normalised as VQA's evaluation does: no capitals, articles, punctuation; numbers in digits.
    """
    counts = Counter(map(normalised, right))
    same, total = counts[normalised(answer)], len(right)
    if not same:
        return 0.0
    others = total - same
    return (same * min(1, (same - 1) / ENOUGH) + others * min(1, same / ENOUGH)) / total


_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_MARKS = ';/[]"{}()=+\\_-><@`!'


def normalised(text: str) -> str:
    """Return a text as VQA's evaluation compares it.

    That puts apostrophes into words which lack them (dont, don't); here both lose them.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " s").strip()
    for mark in _MARKS:  # beside a space it is left out, within a word it parts it
        beside = f"{mark} " in text or f" {mark}" in text
        text = text.replace(mark, "" if beside else " ")
    text = re.sub(r"\.(?!\d)", "", text).replace("'", "")
    words = (_NUMBERS.get(word, word) for word in text.split())
    return " ".join(word for word in words if word not in _ARTICLES)


def contains(answer: str, right: Sequence[str]) -> float:
    """Return 1 where a right answer stands somewhere in the answer, in any case.

    OCRBench (Y. Liu et al., arXiv:2305.07895; `OCRBench/example.py` of Yuliang-Liu/MultimodalOCR).
    """
    plain = answer.lower().replace("\n", " ")
    return float(any(text.lower().strip().replace("\n", " ") in plain for text in right))


def contains_formula(answer: str, right: Sequence[str]) -> float:
    """Return the same for OCRBench's formulas: white space does not count, capitals do."""
    plain = "".join(answer.split())
    return float(any("".join(text.split()) in plain for text in right))


def choice(answer: str, right: Sequence[str]) -> float:
    """Return 1 where the answer begins with the right letter: `B`, `B.`, `(B) a cat`.

    MMBench (Y. Liu et al., arXiv:2307.06281) lets another model read an answer without a letter,
    and asks each question with its options in every order; here such an answer is wrong, and each
    is asked once.
    """
    match = re.match(r"\W*([A-Za-z])\b", answer)
    return float(match is not None and match[1].upper() in right)


METRICS: dict[str, Metric] = {
    "exact": exact,
    "relaxed": relaxed,
    "ANLS": anls,
    "VQA accuracy": vqa_accuracy,
    "contains": contains,
    "choice": choice,
}
