"""Which files are read, where the results go, and what would be lost: decided before anything runs.

`make_plan` looks at every path and refuses what would overwrite an input or write two results into one file.
"""

import glob
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from unrain import files, image, video
from unrain.errors import UsageError

Kind = Literal["derained", "rain", "compare"]
Status = Literal["derained", "skipped", "failed"]

STREAM = "-"
# fmt: off
_OTHERS = frozenset({
    ".bpg", ".exr", ".hdr", ".heics", ".j2c", ".j2k", ".jp2", ".jpf", ".jpx", ".jxr", ".pbm", ".pcx",
    ".pgm", ".pnm", ".ppm", ".psb", ".psd", ".qoi", ".tga",
    ".divx", ".f4v", ".m2v", ".mxf", ".rm", ".rmvb", ".y4m",
})
# fmt: on
"""Extensions of pictures and videos that are not taken."""
_WRITTEN = {*image.FORMATS, *video.WRITTEN, *image.ANIMATIONS}
_RESULT = re.compile(r"(.+)_(derained|rain|compare)", re.DOTALL)


class PlanError(UsageError):
    """The command line asks for something that cannot be, or that would lose a file."""


@dataclass(frozen=True)
class Job:
    """One picture or video and where its results go.

    Attributes:
        source: The file; None stands for standard input.
        targets: Where each result goes; without a `derained` one, that goes to standard output.
    """

    source: Path | None
    targets: Mapping[Kind, Path]

    @property
    def name(self) -> str:
        """How messages call the input."""
        return "standard input" if self.source is None else str(self.source)

    @property
    def is_video(self) -> bool:
        """Whether the file's extension says that it is a video."""
        return self.source is not None and video.is_video(self.source)

    @property
    def to_stdout(self) -> bool:
        """Whether the derained picture goes to standard output."""
        return "derained" not in self.targets

    def pending(self, *, overwrite: bool) -> dict[Kind, Path]:
        """The targets that are to be written: without `overwrite`, those which are not there yet."""
        return {
            kind: path
            for kind, path in self.targets.items()
            if overwrite or not os.path.lexists(path) or takes_bytes(path)
        }

    @property
    def done(self) -> "Outcome":
        """What is said where nothing is pending."""
        there = " and ".join(str(path) for path in self.targets.values())
        return Outcome(self.name, "skipped", f"{there} exists, --overwrite replaces it")


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        name: The input.
        status: What happened.
        message: Why it was skipped, or the whole error; empty for a success.
        written: The files that were written, or their addresses in object storage.
        notes: What was not kept as it was in the input.
        seconds: How long it took.
        recursions: How many recursions were computed.
        warnings: Like notes, but of things that are missed: said without being asked for.
        frames: How many frames a video has; 0 for a picture.
        hardly_any_rain: Whether next to no rain was found in it.
        ends_run: Why no other input is tried after it; empty in general.
    """

    name: str
    status: Status
    message: str = ""
    written: tuple[Path | str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    recursions: int = 0
    warnings: tuple[str, ...] = ()
    frames: int = 0
    hardly_any_rain: bool = False
    ends_run: Literal["", "disk full", "interrupted"] = ""


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        jobs: The pictures and videos to run, in order.
        settled: Inputs of which nothing will be run, and why.
        folder: Where all results go, if `-o` named a folder.
        ignored: Pictures and videos in the folders whose kind is not taken: PSD, JPEG 2000 and so on, and
            those that need an extra which is not installed.
    """

    jobs: list[Job]
    settled: list[Outcome] = field(default_factory=list)
    folder: Path | None = None
    ignored: tuple[Path, ...] = ()


def takes_bytes(path: Path) -> bool:
    """Whether a result is a pipe or a device such as /dev/null, written to as it is.

    One with the name of a picture or video is something else: a file that is in the way.
    """
    return path.suffix.lower() not in _WRITTEN and files.is_stream(path)


