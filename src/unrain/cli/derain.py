"""`unrain IN...`: derain pictures, videos and folders."""

import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter, validators

from unrain import devices, zoo
from unrain.cli import frames
from unrain.cli.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    devices_named,
    error_line,
    print_line,
)
from unrain.cli.progress import Bar
from unrain.cli.signals import terminable
from unrain.cluster.options import SCALE, Scale

if TYPE_CHECKING:
    from unrain.cluster.inputs import Task
    from unrain.derainer import Derainer
    from unrain.plan import Job, Outcome
    from unrain.video import VideoOptions

# Stands for `-` while the command line is parsed: no file name can hold it, and no option looks like it.
STREAM = "\0"

_VIDEO = Group("Videos", sort_key=1)
_MODEL = Group("Network", sort_key=2)
_RESULT = Group("Results", sort_key=0)
_RUN = Group("Run", sort_key=3)

# Stands for the detector's own threshold.
AUTO = -1.0
# Parsed as text, which keeps ./ and a last slash; the path in it lets shells complete names of files.
FileName = str | Path
Count = Annotated[int | None, Parameter(validator=validators.Number(gte=1), group=_MODEL)]


def derain(
    *inputs: Annotated[FileName, Parameter(name="IN")],
    output: Annotated[FileName | None, Parameter(alias="-o", group=_RESULT, metavar="PATH")] = None,
    overwrite: Annotated[bool, Parameter(group=_RESULT)] = False,
    strength: Annotated[float, Parameter(group=_RESULT)] = 1.0,
    rain_layer: Annotated[bool, Parameter(group=_RESULT)] = False,
    compare: Annotated[bool, Parameter(group=_RESULT)] = False,
    only_rainy: Annotated[
        float | None,
        Parameter(group=_RESULT, validator=validators.Number(gte=AUTO, lte=100), show_default="all pictures"),
    ] = None,
    others: Annotated[Literal["skip", "copy"], Parameter(group=_RESULT)] = "skip",
    quality: Annotated[
        int | None,
        Parameter(group=_RESULT, validator=validators.Number(gte=1, lte=100), show_default="95 or 90"),
    ] = None,
    codec: Annotated[str | None, Parameter(group=_VIDEO, show_default="h264, vp9 in WebM")] = None,
    crf: Annotated[
        int | None, Parameter(group=_VIDEO, show_default="18 for h264, 20 to 24 for others")
    ] = None,
    start: Annotated[str | None, Parameter(group=_VIDEO, show_default="its beginning")] = None,
    duration: Annotated[str | None, Parameter(group=_VIDEO, show_default="up to its end")] = None,
    neighbours: Annotated[bool, Parameter(negative="--no-neighbours", group=_VIDEO)] = True,
    hwaccel: Annotated[str | None, Parameter(group=_VIDEO, show_default="the processor")] = None,
    encoder: Annotated[str | None, Parameter(group=_VIDEO, show_default="the processor")] = None,
    raw: Annotated[str | None, Parameter(group=_VIDEO, show_default="no")] = None,
    model: Annotated[str, Parameter(group=_MODEL)] = zoo.DEFAULT,
    recursions: Annotated[Count, Parameter(show_default="the model's own number")] = None,
    until: Annotated[
        float | None, Parameter(validator=validators.Number(gt=0), group=_MODEL, show_default="never")
    ] = None,
    levels: Annotated[
        int | None,
        Parameter(validator=validators.Number(gte=1, lte=8), show_default="auto", group=_MODEL),
    ] = None,
    tile: Annotated[Count, Parameter(show_default="auto")] = None,
    device: Annotated[str, Parameter(group=_MODEL)] = "auto",
    precision: Annotated[str, Parameter(group=_MODEL)] = "auto",
    threads: Annotated[int, Parameter(validator=validators.Number(gte=0), group=_MODEL)] = 0,
    max_pixels: Annotated[
        int | None, Parameter(validator=validators.Number(gte=1), show_default="400 million", group=_RUN)
    ] = None,
    dry_run: Annotated[bool, Parameter(group=_RUN)] = False,
    quiet: Annotated[bool, Parameter(alias="-q", group=_RUN)] = False,
    verbose: Annotated[bool, Parameter(alias="-v", group=_RUN)] = False,
    scale: Annotated[Scale, SCALE] = Scale(),  # noqa: B008  (frozen)
) -> int:
    """Take the rain out of pictures and videos.

    Args:
        inputs: Pictures, videos, folders of them, or - for standard input.
        output: A folder, where the structure of input folders is kept. For one input also a file name, whose
            extension decides the format, or - for standard output.
        overwrite: Replace results that exist. An input is never overwritten.
        strength: How much of the rain is taken away: 0 none, 1 what is found, up to 1.5.
        rain_layer: Also write the rain that was removed, as NAME_rain.png.
        compare: Also write before and after side by side, as NAME_compare.EXT.
        only_rainy: Leave pictures alone in which it does not rain: those with a lower score (unrain score).
            The number may be left out.
        others: What becomes of those: skip, or copy as they are.
        quality: Of JPEG, WebP, AVIF and JPEG XL, 1 to 100; a JPEG keeps its own unless given.
        codec: Codec of videos: h264, hevc, vp9 or av1.
        crf: Quality of videos: smaller is better and takes more space.
        start: Start the video here: seconds, MM:SS or HH:MM:SS.
        duration: Derain this much of the video: seconds, MM:SS or HH:MM:SS.
        neighbours: Steady the parts of a video that do not move with the frames before and after.
        hwaccel: Decode videos by hardware: cuda, qsv, vaapi, videotoolbox, d3d11va or amf. Where that cannot
            be had the processor does it, and a line says so.
        encoder: Encode videos by hardware: nvenc, qsv, amf or videotoolbox. Where that cannot be had the
            processor does it, and a line says so.
        raw: Standard input and output are raw frames of this size: WIDTHxHEIGHT, or WIDTHxHEIGHT:rgb48le for
            16 bits.
        model: A name that unrain models lists, or an ONNX file.
        recursions: How often the network runs on each picture; more is slower and may be cleaner.
        until: Stop earlier, after a recursion that changed the picture by less than this: the mean over all
            pixels and colours, in 8-bit steps.
        levels: How many sizes of a large picture are searched for rain, each half of the one before; 1 for
            full size only.
        tile: Side of the tiles that large pictures are cut into, in pixels; smaller takes less memory.
        device: What the network runs on: cpu, openvino, cuda, tensorrt, rocm, directml, coreml or torch; auto
            for the fastest that is installed and works. See unrain devices.
        precision: What it computes in: fp32, fp16 or bf16; auto for what the device is best at.
        threads: Processor threads, 0 for all.
        max_pixels: Refuse pictures with more pixels.
        dry_run: Say what would be written, and stop.
        quiet: Print errors only.
        verbose: Say what was done to each picture, and name the files left aside.
        scale: How a run is spread over machines.
    """
    from unrain import batch, image, layer, plan, video

    layer.check_strength(strength)
    videos = video.VideoOptions(
        codec,
        crf,
        video.parse_time(start, "--start") if start is not None else video.VideoOptions.start,
        video.parse_time(duration, "--duration") if duration is not None else None,
        neighbours,
        hwaccel,
        encoder,
    )
    devices.parse(device)
    devices.check_precision(precision)
    names = [plan.STREAM if text == STREAM else str(text) for text in inputs]
    place = plan.STREAM if output == STREAM else None if output is None else str(output)
    limit = image.MAX_PIXELS if max_pixels is None else max_pixels
    least = only_rainy
    if only_rainy == AUTO:
        from unrain.score import usual_threshold

        least = usual_threshold()
    settings = batch.Settings(
        {
            "recursions": recursions,
            "until": until,
            "tile": tile,
            "device": device,
            "precision": precision,
            "threads": threads,
            "levels": levels,
        },
        overwrite=overwrite,
        strength=strength,
        quality=quality,
        max_pixels=limit,
        video=videos,
        least=least,
        copy=others == "copy",
    )
    scale.check([*names, place or ""])
    if scale.wanted:
        if raw is not None:
            raise plan.PlanError("--raw: frames in a pipe cannot be shared out, run them alone")
        from unrain.cluster import cli as cluster

        return cluster.derain(
            names,
            place,
            scale,
            zoo.find(model),
            settings,
            rain_layer=rain_layer,
            compare=compare,
            dry_run=dry_run,
            quiet=quiet,
            verbose=verbose,
        )
    planned = plan.make_plan(
        names,
        place,
        rain_layer=rain_layer,
        compare=compare,
    )
    form = None if raw is None else video.parse_raw(raw, limit)
    if form is not None:
        frames.check(planned, videos, quality=quality, dry_run=dry_run)
    else:
        check_for_videos(videos, planned.jobs)
    chosen = zoo.find(model)
    if dry_run:
        pending = [(job, job.pending(overwrite=overwrite)) for job in planned.jobs]
        return say_plan(
            [
                (job.name, target)
                for job, targets in pending
                for target in [*targets.values(), *["standard output"] * job.to_stdout]
            ],
            [*(job.done for job, targets in pending if not targets and not job.to_stdout), *planned.settled],
            [*converted(planned.jobs), *left_aside(planned.ignored, verbose=verbose)],
        )
    if any(job.to_stdout for job in planned.jobs) and sys.stdout.isatty():
        raise plan.PlanError("standard output is a terminal: redirect it, or give a file name after -o")

    def load() -> "Derainer":
        with devices_named(screen.say):
            made = settings.open(chosen)
        if getattr(made.engine, "loops", False) and not quiet:
            screen.say(f"unrain: {chosen.path} has loops, which may never end: Ctrl-C stops them")
        if verbose and made.processor:
            screen.say(f"running on {made.processor}")
        return made

    screen = Screen(len(planned.jobs) + len(planned.settled), quiet=quiet, verbose=verbose)
    with screen, terminable(screen.terminate):
        if verbose:
            screen.say(f"model {chosen.name} ({chosen.path})")
        if not quiet:
            for line in converted(planned.jobs):
                screen.say(line)
        try:
            if form is not None:
                screen.settle(frames.derain_frames(form, load(), videos, strength))
            else:
                for outcome in batch.run(planned, load, settings, progress=screen.tile_done):
                    screen.settle(outcome)
        except KeyboardInterrupt:
            screen.interrupted = True
        if not quiet:
            for line in left_aside(planned.ignored, verbose=verbose):
                screen.say(line)
    return screen.summary()


