"""The Markdown page of what was measured at full size: `notebooks/FULL_SIZE.md`."""

from collections.abc import Sequence

from helpers.graphs.part_names import LANGUAGE_MODEL
from helpers.measure.benchmark import figure_rows
from helpers.measure.figures import Conversion, Figures, Run, Running
from helpers.measure.full_size import Measurement, newest_by_kind
from helpers.measure.tasks import QUESTION, TOKENS
from helpers.resources import in_words
from helpers.show.tables import format_table


def full_size_text(models: Sequence[Sequence[Measurement]]) -> str:
    """Return the page of all models: the newest run per kind of processor, and times by commit."""
    sections = [
        "# Full size on an ordinary computer\n",
        "<!-- made by: python -m helpers.workshop.readme (a test compares) -->\n",
        "The checkpoints have the originals' sizes and random weights: time, memory and disk do "
        "not depend on what weights have learned. Compare figures of one processor only.\n",
        "*Memory* is anonymous memory, sampled: what a process allocates, without the files that "
        "it maps. *Floor* is the time that reading the language model's weights once takes at the "
        "memory's bandwidth, measured after each round: no token can take less. "
        f'*First token* is that of the question "{QUESTION}" about a picture, after the image '
        f"encoder; *next token* is the median over {TOKENS}.\n",
    ]
    for measurements in models:
        for newest in newest_by_kind(measurements):
            sections += _sections(newest.figures)
        sections.append(f"Times floor, run by run:\n\n```\n{_times(measurements)}\n```\n")
    return "\n".join(sections)


def _times(measurements: Sequence[Measurement]) -> str:
    """Return a table of how many times its floor a token took, a run each."""
    rows = [
        {"measured on commit": measurement.commit, "date": measurement.date[:10]}
        | {name: f"{times:.2f}" for name, times in measurement.times_floor.items()}
        | {"processor": measurement.kind}
        for measurement in measurements
    ]
    return format_table(rows)


def _sections(figures: Figures) -> list[str]:
    """Return what was measured of one model on one computer."""
    width, height = figures.picture
    billions = sum(figures.parameters.values()) / 1e9
    prompt = next(iter(figures.runs.values())).running.prompt_tokens
    sections = [
        f"## {figures.model}\n\n{billions:.2f} billion parameters; a picture of {width} x "
        f"{height}, {prompt} tokens with the question. Measured on {figures.computer}.\n\n```\n"
        f"{format_table(figure_rows(figures))}\n```\n"
    ]
    for precision, run in figures.runs.items():
        if run.conversion is not None and isinstance(run.running, Running):
            rows = _part_rows(run.conversion) + _detail_rows(run, figures.parameters)
            sections.append(f"{precision}:\n\n```\n{format_table(rows)}\n```\n")
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
        "first question, first token": f"{running.first_question * 1000:.0f} ms",
        "second question, first token": f"{running.second_question * 1000:.0f} ms",
        "stopping while the prompt is read": f"{running.stop * 1000:.0f} ms",
    }
    if run.profile is not None:
        share = run.profile.kernels / run.profile.step
        details["a token with profiling"] = f"{run.profile.step * 1000:.1f} ms"
        details["in OpenVINO's own kernels"] = f"{share:.0%}"
        for kernel, kernel_seconds in run.profile.largest.items():
            details[f"in {kernel}"] = f"{kernel_seconds * 1000:.1f} ms"
    return [{"what": what, "figure": figure} for what, figure in details.items()]
