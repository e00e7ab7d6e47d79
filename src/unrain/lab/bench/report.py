"""What `unrain bench` prints and writes: lines of a table, JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from unrain.errors import UnrainError
from unrain.lab.bench.benchmark import Measured, Summary
from unrain.lab.bench.results import FOLDER


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
}


def columns(metrics: Sequence[str]) -> list[Column]:
    """Return the columns of the table for the measures that are taken."""
    return [*ALWAYS, *(column for name in metrics for column in _BY_METRIC[name])]


def head(shown: Sequence[Column], names: int) -> str:
    """Return the table's first line; model names get this many characters."""
    cells = " ".join(f"{column.head:>{column.width}}" for column in shown)
    return f"{'model':{names}} {'suite':16} {'T':>2} {'pictures':>8} {cells} {'seconds':>7}"


def line(model: str, score: Summary, shown: Sequence[Column], names: int) -> str:
    """Return a score as a line of the table."""

    def cell(value: float | None, width: int, decimals: int) -> str:
        return f"{'-':>{width}}" if value is None else f"{value:{width}.{decimals}f}"

    cells = " ".join(cell(getattr(score, column.field), column.width, column.decimals) for column in shown)
    reused = f" {score.reused} reused" if score.reused else ""
    return (
        f"{model:{names}} {score.suite:16} {score.recursions or '-':>2} {score.pictures:8} {cells} "
        f"{cell(score.seconds if score.recursions else None, 7, 3)}{' truncated' * score.truncated}{reused}"
    )


def as_rows(measured: Sequence[Measured]) -> list[dict[str, object]]:
    """Return all scores as plain values, one row each, for JSON and CSV."""
    return [
        {
            "model": one.entrant.name,
            **asdict(score),
            "measured_with": ", ".join(f"{name} {version}" for name, version in one.versions.items()),
        }
        for one in measured
        for score in one.scores
    ]


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


def write_csv(path: Path, measured: Sequence[Measured]) -> None:
    """Write all scores as CSV, atomically.

    Raises:
        UnrainError: The file cannot be written.
    """
    text = io.StringIO()
    names = ["model", *(field.name for field in fields(Summary)), "measured_with"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(as_rows(measured))
    write(path, text.getvalue())


def write(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        UnrainError: It cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise UnrainError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