def check_for_videos(settings: "VideoOptions", jobs: "Iterable[Job | Task]") -> None:
    """Refuse options for videos where there is none.

    Raises:
        PlanError: There is none.
    """
    from unrain import plan, video

    if settings != video.VideoOptions() and not any(job.is_video for job in jobs):
        raise plan.PlanError(
            "--codec, --crf, --start, --duration, --hwaccel, --encoder and --no-neighbours are for videos, "
            "but none is named"
        )


def spelled_out(tokens: Sequence[str]) -> list[str]:
    """Give --only-rainy its number where that was left out."""
    made = []
    for at, token in enumerate(tokens):
        made.append(token)
        if token == "--only-rainy" and not _is_score("".join(tokens[at + 1 : at + 2])):
            made.append(str(AUTO))
    return made


def _is_score(word: str) -> bool:
    """Tell a number from the name of an input, such as the folder 2024."""
    if not re.fullmatch(r"\d+\.?\d*|\.\d+", word, re.ASCII):
        return False
    return float(word) <= 100 or not Path(word).exists()


def converted(jobs: Iterable["Job"]) -> list[str]:
    """Say of which pictures the results have another format."""
    from unrain.plan import converted

    return [f"unrain: {line}" for line in converted(jobs)]


def left_aside(ignored: Sequence[Path], *, verbose: bool) -> list[str]:
    """Count the files of folders that are no input, and name them if wanted."""
    from unrain.plan import left_aside

    lines = [f"unrain: {line}" for line in left_aside(ignored)]
    return [*lines, *(f"  {path}" for path in ignored if verbose)]


