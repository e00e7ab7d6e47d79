"""The plots of the HTML report, as SVG to stand inside a page: no address, no font, the page's own ink."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

# Told apart by most eyes, on white and on black.
COLOURS = ("#2b83ba", "#d95f02", "#1b9e77", "#c2529d", "#a6761d", "#7570b3", "#6c8a1f", "#7f8c8d")
# Becomes the colour of the page's text.
_INK = "#010203"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "unrain",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}
_REFERENCE = re.compile(r"(?<=#)[\w-]+")
_WIDTH = 4.8
_BINS = 24


@dataclass(frozen=True)
class Point:
    """One model in the plot of quality against cost.

    Attributes:
        label: What stands beside it.
        family: Points of one family share a colour and are joined.
        cost: Thousand multiplications a pixel.
        quality: Whatever is plotted upwards.
    """

    label: str
    family: int
    cost: float
    quality: float


@dataclass(frozen=True)
class Series:
    """One model in the histograms.

    Attributes:
        label: What stands above it.
        family: Decides its colour; -1 is grey.
        values: One for each picture.
    """

    label: str
    family: int
    values: Sequence[float]


@dataclass(frozen=True)
class Gains:
    """One model in the plot of gain against size.

    Attributes:
        label: What the legend says.
        sizes: Long sides in pixels, rising.
        gains: In dB, one for each.
    """

    label: str
    sizes: Sequence[int]
    gains: Sequence[float]


def quality_plot(points: Sequence[Point], quality: str, title: str, prefix: str) -> str:
    """Draw quality against cost.

    Args:
        points: One or more.
        quality: What stands at the upward axis.
        title: What a reader who cannot see the plot is told.
        prefix: Of all names within the SVG; each plot of a page needs another.

    Returns:
        An svg element.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        for family, group in itertools.groupby(points, key=lambda point: point.family):
            members = list(group)
            axes.plot(
                [point.cost for point in members],
                [point.quality for point in members],
                "o-",
                color=_colour(family),
                linewidth=1,
                markersize=7,
            )
        costs = [point.cost for point in points]
        middle = float(np.sqrt(min(costs) * max(costs)))
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.6, max(costs) * 1.6)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(LogLocator(subs=()))
        heights = [point.quality for point in points]
        room = max(0.15 * (max(heights) - min(heights)), 0.01 * max(map(abs, heights)), 1e-3)
        axes.set_ylim(min(heights) - room, max(heights) + room)
        # Labels must not cover each other: 12 points apart, on some 190 points of height.
        scale = 190 / (max(heights) - min(heights) + 2 * room)
        for point, moved in zip(points, _apart([height * scale for height in heights], 12), strict=True):
            right = point.cost > middle
            axes.annotate(
                point.label,
                (point.cost, point.quality),
                (-9 if right else 9, moved - point.quality * scale),
                textcoords="offset points",
                ha="right" if right else "left",
                va="center",
                fontsize=8,
                parse_math=False,
            )
        axes.grid(alpha=0.15, color=_INK)
        axes.set_xlabel("thousand multiplications a pixel, all recursions")
        axes.set_ylabel(quality)
        return _inline(figure, title, prefix)


def gain_plot(lines: Sequence[Gains], title: str, prefix: str) -> str:
    """Draw gain against size, with a line at no gain.

    Args:
        lines: One or more; each has a colour of its own.
        title: What a reader who cannot see the plot is told.
        prefix: See `quality_plot`.

    Returns:
        An svg element.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.0 + 0.16 * len(lines)), layout="constrained")
        axes = figure.subplots()
        for number, line in enumerate(lines):
            axes.plot(line.sizes, line.gains, "o-", color=_colour(number), linewidth=1, label=line.label)
        axes.axhline(0, color=_INK, linewidth=0.6)
        axes.set_xscale("log")
        marks = sorted({size for line in lines for size in line.sizes})
        axes.set_xticks(marks, [str(mark) for mark in marks])
        axes.minorticks_off()
        axes.grid(alpha=0.15, color=_INK)
        axes.set_xlabel("long side, pixels")
        axes.set_ylabel("gain, dB")
        legend = figure.legend(loc="outside lower left", frameon=False, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)
        return _inline(figure, title, prefix)


def histograms(series: Sequence[Series], unit: str, title: str, prefix: str) -> str:
    """Draw a histogram for each model, one below the other on one scale, with a line at the median.

    Args:
        series: One or more, each with at least one value.
        unit: What stands at the common axis.
        title: What a reader who cannot see the plot is told.
        prefix: See `quality_plot`.

    Returns:
        An svg element.
    """
    low = min(min(one.values) for one in series)
    high = max(max(one.values) for one in series)
    edges = np.linspace(low, max(high, low + 1e-3), _BINS + 1)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.5 + 0.7 * len(series)), layout="constrained")
        rows: list[Axes] = list(figure.subplots(len(series), sharex=True, squeeze=False)[:, 0])
        for axes, one in zip(rows, series, strict=True):
            axes.hist(list(one.values), bins=list(edges), color=_colour(one.family), alpha=0.75)
            axes.axvline(float(np.median(one.values)), color=_INK, linewidth=1)
            axes.set_title(one.label, loc="left", fontsize=8, pad=2, parse_math=False)
            axes.yaxis.set_major_locator(MaxNLocator(1, integer=True))
            axes.tick_params(labelsize=7)
        rows[-1].set_xlabel(unit)
        return _inline(figure, title, prefix)


def _colour(family: int) -> str:
    return COLOURS[family % (len(COLOURS) - 1)] if family >= 0 else COLOURS[-1]


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights until none is nearer to another than the gap, keeping their order and their mean."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = list(heights)
    for before, i in itertools.pairwise(order):
        moved[i] = max(moved[i], moved[before] + gap)
    shift = (sum(moved) - sum(heights)) / len(heights)
    return [height - shift for height in moved]


def _inline(figure: Figure, title: str, prefix: str) -> str:
    """Return a figure as an element of a page: names of its own, the page's ink, nothing from outside."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Text stays text: it is the reader's fonts that need a letter, not Matplotlib's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # A style sheet would reach the whole page; the metadata hold addresses.
            if child.tag.endswith(("}style", "}metadata")):
                parent.remove(child)
    used = {
        name
        for element in root.iter()
        for value in element.attrib.values()
        for name in _REFERENCE.findall(value)
    }
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            if name == "id":
                if value in used:
                    element.set("id", f"{prefix}-{value}")
            elif name == "href":
                element.set(name, value.replace("#", f"#{prefix}-"))
            else:
                value = value.replace(_INK, "currentColor")
                element.set(name, value.replace("url(#", f"url(#{prefix}-"))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", title)
    return ElementTree.tostring(root, encoding="unicode")
