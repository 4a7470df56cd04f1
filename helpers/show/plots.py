"""One style for all pictures, plots and tables of the notebooks.

Every plot has the numbers beside it as a table, and tells its series apart by more than colour.
"""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from typing import Any, Protocol

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image
from torch import Tensor

# petroff6, a palette for people who see colours differently (Petroff, arXiv:2107.02270)
PALETTE = ("#5790fc", "#f89c20", "#e42536", "#964a8b", "#9c9ca1", "#7a21dd")
HATCHES = ("", "//", "..", "xx", "\\\\", "++")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
GAP = 6  # pixels between the pieces of a mosaic
_LETTERS = 14  # of a title, in an inch
_LEAST_RATIO, _LARGEST_RATIO = 1 / 5, 8  # of a panel, width to height
_STYLE: dict[Any, Any] = {
    "figure.dpi": 80,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


class ImageProcessor(Protocol):
    """What transformers' image processors tell of how they normalise: a number for each channel."""

    image_mean: Sequence[float]
    image_std: Sequence[float]


def show_pictures(
    pictures: Sequence[Image.Image],
    titles: Sequence[str],
    *,
    height: float = 2.2,
    to_scale: bool = False,
) -> Figure:
    """Show pictures in a row, each under its title, which is wrapped where it is wider.

    All get the same height, the one of the figure in inches; `to_scale` gives the same size to
    their pixels instead, so that larger pictures look larger.
    """
    tallest = max(picture.height for picture in pictures)
    heights = [tallest if to_scale else picture.height for picture in pictures]
    ratios = []
    for picture, rows in zip(pictures, heights, strict=True):
        # A strip would leave no room for its title, or make the figure some metres wide.
        ratios.append(min(max(picture.width / rows, _LEAST_RATIO), _LARGEST_RATIO))
    wrapped = []
    for title, ratio in zip(titles, ratios, strict=True):
        width = max(int(_LETTERS * height * ratio), 10)
        wrapped.append("\n".join(textwrap.fill(line, width) for line in title.split("\n")))
    lines_above = max(title.count("\n") for title in wrapped)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            1,
            len(pictures),
            figsize=(height * sum(ratios), height * 1.15 + 0.15 * lines_above),
            width_ratios=ratios,
            squeeze=False,
        )
        for axis, picture, title in zip(axes[0], pictures, wrapped, strict=True):
            axis.imshow(picture)
            if to_scale:
                axis.set_ylim(tallest - 0.5, -0.5)
            axis.set_title(title, fontsize=9)
            axis.axis("off")
        figure.tight_layout()
    plt.close(figure)
    return figure