def make_plan(
    inputs: Sequence[str], output: str | None = None, *, rain_layer: bool = False, compare: bool = False
) -> Plan:
    """Decide what is read and where results go, without reading or writing a picture.

    Args:
        inputs: Files, folders and patterns, or `-` alone for standard input.
        output: A folder; for a single file also a file name, or `-` for standard output. None puts
            `NAME_derained.EXT` beside each input.
        rain_layer: Write `NAME_rain.png` too.
        compare: Write `NAME_compare.EXT` too.

    Raises:
        PlanError: The paths contradict each other, two results would go into one file, or an input would be
            overwritten.
    """
    wanted: dict[Kind, bool] = {"rain": rain_layer, "compare": compare}
    extras = [kind for kind in wanted if wanted[kind]]
    paths = [path for text in inputs for path in _expanded(text)]
    if not paths:
        raise PlanError("no input: name pictures or folders, or - for standard input (--help tells more)")
    if STREAM in paths:
        if len(paths) > 1:
            raise PlanError("-: standard input cannot be mixed with other inputs, run it alone")
        return Plan([_stream_job(output, extras)])
    if len(paths) == 1 and not Path(paths[0]).is_dir():
        return _single(Path(paths[0]), output, extras)
    return _many([Path(path) for path in paths], output, extras)


def named(inputs: Sequence[str]) -> Iterator[Path]:
    """Yield the files that are named, and pictures and videos of folders, those below them included.

    Args:
        inputs: Files, folders and patterns.
    """
    for text in inputs:
        for path in map(Path, _expanded(text)):
            if not path.is_dir():
                yield path
                continue
            for place, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                found = (Path(place, name) for name in sorted(names) if not name.startswith("."))
                yield from (
                    one for one in found if one.suffix.lower() in image.SUFFIXES or video.is_video(one)
                )


def _expanded(text: str) -> list[str]:
    """Expand a pattern as a Unix shell would have done before."""
    if text != STREAM and not os.path.lexists(text) and glob.has_magic(text):
        return sorted(glob.glob(text)) or [text]  # noqa: PTH207  (Path.glob takes no absolute pattern)
    return [text]


def _stream_job(output: str | None, extras: list[Kind]) -> Job:
    if output is None or output == STREAM:
        return _stdout_job(None, extras)
    if _is_folder(output):
        raise PlanError(f"{output}: a folder, but standard input has no name: give a file name after -o")
    _check_extension(Path(output), image.FORMATS)
    return Job(None, _targets(Path(output), extras))


def _stdout_job(source: Path | None, extras: list[Kind]) -> Job:
    if extras:
        raise PlanError(
            "--rain-layer and --compare need a file name after -o, standard output takes one picture"
        )
    return Job(source, {})


def _single(source: Path, output: str | None, extras: list[Kind]) -> Plan:
    if video.is_video(source):
        if extras:
            raise PlanError(f"{source}: --rain-layer and --compare are for pictures, not for videos")
        if output == STREAM:
            raise PlanError(
                "-: standard output takes a picture, give a file name or folder for a video after -o"
            )
    if output is None:
        job = _job(source, _beside(source), extras)
    elif output == STREAM:
        job = _stdout_job(source, extras)
    elif _is_folder(output):
        job = _job(source, Path(output) / _beside(source).name, extras)
    else:
        _check_extension(Path(output), video.writable(source) if video.is_video(source) else image.FORMATS)
        job = _job(source, Path(output), extras)
    return _checked(Plan([job]))


def results_beside(place: Path, extras: Sequence[Kind] = ()) -> Mapping[Kind, Path]:
    """Name the results of a picture or video after it, in its folder."""
    return _job(place, _beside(place), extras).targets


def _job(source: Path, derained: Path, extras: Sequence[Kind]) -> Job:
    return Job(source, _targets(derained, [] if video.is_video(source) else extras))


