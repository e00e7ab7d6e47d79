"""What `unrain bench` prints: lines of a table, JSON and CSV."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path

from unrain import files
from unrain.cli.output import csv_line
from unrain.lab.bench.cache import FOLDER
from unrain.lab.bench.candidates import Candidate
from unrain.lab.bench.cost import Cost
from unrain.lab.bench.report.published import Figure, figures_of
from unrain.lab.bench.run import Measured, Summary
from unrain.zoo import Model

Cells = dict[str, object]
# What each candidate costs with each number of recursions.
Costs = Mapping[tuple[Candidate, int | None], Cost | None]


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        field: Of the Summary.
        head: What stands above it.
        width: In characters.
        decimals: Behind the point.
    """

    field: str
    head: str
    width: int
    decimals: int


ALWAYS = (Column("psnr", "PSNR", 7, 2), Column("ssim", "SSIM", 7, 4))
_BY_METRIC = {
    "rgb": (Column("psnr_rgb", "PSNR-RGB", 8, 2), Column("ssim_rgb", "SSIM-RGB", 8, 4)),
    "lpips": (Column("lpips", "LPIPS", 7, 4),),
    "niqe": (Column("niqe", "NIQE", 7, 3),),
    "brisque": (Column("brisque", "BRISQUE", 7, 2),),
    "streaks": (
        Column("streaks_removed", "streaks", 7, 3),
        Column("streak_pictures", "of", 4, 0),
        Column("change_away", "away", 6, 2),
    ),
    "chroma": (Column("chroma", "chroma", 6, 2),),
}


_ROW = (
    "model",
    *(field.name for field in fields(Summary)),
    *(field.name for field in fields(Cost)),
    "measured_with",
    "origin",
    "year",
    "trained_on",
    "protocol",
    "source",
)


def columns(metrics: Sequence[str]) -> list[Column]:
    """Return the columns of the table for the measures that are taken."""
    return [*ALWAYS, *(column for name in metrics for column in _BY_METRIC[name])]


def head(shown: Sequence[Column], names: int, *, cost: bool = False) -> str:
    """Return the table's first line; model names get this many characters."""
    cells = " ".join(f"{column.head:>{column.width}}" for column in shown)
    costs = f" {'weights':>10} {'kMAC/px':>8} {'MB':>6}" if cost else ""
    return f"{'model':{names}} {'suite':16} {'T':>2} {'pictures':>8} {cells} {'seconds':>7}{costs}"


def line(
    model: str,
    score: Summary,
    shown: Sequence[Column],
    names: int,
    cost: Cost | None = None,
    *,
    with_cost: bool = False,
) -> str:
    """Return a score as a line of the table."""
    cells = " ".join(_cell(getattr(score, column.field), column.width, column.decimals) for column in shown)
    costs = ""
    if with_cost:
        weights, macs, peak = (
            (cost.parameters, cost.macs_per_pixel / 1e3, cost.peak_memory_mb) if cost else (None, None, None)
        )
        costs = f" {'-' if weights is None else f'{weights:,}':>10} {_cell(macs, 8, 1)} {_cell(peak, 6, 0)}"
    reused = f" {score.reused} reused" if score.reused else ""
    return (
        f"{model:{names}} {score.suite:16} {score.recursions or '-':>2} {score.pictures:8} {cells} "
        f"{_cell(score.seconds if score.recursions else None, 7, 3)}{costs}"
        f"{' truncated' * score.truncated}{reused}"
    )


def published_line(figure: Figure, suite: str, shown: Sequence[Column], names: int) -> str | None:
    """Return a published figure as a line of the table; None where the table has no column for it."""
    values = _values(figure)
    if not any(column.field in values for column in shown):
        return None
    # SSIM to three digits, as published.
    cells = " ".join(
        _cell(values.get(column.field), column.width, min(column.decimals, 3)) for column in shown
    )
    return f"{figure.label:{names}} {suite:16} {'-':>2} {'-':>8} {cells} {'-':>7} published {figure.year}"


def _values(figure: Figure) -> dict[str, float]:
    ending = "_rgb" if figure.source.channel == "RGB" else ""
    return {f"psnr{ending}": figure.psnr, f"ssim{ending}": figure.ssim}


def _cell(value: float | None, width: int, decimals: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{decimals}f}"


def as_rows(measured: Sequence[Measured], costs: Costs, *, published: bool = False) -> list[Cells]:
    """Return all scores as plain values, one row each, for JSON, CSV and the page.

    Args:
        measured: What was measured, suite by suite.
        costs: What the candidates cost; empty where it was not measured.
        published: Whether each suite's published figures follow.
    """
    rows: list[Cells] = []
    for _, group in groupby(measured, key=lambda one: one.suite.name):
        of_suite = list(group)
        for one in of_suite:
            for score in one.scores:
                cost = costs.get((one.candidate, score.recursions))
                rows.append(
                    dict.fromkeys(_ROW)
                    | {"model": one.candidate.name, **asdict(score), **(asdict(cost) if cost else {})}
                    | {
                        "measured_with": ", ".join(
                            f"{name} {version}" for name, version in one.versions.items()
                        ),
                        "origin": "measured",
                        "trained_on": _trained_on(one.candidate),
                    }
                )
        suite = of_suite[0].suite
        for figure in figures_of(suite) if published else ():
            rows.append(
                dict.fromkeys(_ROW)
                | {"model": figure.label, "suite": suite.name, **_values(figure)}
                | {
                    "origin": "published",
                    "year": figure.year,
                    "trained_on": figure.trained_on,
                    "protocol": figure.remark,
                    "source": f"{figure.source.title}, {figure.source.read}, {figure.source.url}",
                }
            )
    return rows


def as_json(value: object) -> list[str]:
    """Return the lines of a value as JSON, for programs."""
    return json.dumps(value, indent=2).split("\n")


def _trained_on(candidate: Candidate) -> str | None:
    """Return what a model's card says of its training data."""
    said = candidate.source.card.get("training_data") if isinstance(candidate.source, Model) else None
    return "; ".join(map(str, said)) if isinstance(said, list) else None


def footnotes(measured: Sequence[Measured]) -> list[str]:
    """Say what was measured with which files, and what is from an earlier run."""
    versions = {name: version for one in measured for name, version in one.versions.items()}
    notes = [", ".join(f"{name.upper()} with the file of {version}" for name, version in versions.items())]
    scores = [one.scores[0] for one in measured]
    reused, total = sum(score.reused for score in scores), sum(score.pictures for score in scores)
    if reused:
        notes.append(
            f"{reused} of {total} values are from an earlier run with the same files, code and libraries "
            f"({FOLDER}); --fresh measures again"
        )
    return [line for line in notes if line]


def as_csv(rows: Iterable[Cells], columns: Iterable[str] = tuple(_ROW)) -> list[str]:
    """Return the lines of a table as CSV.

    Args:
        rows: Values by column.
        columns: In their order; those of `as_rows` if not given.
    """
    columns = list(columns)
    return [csv_line(columns), *(csv_line(row[column] for column in columns) for row in rows)]


def write(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        UnrainError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.writing_error(error, path) from error
    files.write(text.encode(), path)
