"""The Markdown page of what was measured at full size: `notebooks/FULL_SIZE.md`."""

import re
from collections.abc import Sequence

from helpers.graphs.part_names import LANGUAGE_MODEL
from helpers.graphs.presets import PRESETS
from helpers.measure.benchmark import figure_rows
from helpers.measure.figures import Conversion, Encoder, Run, Running
from helpers.measure.full_size import (
    Measurement,
    PeerMeasurement,
    encoder_of,
    encoder_rows,
    newest_by_kind,
    peers_of,
)
from helpers.measure.peers.comparison import lines_of, rows_of
from helpers.measure.tasks import QUESTION, ROUNDS, TOKENS
from helpers.resources import in_words, time_in_words
from helpers.show.tables import format_table


def full_size_text(models: Sequence[Sequence[Measurement]]) -> str:
    """Return the page of all models: the newest run per kind of processor, and times by commit."""
    sections = [
        "# Full size on an ordinary computer\n",
        "<!-- made by: python -m helpers.workshop.readme (a test compares) -->\n",
        "The checkpoints have the originals' sizes and random weights: time, memory and disk do "
        "not depend on what weights have learned. Compare figures of one processor only.\n",
        "- *Image encoder* is its time for the picture, *first token* that of the question "
        f'"{QUESTION}" after it, *next token* the median of the {TOKENS - 1} that follow it; of '
        f"each the table has the median of {ROUNDS} answers.\n"
        "- *Memory* is what the process allocates at most. PyTorch in bfloat16 computes with the "
        "checkpoint's file, mapped into memory, which comes on top; OpenVINO packs the weights "
        "anew, so they are in it.\n"
        "- *Floor* is the time that reading the language model's weights once takes at the "
        "memory's bandwidth, measured after each round: no token can take less.\n"
        f"{_recipes(models)}\n",
    ]
    contents = [(newest_by_kind(measurements), measurements) for measurements in models]
    sections.append("\n".join(_contents(newest) for newest, _ in contents) + "\n")
    for newest, measurements in contents:
        sections.append(f"## {newest[0].figures.model}\n")
        for measurement in newest:
            sections += _sections(measurement)
        if (encoder := encoder_of(newest[0].figures.model)) is not None:
            sections.append(_alone(encoder))
        sections += _peers(peers_of(newest[0].figures.model))
        sections.append(_folded("Times floor, run by run", _times(measurements)))
    return "\n".join(sections)


def _recipes(models: Sequence[Sequence[Measurement]]) -> str:
    """Return what each precision stands for, all of which go by the weights alone."""
    runs = {run for lines in models for line in lines for run in line.figures.runs}
    recipes = "; ".join(f"*{name}*: {preset}" for name, preset in PRESETS.items() if name in runs)
    return (
        "- The models in OpenVINO are those of `vlm convert --precision`, whose recipes are "
        f"everywhere the same, and go by the weights alone. {recipes}. A notebook may call a "
        "recipe of its own *int4* (01 leaves a fifth of the weights at 8 bits, 05 looks at data); "
        "its section *Compress* says which.\n"
        "- Brackets behind a processor name the instruction sets that matter for speed; the oldest "
        "runs did not note them, and those before 30 November 2026 neither BF16 nor the "
        "processor's family and model."
    )


def _alone(encoder: Encoder) -> str:
    """Return what was measured of an image encoder without the rest of its model."""
    changes = ", ".join(
        f"{section}.{name} = {value}"
        for section, fields in encoder.changes.items()
        for name, value in fields.items()
    )
    rounds = len(next(iter(encoder.runs.values())).rounds)
    why = f"Since all of it took more memory than there was, with {changes}. " if changes else ""
    picture = " x ".join(map(str, encoder.picture))
    return (
        f"### {encoder.model}{_ALONE}\n\n{why}*int8-activations* is post-training INT8 with "
        f"SmoothQuant, which looked at one sample. A picture of {picture}, {rounds} rounds in turn."
        f" Measured on {encoder.computer}.\n\n```\n{format_table(encoder_rows(encoder))}\n```\n"
    )


def _peers(measurements: Sequence[PeerMeasurement]) -> list[str]:
    """Return what was measured of one model beside other engines."""
    sections = []
    for measurement in newest_by_kind(measurements):
        lines = "\n".join(f"- {line}" for line in lines_of(measurement.figures))
        table = format_table(rows_of(measurement.figures))
        sections.append(f"### {_heading(measurement)}\n\n{lines}\n\n```\n{table}\n```\n")
    if measurements:
        summary = "A token in times of the other engines', run by run"
        sections.append(_folded(summary, _times(measurements)))
    return sections


