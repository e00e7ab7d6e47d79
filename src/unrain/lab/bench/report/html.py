"""`unrain bench --report`: one HTML file with the tables, the plots and the pictures to look at.

The file is complete: style, script, plots and pictures stand in it, and its content policy forbids the
browser to fetch anything else. Every text from outside (names of files, models and sets) is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image

from unrain.devices import Processor
from unrain.lab.bench.cache import fingerprint
from unrain.lab.bench.candidates import Candidate, to_8_bit
from unrain.lab.bench.options import CPU
from unrain.lab.bench.report import tables
from unrain.lab.bench.report.contact_sheet import spread
from unrain.lab.bench.report.plots import COLOURS, Point, Series, histograms, quality_plot
from unrain.lab.bench.report.published import NOT_SAID, Figure, Source, figures_of
from unrain.lab.bench.run import INPUT, Measured, restorers
from unrain.lab.data.rain import RGB8
from unrain.lab.hardware import hardware
from unrain.version import __version__

# All pictures together, before base64 makes them a third larger: 15 MB for the page is what mail takes.
PICTURE_BYTES = 10_000_000
_WIDTHS = (480, 400, 320, 240, 160, 96)
_QUALITY = 82


@dataclass(frozen=True)
class _Column:
    """A column of the tables: field of a row, head, what it is divided by, digits behind the point."""

    field: str
    head: str
    divisor: float = 1
    decimals: int = 0


_COLUMNS = (
    _Column("recursions", "recursions"),
    _Column("pictures", "pictures"),
    _Column("psnr", "PSNR, dB", decimals=2),
    _Column("ssim", "SSIM", decimals=4),
    _Column("psnr_rgb", "PSNR RGB, dB", decimals=2),
    _Column("ssim_rgb", "SSIM RGB", decimals=4),
    _Column("lpips", "LPIPS", decimals=4),
    _Column("niqe", "NIQE", decimals=3),
    _Column("brisque", "BRISQUE", decimals=2),
    _Column("streaks_removed", "streaks removed", decimals=3),
    _Column("streak_pictures", "of pictures"),
    _Column("change_away", "change away", decimals=2),
    _Column("chroma", "change of chroma", decimals=2),
    _Column("seconds", "seconds", decimals=3),
    _Column("parameters", "weights"),
    _Column("macs_per_pixel", "kMAC a pixel", 1e3, 1),
    _Column("peak_memory_mb", "memory, MB"),
)


def write_page(
    path: Path,
    measured: Sequence[Measured],
    costs: tables.Costs,
    *,
    published: bool = False,
    processor: Processor = CPU,
    note: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the report, atomically. The pictures that it shows are derained again.

    Args:
        path: The file.
        measured: What was measured, suite by suite.
        costs: What the candidates cost.
        published: Whether the tables also list published figures.
        processor: What everything ran on, see `open_derainer`.
        note: Called with a line about what is done.

    Raises:
        UnrainError: A candidate no longer runs, or the file cannot be written.
    """
    note(f"{path}: deraining the best, median and worst pictures")
    tables.write(path, page(measured, costs, published=published, processor=processor))


def page(
    measured: Sequence[Measured], costs: tables.Costs, *, published: bool = False, processor: Processor = CPU
) -> str:
    """Return the report's text; see `write_page`."""
    suites = [list(group) for _, group in groupby(measured, key=lambda one: one.suite.name)]
    families: dict[Candidate, int] = {}
    for one in measured:
        if one.candidate != INPUT:
            families.setdefault(one.candidate, len(families))
    shown = [list(_examples(group)) for group in suites]
    budget = PICTURE_BYTES // max(1, 3 * sum(len(names) for group in shown for _, names in group))
    sections = [
        _section(f"suite{i}", group, examples, families, costs, published, processor, budget)
        for i, (group, examples) in enumerate(zip(suites, shown, strict=True))
    ]
    links = "".join(
        f'<a href="#suite{i}">{as_text(group[0].suite.name)}</a>' for i, group in enumerate(suites)
    )
    notes = f"{_protocol(measured, costs)}\n{_sources(suites) if published else ''}"
    return document("unrain bench", links, "".join(sections), notes, processor=processor, code=fingerprint())


