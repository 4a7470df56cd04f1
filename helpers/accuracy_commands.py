"""The commands of `vlm` that count right answers and compare models: `evaluate` and `prove`.

What is slow to import is imported where it is used.
"""

import argparse
import dataclasses
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.command_output import SOME_FAILED, Result, check_output, report, show, write_output
from helpers.command_pipelines import open_pipeline
from helpers.errors import SettingsError
from helpers.graphs.presets import find_preset, precisions_in
from helpers.resources import path_of

if TYPE_CHECKING:
    from helpers.measure.data_sets import Questions, Sample
    from helpers.measure.evaluation import Model
    from helpers.serve.rows import Row


def evaluate(options: argparse.Namespace) -> int:
    """Print the share of right answers: to drawn questions by kind, or to those of a file."""
    from helpers.run.sampling import Sampling

    Sampling.of(max_new_tokens=options.max_new_tokens)  # or it is an error
    if options.data:
        return _evaluate_data(options)
    of_data = {"against", "pictures", "metric", "instruction", "page"}
    unused = [name for name in sorted(of_data) if getattr(options, name)]
    if unused:
        raise SettingsError(f"--{unused[0]} is for questions of a file; give --data too.")
    from helpers.measure import evaluation
    from helpers.shapes.questions import draw_questions

    number = _number(options, 500)
    pairs = draw_questions(number, seed=options.seed)
    answers = evaluation.answer(
        open_pipeline(options),
        pairs,
        max_new_tokens=options.max_new_tokens,
        report=lambda done: report(f"{done} of {number} questions answered"),
    )
    shares = evaluation.accuracy(answers, pairs)
    values = {kind: share.value for kind, share in shares.items()}
    data = {"questions": number, "seed": options.seed, "accuracy": values}
    rows = [
        {"kind": kind, "right": share.count, "share": str(share)} for kind, share in shares.items()
    ]
    return show(Result(data, rows=rows), options)


def _number(options: argparse.Namespace, usual: int) -> int:
    number = usual if options.questions is None else options.questions
    if number < 1:
        raise SettingsError("Ask at least one question.")
    return int(number)


# Questions of a file


def _evaluate_data(options: argparse.Namespace) -> int:
    from helpers.measure import outcomes
    from helpers.measure.different_answers import page_of

    if options.page:
        if not options.against:
            raise SettingsError("A page shows where two models differ; give --against too.")
        check_output(options.page)
    questions = _chosen(_read(options), options)
    samples = questions.samples
    if samples and not options.against and not any(sample.right for sample in samples):
        raise SettingsError(
            f"{options.data} has no answers, so that none can be right; give --against to compare "
            "two models."
        )
    # Compared models compute as PyTorch does, so that they differ in their weights alone.
    pipeline = open_pipeline(options, accuracy=bool(options.against))
    models: dict[str, Model] = {options.folder.name: pipeline}
    if options.against:
        models = {f"{options.against} (reference)": _reference(options)} | models
    results, left_out = outcomes.outcomes_of(
        list(models.values()), questions, max_new_tokens=options.max_new_tokens, report=report
    )
    for sentence in left_out:
        report(f"left out: {sentence}")
    if not results:
        raise SettingsError(f"No question of {options.data} can be asked; mend what is said above.")
    tables = {
        name: outcomes.scores(results, questions.metrics, place)
        for place, name in enumerate(models)
    }
    data = {"set": questions.name, "questions": len(results), "left_out": left_out}
    data["scores"] = _plain(tables)
    rows, lines = outcomes.score_rows(tables), []
    if options.against:
        shares = outcomes.agreement_scores(results)
        data["agreement"] = _plain(shares)
        agreement_rows = outcomes.agreement_rows(shares)
        lines = [f"{row['agreement']}: {row['value']}" for row in agreement_rows]
        if options.page:
            page = page_of(list(models), questions.name, results, rows, agreement_rows)
            write_output(options.page, page, Result(data, lines, rows), options)
    show(Result(data, lines, rows), options)
    return SOME_FAILED if left_out else 0