def _contents(newest: Sequence[Measurement]) -> str:
    """Return a line of the table of contents: a model, and the processors that it ran on."""
    model = newest[0].figures.model
    links = [f"[{m.kind}](#{anchor(_heading(m))})" for m in newest]
    peers = newest_by_kind(peers_of(model))
    links += [f"[{m.kind}, beside others](#{anchor(_heading(m))})" for m in peers]
    if encoder_of(model) is not None:
        links.append(f"[the image encoder alone](#{anchor(f'{model}{_ALONE}')})")
    return f"- [{model}](#{anchor(model)}): {', '.join(links)}"


_ALONE = ", the image encoder alone"


def _heading(measurement: Measurement | PeerMeasurement) -> str:
    beside = isinstance(measurement, PeerMeasurement)
    form = "{} beside other engines, {}" if beside else "{} on {}"
    return form.format(measurement.model, measurement.kind)


def anchor(heading: str) -> str:
    """Return what GitHub makes of a heading for links to it: small letters, digits and hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _folded(summary: str, table: str) -> str:
    """Return a table that a reader unfolds."""
    return f"<details><summary>{summary}</summary>\n\n```\n{table}\n```\n\n</details>\n"


def _times(measurements: Sequence[Measurement | PeerMeasurement]) -> str:
    """Return a table of how many times what it is compared with a token took, a run each.

    Not all runs are compared with the same: other processors have other peers.
    """
    rows: list[dict[str, str]] = []
    names = dict.fromkeys(name for measurement in measurements for name in measurement.times)
    for measurement in measurements:
        row = {"measured on commit": measurement.commit, "date": measurement.date[:10]}
        for name in names:
            row[name] = f"{measurement.times[name]:.2f}" if name in measurement.times else "-"
        rows.append(row | {"processor": measurement.kind})
    return format_table(rows)


def _sections(measurement: Measurement) -> list[str]:
    """Return what was measured of one model on one computer."""
    figures = measurement.figures
    width, height = figures.picture
    billions = sum(figures.parameters.values()) / 1e9
    prompt = next(iter(figures.runs.values())).running.prompt_tokens
    sections = [
        f"### {_heading(measurement)}\n\n{billions:.2f} billion parameters; a picture of {width} x "
        f"{height}, {prompt} tokens with the question. Measured on {figures.computer}.\n\n```\n"
        f"{format_table(figure_rows(figures))}\n```\n"
    ]
    for precision, run in figures.runs.items():
        if run.conversion is not None and isinstance(run.running, Running):
            rows = _part_rows(run.conversion) + _detail_rows(run, figures.parameters)
            sections.append(_folded(f"{precision}, part by part", format_table(rows)))
    return sections


def _part_rows(conversion: Conversion) -> list[dict[str, str]]:
    """Return a row for each part: its size, and the time that converting it took."""
    return [
        {
            "what": part,
            "figure": f"{in_words(size)}, converted in {conversion.seconds_by_part[part]:.0f} s",
        }
        for part, size in conversion.bytes_by_part.items()
    ]


def _detail_rows(run: Run, parameters: dict[str, int]) -> list[dict[str, str]]:
    """Return what the table of runs has no column for."""
    conversion, running = run.conversion, run.running
    assert conversion is not None and isinstance(running, Running)
    seconds = conversion.seconds_by_part[LANGUAGE_MODEL] / (parameters[LANGUAGE_MODEL] / 1e9)
    beside = (conversion.peak_memory - conversion.bytes) / 2**30
    widths = conversion.bit_widths[LANGUAGE_MODEL]
    details = {
        "memory beside the result's size": f"{beside:+.2f} GiB",
        "language model, converting": f"{seconds:.1f} s per billion parameters",
        "language model, layers by type": ", ".join(
            f"{width.type} {width.layers} ({width.share:.0%})" for width in widths
        ),
        "on disk": f"{conversion.bytes / sum(parameters.values()):.2f} bytes a parameter",
        "first question, first token": time_in_words(running.first_question),
        "second question, first token": time_in_words(running.second_question),
        "stopping while the prompt is read": time_in_words(running.stop),
    }
    if run.profile is not None:
        share = run.profile.kernels / run.profile.step
        details["a token with profiling"] = time_in_words(run.profile.step)
        details["in OpenVINO's own kernels"] = f"{share:.0%}"
        for kernel, kernel_seconds in run.profile.largest.items():
            details[f"in {kernel}"] = time_in_words(kernel_seconds)
    return [{"what": what, "figure": figure} for what, figure in details.items()]