def _many(paths: list[Path], output: str | None, extras: list[Kind]) -> Plan:
    if output == STREAM:
        raise PlanError("-: standard output takes one picture, give a folder after -o")
    folder = None if output is None else result_folder(output)
    named = {os.path.realpath(path) for path in paths}
    jobs: list[Job] = []
    settled: list[Outcome] = []
    ignored: list[Path] = []
    for path in paths:
        if path.is_dir():
            unreadable: list[Outcome] = []
            others: list[Path] = []
            found = list(_walk(path, folder, unreadable, others))
            settled += unreadable
            ignored += others
            if not found and not unreadable:
                known = " ".join(sorted(image.FORMATS))
                message = (
                    f"{path}: no picture or video in this folder, results of earlier runs aside ({known})"
                )
                message += "".join(f"; {reason}" for reason in left_aside(others))
                settled.append(Outcome(str(path), "failed", message))
            for source in found:
                place = source if folder is None else folder / source.relative_to(path)
                jobs.append(_job(source, _beside(source, place), extras))
        elif (origin := _origin(path, named)) is not None:
            settled.append(Outcome(str(path), "skipped", f"a result of {origin}"))
        else:
            place = path if folder is None else folder / path.name
            jobs.append(_job(path, _beside(path, place), extras))
    return _checked(Plan(jobs, settled, folder, tuple(ignored)))


def result_folder(output: str) -> Path:
    """Return the folder that `-o` names, where it must be one.

    Raises:
        PlanError: It is a file, or looks like one.
    """
    folder = Path(output)
    if os.path.lexists(folder) and not folder.is_dir():
        raise PlanError(f"{folder}: a file, but there are several inputs: give a folder after -o")
    if _looks_like_a_file(output):
        raise PlanError(
            f"{output}: a file name, but there may be several results: give a folder after -o "
            f"({output}/ makes one of that name)"
        )
    return folder


def converted(jobs: Iterable[Job]) -> list[str]:
    """Say of which pictures the results have another format, because their own is only read."""
    kinds: Counter[tuple[str, str]] = Counter()
    for job in jobs:
        if job.source is None or job.is_video or job.to_stdout:
            continue
        before, after = job.source.suffix.lower(), job.targets["derained"].suffix.lower()
        if before not in image.FORMATS and before in image.SUFFIXES:
            kinds[before, after] += 1
    return [
        f"{before[1:].upper()} is only read: {count} result{'s' * (count != 1)} written as {after}"
        for (before, after), count in kinds.items()
    ]


def left_aside(ignored: Collection[Path]) -> list[str]:
    """Count files whose kind is not taken, and say what to do about them: one line for each remedy."""
    kinds: dict[str, Counter[str]] = {}
    for path in ignored:
        extra = image.missing_extra(path)
        remedy = f"pip install 'unrain[{extra}]'" if extra else "convert them to PNG, TIFF or MP4 first"
        kinds.setdefault(remedy, Counter())[path.suffix.lower()] += 1
    return [
        f"{counts.total()} file{'s' * (counts.total() != 1)} left aside "
        f"({', '.join(f'{suffix} {count}' for suffix, count in counts.most_common())}): {remedy}"
        for remedy, counts in kinds.items()
    ]


def _looks_like_a_file(output: str) -> bool:
    """Whether `-o`, which must be a folder here, has the extension of a result and is no folder yet."""
    return not _is_folder(output) and Path(output).suffix.lower() in _WRITTEN


def _walk(folder: Path, output: Path | None, failed: list[Outcome], ignored: list[Path]) -> Iterator[Path]:
    """Find pictures and videos below a folder, less hidden ones, earlier results and the output folder.

    Args:
        folder: Where to look.
        output: The folder of the results.
        failed: Takes an outcome for each folder that cannot be read.
        ignored: Takes the pictures and videos of a kind that is not taken.
    """

    def unreadable(error: OSError) -> None:
        message = f"{error.filename}: cannot be read ({error.strerror}), check its permissions"
        failed.append(Outcome(str(error.filename), "failed", message))

    for place, folders, names in os.walk(folder, onerror=unreadable):
        here = Path(place)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not _same(here / name, output)
        )
        for name in sorted(names):
            path = here / name
            taken = is_taken(path)
            if taken:
                yield path
            elif taken is not None:
                ignored.append(path)


def is_taken(path: Path) -> bool | None:
    """Whether a file found in a folder is an input, by its name.

    Returns:
        False for a picture or video of a kind that is not taken; None for what is none, hidden, or a result
        of an earlier run.
    """
    if path.name.startswith(".") or _RESULT.fullmatch(path.stem):
        return None
    suffix = path.suffix.lower()
    known = suffix in image.SUFFIXES
    if (known and not image.missing_extra(path)) or video.is_video(path):
        return True
    return False if known or suffix in _OTHERS else None