def document(title: str, links: str, body: str, notes: str, *, processor: Processor, code: str) -> str:
    """Return a whole page, closed to the outside.

    Args:
        title: Of the page.
        links: To the page's sections, HTML.
        body: The sections, HTML.
        notes: How it was measured, HTML.
        processor: What everything ran on, see `open_derainer`.
        code: Fingerprint of the code that measured.
    """
    here = Path(__file__)
    style, script = (here.with_suffix(ending).read_text(encoding="utf-8") for ending in (".css", ".js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    threads = processor.threads
    cores = f"{threads} thread{'s' * (threads != 1)}" if threads else "all cores"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="soft">unrain {__version__}, code {code[:12]}, written
{datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {as_text(hardware(torch.device("cpu")))}, {cores}</p>
<nav aria-label="Suites">{links}</nav>
</header>
<main>
{body}
</main>
<footer>
<h2>How measured</h2>
{notes}
</footer>
<script>{script}</script>
</body>
</html>
"""


def _section(
    anchor: str,
    group: list[Measured],
    examples: list[tuple[Measured, dict[str, str]]],
    families: dict[Candidate, int],
    costs: tables.Costs,
    published: bool,
    processor: Processor,
    budget: int,
) -> str:
    suite = group[0].suite
    figures = figures_of(suite) if published else []
    kind = {
        "pairs": f"{len(suite)} pairs",
        "clean": f"{len(suite)} photographs without rain, against themselves",
        "real": f"{len(suite)} photographs of real rain, without ground truth",
    }[suite.kind]
    plots = "".join(_plots(anchor, group, families, costs))
    pictures = "".join(_shown(one, names, processor, budget) for one, names in examples)
    return f"""<section id="{anchor}">
<h2>{as_text(suite.name)}</h2>
<p class="soft">{kind}</p>
{_table(group, families, costs, published)}
{_training(group, figures)}
<div class="plots">{plots}</div>
{pictures}
</section>
"""


def _table(
    group: list[Measured], families: dict[Candidate, int], costs: tables.Costs, published: bool
) -> str:
    rows = tables.as_rows(group, costs, published=published)
    for row in rows:
        # Reading a given picture is not the time that making it took.
        row["seconds"] = row["seconds"] if row["recursions"] else None
    columns = [column for column in _COLUMNS if any(row[column.field] is not None for row in rows)]
    heads = "".join(
        f'<th scope="col"><button type="button">{head}</button></th>'
        for head in ("model", *(column.head for column in columns), "origin")
    )
    colours = {
        one.candidate.name: COLOURS[families[one.candidate] % (len(COLOURS) - 1)]
        for one in group
        if one.candidate in families
    }
    lines = []
    for row in rows:
        name = str(row["model"])
        others = row["origin"] == "published"
        colour = None if others else colours.get(name, COLOURS[-1])
        dot = f'<span class="dot" style="background:{colour}"></span>' if colour else ""
        cut = ", truncated" if row["truncated"] else ""
        cells = "".join(_cell(row[column.field], column, others) for column in columns)
        origin = f"published {row['year']}" if others else "measured"
        lines.append(
            f'<tr class="{row["origin"]}">'
            f'<td data-value="{as_text(name)}">{dot}{as_text(name)}{cut}</td>{cells}'
            f'<td data-value="{origin}"><span class="badge">{origin}</span></td></tr>'
        )
    label = f"Scores on {as_text(group[0].suite.name)}"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(value: object, column: _Column, published: bool) -> str:
    if not isinstance(value, int | float):
        return "<td></td>"
    # SSIM is published to three digits.
    decimals = min(column.decimals, 3) if published else column.decimals
    return f'<td data-value="{value}">{value / column.divisor:,.{decimals}f}</td>'


def _training(group: list[Measured], figures: list[Figure]) -> str:
    """List what each was trained on, since no two figures are alike without that."""
    said = {
        one.candidate.name: str(row["trained_on"] or NOT_SAID)
        for one in group
        if one.candidate != INPUT
        for row in tables.as_rows([one], {})[:1]
    }
    said |= {f"{figure.label}, {figure.year}": f"{figure.trained_on} ({figure.remark})" for figure in figures}
    items = "".join(f"<dt>{as_text(name)}</dt><dd>{as_text(data)}</dd>" for name, data in said.items())
    return (
        f"<details><summary>What each was trained on: not the same data</summary><dl>{items}</dl></details>"
    )


def _plots(
    anchor: str, group: list[Measured], families: dict[Candidate, int], costs: tables.Costs
) -> Iterator[str]:
    suite = group[0].suite
    real = suite.kind == "real"
    points = []
    for one in group:
        score = one.scores[0]
        cost = costs.get((one.candidate, score.recursions))
        quality = score.streaks_removed if real else score.psnr
        if cost and quality is not None:
            points.append(Point(_label(one), families[one.candidate], cost.macs_per_pixel / 1e3, quality))
    if points:
        axis = "streaks removed" if real else "PSNR on Y, dB"
        title = f"{axis} against cost on {printable(suite.name)}; the table has the numbers"
        drawn = quality_plot(points, axis, title, f"{anchor}-cost")
        yield f"<figure><figcaption>Quality against cost</figcaption>{drawn}</figure>"
    series = [
        Series(_label(one), families.get(one.candidate, -1), [_psnr(one, name) for name in suite.names])
        for one in group
        if not real
    ]
    if series:
        title = f"Histograms of the pictures' PSNR on {printable(suite.name)}"
        drawn = histograms(series, "PSNR on Y, dB", title, f"{anchor}-psnr")
        yield f"<figure><figcaption>PSNR of the pictures, with the median</figcaption>{drawn}</figure>"


def _examples(group: list[Measured]) -> Iterator[tuple[Measured, dict[str, str]]]:
    """Give for each candidate the pictures to show: name and what is said of it."""
    for one in group:
        if one.candidate == INPUT:
            continue
        names = one.suite.names
        if one.suite.kind == "real":
            # Without ground truth there is no best and no worst.
            yield one, {name: "" for name in spread(names, 3)}
            continue
        order = sorted(names, key=lambda name: _psnr(one, name), reverse=True)
        places = {"best": order[0], "median": order[(len(order) - 1) // 2], "worst": order[-1]}
        said: dict[str, str] = {}
        for place, name in places.items():
            said[name] = f"{said[name]} and {place}" if name in said else place
        yield one, said


def _shown(one: Measured, said: dict[str, str], processor: Processor, budget: int) -> str:
    """Derain a few pictures and show them beside what they were and what they should be."""
    suite = one.suite
    recursions = one.scores[0].recursions
    ((restore, _),) = restorers(one.candidate, suite.name, (recursions,) if recursions else (), processor)
    trios = []
    for name, place in said.items():
        pair = suite.load(name)
        cells = [
            ("photograph" if suite.kind == "clean" else "input", pair.rainy),
            ("result", to_8_bit(restore(pair))),
        ]
        if suite.kind == "pairs":
            cells.append(("clean", pair.clean))
        images = "".join(
            f'<figure><img src="{_as_url(picture, budget)}" alt="{as_text(name)}: {what}" '
            f'width="{picture.shape[1]}" height="{picture.shape[0]}" loading="lazy">'
            f"<figcaption>{what}</figcaption></figure>"
            for what, picture in cells
        )
        row = one.per_image[name]
        scores = f", {_psnr(one, name):.2f} dB, SSIM {row['ssim']:.4f}" if place else ""
        caption = f"{f'<b>{place.capitalize()}</b> ' if place else ''}{as_text(name)}{scores}"
        trios.append(f'<figure class="trio"><figcaption>{caption}</figcaption><div>{images}</div></figure>')
    return f"<h3>{as_text(_label(one))}</h3>{''.join(trios)}"


def _as_url(picture: RGB8, budget: int) -> str:
    """Return a picture as a data URL, reduced until it has no more bytes than that."""
    image = Image.fromarray(picture)
    data = b""
    for width in _WIDTHS:
        small = image
        if image.width > width:
            small = image.resize(
                (width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS
            )
        file = io.BytesIO()
        small.save(file, "WEBP", quality=_QUALITY)
        data = file.getvalue()
        if len(data) <= budget:
            break
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _protocol(measured: Sequence[Measured], costs: tables.Costs) -> str:
    """Say what the numbers are, in the words of the documentation."""
    lines = [
        "PSNR and SSIM on the Y channel of BT.601 as MATLAB's rgb2ycbcr gives it, results and Y rounded to 8 "
        "bits, mean over all pictures. Seconds are those of the run that measured the picture.",
        *tables.footnotes(measured),
    ]
    sizes = ", ".join(sorted({cost.memory_size for cost in costs.values() if cost}))
    if sizes:
        lines.append(
            "Multiplications are those of convolutions and matrix products, all recursions together. Memory "
            f"is the peak of a fresh process that runs this model alone, once, on a picture of {sizes}, "
            "Python and libraries included."
        )
    return "".join(f"<p>{as_text(line)}</p>" for line in lines)


def _sources(suites: list[list[Measured]]) -> str:
    found: dict[int, Source] = {
        figure.source.number: figure.source for group in suites for figure in figures_of(group[0].suite)
    }
    items = "".join(
        f'<li value="{number}">{as_text(str(found[number]))} '
        f'<a href="{as_text(found[number].url)}" rel="noreferrer">open</a></li>'
        for number in sorted(found)
    )
    return f"<h2>Sources of published figures</h2><ol>{items}</ol>" if items else ""


def _psnr(one: Measured, name: str) -> float:
    value = one.per_image[name]["psnr"]
    if value is None:
        raise ValueError(f"{name} has no PSNR")
    return value


def _label(one: Measured) -> str:
    recursions = one.scores[0].recursions
    return printable(one.candidate.name) + (
        f", {recursions} recursion{'s' * (recursions != 1)}" if recursions else ""
    )


def printable(text: str) -> str:
    """Replace what cannot be printed: file names may hold control characters, which XML forbids."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


def as_text(text: str) -> str:
    """Return a text for HTML, in an element or in an attribute."""
    return escape(printable(text))
