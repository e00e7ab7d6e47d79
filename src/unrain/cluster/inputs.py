"""What a run on several machines reads and where its results go: the same names as on one machine.

Paths are planned by `unrain.plan`; for object storage and manifests the same rules are applied to names.
"""

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unrain import image, plan, video
from unrain.cluster import storage
from unrain.errors import UnrainError
from unrain.plan import Job, Kind, Outcome, PlanError

# What a manifest's column of paths may be called, in the order of preference.
_COLUMNS = ("path", "file", "file_name", "filename", "image", "uri", "url")
_MANIFESTS = (".csv", ".parquet")
# In a name on Windows these mean something else; after a colon, a hidden stream of another file.
_NO_NAME_NT = r'[\0-\x1f\\:<>"|?*]'


@dataclass(frozen=True)
class Task:
    """One picture or video and where its results go.

    Attributes:
        source: The path or address of the input.
        targets: The paths or addresses of the results.
        key: The name of the first result below the folder of results: what the log knows the task by.
        size: Bytes of the input, 0 if unknown.
        again: Whether it was begun before by this run, in a worker that was lost.
        there: Whether all results were there before the run.
    """

    source: str
    targets: Mapping[Kind, str]
    key: str
    size: int = 0
    again: bool = False
    there: bool = False

    @property
    def is_video(self) -> bool:
        """Whether its extension says that it is a video."""
        return video.is_video(Path(self.source))

    @property
    def job(self) -> Job:
        """The same with every name as a path, an address too: for what looks at names alone."""
        return Job(Path(self.source), {kind: Path(name) for kind, name in self.targets.items()})


@dataclass
class Work:
    """What a run is to do.

    Attributes:
        tasks: What is to be derained.
        settled: Inputs of which nothing will be run, and why.
        ignored: Pictures and videos in folders whose kind is not taken.
    """

    tasks: list[Task] = field(default_factory=list)
    settled: list[Outcome] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)


def find_work(
    inputs: Sequence[str],
    output: str,
    *,
    rain_layer: bool = False,
    compare: bool = False,
    share: tuple[int, int] = (1, 1),
) -> Work:
    """Decide what is read and where results go, without reading or writing a picture.

    Args:
        inputs: Files, folders and patterns, addresses of objects and of their folders, manifests.
        output: The folder or address that all results go below.
        rain_layer: Write `NAME_rain.png` too.
        compare: Write `NAME_compare.EXT` too.
        share: Do share I of N only. Which share an input belongs to depends on its name alone.

    Raises:
        PlanError: The names contradict each other.
        UnrainError: An address cannot be listed, or a manifest cannot be read.
    """
    extras: list[Kind] = [kind for kind, wanted in _extras(rain_layer, compare) if wanted]
    if not inputs:
        raise PlanError("no input: name pictures, folders, addresses or a manifest (--help tells more)")
    work = Work()
    paths: list[str] = []
    for text in map(storage.checked, inputs):
        if text == plan.STREAM:
            raise PlanError("-: standard input cannot be shared out, name files")
        if Path(text).suffix.lower() in _MANIFESTS and not Path(text).is_dir():
            _add(work, _listed(text), output, extras)
        elif storage.is_address(text):
            _add(work, _stored(text, output, work), output, extras)
        else:
            paths.append(text)
    if paths:
        _add_paths(work, paths, output, extras, rain_layer=rain_layer, compare=compare)
    _check(work)
    index, count = share
    work.tasks = [task for task in work.tasks if _belongs(task.key, index, count)]
    work.settled = [one for one in work.settled if _belongs(one.name, index, count)]
    return work


def _extras(rain_layer: bool, compare: bool) -> list[tuple[Kind, bool]]:
    return [("rain", rain_layer), ("compare", compare)]