def _plain(value: Any) -> Any:
    """Return scores, at any depth, as JSON has them."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return dataclasses.asdict(value)


def _read(options: argparse.Namespace) -> "Questions":
    """Return the questions of a reader's lines, or of a public set's file."""
    from helpers.measure.data_sets import Questions, read_data_set

    if options.data.suffix.lower() != ".jsonl":
        return read_data_set(options.data, options.pictures)
    from helpers.serve.rows import read_rows

    if options.pictures:
        raise SettingsError(
            "Pictures of your own questions are where each line says; leave out --pictures."
        )
    rows = read_rows(options.data, [], report)
    samples, left_out = [], []
    for row in rows:
        if row.error or row.image is None:
            reason = row.error or "The line has no image."
            left_out.append(f"line {row.number + 1}: {reason}")
        else:
            samples.append(_sample(row, row.image))
    return Questions(options.data.name, samples, ("exact", "relaxed", "ANLS"), "", left_out)


def _sample(row: "Row", picture: Path) -> "Sample":
    """Return a line's question; its answers are in `answers`, or one of them in `answer`."""
    from helpers.measure.data_sets import Sample, right_texts

    kind = row.columns.get("kind")
    return Sample(
        f"line {row.number + 1}",
        row.question,
        picture,
        right_texts(row.columns.get("answers", row.columns.get("answer"))),
        kind if isinstance(kind, str) else "",
    )


def _chosen(questions: "Questions", options: argparse.Namespace) -> "Questions":
    """Return so many of the questions, drawn by a seed, with the metrics that were named."""
    samples = list(questions.samples)
    number = _number(options, max(1, len(samples)))
    if number < len(samples):
        places = random.Random(options.seed).sample(range(len(samples)), number)
        samples = [samples[place] for place in sorted(places)]
    instruction = questions.instruction if options.instruction is None else options.instruction
    return dataclasses.replace(
        questions,
        samples=samples,
        metrics=tuple(options.metric) or questions.metrics,
        instruction=instruction,
    )


def _reference(options: argparse.Namespace) -> "Model":
    """Return what a folder is compared with: another one, or the checkpoint in PyTorch."""
    from helpers.convert.places import holds_conversion

    folder = path_of(options.against)
    if holds_conversion(folder):
        return open_pipeline(
            argparse.Namespace(**vars(options) | {"folder": folder}), accuracy=True
        )
    from helpers.measure.proof import pytorch_model
    from helpers.models.families import find_checkpoint

    checkpoint = find_checkpoint(options.against)
    return pytorch_model(checkpoint, picture_tokens=options.picture_tokens, report=report)


# Proof


def prove(options: argparse.Namespace) -> int:
    """Compare a checkpoint in PyTorch, in transformers' own class and on OpenVINO; write a page."""
    from helpers.convert.conversion import refuse_conversion
    from helpers.measure import proof
    from helpers.measure.proof_page import page_of
    from helpers.models.families import find_checkpoint
    from helpers.run.sampling import Sampling

    check_output(options.output)
    if not 1 <= options.questions <= proof.NUMBER:
        raise SettingsError(f"Ask at least one question, and at most {proof.NUMBER}.")
    precisions = precisions_in(options.precision)
    for name in precisions:  # before anything is downloaded
        find_preset(name)
    Sampling.of(max_new_tokens=options.max_new_tokens)
    checkpoint = find_checkpoint(options.checkpoint)
    refuse_conversion(checkpoint)
    result = proof.prove(
        checkpoint,
        options.folder,
        precisions=precisions,
        questions=options.questions,
        max_new_tokens=options.max_new_tokens,
        report=report,
    )
    verdict = Result(result.data, [result.verdict], result.rows)
    write_output(options.output, page_of(result), verdict, options)
    lines = [*verdict.lines, f"the page is {options.output}"]
    show(dataclasses.replace(verdict, lines=lines), options)
    return 0 if result.holds else SOME_FAILED