def say_plan(writes: Iterable[tuple[str, object]], over: Iterable["Outcome"], lines: Iterable[str]) -> int:
    """Say what a run would do.

    Args:
        writes: Each input with a result of it.
        over: What is said of inputs that would not be run.
        lines: What else is to be said.

    Returns:
        The exit code.
    """
    for name, target in writes:
        print_line(f"{name} -> {target}")
    failed = False
    for outcome in over:
        failed |= outcome.status == "failed"
        word = "error: " if outcome.status == "failed" else f"{outcome.name}: skipped, "
        error_line(f"unrain: {word}{outcome.message}")
    for line in lines:
        error_line(line)
    return EXIT_FAILED if failed else 0


class Screen:
    """Everything a run says, on standard error."""

    def __init__(self, inputs: int, *, quiet: bool, verbose: bool) -> None:
        self.interrupted = False
        self.terminated = False
        self.bar = Bar(inputs, shown=inputs > 0 and not quiet)
        self._inputs = inputs
        self._done = 0
        self._counts: Counter[str] = Counter()
        self._hardly_any = 0
        self._quiet = quiet
        self._verbose = verbose
        self._first_frame = 0.0

    def __enter__(self) -> "Screen":
        self.bar.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.bar.__exit__(*details)

    def say(self, line: str) -> None:
        """Write a line, above the progress bar if there is one."""
        self.bar.say(line)

    def terminate(self) -> None:
        """End the run as Ctrl-C does, with an exit code of its own."""
        self.terminated = True
        raise KeyboardInterrupt

    def tile_done(self, job: "Job", done: int, total: int) -> None:
        """Move the bar by one tile of a picture or one frame of a video."""
        name = Path(job.name).name
        if job.is_video:
            if done == 1:
                # The first frame waits for the file to be opened: speed is counted from its end.
                self._first_frame = time.monotonic()
            took = time.monotonic() - self._first_frame
            name += f" {done}/{total} frames" + (f", {(done - 1) / took:.2f} a second" if took else "")
        self.bar.update(self._done + done / total, name)

    def settle(self, outcome: "Outcome") -> None:
        """Count an outcome and say what is to be said about it."""
        self._counts[outcome.status] += 1
        self._hardly_any += outcome.hardly_any_rain and outcome.status == "derained"
        self._done += 1
        if not self._quiet:
            for warning in outcome.warnings:
                self.say(f"unrain: {outcome.name}: {warning}")
        self.bar.update(self._done)
        if outcome.status == "failed":
            if outcome.written and not self._quiet:
                self._say_written(outcome)
            self.say(f"unrain: error: {outcome.message}")
        elif self._quiet:
            return
        elif outcome.status == "skipped":
            self.say(f"unrain: {outcome.name}: skipped, {outcome.message}")
        else:
            self._say_written(outcome)

    def _say_written(self, outcome: "Outcome") -> None:
        where = ", ".join(str(path) for path in outcome.written) or "standard output"
        plural = "s" * (outcome.recursions != 1)
        recursions = f", {outcome.recursions} recursion{plural}" if self._verbose else ""
        frames = ""
        if outcome.frames:
            speed = outcome.frames / max(outcome.seconds, 1e-9)
            frames = f", {outcome.frames} frames, {speed:.2f} a second"
        self.say(f"{outcome.name} -> {where} ({outcome.seconds:.1f} s{frames}{recursions})")
        if self._verbose:
            for note in outcome.notes:
                self.say(f"  {note}")
        # Of one picture alone there is no summary, and nobody sees a difference.
        if outcome.hardly_any_rain and (self._verbose or self._inputs == 1):
            self.say("  hardly any rain found")

    def summary(self) -> int:
        """Say how it went, if there was more than one input, and return the exit code."""
        left = self._inputs - self._done
        if self._hardly_any and self._inputs > 1 and not self._quiet:
            error_line(f"unrain: hardly any rain found in {self._hardly_any} of {self._counts['derained']}")
        if self.interrupted or (self._inputs > 1 and (not self._quiet or self._counts["failed"])):
            counts = ", ".join(
                f"{self._counts[status]} {status}" for status in ("derained", "skipped", "failed")
            )
            stopped = "interrupted: " if self.interrupted else ""
            error_line(f"unrain: {stopped}{counts}" + (f", {left} not started" if left else ""))
        if self.interrupted:
            return EXIT_TERMINATED if self.terminated else EXIT_INTERRUPTED
        return EXIT_FAILED if self._counts["failed"] else 0
