"""`python -m unrain.lab.curves`: what hours of training gave the shipped models, and what more would give.

Git keeps every card that shipped, with the scores of the whole sets and the stages that led to it: each is a
point. A run's folder has its loss.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import App, Parameter
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unrain import files, zoo
from unrain.cli.output import print_line, run_module
from unrain.errors import UnrainError
from unrain.lab.bench.report.plots import COLOURS

SUITES = {"rain100l/test": "Rain100L", "rain100h/test": "Rain100H", "rain800/test": "Rain800"}
MORE_HOURS = 10.0
# Losses are noisy: each point is the mean of so many parts of a run.
PARTS = 60

app = App(name="python -m unrain.lab.curves", help_format="plaintext")


@dataclass(frozen=True)
class Version:
    """A version of a model that shipped.

    Attributes:
        steps: Steps of training, of all the stages that led to it.
        hours: Hours that they took, each on one core.
        psnr: Y PSNR in dB with one recursion, by suite.
    """

    steps: int
    hours: float
    psnr: dict[str, float]


def versions(repository: Path, card: str) -> list[Version]:
    """Read the versions of a model from the history of its card, by hours.

    Args:
        repository: A folder of a Git working tree.
        card: The card's path below it, with `/`.

    Raises:
        UnrainError: There is no Git, no repository or no such card in it.
    """
    found: dict[tuple[float, float], Version] = {}
    for commit in _git(repository, "log", "--format=%H", "--", card).split():
        try:
            text = json.loads(_git(repository, "show", f"{commit}:{card}"))
        except UnrainError:  # the commit that removed it
            continue
        psnr = {
            name: score["psnr"]
            for suite, name in SUITES.items()
            if (score := text.get("scores", {}).get(f"{suite} T1"))
        }
        steps, seconds = _sum(text, "steps"), _sum(text, "wall_time")
        # New weights are committed with the scores of those before, and then measured: the last card counts.
        if psnr:
            found.setdefault((steps, seconds), Version(int(steps), seconds / 3600, psnr))
    if not found:
        raise UnrainError(f"{repository / card}: no version with scores in its history")
    return sorted(found.values(), key=lambda version: version.hours)


def gain(hours: Sequence[float], psnr: Sequence[float], more: float) -> float | None:
    """Extrapolate what more hours would bring, in dB.

    Each doubling of the hours is taken to gain the same, by a line of least squares over their logarithm,
    from the last point on.

    Args:
        hours: Core-hours of each version, rising, above 0.
        psnr: dB of each.
        more: Hours to come.

    Returns:
        The gain, or None where the versions lie less than one doubling apart.
    """
    if len(hours) < 2 or hours[-1] < 2 * hours[0]:
        return None
    slope = np.polyfit(np.log(hours), psnr, 1)[0]
    return float(slope * np.log1p(more / hours[-1]))


def losses(run: Path) -> tuple[list[float], list[float]]:
    """Read the loss of a run, as thousands of steps and means over parts of it.

    Args:
        run: What `unrain train --out` wrote.

    Raises:
        UnrainError: The folder has no metrics.csv.
    """
    logs = sorted(run.glob("csv/*/metrics.csv"), key=lambda path: int(path.parent.name.rpartition("_")[2]))
    if not logs:
        raise UnrainError(f"{run}: no csv/*/metrics.csv in this folder: give one of `unrain train --out`")
    rows = [row for log in logs for row in csv.DictReader(io.StringIO(log.read_text("utf-8")))]
    points = np.array([(float(row["step"]) / 1000, float(row["loss"])) for row in rows if row.get("loss")])
    parts = [part.mean(axis=0) for part in np.array_split(points, PARTS) if len(part)]
    return [float(part[0]) for part in parts], [float(part[1]) for part in parts]


@app.default
def draw(
    *,
    out: Annotated[Path, Parameter(name=("--out", "-o"))],
    run: tuple[Path, ...] = (),
    repository: Path = Path(),
) -> None:
    """Draw PSNR against core-hours and the loss against steps; print the first as a table.

    Args:
        out: The SVG file.
        run: A folder that `unrain train --out` wrote, for its loss; may be given several times.
        repository: unrain's Git working tree.
    """
    cards = _git(repository, "ls-files", "src/unrain/weights/*.json").split()
    models = {Path(card).stem: versions(repository, card) for card in cards if card.count("/") == 3}
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    panels = figure.subplots(2, 2).flat
    print_line(f"| | steps | core-hours | {' | '.join(SUITES.values())} |")
    print_line("|---|---|---|---|---|---|")
    for name, found in models.items():
        last = found[-1]
        cells = [f"{last.psnr[suite]:.2f}" if suite in last.psnr else "" for suite in SUITES.values()]
        print_line(f"| `{name}` | {last.steps:,} | {last.hours:.1f} | {' | '.join(cells)} |")
        cells = [_signed(_more(found, suite)) for suite in SUITES.values()]
        print_line(f"| {MORE_HOURS:g} hours more, extrapolated | | | {' | '.join(cells)} |")
    for axes, suite in zip(panels, SUITES.values(), strict=False):
        for colour, (name, found) in zip(COLOURS, models.items(), strict=False):
            _line(axes, found, suite, name, colour)
        axes.set(xlabel="core-hours of training", ylabel=f"{suite}, Y PSNR in dB", xscale="log")
    axes = panels[-1]
    for colour, folder in zip(COLOURS, run, strict=False):
        axes.plot(*losses(folder), label=folder.name, color=colour)
    axes.set(xlabel="thousand steps of a run", ylabel="loss")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    # Neither date nor random ids: the same history gives the same file.
    with rc_context({"svg.hashsalt": "unrain"}):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    files.write(drawn.getvalue(), out)


def _line(axes: Axes, found: list[Version], suite: str, name: str, colour: str) -> None:
    """Draw a model's versions, and dashed where it would go."""
    hours, psnr = _points(found, suite)
    axes.plot(hours, psnr, "o-", markersize=4, label=name, color=colour)
    if more := _more(found, suite):
        axes.plot(
            (hours[-1], hours[-1] + MORE_HOURS), (psnr[-1], psnr[-1] + more), "--", linewidth=1, color=colour
        )


def _more(found: list[Version], suite: str) -> float | None:
    return gain(*_points(found, suite), MORE_HOURS)


def _points(found: list[Version], suite: str) -> tuple[list[float], list[float]]:
    """Return hours and PSNR of the versions that a suite has measured."""
    measured = [version for version in found if suite in version.psnr]
    return [version.hours for version in measured], [version.psnr[suite] for version in measured]


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _sum(card: dict[str, Any], key: str) -> float:
    """Sum a figure over the stages that led to a card."""
    return sum(
        one.get(key) or 0 for stage in zoo.stages(card) for one in (stage, *stage.get("mean_with", ()))
    )


def _git(repository: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=repository, capture_output=True, text=True)
    except OSError as problem:
        raise UnrainError(f"{repository}: git cannot run there: {problem}") from problem
    if done.returncode:
        raise UnrainError(f"{repository}: git {arguments[0]}: {files.one_line(done.stderr)}")
    return done.stdout


if __name__ == "__main__":
    run_module(app)
