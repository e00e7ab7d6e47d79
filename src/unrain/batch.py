"""Run a plan: many pictures and videos through one Derainer.

A bad file does not end the run; only a full disk does.
"""

import errno
import functools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unrain import files, image, layer, video, zoo
from unrain.errors import UnrainError
from unrain.plan import Job, Kind, Outcome, Plan, takes_bytes
from unrain.video import VideoOptions

if TYPE_CHECKING:
    from unrain.derainer import Derained, Derainer

Progress = Callable[[Job, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What is wanted of every input of a run.

    Attributes:
        derainer: Arguments of `Derainer`, besides the model.
        overwrite: Replace results that are already there.
        strength: How much of the rain is taken away: 0 none, 1 what is found, up to 1.5.
        quality: 1 to 100 for JPEG, WebP and AVIF; None keeps what the source has.
        max_pixels: Refuse pictures and frames with more pixels.
        video: What is wanted of videos.
        least: Leave pictures alone whose rain score is lower, see `unrain.score`; None derains all.
        copy: Copy those to where the result would be.
    """

    derainer: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    strength: float = 1.0
    quality: int | None = None
    max_pixels: int = image.MAX_PIXELS
    video: VideoOptions | None = None
    least: float | None = None
    copy: bool = False

    def open(self, model: zoo.Model) -> "Derainer":
        """Open a model.

        Raises:
            UsageError: There is no such device or precision.
            UnrainError: The model cannot be loaded, or the device cannot be had.
        """
        from unrain.derainer import Derainer

        return Derainer(model, **self.derainer)


def run(
    plan: Plan,
    load: "Callable[[], Derainer]",
    settings: Settings = Settings(),
    *,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Take the rain out of one picture or video after the other.

    Args:
        plan: What to do.
        load: Makes the Derainer; called once, and only if there is something to do.
        settings: What is wanted of every input.
        progress: Called with the job, the parts done and the parts in all; for a video with frames instead.

    Yields:
        What became of each input, as soon as it is known. After a full disk the rest is not tried.

    Raises:
        OptionError: The settings do not fit the container of a result.
        UsageError: The strength is out of range.
        UnrainError: The model cannot be loaded, or no result can be written into the plan's folder.
        KeyboardInterrupt: Ctrl-C; in the middle of a video after its outcome, since what was done is kept.
    """
    check(plan.jobs, settings)
    yield from plan.settled
    if plan.folder is not None and plan.jobs:
        _make_folder(plan.folder / "result")
    loaded = functools.cache(load)
    for job in plan.jobs:
        outcome = run_job(job, loaded, settings, progress=progress)
        yield outcome
        if outcome.ends_run == "interrupted":
            raise KeyboardInterrupt
        if outcome.ends_run:
            return


def check(jobs: Iterable[Job], settings: Settings) -> None:
    """Check, before the work, what can be checked without reading a file.

    Raises:
        OptionError: The settings do not fit the container of a result.
        UsageError: The strength is out of range.
    """
    layer.check_strength(settings.strength)
    if settings.video is not None:
        for job in jobs:
            if job.is_video:
                settings.video.check(job.targets["derained"])


def run_job(
    job: Job,
    load: "Callable[[], Derainer]",
    settings: Settings,
    *,
    progress: Progress | None = None,
) -> Outcome:
    """Take the rain out of one picture or video, and write what is not there yet.

    Args:
        job: What to do.
        load: Gives the Derainer; called only if there is something to do.
        settings: What is wanted of it.
        progress: Called with the job, the parts done and the parts in all.

    Returns:
        What became of it; its `ends_run` says if no other job can be done or is wanted after it.

    Raises:
        UnrainError: The model cannot be loaded.
    """
    start = time.monotonic()
    for target in job.targets.values():
        files.sweep(target.parent)
    pending = job.pending(overwrite=settings.overwrite)
    if not pending and not job.to_stdout:
        return job.done
    derainer = load()
    try:
        for target in pending.values():
            _make_folder(target)
        if job.is_video:
            if settings.least is not None and (wet := _video_score(job, derainer, settings)) < settings.least:
                return _video_left_alone(job, pending["derained"], wet, settings)
            report = _video(job, pending["derained"], derainer, settings, progress)
            return _told(job, pending["derained"], report, time.monotonic() - start)
        picture = _read(job, settings.max_pixels)
        if settings.least is not None and (rain := _rain_score(picture, derainer)) < settings.least:
            return _left_alone(job, picture, pending, rain, settings)
        results, found = _results(job, picture, pending, derainer, settings.strength, progress)
        saved = _save_all(results, pending, settings)
    except files.DiskFullError as error:
        return Outcome(job.name, "failed", str(error), ends_run="disk full")
    except UnrainError as error:
        return Outcome(job.name, "failed", str(error))
    except MemoryError:
        return Outcome(job.name, "failed", f"{job.name}: not enough memory, try a smaller --tile")
    return Outcome(
        job.name,
        "failed" if saved.problem else "derained",
        saved.problem,
        tuple(saved.written),
        tuple(dict.fromkeys((*found.notes, *saved.notes))),
        time.monotonic() - start,
        found.recursions,
        hardly_any_rain=found.hardly_any_rain,
        ends_run="disk full" if saved.disk_full else "",
    )


def _video(
    job: Job, target: Path, derainer: "Derainer", settings: Settings, progress: Progress | None
) -> "video.VideoReport":
    assert job.source is not None

    def step(done: int, total: int) -> None:
        if progress is not None:
            progress(job, done, total)

    return video.derain(
        job.source,
        target,
        derainer,
        settings.video,
        strength=settings.strength,
        max_pixels=settings.max_pixels,
        progress=step,
        overwrite=settings.overwrite,
        quality=settings.quality,
    )


def _told(job: Job, target: Path, report: "video.VideoReport", seconds: float) -> Outcome:
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
        hardly_any_rain=report.hardly_any_rain,
        ends_run="interrupted" if report.interrupted else "",
    )


@dataclass(frozen=True)
class _Found:
    """What is said of a picture that was derained, besides what became of its results.

    Attributes:
        notes: What was not kept as it was, and at which sizes the network ran.
        recursions: How many were computed.
        hardly_any_rain: Whether next to no rain was found.
    """

    notes: tuple[str, ...]
    recursions: int
    hardly_any_rain: bool


def _read(job: Job, max_pixels: int) -> image.Picture:
    if job.source is None:
        return image.read_stream(sys.stdin.buffer, job.name, max_pixels=max_pixels, pages=True)
    return image.read(job.source, max_pixels=max_pixels, pages=True)


def _rain_score(picture: image.Picture, derainer: "Derainer") -> float:
    """Return the highest score of a picture's pages."""
    return max(derainer.scorer(page.pixels).score for page in (picture, *picture.further))


def _video_score(job: Job, derainer: "Derainer", settings: Settings) -> float:
    assert job.source is not None
    found = video.score_video(job.source, derainer.scorer, settings.video, max_pixels=settings.max_pixels)
    return found.score.score


def _video_left_alone(job: Job, target: Path, rain: float, settings: Settings) -> Outcome:
    """Say that it does not rain in a video, which is copied if wanted, byte for byte."""
    assert job.source is not None
    said = f"no rain in it (score {rain:.0f})"
    if not settings.copy:
        return Outcome(job.name, "skipped", said)
    # The bytes of one container are no file of another: the copy keeps its extension. Nothing has looked at
    # what is there under that name.
    place = target.with_suffix(job.source.suffix)
    if place != target and place.exists():
        return Outcome(job.name, "skipped", f"{said}, not copied: {place} exists")
    with (
        files.opened(job.source) as whole,
        files.replacing(place, overwrite=settings.overwrite and place == target) as file,
    ):
        shutil.copyfileobj(whole, file)
    return Outcome(job.name, "skipped", f"{said}, copied to {place}", (place,))


def _left_alone(
    job: Job, picture: image.Picture, pending: Mapping[Kind, Path], rain: float, settings: Settings
) -> Outcome:
    """Say that it does not rain in a picture, which is copied if wanted: byte for byte where that can be."""
    said = f"no rain in it (score {rain:.0f})"
    target = pending.get("derained")
    if not settings.copy or (target is None and not job.to_stdout):
        return Outcome(job.name, "skipped", said)
    if target is not None and job.source is not None and target.suffix.lower() == job.source.suffix.lower():
        data = files.read(job.source, job.source.stat().st_size, "try again")
        files.write(data, target, overwrite=settings.overwrite)
    else:
        _save(picture, target, settings)
    written = () if target is None else (target,)
    return Outcome(job.name, "skipped", f"{said}, copied to {target or 'standard output'}", written)


def _results(
    job: Job,
    picture: image.Picture,
    pending: Mapping[Kind, Path],
    derainer: "Derainer",
    strength: float,
    progress: Progress | None,
) -> tuple[dict[Kind, image.Picture], _Found]:
    page, pages = 0, 1 + len(picture.further)

    def step(done: int, total: int) -> None:
        if progress is not None:
            progress(job, page * total + done, pages * total)

    def derained(one: image.Picture) -> tuple["Derained", image.Picture]:
        nonlocal page
        found = derainer.derain(one.pixels, progress=step)
        page += 1
        return found, replace(one, pixels=found.at(strength))

    try:
        result, after = derained(picture)
        further = [derained(one) for one in picture.further]
    except UnrainError as error:
        raise UnrainError(f"{job.name}: {error}") from error
    after = replace(after, further=tuple(one for _, one in further))
    results: dict[Kind, image.Picture] = {}
    if "derained" in pending or job.to_stdout:
        results["derained"] = after
    if "rain" in pending:
        results["rain"] = image.Picture(layer.taken(picture.pixels, after.pixels), colour=picture.colour)
    if "compare" in pending:
        results["compare"] = side_by_side(picture, replace(after, further=()))
    scaled = (f"derained {result.sizes}",) if result.octaves != (0,) else ()
    first = ("the rain layer and the comparison are those of the first page",)
    notes = (*picture.notes, *scaled, *first * (pages > 1 and bool({"rain", "compare"} & set(pending))))
    hardly_any = all(found.hardly_any_rain for found, _ in [(result, after), *further])
    return results, _Found(notes, result.recursions, hardly_any)


def side_by_side(before: image.Picture, after: image.Picture) -> image.Picture:
    """Put two pictures of one size beside each other, a thin white line between them."""
    height, width = before.pixels.shape[:2]

    def joined(left: image.Array, right: image.Array) -> image.Array:
        white = np.iinfo(left.dtype).max
        line = np.full((height, max(2, width // 250), *left.shape[2:]), white, left.dtype)
        return np.concatenate((left, line, right), axis=1)

    alpha = joined(before.alpha, before.alpha) if before.alpha is not None else None
    return replace(after, pixels=joined(before.pixels, after.pixels), alpha=alpha)


@dataclass
class _Saved:
    """What became of the results of one picture.

    Attributes:
        written: The files that are there.
        notes: What could not be kept.
        problem: What could not be written, and what was nevertheless; empty if all was.
        disk_full: Whether there is no point in continuing.
    """

    written: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problem: str = ""
    disk_full: bool = False


def _save_all(
    results: Mapping[Kind, image.Picture], pending: Mapping[Kind, Path], settings: Settings
) -> _Saved:
    """Write every result that can be written."""
    saved = _Saved()
    problems = []
    for kind, picture in results.items():
        target = pending.get(kind)
        try:
            saved.notes += _save(picture, target, settings)
        except UnrainError as error:
            problems.append(str(error))
            saved.disk_full = isinstance(error, files.DiskFullError)
            if saved.disk_full:
                break
        else:
            saved.written += [target] if target is not None else []
    if problems and saved.written:
        problems.append(" and ".join(map(str, saved.written)) + " written")
    saved.problem = "; ".join(problems)
    return saved


def _save(picture: image.Picture, target: Path | None, settings: Settings) -> tuple[str, ...]:
    """Write one result, to standard output without a target; return what could not be kept."""
    kind = picture.format if target is None else image.FORMATS.get(target.suffix.lower(), picture.format)
    try:
        data, notes = image.encode(picture, kind, quality=settings.quality)
    except UnrainError as error:
        raise UnrainError(f"{target or 'standard output'}: {error}") from error
    if target is not None:
        files.write(data, target, overwrite=settings.overwrite or takes_bytes(target))
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
