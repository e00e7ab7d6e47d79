"""What `unrain bench sizes` prints and writes: a table, and a page with plots of gain against size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path

from unrain.lab.bench.cache import FOLDER, fingerprint
from unrain.lab.bench.report import tables
from unrain.lab.bench.report.html import as_text, document, printable
from unrain.lab.bench.report.plots import Gains, gain_plot
from unrain.lab.bench.sizes import SizeRow, SizesTable

COLUMNS = tuple(field.name for field in fields(SizeRow))
_HEADS = (
    ("recursions", "recursions", 0),
    ("levels", "levels", 0),
    ("size", "long side", 0),
    ("pictures", "photographs", 0),
    ("psnr_rainy", "rainy, dB", 2),
    ("psnr", "derained, dB", 2),
    ("gain", "gain, dB", 2),
    ("chroma_rainy", "chroma, rainy", 2),
    ("chroma", "chroma, derained", 2),
    ("seconds", "seconds", 2),
    ("peak_memory_mb", "memory, MB", 0),
    ("worked_at", "mostly at", 0),
)
_SAID = {
    "scaled": "Rain to scale: streaks as long and wide in proportion to the picture",
    "fine": "Fine rain: streaks as long and wide as in a picture of 640 pixels",
}
_MEANS = (
    "PSNR on Y and chroma (mean absolute difference of Cb and Cr) against the clean photograph; seconds are "
    "the median over the photographs; memory is the peak of a fresh process on the largest of them"
)


def lines(table: SizesTable) -> Iterator[str]:
    """Yield the table line by line, and below it what was left out."""
    names = max(len("model"), *(len(row.model) for row in table.rows))
    yield f"{_measured_on(table)}; {_MEANS}"
    yield (
        f"{'model':{names}} {'T':>2} {'levels':>6} {'rain':>6} {'size':>6} {'photos':>6} {'rainy':>6} "
        f"{'derained':>8} {'gain':>6} {'chroma':>6} {'seconds':>8} {'MB':>6} mostly at"
    )
    for row in table.rows:
        yield (
            f"{row.model:{names}} {row.recursions:2} {row.levels!s:>6} {row.rain:>6} {row.size!s:>6} "
            f"{row.pictures:6} {_number(row.psnr_rainy, 6, 2)} {_number(row.psnr, 8, 2)} "
            f"{_number(row.gain, 6, 2)} {_number(row.chroma, 6, 2)} {_number(row.seconds, 8, 3)} "
            f"{_number(row.peak_memory_mb, 6, 0)} {row.worked_at or 'left out'}"
        )
    yield from footnotes(table)


def footnotes(table: SizesTable) -> Iterator[str]:
    """Yield what was left out, and what is from an earlier run."""
    yield from table.left_out
    reused, pictures = (sum(getattr(row, name) for row in table.rows) for name in ("reused", "pictures"))
    if reused:
        yield f"{reused} of {pictures} values are from an earlier run ({FOLDER}); --fresh measures again"


def write_page(path: Path, table: SizesTable) -> None:
    """Write the page, atomically.

    Raises:
        UnrainError: The file cannot be written.
    """
    body, links = [], []
    for rain in dict.fromkeys(row.rain for row in table.rows):
        rows = [row for row in table.rows if row.rain == rain]
        title = as_text(_SAID[rain])
        links.append(f'<a href="#{rain}">{rain}</a>')
        body.append(
            f'<section id="{rain}"><h2>{title}</h2>{_table(rows, title)}'
            f'<div class="plots">{_plot(rows, rain)}</div></section>'
        )
    said = [_measured_on(table), _MEANS, *footnotes(table), *table.unreadable]
    notes = "".join(f"<p>{as_text(line)}</p>" for line in said)
    code = fingerprint("unrain.lab.bench.sizes")
    page = document(
        "unrain bench sizes", "".join(links), "".join(body), notes, processor=table.processor, code=code
    )
    tables.write(path, page)


def as_csv(table: SizesTable) -> list[str]:
    """Return the lines of the rows as CSV."""
    return tables.as_csv(map(asdict, table.rows), COLUMNS)


def _measured_on(table: SizesTable) -> str:
    count = table.processor.threads
    threads = f"{count} thread{'s' * (count != 1)}"
    return f"{table.machine}; {threads}; {table.photographs} photograph{'s' * (table.photographs != 1)}"


def _number(value: float | None, width: int, decimals: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{decimals}f}"


def _table(rows: list[SizeRow], label: str) -> str:
    heads = "".join(
        f'<th scope="col"><button type="button">{head}</button></th>'
        for head in ("model", *(head for _, head, _ in _HEADS))
    )
    body = []
    for row in rows:
        cells = [f'<td data-value="{as_text(row.model)}">{as_text(row.model)}</td>']
        for name, _, decimals in _HEADS:
            value = getattr(row, name)
            shown = f"{value:.{decimals}f}" if isinstance(value, float) else str(value)
            cells.append("<td></td>" if value is None else f'<td data-value="{value}">{shown}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _plot(rows: list[SizeRow], rain: str) -> str:
    drawn = []
    for (model, recursions, levels), group in groupby(
        rows, key=lambda row: (row.model, row.recursions, row.levels)
    ):
        at = "full size" if levels == 1 else f"levels {levels}"
        # Photographs as they are have no one size.
        points = [(row.size, row.gain) for row in group if row.size != "native" and row.gain is not None]
        if points:
            sizes, gains = zip(*points, strict=True)
            drawn.append(Gains(f"{printable(model)}, T={recursions}, {at}", sizes, gains))
    if not drawn:
        return ""
    title = f"Gain in dB against the long side, rain {rain}; the table has the numbers"
    return f"<figure><figcaption>Gain against size</figcaption>{gain_plot(drawn, title, rain)}</figure>"