def _belongs(name: str, index: int, count: int) -> bool:
    """Whether a name belongs to share `index` of `count`, whatever other names there are."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % count == index - 1


@dataclass(frozen=True)
class _Found:
    """An input by its name, its place below the folder of results, and its bytes (0 if unknown)."""

    source: str
    place: str
    size: int = 0


def _add(work: Work, found: Iterable[_Found], output: str, extras: Sequence[Kind]) -> None:
    """Add inputs that were found by name."""
    for one in found:
        parts = [part for part in one.place.split("/") if part not in ("", ".")]
        # An object's name may hold anything, and must not lead out of the folder of results.
        if not parts or ".." in parts or re.search(_NO_NAME_NT if os.name == "nt" else "\0", one.place):
            message = f"{one.source}: a name that leads elsewhere, rename it"
            work.settled.append(Outcome(one.source, "failed", message))
            continue
        place = Path(*parts)
        if place.suffix.lower() not in image.SUFFIXES and not video.is_video(place):
            known = " ".join(sorted(image.SUFFIXES))
            message = f"{one.source}: extension {place.suffix or 'missing'}: use one of {known}"
            work.settled.append(Outcome(one.source, "failed", message))
            continue
        names = {kind: path.as_posix() for kind, path in plan.results_beside(place, extras).items()}
        targets = {kind: storage.join(output, name) for kind, name in names.items()}
        work.tasks.append(Task(one.source, targets, names["derained"], one.size))


def _stored(address: str, output: str, work: Work) -> Iterator[_Found]:
    """Find the inputs that an address stands for."""
    try:
        objects = storage.look_up(address)
    except UnrainError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            work.settled.append(Outcome(address, "failed", str(error)))
            return
        raise
    if objects is not None:
        yield from (_Found(name, name.rpartition("/")[2], size) for name, size in objects.items())
        return
    taken = others = 0
    for name, size in sorted(storage.find(address).items()):
        source = f"{address}/{name}"
        hidden = any(part.startswith(".") for part in name.split("/"))
        if hidden or source.startswith(f"{output}/"):
            continue
        wanted = plan.is_taken(Path(name))
        if wanted:
            taken += 1
            yield _Found(source, name, size)
        elif wanted is not None:
            others += 1
            work.ignored.append(Path(name))
    if not taken:
        known = " ".join(sorted(image.SUFFIXES))
        message = f"{address}: no picture or video below it, results of earlier runs aside ({known})"
        work.settled.append(Outcome(address, "failed", message))


def _listed(manifest: str) -> Iterator[_Found]:
    """Read a manifest: a CSV or Parquet file with a column of paths or addresses.

    Relative ones are looked for beside the manifest and keep their folders below the folder of results; the
    others keep all of theirs, but for the scheme or the disk.
    """
    data = storage.read(manifest)
    names = _parquet(manifest, data) if manifest.lower().endswith(".parquet") else _csv(manifest, data)
    beside = manifest.rpartition("/")[0] if storage.is_address(manifest) else str(Path(manifest).parent)
    count = 0
    for name in names:
        if not name:
            continue
        count += 1
        text = storage.checked(name)
        if storage.is_address(text):
            yield _Found(text, text.partition("://")[2])
        elif Path(text).is_absolute():
            yield _Found(text, Path(text).relative_to(Path(text).anchor).as_posix())
        else:
            yield _Found(storage.join(beside, text), Path(text).as_posix())
    if not count:
        raise UnrainError(f"{manifest}: lists no file, give it a row for each")


def _csv(manifest: str, data: bytes) -> list[str]:
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig")), strict=True)
        column = _column(manifest, list(rows.fieldnames or []))
        return [row[column] or "" for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnrainError(f"{manifest}: no CSV file in UTF-8 ({error}), save it anew") from error


def _parquet(manifest: str, data: bytes) -> list[str]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise UnrainError(
            f"{manifest}: needs {error.name}, which is not installed: pip install 'unrain[cluster]'"
        ) from error
    try:
        schema = pq.read_schema(io.BytesIO(data))
        column = _column(manifest, schema.names)
        table = pq.read_table(io.BytesIO(data), columns=[column])
        return [name or "" for name in table.column(column).cast(pa.string()).to_pylist()]
    except (pa.ArrowException, OSError) as error:
        raise UnrainError(f"{manifest}: no Parquet file of paths, write it anew") from error


def _column(manifest: str, columns: Sequence[str]) -> str:
    """Choose the column of paths: one of the usual names, or the only one."""
    for name in _COLUMNS:
        if name in columns:
            return name
    if len(columns) == 1:
        return columns[0]
    have = ", ".join(columns[:8]) or "none"
    raise UnrainError(f"{manifest}: has no column of paths (it has {have}), call one path")


def _add_paths(
    work: Work, paths: Sequence[str], output: str, extras: Sequence[Kind], *, rain_layer: bool, compare: bool
) -> None:
    """Add files and folders of this machine as a run on one machine would."""
    # Where results go to object storage, their names are planned for a folder that nobody has.
    away = storage.is_address(output)
    folder = f"{os.sep}unrain-results-in-object-storage" if away else output
    planned = plan.make_plan(paths, folder + os.sep, rain_layer=rain_layer, compare=compare)
    for job in planned.jobs:
        assert job.source is not None
        names = {kind: path.relative_to(folder).as_posix() for kind, path in job.targets.items()}
        targets = {kind: storage.join(output, name) for kind, name in names.items()}
        work.tasks.append(Task(str(job.source), targets, names["derained"], _size(job.source)))
    work.settled += planned.settled
    work.ignored += planned.ignored


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _check(work: Work) -> None:
    """Refuse what would lose something; drop inputs that were named twice."""
    sources = {task.source for task in work.tasks}
    taken: dict[str, Task] = {}
    kept = []
    for task in work.tasks:
        keys = [name if storage.is_address(name) else plan.key(Path(name)) for name in task.targets.values()]
        first = next((taken[key] for key in keys if key in taken), None)
        if first is not None and first.source == task.source:
            continue
        if first is not None:
            raise PlanError(
                f"{task.targets['derained']}: the result of both {first.source} and {task.source}, "
                "run them into different folders"
            )
        for target in task.targets.values():
            if target in sources:
                raise PlanError(f"{target}: is an input, give another folder with -o")
        taken.update(dict.fromkeys(keys, task))
        kept.append(task)
    work.tasks = kept