def mosaic(pieces: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return pieces of one size laid out row by row, with white gaps of `GAP` pixels between."""
    width, height = (side + GAP for side in pieces[0].size)
    rows = len(pieces) // columns
    canvas = Image.new("RGB", (columns * width - GAP, rows * height - GAP), "white")
    for place, piece in enumerate(pieces):
        row, column = divmod(place, columns)
        canvas.paste(piece, (column * width, row * height))
    return canvas


def pictures_of(pixel_values: Tensor, image_processor: ImageProcessor) -> list[Image.Image]:
    """Return normalised pixels (pictures, 3, height, width) as pictures to look at.

    The mean and the deviation of each channel, those of `image_processor`, are undone.
    """
    mean = torch.tensor(image_processor.image_mean)[:, None, None]
    deviation = torch.tensor(image_processor.image_std)[:, None, None]
    shares = (pixel_values * deviation + mean).clamp(0, 1)
    scaled = (shares * 255).round().to(torch.uint8)
    return [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in scaled]


def show_grids(grids: Mapping[str, Tensor | Image.Image], *, common_scale: bool = False) -> Figure:
    """Show grids of numbers (rows, columns) as shades under their titles.

    Each has a scale of its own, or all have a common one; True and False need none. A picture among
    them is shown at the same size, with lines where the grids' places begin. Rows and columns count
    from 0.
    """
    numbers = [grid for grid in grids.values() if isinstance(grid, Tensor)]
    limits = {}
    if common_scale:
        limits["vmin"] = min(grid.min().item() for grid in numbers)
        limits["vmax"] = max(grid.max().item() for grid in numbers)
    rows, columns = numbers[0].shape
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            1, len(grids), figsize=(2.8 * len(grids), 2.6), squeeze=False, layout="constrained"
        )
        for axis, (title, grid) in zip(axes[0], grids.items(), strict=True):
            axis.set_title(title, fontsize=9)
            if isinstance(grid, Tensor):
                shades = axis.imshow(grid.float().numpy(), cmap="cividis", **limits)
                if grid.dtype != torch.bool and not common_scale:
                    _add_scale(figure, shades, axis)
            else:
                _show_in_places(axis, grid, rows, columns)
            _number_places(axis)
        if common_scale and numbers[-1].dtype != torch.bool:
            _add_scale(figure, shades, axes[0])
    plt.close(figure)
    return figure


def _add_scale(figure: Figure, shades: AxesImage, axes: Any) -> None:
    """Say beside a grid, or beside a row of them, which shade is which number."""
    figure.colorbar(shades, ax=axes, fraction=0.046).ax.tick_params(labelsize=8)


def _show_in_places(axis: Axes, picture: Image.Image, rows: int, columns: int) -> None:
    """Show a picture at the size of a grid, with lines where its places begin."""
    axis.imshow(picture, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    axis.set_xticks([place - 0.5 for place in range(columns + 1)], minor=True)
    axis.set_yticks([place - 0.5 for place in range(rows + 1)], minor=True)
    axis.grid(which="minor", color="white", linewidth=0.4, alpha=0.6)


def _number_places(axis: Axes) -> None:
    """Write small whole numbers at the rows and columns, and none at the lines between them."""
    for direction in (axis.xaxis, axis.yaxis):
        direction.set_major_locator(MaxNLocator(6, integer=True))
    axis.tick_params(labelsize=7, length=2)
    axis.tick_params(which="minor", length=0)


def lines(
    series: Mapping[str, Mapping[float, float]],
    *,
    x: str,
    y: str,
    span: tuple[float, float, str] | None = None,
) -> Figure:
    """Draw a line through the points (x to y) of each of at most six series; `x`, `y` are labels.

    A `span` is shaded from its first x to its second, and its text stands in the legend. Raises
    `ValueError` for more series than can be told apart.
    """
    if len(series) > len(PALETTE):
        raise ValueError(f"{len(series)} lines cannot be told apart; draw at most {len(PALETTE)}.")
    styles = zip(series.items(), PALETTE, MARKERS, DASHES, strict=False)
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(5.6, 2.9))
        for (name, points), colour, marker, dashes in styles:
            axis.plot(
                list(points),
                list(points.values()),
                label=name,
                color=colour,
                marker=marker,
                markersize=4,
                linestyle=dashes,
            )
        axis.set_xlabel(x, fontsize=9)
        axis.set_ylabel(y, fontsize=9)
        axis.tick_params(labelsize=8)
        if min(axis.get_ylim()) > 0:
            axis.set_ylim(bottom=0)  # heights are compared
        if span is not None:
            axis.axvspan(*span[:2], color="#eeeef2", label=span[2], zorder=0)
        if len(series) > 1 or span is not None:
            axis.legend(fontsize=8, frameon=False)
        figure.tight_layout()
    plt.close(figure)
    return figure


def bars(
    groups: Mapping[str, Mapping[str, float]],
    *,
    unit: str = "",
    variants: Sequence[str] = (),
    common_scale: bool = False,
) -> Figure:
    """Draw one small bar chart for each measure: `groups` is measure to variant to value.

    A variant has the same colour in all of them; those of `variants` have the first colours, so
    that they are the same in other plots too, where one is missing.
    """
    names = list(dict.fromkeys([*variants, *(name for v in groups.values() for name in v)]))
    fills = [
        {"facecolor": colour, "hatch": hatch}
        for colour, hatch in zip(PALETTE, HATCHES, strict=True)
    ]
    styles = dict(zip(names, cycle(fills), strict=False))
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            1, len(groups), figsize=(2.6 * len(groups), 2.6), squeeze=False, sharey=common_scale
        )
        for axis, (measure, values) in zip(axes[0], groups.items(), strict=True):
            rectangles = axis.bar(list(values), list(values.values()), edgecolor="white")
            for name, rectangle in zip(values, rectangles, strict=True):
                rectangle.set(**styles[name])
            _label_bars(axis, rectangles, measure, values)
        axes[0][0].set_ylabel(unit, fontsize=9)
        figure.tight_layout()
    plt.close(figure)
    return figure


def _label_bars(axis: Axes, rectangles: BarContainer, measure: str, names: Collection[str]) -> None:
    """Write what the bars are, and how high."""
    axis.bar_label(rectangles, fmt=_in_three_digits, fontsize=8, padding=2)
    axis.set_title(measure, fontsize=10)
    labels = [name.replace(" ", "\n") if len(name) > 8 else name for name in names]
    axis.set_xticks(range(len(names)), labels)
    axis.tick_params(labelsize=8)
    longest = max(len(line) for label in labels for line in label.splitlines())
    if len(names) > 5 or len(names) * longest > 36:  # or neighbours' names would run together
        plt.setp(axis.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
    axis.margins(y=0.15)


def intervals(values: Mapping[str, tuple[float, float, float]], *, x: str, even: float) -> Figure:
    """Draw ratios as points with their intervals (low, value, high) above 0; `x` is the label.

    A line stands at `even`: an interval that crosses it may be chance. The axis is logarithmic, as
    half as much is as far from even as twice as much.
    """
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(5.6, 0.8 + 0.34 * len(values)))
        for place, (low, value, high) in enumerate(values.values()):
            errors = [[value - low], [high - value]]
            axis.errorbar(value, place, xerr=errors, fmt="o", color=PALETTE[0], capsize=3)
        axis.axvline(even, color="#555555", linestyle="--", linewidth=1)
        axis.set_yticks(range(len(values)), list(values))
        axis.invert_yaxis()
        axis.margins(y=0.15)
        axis.set_xscale("log")
        lows, _, highs = zip(*values.values(), strict=True)
        steps = (1, 2, 5) if max(highs) < 100 * min(lows) else (1,)  # so that labels have room
        axis.xaxis.set_major_locator(LogLocator(subs=steps))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(x, fontsize=9)
        axis.tick_params(labelsize=8)
        figure.tight_layout()
    plt.close(figure)
    return figure


def _in_three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
