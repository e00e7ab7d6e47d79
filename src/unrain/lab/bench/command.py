"""What `unrain bench` does, without the parsing of its options."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unrain import zoo
from unrain.errors import UnrainError
from unrain.lab.bench.cache import FOLDER
from unrain.lab.bench.candidates import Candidate
from unrain.lab.bench.cost import SIZE, Cost, Given, measure_cost, parse_size
from unrain.lab.bench.report import tables
from unrain.lab.bench.report.contact_sheet import draw_sheet, write_sheet
from unrain.lab.bench.report.published import figures_of
from unrain.lab.bench.report.readme import write_scores
from unrain.lab.bench.run import Measured, run
from unrain.lab.data.suites import Suite, find_suites, open_suite
from unrain.lab.metrics.measures import open_measures


@dataclass(frozen=True)
class Options:
    """What to measure, and where to write it.

    Attributes:
        suites: Sets of pairs, folders of clean photographs, or of real rain, below the data folder.
        real: Folders of real rain, below the data folder or anywhere.
        metrics: What to measure beside PSNR and SSIM on Y.
        recursions: Numbers of passes; the model's own when empty.
        threads: CPU threads, 0 for all.
        truncate: Whether to score results truncated to 8 bits also.
        card: Whether to write scores into the models' cards.
        readme: A README whose table is then written from the cards of all models.
        fresh: Whether to measure again what is known from an earlier run.
        json: Whether to print JSON in place of the table.
        csv: A file for all scores.
        cost: Whether to count weights and multiplications, and measure memory.
        size: WIDTHxHEIGHT of the picture that memory is measured on.
        published: Whether to add the figures that others published.
        page: A file for the HTML report, which has the costs also.
        sheet: A picture for a contact sheet, which is drawn instead of measuring.
        pictures: How many rows the sheet has.
        width: Of the pictures on the sheet.
    """

    suites: tuple[str, ...] = ()
    real: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    recursions: tuple[int, ...] = ()
    threads: int = 0
    truncate: bool = False
    card: bool = False
    readme: Path | None = None
    fresh: bool = False
    json: bool = False
    csv: Path | None = None
    cost: bool = False
    size: str = SIZE
    published: bool = False
    page: Path | None = None
    sheet: Path | None = None
    pictures: int = 20
    width: int = 360


def bench(
    candidates: list[Candidate],
    data: Path | None,
    options: Options,
    *,
    given: Sequence[Given] = (),
    say: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    """Measure, or draw a contact sheet.

    Args:
        candidates: What to measure.
        data: The folder that the suites are in; None when there are only folders of real rain.
        options: The rest.
        given: What named each candidate; needed for costs alone.
        say: Called with each line of the result.
        note: Called with each line about it.

    Raises:
        UnrainError: Something is missing or broken.
    """
    suites = _suites(data, options)
    if options.sheet:
        for path, (root, name, real) in zip(_sheets(options.sheet, suites), suites, strict=True):
            suite = open_suite(root, name, real=real)
            sheet = draw_sheet(
                candidates,
                suite,
                pictures=options.pictures,
                width=options.width,
                recursions=options.recursions,
                threads=options.threads,
            )
            write_sheet(sheet, path)
            say(f"{path}: {min(options.pictures, len(suite))} of {len(suite)} pictures of {name}")
        return
    with_cost = options.cost or options.page is not None
    named = dict(zip(candidates, given, strict=True)) if with_cost else {}
    parse_size(options.size)
    measured: list[Measured] = []
    costs: dict[tuple[Candidate, int | None], Cost | None] = {}
    table = _Table(options, candidates, say)
    for one in run(
        candidates,
        suites,
        metrics=options.metrics,
        recursions=options.recursions,
        threads=options.threads,
        truncate=options.truncate,
        card=options.card,
        inputs=True,
        folder=FOLDER,
        fresh=options.fresh,
        note=note,
    ):
        key = one.candidate, one.scores[0].recursions
        if one.candidate in named and key not in costs:
            costs[key] = measure_cost(
                one.candidate, named[one.candidate], key[1], size=options.size, threads=options.threads
            )
        measured.append(one)
        if options.csv:
            tables.write_csv(options.csv, tables.as_rows(measured, costs, published=options.published))
        if not options.json:
            table.add(one, costs.get(key))
    if options.json:
        say(json.dumps(tables.as_rows(measured, costs, published=options.published), indent=2))
    else:
        table.end()
    if options.page:
        # Matplotlib takes a second to import.
        from unrain.lab.bench.report.html import write_page

        write_page(
            options.page, measured, costs, published=options.published, threads=options.threads, note=note
        )
    if options.readme:
        write_scores(options.readme, zoo.models())
    for line in tables.footnotes(measured):
        note(line)


class _Table:
    """What is printed, line by line."""

    def __init__(
        self,
        options: Options,
        candidates: list[Candidate],
        say: Callable[[str], None],
    ) -> None:
        self._options = options
        self._say = say
        self._names = max(20, *(len(candidate.name) for candidate in candidates))
        self._columns: list[tables.Column] = []
        self._suite: Suite | None = None
        self._sources: dict[str, None] = {}
        self._hidden = 0

    def add(self, one: Measured, cost: Cost | None) -> None:
        """Print the scores of one measurement."""
        if self._suite is not None and self._suite.name != one.suite.name:
            self._end_suite()
        self._suite = one.suite
        columns = tables.columns(one.metrics)
        if columns != self._columns:
            self._columns = columns
            self._say(tables.head(columns, self._names, cost=self._options.cost))
        for score in one.scores:
            self._say(
                tables.line(
                    one.candidate.name, score, columns, self._names, cost, with_cost=self._options.cost
                )
            )

    def end(self) -> None:
        """Print what belongs below everything."""
        self._end_suite()
        for source in self._sources:
            self._say(source)
        if self._hidden:
            self._say(f"{self._hidden} published figures are of RGB: --metric rgb shows them")

    def _end_suite(self) -> None:
        """Print the published figures of the suite that was measured."""
        if self._suite is None or not self._options.published:
            return
        for figure in figures_of(self._suite):
            line = tables.published_line(figure, self._suite.name, self._columns, self._names)
            if line is None:
                self._hidden += 1
                continue
            self._say(line)
            self._sources[f"[{figure.source.number}] {figure.source}"] = None


def _suites(data: Path | None, options: Options) -> list[tuple[Path, str, bool]]:
    """Return folder, name, and whether it is real rain, of each suite."""
    if data is None and (options.suites or not options.real):
        raise UnrainError("bench: give the folder with the data sets with --data, or --real, or --speed")
    found = []
    if data is not None and (options.suites or not options.real):
        found = [(data, suite, False) for suite in find_suites(data, options.suites)]
    for folder in options.real:
        if data is not None and (data / folder).is_dir():
            found.append((data, folder, True))
        else:
            path = Path(folder).resolve()
            found.append((path.parent, path.name, True))
    for metric in options.metrics:
        # A wrong name or a missing file is told before anything is opened.
        open_measures([metric], "pairs")
    return found


def _sheets(path: Path, suites: list[tuple[Path, str, bool]]) -> list[Path]:
    """Name a sheet for each suite."""
    if len(suites) == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{name.replace('/', '-')}") for _, name, _ in suites]