def _origin(path: Path, named: set[str]) -> Path | None:
    """The input that this file is an earlier result of, where `*.jpg` caught both."""
    match = _RESULT.fullmatch(path.stem)
    if match is None:
        return None
    for extension in (path.suffix, *sorted(image.SUFFIXES | video.SUFFIXES), *image.ANIMATIONS):
        origin = path.with_name(match[1] + extension)
        if os.path.realpath(origin) in named:
            return origin
    return None


def _beside(source: Path, place: Path | None = None) -> Path:
    """The default path of a result: beside the source, or where the source would be in the output folder."""
    place = source if place is None else place
    if video.is_video(source):
        return place.with_name(video.beside(source).name)
    suffix = image.result_suffix(source)
    # The picture beside it, of which a camera wrote both, keeps the plain name for its own result.
    taken = suffix != source.suffix and any(
        os.path.lexists(source.with_suffix(other)) for other in (suffix, suffix.upper())
    )
    stem = f"{source.stem}_{source.suffix[1:].lower()}" if taken else source.stem
    return place.with_name(f"{stem}_derained{suffix}")


def _targets(derained: Path, extras: Sequence[Kind]) -> dict[Kind, Path]:
    match = _RESULT.fullmatch(derained.stem)
    stem = match[1] if match and match[2] == "derained" else derained.stem
    suffix: dict[Kind, str] = {"rain": ".png", "compare": derained.suffix}
    targets: dict[Kind, Path] = {"derained": derained}
    for kind in extras:
        targets[kind] = derained.with_name(f"{stem}_{kind}{suffix[kind]}")
    return targets


def _is_folder(output: str) -> bool:
    """Whether `-o` names a folder: an existing one, one that ends in a slash, or a name without extension."""
    separators = tuple(filter(None, (os.sep, os.altsep)))
    if output.endswith(separators) or Path(output).is_dir():
        return True
    return not Path(output).suffix and not os.path.lexists(output)


def _check_extension(output: Path, known_ones: Collection[str]) -> None:
    device = output.exists() and not output.is_file() and known_ones is image.FORMATS
    if output.suffix.lower() not in known_ones and not device:
        known = " ".join(sorted(known_ones))
        raise PlanError(f"{output}: extension {output.suffix or 'missing'}: use one of {known}")


def _checked(plan: Plan) -> Plan:
    """Refuse a plan that would lose something; drop inputs that were named twice."""
    sources = {identity: job.source for job in plan.jobs if (identity := _identity(job.source)) is not None}
    taken: dict[str, Job] = {}
    kept = []
    for job in plan.jobs:
        keys = [key(path) for path in job.targets.values()]
        first = next((taken[key] for key in keys if key in taken), None)
        if first is not None and _same(first.source, job.source):
            continue
        if first is not None:
            target = job.targets["derained"]
            raise PlanError(f"{target}: the result of both {first.name} and {job.name}, run them separately")
        for path in job.targets.values():
            identity = _identity(path)
            if identity in sources and identity is not None:
                raise PlanError(
                    f"{path}: is the input {sources[identity]}, give another name or folder with -o"
                )
        taken.update(dict.fromkeys(keys, job))
        kept.append(job)
    return replace(plan, jobs=kept)


def _identity(path: Path | None) -> tuple[int, int] | None:
    """What stays the same under symbolic links, hard links and other spellings of a file's name."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found else None


def _same(one: Path | None, other: Path | None) -> bool:
    identity = _identity(one)
    return one == other or (identity is not None and identity == _identity(other))


def key(path: Path) -> str:
    """Return what is equal for two names of one file, whether it exists or not."""
    real = os.path.normcase(os.path.realpath(path))
    # File systems of macOS usually take A.jpg and a.jpg for one file, and both spellings of an accent.
    return unicodedata.normalize("NFC", real.casefold()) if sys.platform == "darwin" else real
