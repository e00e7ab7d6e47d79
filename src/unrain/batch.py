"""Many files: find pictures and videos, plan where results go, run them through one Derainer.

`plan` looks at every path before anything is run and refuses what would overwrite an input or write two
results into one file. `run` then goes on after a bad file; only a full disk stops it.
"""

import errno
import glob
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from unrain import files, image, video
from unrain.errors import UnrainError, UsageError

if TYPE_CHECKING:
    from unrain.derainer import Derainer

Kind = Literal["derained", "rain", "compare"]
Status = Literal["derained", "skipped", "failed"]

STREAM = "-"
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
            # A device such as /dev/null is there and may be written to.
            if overwrite
            or not os.path.lexists(path)
            or (path.exists() and not (path.is_file() or path.is_dir()))
        }


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        name: The input.
        status: What happened.
        message: Why it was skipped, or the whole error; empty for a success.
        written: The files that were written.
        notes: What was not kept as it was in the input.
        seconds: How long it took.
        recursions: How many passes were made.
        warnings: Like notes, but of things that are missed: said without being asked for.
        frames: How many frames a video has; 0 for a picture.
    """

    name: str
    status: Status
    message: str = ""
    written: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    recursions: int = 0
    warnings: tuple[str, ...] = ()
    frames: int = 0


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        jobs: The pictures and videos to run, in order.
        settled: Inputs of which nothing will be run, and why.
        folder: Where all results go, if `-o` named a folder.
        ignored: Pictures and videos of the input folders in formats that are not read.
    """

    jobs: list[Job]
    settled: list[Outcome] = field(default_factory=list)
    folder: Path | None = None
    ignored: tuple[Path, ...] = ()


# ----------------------------------------------------------------------------------------------- planning


