"""What `unrain bench` and its sub-commands do, without the parsing of their options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from unrain import zoo
from unrain.cli.output import check_form
from unrain.errors import UnrainError, UsageError
from unrain.lab.bench import candidates, fidelity
from unrain.lab.bench.cache import FOLDER
from unrain.lab.bench.candidates import Candidate
from unrain.lab.bench.cost import Cost, Given, measure_cost, parse_size
from unrain.lab.bench.options import (
    BenchOptions,
    CandidateOptions,
    FidelityOptions,
    SheetOptions,
    SizesOptions,
    SpeedOptions,
    SuiteOptions,
    TaskOptions,
)
from unrain.lab.bench.report import tables
from unrain.lab.bench.report.contact_sheet import draw_sheet, write_sheet
from unrain.lab.bench.report.published import figures_of
from unrain.lab.bench.report.readme import write_scores
from unrain.lab.bench.run import Measured, run
from unrain.lab.bench.sizes import measure_sizes
from unrain.lab.bench.speed import SpeedTable, measure_speed
from unrain.lab.data.pairs import packed
from unrain.lab.data.suites import Suite, find_suites, open_suite
from unrain.lab.metrics.measures import open_measures

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]


def measure(models: Sequence[str], options: BenchOptions, *, say: Say, note: Say, progress: Progress) -> None:
    """Measure models on test sets, and print the table.

    Args:
        models: What names them on the command line; the default model if nothing is named.
        options: The rest.
        say: Called with each line of the result.
        note: Called with each line about it.
        progress: Called with (candidate and test set, pictures done, pictures in all).

    Raises:
        UsageError: There is nothing to measure on, or no such metric.
        UnrainError: Something is missing or broken.
    """
    check_form(csv=options.csv, json=options.json)
    suites = _suites(options)
    for metric in options.metric:
        # A wrong name or a missing file is reported before anything is opened.
        open_measures([metric], "pairs")
    found, given = _candidates(models, options)
    with_cost = options.cost or options.report is not None
    named = dict(zip(found, given, strict=True)) if with_cost else {}
    parse_size(options.size)
    measured: list[Measured] = []
    costs: dict[tuple[Candidate, int | None], Cost | None] = {}
    table = _Table(options, found, say)
    for one in run(
        found,
        suites,
        metrics=options.metric,
        recursions=options.recursions,
        processor=options.processor,
        truncate=options.truncate,
        card=options.card,
        inputs=True,
        folder=FOLDER,
        fresh=options.fresh,
        note=note,
        progress=progress,
    ):
        key = one.candidate, one.scores[0].recursions
        if one.candidate in named and key not in costs:
            costs[key] = measure_cost(
                one.candidate, named[one.candidate], key[1], size=options.size, processor=options.processor
            )
        measured.append(one)
        if not (options.csv or options.json):
            table.add(one, costs.get(key))
    if options.csv or options.json:
        rows = tables.as_rows(measured, costs, published=options.published)
        for line in tables.as_csv(rows) if options.csv else tables.as_json(rows):
            say(line)
    else:
        table.end()
    if options.report:
        # Matplotlib takes a second to import.
        from unrain.lab.bench.report.html import write_page

        write_page(
            options.report,
            measured,
            costs,
            published=options.published,
            processor=options.processor,
            note=note,
        )
    if options.readme:
        write_scores(options.readme, zoo.built_in())
    for line in tables.footnotes(measured):
        note(line)


def draw(models: Sequence[str], path: Path, options: SheetOptions, *, say: Say, progress: Progress) -> None:
    """Draw a contact sheet of each test set.

    Args:
        models: What names the columns on the command line.
        path: The picture to write; with several test sets each has its name added.
        options: The rest.
        say: Called with a line for each sheet.
        progress: Called with (test set, pictures done, pictures in all).

    Raises:
        UsageError: No test set is named.
        UnrainError: Something is missing or broken, or the file cannot be written.
    """
    suites = _suites(options)
    found, _ = _candidates(models, options)
    for root, name, real in suites:
        suite = open_suite(root, name, real=real)
        sheet = draw_sheet(
            found,
            suite,
            pictures=options.pictures,
            width=options.width,
            recursions=options.recursions,
            processor=options.processor,
            progress=progress,
        )
        several = len(suites) > 1
        file = path.with_stem(f"{path.stem}-{name.replace('/', '-')}") if several else path
        write_sheet(sheet, file)
        say(f"{file}: {min(options.pictures, len(suite))} of {len(suite)} pictures of {name}")


def time_models(models: Sequence[str], options: SpeedOptions, *, say: Say, progress: Progress) -> None:
    """Time models, and print the table.

    Args:
        models: What names them on the command line.
        options: The rest.
        say: Called with each line of the result.
        progress: Called with (size, rounds done, rounds in all).

    Raises:
        UnrainError: Something is missing or broken.
    """
    found, given = _candidates(models, options)
    peer = found[-len(options.peer)] if options.peer else None
    report = measure_speed(
        found,
        peer=peer,
        sizes=options.size,
        photos=options.photo,
        recursions=options.recursions,
        processors=options.processors(),
        levels=None if options.levels == "auto" else options.levels,
        rounds=options.rounds,
        given=given if options.cost else (),
        progress=progress,
    )
    if options.json:
        for line in tables.as_json(asdict(report)):
            say(line)
        return
    for line in _speed_lines(report, peer.name if peer else None, cost=options.cost):
        say(line)


def compare_devices(models: Sequence[str], options: FidelityOptions, *, say: Say, progress: Progress) -> None:
    """Compare devices with the CPU in fp32, and print the table.

    Args:
        models: What names exported models on the command line.
        options: The rest.
        say: Called with each line of the result.
        progress: Called with (test set, pictures done, pictures in all).

    Raises:
        UsageError: There is nothing to measure on, or a model is not exported.
        UnrainError: Something is missing or broken.
    """
    suites = _suites(options)
    found = []
    for candidate in _candidates(models, options)[0]:
        model = candidate.source
        if not isinstance(model, zoo.Model):
            raise UsageError(f"{candidate.name}: give a model of the zoo or an ONNX file")
        its = fidelity.measure_fidelity(model, suites, options, progress=progress)
        if options.card:
            fidelity.note(model, its)
        found += its
    if options.json:
        for line in tables.as_json([asdict(one) for one in found]):
            say(line)
        return
    say(
        f"{'model':20} {'device':15} {'test set':16} {'pictures':>8} {'to the CPU':>10} {'least':>6} "
        f"{'dB':>7} {'CPU':>7}"
    )
    for one in found:
        scores = "" if one.score is None else f" {one.score:7.3f} {one.score_cpu:7.3f}"
        say(
            f"{one.model:20} {one.device + ' ' + one.precision:15} {one.suite:16} {one.pictures:8} "
            f"{one.psnr:10.2f} {one.least:6.2f}{scores}"
        )


def compare_sizes(
    models: Sequence[str], photos: Path, options: SizesOptions, *, say: Say, progress: Progress
) -> None:
    """Measure models on photographs of several sizes, and print the table.

    Args:
        models: What names them on the command line.
        photos: The folder of clean photographs.
        options: The rest.
        say: Called with each line of the result.
        progress: Called with (photograph, its measurements done, its measurements in all).

    Raises:
        UsageError: No photograph is as large as a size, or a number is not right.
        UnrainError: Something is missing or broken; after the table also where a photograph is.
    """
    # Matplotlib takes a second to import.
    from unrain.lab.bench.report import sizes

    check_form(csv=options.csv, json=options.json)
    found, given = _candidates(models, options)
    table = measure_sizes(found, given, photos, options, folder=FOLDER, progress=progress)
    if options.report:
        sizes.write_page(options.report, table)
    lines = (
        sizes.as_csv(table)
        if options.csv
        else tables.as_json(asdict(table))
        if options.json
        else sizes.lines(table)
    )
    for line in lines:
        say(line)
    if table.unreadable:
        more = f" and {len(table.unreadable) - 1} more" * (len(table.unreadable) > 1)
        raise UnrainError(f"{table.unreadable[0]}{more}: left out, the table is of the others")


def measure_tasks(
    models: Sequence[str],
    data: Path,
    options: TaskOptions,
    *,
    say: Say,
    note: Say,
    progress: Progress,
) -> None:
    """Measure what deraining does for other networks, and print the table.

    Args:
        models: What names the models on the command line.
        data: The folder that the test set is in.
        options: The rest.
        say: Called with each line of the result.
        note: Called with each line about it.
        progress: Called with (candidate and rain, pictures done, pictures in all).

    Raises:
        UsageError: No network or no such rain is named.
        UnrainError: Something is missing or broken.
    """
    # It needs the packages of the extra.
    from unrain.lab.bench.downstream import tasks

    found, _ = _candidates(models, options)
    tasks.bench_tasks(found, data, options, say=say, note=note, progress=progress)


def _candidates(models: Sequence[str], options: CandidateOptions) -> tuple[list[Candidate], list[Given]]:
    """Return what the command line names, and how it named it; peers come last."""
    names = models if models or options.peer else (zoo.DEFAULT,)
    found = [*map(candidates.find, names), *map(candidates.find_peer, options.peer)]
    return found, [*map(Given, names), *(Given(text, peer=True) for text in options.peer)]


def _suites(options: SuiteOptions | FidelityOptions) -> list[tuple[Path, str, bool]]:
    """Return folder, name, and whether it is real rain, of each test set."""
    data = options.data
    if data is None and (options.suite or not options.real):
        raise UsageError("bench: name the folder with the data sets with --data, or real rain with --real")
    found = []
    if data is not None and (options.suite or not options.real):
        for suite in find_suites(data, options.suite):
            if not ((data / suite).is_dir() or packed(data, suite)):
                raise UsageError(f"{data / suite}: no such test set; name one below {data} with --suite")
            found.append((data, suite, False))
    for folder in options.real:
        # An absolute path is no name: it would stand in tables and cards.
        if data is not None and not Path(folder).is_absolute() and (data / folder).is_dir():
            found.append((data, folder, True))
        else:
            path = Path(folder).resolve()
            found.append((path.parent, path.name, True))
    return found


def _speed_lines(report: SpeedTable, peer: str | None, *, cost: bool) -> list[str]:
    """Return the table of times, line by line."""
    several = len({(row.device, row.precision) for row in report.speeds}) > 1
    references = ["the first device"] * several + ([peer] if peer else [])
    faster = f"  times faster than {' and '.join(references)}" if references else ""
    costs = f" {'weights':>10} {'MB':>6}" if cost else ""
    on = f"{len(report.photos)} photograph{'s' * (len(report.photos) != 1)}" if report.photos else "noise"
    lines = [
        f"{report.machine}; {report.threads} thread{'s' * (report.threads != 1)}; median of {report.rounds} "
        f"interleaved runs on {on}; fp32 matrix product {report.ceiling:.0f} GFLOP/s in the same rounds",
        f"{'model':20} {'T':>2} {'device':13} {'size':>9} {'seconds':>8} {'(from - to)':>17} "
        f"{'kMAC/pixel':>10} {'of ceiling':>10}{costs}{faster}",
    ]
    for row in report.speeds:
        span = f"({row.fastest:.3f} - {row.slowest:.3f})"
        on, size = f"{row.device} {row.precision}", f"{row.width}x{row.height}"
        memory = "-" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}"
        costs = f" {row.parameters:>10,} {memory:>6}" if cost else ""
        times = f"  {row.times_first:.2f}" if several else ""
        times += "" if row.times_faster is None else f"  {row.times_faster:.2f}"
        lines.append(
            f"{row.model:20} {row.recursions:2} {on:13} {size:>9} {row.seconds:8.3f} "
            f"{span:>17} {row.macs_per_pixel / 1e3:10.1f} {row.share:10.1%}{costs}{times}"
        )
    return lines


class _Table:
    """What is printed, line by line."""

    def __init__(
        self,
        options: BenchOptions,
        found: list[Candidate],
        say: Callable[[str], None],
    ) -> None:
        self._options = options
        self._say = say
        self._names = max(20, *(len(candidate.name) for candidate in found))
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
