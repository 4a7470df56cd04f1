"""Answers, right ones, and what others' code makes of them, for comparison with our metrics.

In an environment of its own with PyPI's `anls` 0.0.2, `python -m tests.golden_metrics EVALUATORS`
writes the golden data anew, where EVALUATORS is the path of `mmf/utils/m4c_evaluators.py` from
facebookresearch/mmf, TextVQA's own evaluation. Relaxed accuracy is the formula of ChartQA's paper,
computed with fractions.
"""

import json
import random
import runpy
import string
import sys
from fractions import Fraction
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden" / "metrics" / "expected.json"
NUMBER = 200  # of cases for each metric
WORDS = (
    "the red circle", "Total Sales", "42", "3.5%", "two", "Dr. Smith", "it's", "don't", "dont",
    "New-York", "a dog", "dog", "12:30", "1,000", "$5.00", "yes!", "coca cola", "Coca-Cola",
    "none", "0", "Müller", "日本", "http://x.org/a_b", "9.", "half-time (early)", "", "the",
    "I.B.M.", "what's up?", "they're", "10", "ten",
)  # fmt: skip


def texts(generator: random.Random) -> tuple[str, list[str]]:
    """Return an answer and right ones, most of which are near it."""
    answer = generator.choice(WORDS)
    if generator.random() < 0.3:
        answer += " " + generator.choice(WORDS)
    right = []
    for _ in range(generator.randint(1, 4)):
        if generator.random() < 0.3:
            right.append(generator.choice(WORDS))
            continue
        letters = list(answer)
        for _ in range(generator.randint(0, 4)):
            place = generator.randint(0, len(letters))
            letters[place : place + generator.randint(0, 1)] = generator.choice(
                ["", "x", " ", "  ", generator.choice(string.ascii_letters)]
            )
        right.append("".join(letters).upper() if generator.random() < 0.3 else "".join(letters))
    return answer, right


def people(generator: random.Random) -> tuple[str, list[str]]:
    """Return an answer, and those of ten people who agree more or less."""
    pool = generator.sample(WORDS, 3)
    right = [generator.choices(pool, weights=(6, 2, 1))[0] for _ in range(10)]
    changes = (str, str.upper, lambda text: f"The {text}.", lambda text: text.replace("'", ""))
    return generator.choice(changes)(generator.choice(pool)), right


def numbers(generator: random.Random) -> tuple[str, list[str]]:
    """Return a number, or a word, and a right one that is about so far away; some are at 5 %."""
    if generator.random() < 0.15:
        return generator.choice(WORDS), [generator.choice(WORDS)]
    places = generator.randint(0, 3)
    target = Fraction(generator.randint(-(10**5), 10**5), 10**places)
    shares = (Fraction(0), Fraction(1, 20), Fraction(-1, 20), Fraction(51, 1000), Fraction(1, 25))
    value = target * (1 + generator.choice(shares))
    marks = [generator.choice(("", "", "", "%")) for _ in range(2)]
    return decimal(value) + marks[0], [decimal(target) + marks[1]]


def decimal(value: Fraction) -> str:
    """Write a fraction with as many decimal places as it has."""
    places = next(places for places in range(20) if (value * 10**places).denominator == 1)
    return f"{float(value):.{places}f}" if places else str(int(value))


def relaxed(answer: str, right: str) -> float:
    """Return the formula of the paper: within 5 % of the right number, or the same words."""
    try:
        numbers = [
            Fraction(text.strip("%")) / (100 if text.endswith("%") else 1)
            for text in (answer, right)
        ]
    except ValueError:
        return float(answer.lower() == right.lower())
    return float(abs(numbers[0] - numbers[1]) <= abs(numbers[1]) / 20)


def main(evaluators: str) -> None:
    """Write the cases, each with its answer, the right ones, and the value."""
    from anls import anls_score

    evaluation = runpy.run_path(evaluators)["TextVQAAccuracyEvaluator"]()
    generator = random.Random(0)
    cases: dict[str, list[object]] = {"ANLS": [], "relaxed": [], "VQA accuracy": []}
    for _ in range(NUMBER):
        answer, right = texts(generator)
        cases["ANLS"].append([answer, right, anls_score(answer, right)])
        answer, right = numbers(generator)
        cases["relaxed"].append([answer, right, relaxed(answer, right[0])])
        answer, right = people(generator)
        value = evaluation.eval_pred_list([{"pred_answer": answer, "gt_answers": right}])
        cases["VQA accuracy"].append([answer, right, value])
    GOLDEN.parent.mkdir(exist_ok=True)
    lines = (
        f'"{name}": [\n' + ",\n".join(json.dumps(case, ensure_ascii=False) for case in rows) + "\n]"
        for name, rows in cases.items()
    )
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