def plan(
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
        _check_extension(Path(output), video.WRITTEN if video.is_video(source) else image.FORMATS)
        job = _job(source, Path(output), extras)
    return _checked(Plan([job]))


def _job(source: Path, derained: Path, extras: list[Kind]) -> Job:
    return Job(source, _targets(derained, [] if video.is_video(source) else extras))


def _many(paths: list[Path], output: str | None, extras: list[Kind]) -> Plan:
    if output == STREAM:
        raise PlanError("-: standard output takes one picture, give a folder after -o")
    folder = None if output is None else Path(output)
    if folder is not None and os.path.lexists(folder) and not folder.is_dir():
        raise PlanError(f"{folder}: a file, but there are several inputs: give a folder after -o")
    named = {os.path.realpath(path) for path in paths}
    jobs: list[Job] = []
    settled: list[Outcome] = []
    for path in paths:
        if path.is_dir():
            unreadable: list[Outcome] = []
            found = list(_walk(path, folder, unreadable))
            settled += unreadable
            if not found and not unreadable:
                known = " ".join(sorted(image.FORMATS))
                message = (
                    f"{path}: no picture or video in this folder, results of earlier runs aside ({known})"
                )
                settled.append(Outcome(str(path), "failed", message))
            for source in found:
                place = source if folder is None else folder / source.relative_to(path)
                jobs.append(_job(source, _beside(place), extras))
        elif (origin := _origin(path, named)) is not None:
            settled.append(Outcome(str(path), "skipped", f"a result of {origin}"))
        else:
            place = path if folder is None else folder / path.name
            jobs.append(_job(path, _beside(place), extras))
    return _checked(Plan(jobs, settled, folder))


def _walk(folder: Path, output: Path | None, failed: list[Outcome]) -> Iterator[Path]:
    """Find pictures and videos below a folder, less hidden ones, earlier results and the output folder."""

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
            known = path.suffix.lower() in image.FORMATS or video.is_video(path)
            if known and not name.startswith(".") and not _RESULT.fullmatch(path.stem):
                yield path


def _origin(path: Path, named: set[str]) -> Path | None:
    """The input that this file is an earlier result of, where `*.jpg` caught both."""
    match = _RESULT.fullmatch(path.stem)
    if match is None:
        return None
    for extension in (path.suffix, *image.FORMATS, *sorted(video.SUFFIXES)):
        origin = path.with_name(match[1] + extension)
        if os.path.realpath(origin) in named:
            return origin
    return None


def _beside(source: Path) -> Path:
    if video.is_video(source):
        return video.beside(source)
    return source.with_name(f"{source.stem}_derained{source.suffix}")


def _targets(derained: Path, extras: list[Kind]) -> dict[Kind, Path]:
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
        keys = [_key(path) for path in job.targets.values()]
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


def _key(path: Path) -> str:
    real = os.path.normcase(os.path.realpath(path))
    # File systems of macOS usually take A.jpg and a.jpg for one file.
    return real.casefold() if sys.platform == "darwin" else real


# ------------------------------------------------------------------------------------------------ running


def run(
    plan: Plan,
    load: "Callable[[], Derainer]",
    *,
    overwrite: bool = False,
    quality: int | None = None,
    max_pixels: int = image.MAX_PIXELS,
    settings: video.Settings | None = None,
    progress: Callable[[Job, int, int], None] | None = None,
) -> Iterator[Outcome]:
    """Take the rain out of one picture or video after the other.

    Args:
        plan: What to do.
        load: Makes the Derainer; called once, and only if there is something to do.
        overwrite: Replace results that are already there.
        quality: 1 to 100 for JPEG, WebP and AVIF; None keeps what the source has.
        max_pixels: Refuse pictures and frames with more pixels.
        settings: What is wanted of videos.
        progress: Called with the job, the tiles done and the tiles in all; for a video with frames instead.

    Yields:
        What became of each input, as soon as it is known. After a full disk the rest is not tried.

    Raises:
        UnrainError: The model cannot be loaded, or no result can be written into the plan's folder.
        KeyboardInterrupt: Ctrl-C; in the middle of a video after its outcome, since what was done is kept.
    """
    yield from plan.settled
    if plan.folder is not None and plan.jobs:
        _make_folder(plan.folder / "result")
    derainer = None
    for job in plan.jobs:
        start = time.monotonic()
        pending = job.pending(overwrite=overwrite)
        if not pending and not job.to_stdout:
            there = " and ".join(str(path) for path in job.targets.values())
            yield Outcome(job.name, "skipped", f"{there} exists, --overwrite replaces it")
            continue
        derainer = derainer or load()
        try:
            for target in pending.values():
                _make_folder(target)
            if job.is_video:
                report = _video(job, pending["derained"], derainer, settings, max_pixels, progress)
                yield _told(job, pending["derained"], report, time.monotonic() - start)
                if report.interrupted:
                    raise KeyboardInterrupt
                continue
            results, notes, passes = _results(job, pending, derainer, max_pixels, progress)
            for kind, picture in results.items():
                notes += _save(picture, pending.get(kind), quality)
        except files.DiskFullError as error:
            yield Outcome(job.name, "failed", str(error))
            return
        except UnrainError as error:
            yield Outcome(job.name, "failed", str(error))
        except MemoryError:
            message = f"{job.name}: not enough memory, try a smaller --tile"
            yield Outcome(job.name, "failed", message)
        else:
            took = time.monotonic() - start
            yield Outcome(
                job.name, "derained", "", tuple(pending.values()), tuple(dict.fromkeys(notes)), took, passes
            )


def _video(
    job: Job,
    target: Path,
    derainer: "Derainer",
    settings: video.Settings | None,
    max_pixels: int,
    progress: Callable[[Job, int, int], None] | None,
) -> video.Report:
    assert job.source is not None

    def step(done: int, total: int) -> None:
        if progress is not None:
            progress(job, done, total)

    return video.derain(job.source, target, derainer, settings, max_pixels=max_pixels, progress=step)


def _told(job: Job, target: Path, report: video.Report, seconds: float) -> Outcome:
    problem = (
        report.problem and f"{job.name}: {report.problem}; {target} holds what was done and can be played"
    )
    return Outcome(
        job.name,
        "failed" if problem else "derained",
        problem,
        (target,),
        seconds=seconds,
        recursions=report.recursions,
        warnings=report.warnings,
        frames=report.frames,
    )


def _results(
    job: Job,
    pending: Mapping[Kind, Path],
    derainer: "Derainer",
    max_pixels: int,
    progress: Callable[[Job, int, int], None] | None,
) -> tuple[dict[Kind, image.Picture], tuple[str, ...], int]:
    if job.source is None:
        picture = image.decode(sys.stdin.buffer.read(), job.name, max_pixels=max_pixels)
    else:
        picture = image.read(job.source, max_pixels=max_pixels)

    def step(done: int, total: int) -> None:
        if progress is not None:
            progress(job, done, total)

    try:
        result = derainer.derain(picture.pixels, progress=step)
    except UnrainError as error:
        raise UnrainError(f"{job.name}: {error}") from error
    after = replace(picture, pixels=result.image)
    results: dict[Kind, image.Picture] = {}
    if "derained" in pending or job.to_stdout:
        results["derained"] = after
    if "rain" in pending:
        results["rain"] = image.Picture(result.rain_layer, colour=picture.colour)
    if "compare" in pending:
        results["compare"] = side_by_side(picture, after)
    return results, picture.notes, result.recursions


def side_by_side(before: image.Picture, after: image.Picture) -> image.Picture:
    """Put two pictures of one size beside each other, a thin white line between them."""
    height, width = before.pixels.shape[:2]

    def joined(left: image.Array, right: image.Array) -> image.Array:
        white = np.iinfo(left.dtype).max
        line = np.full((height, max(2, width // 250), *left.shape[2:]), white, left.dtype)
        return np.concatenate((left, line, right), axis=1)

    alpha = joined(before.alpha, before.alpha) if before.alpha is not None else None
    return replace(after, pixels=joined(before.pixels, after.pixels), alpha=alpha)


def _save(picture: image.Picture, target: Path | None, quality: int | None) -> tuple[str, ...]:
    """Write one result, to standard output without a target; return what could not be kept."""
    kind = picture.format if target is None else image.FORMATS.get(target.suffix.lower(), picture.format)
    try:
        data, notes = image.encode(picture, kind, quality=quality)
    except UnrainError as error:
        raise UnrainError(f"{target or 'standard output'}: {error}") from error
    if target is not None:
        files.write(data, target)
        return notes
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise files.writing_error(error, Path("standard output")) from error
    return notes


def _make_folder(target: Path) -> None:
    """Make sure, before the work, that the result's folder is there and can be written to."""
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A device in a folder of devices is written to, not replaced.
        if (target.is_file() or not target.exists()) and not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise files.writing_error(error, folder) from error
