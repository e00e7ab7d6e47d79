"""The commands. Each imports its room when it is called, so that `--help` answers at once."""

import contextlib
import json as jsonlib
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Group, Parameter, validators

from unrain.errors import UnrainError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from unrain.batch import Job, Outcome, Plan
    from unrain.derainer import Derainer
    from unrain.lab.bench.speed import SpeedTable
    from unrain.zoo import Model

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
EXIT_TERMINATED = 143

# Stands for `-` while the command line is parsed: no file name can hold it, and no option looks like it.
_STREAM = "\0"

_USAGE = """Usage: unrain IN... [-o OUT] [OPTIONS]
       unrain COMMAND [OPTIONS]
"""
_HELP = """Take the rain out of pictures and videos.

unrain photo.jpg writes photo_derained.jpg beside photo.jpg. IN is a picture, a
video, a folder of them (with everything below it), or - for a picture from
standard input. A file called like a command is reached as ./NAME."""


def _version() -> str:
    """Say what a bug report needs."""
    import platform
    from importlib import metadata

    from unrain import zoo
    from unrain.version import __version__

    def installed(package: str) -> str:
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            return f"{package} missing"

    lines = [
        f"unrain {__version__}",
        f"Python {platform.python_version()} ({platform.python_implementation()})",
        f"{platform.platform()}, {os.cpu_count()} CPUs",
        *(installed(package) for package in ("numpy", "pillow", "onnxruntime", "av")),
        f"models: {', '.join(model.name for model in zoo.models()) or 'none'}",
    ]
    return "\n".join(lines)


app = App(
    name="unrain",
    usage=_USAGE,
    help=_HELP,
    # Markdown would cost a quarter of the time that --help takes.
    help_format="plaintext",
    help_flags=["--help", "-h"],
    version=_version,
    version_flags=["--version"],
    version_format="plaintext",
    default_parameter=Parameter(negative=(), show_default=False),
)

_VIDEO = Group("Videos", sort_key=1)
_MODEL = Group("Network", sort_key=2)
_RESULT = Group("Results", sort_key=0)
_RUN = Group("Run", sort_key=3)

Count = Annotated[int | None, Parameter(validator=validators.Number(gte=1), group=_MODEL)]


@app.default
def derain(
    *inputs: Annotated[str, Parameter(name="IN")],
    output: Annotated[str | None, Parameter(alias="-o", group=_RESULT)] = None,
    overwrite: Annotated[bool, Parameter(group=_RESULT)] = False,
    rain_layer: Annotated[bool, Parameter(group=_RESULT)] = False,
    compare: Annotated[bool, Parameter(group=_RESULT)] = False,
    quality: Annotated[
        int | None, Parameter(group=_RESULT, validator=validators.Number(gte=1, lte=100))
    ] = None,
    codec: Annotated[str | None, Parameter(group=_VIDEO)] = None,
    crf: Annotated[int | None, Parameter(group=_VIDEO)] = None,
    start: Annotated[str | None, Parameter(group=_VIDEO)] = None,
    duration: Annotated[str | None, Parameter(group=_VIDEO)] = None,
    neighbours: Annotated[bool, Parameter(negative="--no-neighbours", group=_VIDEO)] = True,
    model: Annotated[str | None, Parameter(group=_MODEL)] = None,
    recursions: Count = None,
    until: Annotated[float | None, Parameter(validator=validators.Number(gt=0), group=_MODEL)] = None,
    tile: Count = None,
    threads: Annotated[int, Parameter(validator=validators.Number(gte=0), group=_MODEL)] = 0,
    max_pixels: Annotated[int | None, Parameter(validator=validators.Number(gte=1), group=_RUN)] = None,
    dry_run: Annotated[bool, Parameter(group=_RUN)] = False,
    quiet: Annotated[bool, Parameter(alias="-q", group=_RUN)] = False,
    verbose: Annotated[bool, Parameter(alias="-v", group=_RUN)] = False,
) -> int:
    """Take the rain out of pictures and videos.

    Args:
        inputs: Pictures, videos, folders of them, or - for standard input.
        output: A folder, where the structure of input folders is kept. For one input also a file name,
            whose extension decides the format, or - for standard output.
        overwrite: Replace results that are already there. An input is never overwritten.
        rain_layer: Also write what was taken away, as NAME_rain.png.
        compare: Also write before and after side by side, as NAME_compare.EXT.
        quality: 1 to 100 for JPEG, WebP and AVIF; otherwise a JPEG keeps its own.
        codec: How videos are compressed: h264 (vp9 in WebM), hevc, vp9 or av1.
        crf: Quality of videos, less is better and larger (18 for h264).
        start: Begin a video here: seconds, MM:SS or HH:MM:SS.
        duration: Take that much of a video: seconds, MM:SS or HH:MM:SS.
        neighbours: Steady the still places of a video with what the frames before and after know.
        model: A name that unrain models lists, or an ONNX file.
        recursions: Passes of the network; more is slower and may be cleaner.
        until: Stop each picture earlier, after a pass that changed it by less than this: the mean over all
            pixels and colours, in steps of 8 bits.
        tile: Side of the tiles in which large pictures are worked on, in pixels; smaller takes less memory.
        threads: Processor threads, 0 for all.
        max_pixels: Refuse pictures with more pixels than this (400 million).
        dry_run: Say what would be written, and stop.
        quiet: Say nothing but errors.
        verbose: Say what was done to each picture.
    """
    from unrain import batch, image, video, zoo

    settings = video.Settings(
        codec,
        crf,
        video.parse_time(start, "--start") if start is not None else video.Settings.start,
        video.parse_time(duration, "--duration") if duration is not None else None,
        neighbours,
    )
    plan = batch.plan(
        [batch.STREAM if text == _STREAM else text for text in inputs],
        batch.STREAM if output == _STREAM else output,
        rain_layer=rain_layer,
        compare=compare,
    )
    if settings != video.Settings() and not any(job.is_video for job in plan.jobs):
        raise batch.PlanError(
            "--codec, --crf, --start, --duration and --no-neighbours are for videos, but none is named"
        )
    chosen = zoo.find(zoo.DEFAULT if model is None else model)
    if dry_run:
        return _dry_run(plan, overwrite=overwrite)
    if any(job.to_stdout for job in plan.jobs) and sys.stdout.isatty():
        raise batch.PlanError("standard output is a terminal: redirect it, or give a file name after -o")

    def load() -> "Derainer":
        from unrain.derainer import Derainer

        return Derainer(chosen, recursions=recursions, until=until, tile=tile, threads=threads)

    screen = _Screen(len(plan.jobs) + len(plan.settled), quiet=quiet, verbose=verbose)
    with screen, _terminable(screen):
        if verbose:
            screen.say(f"model {chosen.name} ({chosen.path})")
        try:
            for outcome in batch.run(
                plan,
                load,
                overwrite=overwrite,
                quality=quality,
                max_pixels=image.MAX_PIXELS if max_pixels is None else max_pixels,
                settings=settings,
                progress=screen.tile_done,
            ):
                screen.settle(outcome)
        except KeyboardInterrupt:
            screen.interrupted = True
    return screen.summary()


@contextlib.contextmanager
def _terminable(screen: "_Screen") -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does, unless whoever runs this has other plans with it."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(*_: object) -> None:
        screen.terminated = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _dry_run(plan: "Plan", *, overwrite: bool) -> int:
    for job in plan.jobs:
        pending = job.pending(overwrite=overwrite)
        if not pending and not job.to_stdout:
            _error_line(f"unrain: {job.name}: skipped, its result exists")
        for target in [*pending.values(), *(["standard output"] if job.to_stdout else [])]:
            _print(f"{job.name} -> {target}")
    for outcome in plan.settled:
        word = "error: " if outcome.status == "failed" else f"{outcome.name}: skipped, "
        _error_line(f"unrain: {word}{outcome.message}")
    return EXIT_FAILED if any(outcome.status == "failed" for outcome in plan.settled) else 0


class _Screen:
    """Everything a run says, on standard error; the progress bar is there on a terminal only."""

    def __init__(self, inputs: int, *, quiet: bool, verbose: bool) -> None:
        self.interrupted = False
        self.terminated = False
        self._inputs = inputs
        self._done = 0
        self._counts: Counter[str] = Counter()
        self._quiet = quiet
        self._verbose = verbose
        self._bar: Progress | None = None
        self._first_frame = 0.0

    def __enter__(self) -> "_Screen":
        if not self._quiet and self._inputs and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                # A frame of 4K may take longer than the half minute that is usual here.
                speed_estimate_period=600,
                transient=True,
            )
            self._task = self._bar.add_task("unrain", total=self._inputs)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, line: str) -> None:
        """Write a line, above the progress bar if there is one."""
        if self._bar is None:
            _error_line(line)
        else:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def tile_done(self, job: "Job", done: int, total: int) -> None:
        """Move the bar by one tile of a picture or one frame of a video."""
        if self._bar is not None:
            name = Path(job.name).name
            if job.is_video:
                if done == 1:
                    # The first frame waits for the file to be opened: speed is counted from its end.
                    self._first_frame = time.monotonic()
                took = time.monotonic() - self._first_frame
                name += f" {done}/{total} frames" + (f", {(done - 1) / took:.2f} a second" if took else "")
            self._bar.update(self._task, description=name, completed=self._done + done / total)

    def settle(self, outcome: "Outcome") -> None:
        """Count an outcome and say what is to be said about it."""
        self._counts[outcome.status] += 1
        self._done += 1
        if not self._quiet:
            for warning in outcome.warnings:
                self.say(f"unrain: {outcome.name}: {warning}")
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        if outcome.status == "failed":
            self.say(f"unrain: error: {outcome.message}")
        elif self._quiet:
            return
        elif outcome.status == "skipped":
            self.say(f"unrain: {outcome.name}: skipped, {outcome.message}")
        else:
            where = ", ".join(str(path) for path in outcome.written) or "standard output"
            passes = f", {outcome.recursions} pass{'es' * (outcome.recursions != 1)}" if self._verbose else ""
            frames = ""
            if outcome.frames:
                speed = outcome.frames / max(outcome.seconds, 1e-9)
                frames = f", {outcome.frames} frames, {speed:.2f} a second"
            self.say(f"{outcome.name} -> {where} ({outcome.seconds:.1f} s{frames}{passes})")
            for note in outcome.notes if self._verbose else ():
                self.say(f"  {note}")

    def summary(self) -> int:
        """Say how it went, if there was more than one input, and return the exit code."""
        left = self._inputs - self._done
        if self.interrupted or (self._inputs > 1 and (not self._quiet or self._counts["failed"])):
            counts = ", ".join(
                f"{self._counts[status]} {status}" for status in ("derained", "skipped", "failed")
            )
            stopped = "interrupted: " if self.interrupted else ""
            _error_line(f"unrain: {stopped}{counts}" + (f", {left} not started" if left else ""))
        if self.interrupted:
            return EXIT_TERMINATED if self.terminated else EXIT_INTERRUPTED
        return EXIT_FAILED if self._counts["failed"] else 0


@app.command
def models(*, json: bool = False) -> int:
    """List the models: what they are for, how large they are and how well they do.

    Args:
        json: Print the whole cards, for programs.
    """
    from unrain import zoo

    found = zoo.models()
    if json:
        cards = [
            {"name": m.name, "path": str(m.path), "bytes": m.path.stat().st_size, **m.card} for m in found
        ]
        _print(jsonlib.dumps(cards, indent=2, ensure_ascii=False))
        return 0
    if not found:
        raise UnrainError("no models came with this installation, install unrain again")
    for model in found:
        _print(_described(model, default=model.name == zoo.DEFAULT))
    return 0


def _described(model: "Model", *, default: bool) -> str:
    """Describe a model in a few lines."""
    card = model.card
    parameters = card.get("parameters")
    facts = [
        f"{parameters:,} parameters" if isinstance(parameters, int) else "",
        f"{model.path.stat().st_size / 1e6:.1f} MB",
        f"{card['recursions']} recursions" if "recursions" in card else "",
        str(card.get("licence", "")),
    ]
    scores = card.get("scores")
    lines = [
        f"{model.name}{' (default)' if default else ''}: {card.get('summary', 'no card')}",
        "  " + ", ".join(filter(None, facts)),
    ]
    for name, score in scores.items() if isinstance(scores, dict) else ():
        values = (
            ", ".join(f"{key} {value}" for key, value in score.items()) if isinstance(score, dict) else score
        )
        lines.append(f"  {name}: {values}")
    return "\n".join(lines)


@app.command
def serve(
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 8000,
    open_browser: Annotated[bool, Parameter(name="--open")] = False,
    model: tuple[str, ...] = (),
    threads: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    allow_host: tuple[str, ...] = (),
    max_bytes: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 25_000_000,
    max_pixels: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 40_000_000,
    queue: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 8,
    timeout: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 300,
) -> int:
    """Serve a page and an HTTP API for pictures (needs the extra web: pip install 'unrain[web]').

    Args:
        host: Address to listen at; by default only this computer reaches it.
        port: Port to listen at, 0 for any free one.
        open_browser: Show the page in the browser.
        model: What to offer: a name that unrain models lists, or an ONNX file; may be given several times,
            the default first. All that came with unrain if not given.
        threads: Processor threads, 0 for all.
        allow_host: A name, besides addresses, by which the server may be called; may be given several times.
        max_bytes: Refuse pictures whose file is larger.
        max_pixels: Refuse pictures with more pixels.
        queue: How many pictures may wait.
        timeout: Seconds that a picture may take, waiting included.
    """

    def run() -> None:
        from unrain import zoo
        from unrain.web import server
        from unrain.web.queue import Limits

        server.serve(
            host=host,
            port=port,
            models=[zoo.find(name) for name in model] or None,
            threads=threads,
            limits=Limits(upload=max_bytes, pixels=max_pixels, queue=queue, timeout=timeout),
            hosts=allow_host,
            say=_error_line,
            open_browser=open_browser,
        )

    return _with_extra("web", "serve", run)


@app.command
def train(
    recipe: Path,
    *,
    data: Path,
    devices: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 1,
    out: Path | None = None,
    resume: Annotated[bool, Parameter(negative="--no-resume")] = True,
) -> int:
    """Train a network by a recipe (needs the lab: pip install 'unrain[lab]').

    Args:
        recipe: The TOML file that says everything about the training.
        data: Folder with the data sets.
        devices: How many GPUs, or processes on the CPU.
        out: Folder for checkpoints and logs.
        resume: Go on from the last checkpoint, if there is one.
    """

    def run() -> None:
        from unrain.lab.training.train import train as run_training

        run_training(recipe, data, devices=devices, out=out, resume=resume)

    return _in_lab("train", run)


@app.command
def adapt(
    model: str,
    *,
    real: Path,
    clean: Path | None = None,
    pairs: Path | None = None,
    steps: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 500,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
) -> int:
    """Fine-tune a model on one's own rainy pictures, in minutes (needs the lab: pip install 'unrain[lab]').

    Measures it before and after on rain drawn on pictures that were held out, and writes an ONNX model that
    unrain --model takes.

    Args:
        model: A name that unrain models lists, or a checkpoint of unrain train.
        real: Folder with rainy pictures.
        clean: Folder with clean photographs, at best of the same camera; rain is drawn on them. Without any,
            it is drawn on what the model makes of the rainy pictures.
        pairs: Folder with a rainy and a clean sub-folder, to learn from and measure on besides.
        steps: Steps of training.
        output: The ONNX file to write; MODEL-adapted.onnx if not given.
    """

    def run() -> None:
        from unrain.lab.adapt import ALLOWED
        from unrain.lab.adapt import adapt as run_adapting

        found = run_adapting(model, real, clean=clean, pairs=pairs, steps=steps, out=output)
        verdict = "kept" if found.kept else "NOT kept"
        _print(
            f"{found.pairs} pairs held out: {found.before:.2f} dB before, {found.after:.2f} dB after; "
            f"{verdict} within {ALLOWED} dB, with {found.share:.0%} of the change"
        )
        if pairs is None:
            _print("these have drawn rain; other rain may go worse than before: --pairs holds some of it out")
        if found.streaks_before is not None and found.streaks_after is not None:
            _print(
                f"streaks taken from your pictures: {found.streaks_before:.0%} before, "
                f"{found.streaks_after:.0%} after"
            )
        _print(f"{steps} steps, {found.seconds:.0f} s; use it: unrain IN --model {found.model}")

    return _in_lab("adapt", run)


@app.command
def search(recipe: Path, *, data: Path, out: Path | None = None) -> int:
    """Find out which skips of RDMC to keep (needs the lab: pip install 'unrain[lab]').

    Prints the skips with their strengths, and writes a recipe with the strongest that unrain train takes.

    Args:
        recipe: The TOML file, with a [search] table.
        data: Folder with the data sets.
        out: Folder for checkpoints, logs and the recipe found.
    """

    def run() -> None:
        from unrain.lab.search import search as run_search

        found = run_search(recipe, data, out=out)
        for name, strength in found.skips.items():
            _print(f"{name:6} {strength:+.4f}{'  kept' if name in found.kept else ''}")
        _print(f"upsampling {found.bilinear:.3f} bilinear + {1 - found.bilinear:.3f} bicubic")
        _print(f"train it: unrain train {found.recipe} --data {data}")

    return _in_lab("search", run)


@app.command
def ablate(plan: Path, *, data: Path, out: Path | None = None) -> int:
    """Find out what each part of a recipe is worth (needs the lab: pip install 'unrain[lab]').

    Trains and measures variants of a recipe, and writes results.csv, table.md and plot.svg.

    Args:
        plan: The TOML file: a recipe, and what is changed in it.
        data: Folder with the data sets.
        out: Folder for the runs and the results.
    """

    def run() -> None:
        from unrain.lab.ablate import ablate as run_ablation

        for row in run_ablation(plan, data, out=out):
            each = ", ".join(f"{one.psnr:.2f}" for one in row.results)
            _print(f"{row.group:24} {row.run:24} {row.psnr:6.2f} dB ({each})")

    return _in_lab("ablate", run)


@app.command
def export(
    checkpoint: Path,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    recursions: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    default: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
) -> int:
    """Turn a checkpoint into an ONNX model (needs the lab: pip install 'unrain[lab]').

    Args:
        checkpoint: The trained weights: weights.safetensors, or last.ckpt of a run that still goes on.
        output: The ONNX file to write; its card goes beside it.
        recursions: Put that many passes into the file; otherwise their number is chosen when it runs.
        default: Passes that are made when nobody says how many; the network's own number if not given.
    """

    def run() -> None:
        from unrain.lab.export import export_checkpoint

        export_checkpoint(checkpoint, output, recursions=recursions, default=default)

    return _in_lab("export", run)


@app.command
def bench(
    *names: Annotated[str, Parameter(name="MODEL")],
    data: Path | None = None,
    peer: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    suite: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    recursions: Annotated[tuple[int, ...], Parameter(negative=())] = (),
    threads: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    metric: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    real: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    truncate: bool = False,
    card: bool = False,
    readme: Path | None = None,
    fresh: bool = False,
    cost: bool = False,
    published: bool = False,
    csv: Path | None = None,
    report: Path | None = None,
    sheet: Path | None = None,
    sheet_pictures: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 20,
    sheet_width: Annotated[int, Parameter(validator=validators.Number(gte=32))] = 360,
    speed: bool = False,
    size: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    rounds: Annotated[int, Parameter(validator=validators.Number(gte=5))] = 5,
    json: bool = False,
) -> int:
    """Measure models on whole test sets, the field's way (needs the lab: pip install 'unrain[lab]').

    PSNR and SSIM on the Y channel after rounding to 8 bits, averaged over all pictures of a set; for real
    rain what went of the streaks and of the rest; or with --speed the time that they take. What was measured
    is kept in runs/bench: a run that was killed goes on, and one with the same files and code reuses it.

    Args:
        names: Models of the zoo, ONNX files, checkpoints of unrain train, or folders of derained pictures,
            which are matched by name (in a sub-folder called like the suite, if there is one). The default
            model if nothing is named.
        data: Folder with the data sets; --speed and --real need none.
        peer: Somebody else's weights for one of our networks, as NETWORK:FILE, for example
            prenet:weights.safetensors; may be given several times.
        suite: Sets of pairs, or folders of clean photographs, which are measured against themselves. May be
            given several times; by default the usual sets that are there. Rain100L, Rain100H, Rain12,
            Rain200L, Rain200H, Rain800, Rain1400, Test1200 and SPA-Data are known as downloaded.
        recursions: Numbers of passes to measure, may be given several times; the model's own by default.
        threads: Processor threads, 0 for all.
        metric: Measure also rgb (PSNR and SSIM of all channels), lpips, niqe, brisque or streaks; lpips, niqe
            and brisque need a file, as NAME:PATH or in UNRAIN_LPIPS, UNRAIN_NIQE and UNRAIN_BRISQUE. May be
            given several times.
        real: Folders of real rain, whose clean side nobody knows, below DATA or anywhere. May be given
            several times. Measured are the share of the streaks that went, the change away from them, and
            NIQE and BRISQUE if their files are named.
        truncate: Also score the results truncated to 8 bits, as the script of PReNet's authors does.
        card: Write the scores into the models' cards.
        readme: Then write the scores in the cards of all models into this README, between its two marks.
        fresh: Measure again what an earlier run has measured.
        cost: Also say how many weights and multiplications a model has, and how much memory a process needs
            that runs it once, on a picture of 481x321 or --size.
        published: Also list what others have published for these sets, with the sources.
        csv: Also write the scores into this file.
        report: Also write an HTML page: the tables with --cost, plots, and the best, median and worst picture
            of each model.
        sheet: Draw pictures side by side into this file, instead of measuring.
        sheet_pictures: How many, evenly spread over the set.
        sheet_width: How wide each, in pixels.
        speed: Time the models instead, in turn, beside the first peer and the machine's own matrix product.
        size: Size of the picture as WIDTHxHEIGHT, for --cost, and for --speed, where it may be given several
            times (481x321, 1280x720 and 1920x1080).
        rounds: For --speed, how often each model runs; medians are given.
        json: Print the scores for programs.
    """

    def run() -> None:
        from dataclasses import asdict

        from unrain import zoo
        from unrain.lab.bench import candidates
        from unrain.lab.bench.cost import SIZE, Given

        chosen = names if names or peer else (zoo.DEFAULT,)
        found = [*map(candidates.find, chosen), *map(candidates.find_peer, peer)]
        given = [*map(Given, chosen), *(Given(text, peer=True) for text in peer)]
        if speed:
            from unrain.lab.bench.speed import SIZES, measure_speed

            first = found[-len(peer)] if peer else None
            speeds = measure_speed(
                found,
                peer=first,
                sizes=size or SIZES,
                recursions=recursions,
                threads=threads,
                rounds=rounds,
                given=given if cost else (),
            )
            if json:
                _print(jsonlib.dumps(asdict(speeds), indent=2))
            else:
                _print_speed(speeds, first.name if first else None, cost=cost)
            return
        if len(size) > 1:
            raise UnrainError(f"--size: {len(size)} sizes are for --speed, give one")
        from unrain.lab.bench.command import Options
        from unrain.lab.bench.command import bench as measure

        options = Options(
            suites=suite,
            real=real,
            metrics=metric,
            recursions=recursions,
            threads=threads,
            truncate=truncate,
            card=card,
            readme=readme,
            fresh=fresh,
            json=json,
            csv=csv,
            cost=cost,
            size=size[0] if size else SIZE,
            published=published,
            page=report,
            sheet=sheet,
            pictures=sheet_pictures,
            width=sheet_width,
        )
        measure(
            found, data, options, given=given, say=_print, note=lambda line: _error_line(f"unrain: {line}")
        )

    return _in_lab("bench", run)


@app.command
def bench_tasks(
    *names: Annotated[str, Parameter(name="MODEL")],
    data: Path,
    detect: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    segment: Annotated[tuple[Path, ...], Parameter(negative=())] = (),
    suite: str = "coco",
    peer: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    rain: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    seed: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    recursions: Annotated[tuple[int, ...], Parameter(negative=())] = (),
    threads: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    fresh: bool = False,
    csv: Path | None = None,
    json: bool = False,
) -> int:
    """Measure what deraining does for detectors and segmentation (needs pip install 'unrain[tasks]').

    Networks of yours look at photographs as they are, with drawn rain of three strengths, and derained; mAP
    and mIoU in per cent. What was measured is kept in runs/bench, as by unrain bench.

    Args:
        names: Models of the zoo, ONNX files, or checkpoints of unrain train; the default model if nothing is
            named.
        data: Folder with the data sets.
        detect: A YOLO of COCO's 80 classes: FILE.onnx or FILE.cfg+FILE.weights; may be given several times.
        segment: A network of PASCAL VOC's 21 classes: FILE.tflite or FILE.onnx; may be given several times.
        suite: The set below DATA: a folder with images, boxes (YOLO's lines), and masks in semantic (COCO's
            panoptic numbers) or labels (CamVid's).
        peer: Somebody else's weights for one of our networks, as NETWORK:FILE; may be given several times.
        rain: Strengths: none, light, middling or heavy; may be given several times, all by default.
        seed: Another number puts the drops elsewhere.
        recursions: Numbers of passes to measure, may be given several times; the model's own by default.
        threads: Processor threads, 0 for all.
        fresh: Measure again what an earlier run has measured.
        csv: Also write the scores into this file.
        json: Print the scores for programs.
    """

    def run() -> None:
        from unrain import zoo
        from unrain.lab.bench import candidates
        from unrain.lab.bench.downstream import tasks

        chosen = names if names or peer else (zoo.DEFAULT,)
        tasks.bench_tasks(
            [*map(candidates.find, chosen), *map(candidates.find_peer, peer)],
            data,
            tasks.TaskOptions(
                detect=detect,
                segment=segment,
                suite=suite,
                rains=rain or tuple(tasks.RAINS),
                seed=seed,
                recursions=recursions,
                threads=threads,
                fresh=fresh,
                csv=csv,
                json=json,
            ),
            say=_print,
            note=lambda line: _error_line(f"unrain: {line}"),
        )

    return _with_extra("tasks", "bench-tasks", run)


def _print_speed(report: "SpeedTable", peer: str | None, *, cost: bool) -> None:
    _print(
        f"{report.machine}; {report.threads} thread{'s' * (report.threads != 1)}; median of {report.rounds} "
        f"interleaved runs; fp32 matrix product {report.ceiling:.0f} GFLOP/s in the same rounds"
    )
    faster = f"  times faster than {peer}" if peer else ""
    costs = f" {'weights':>10} {'MB':>6}" if cost else ""
    _print(
        f"{'model':20} {'T':>2} {'size':>9} {'seconds':>8} {'(from - to)':>17} {'kMAC/pixel':>10} "
        f"{'of ceiling':>10}{costs}{faster}"
    )
    for row in report.speeds:
        span = f"({row.fastest:.3f} - {row.slowest:.3f})"
        memory = "-" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}"
        costs = f" {row.parameters:>10,} {memory:>6}" if cost else ""
        times = "" if row.times_faster is None else f"  {row.times_faster:.2f}"
        _print(
            f"{row.model:20} {row.recursions:2} {f'{row.width}x{row.height}':>9} {row.seconds:8.3f} "
            f"{span:>17} {row.macs_per_pixel / 1e3:10.1f} {row.share:10.1%}{costs}{times}"
        )


def _in_lab(command: str, run: Callable[[], None]) -> int:
    """Run a command of the lab, or say how to get the lab."""
    return _with_extra("lab", command, run)


def _with_extra(extra: str, command: str, run: Callable[[], None]) -> int:
    """Run a command that needs an extra, or say how to get it."""
    try:
        run()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "unrain":
            raise
        raise UnrainError(
            f"{command}: needs {error.name}, which is not here: pip install 'unrain[{extra}]'"
        ) from error
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0 all well (skipped results included), 1 something failed, 2 wrong usage,
        130 interrupted, 141 the reader of standard output went away, 143 terminated.
    """
    return _flush(_dispatch(sys.argv[1:] if argv is None else argv))


def _dispatch(argv: Sequence[str]) -> int:
    """Run a command and turn every foreseen error into one line and an exit code."""
    tokens = [_STREAM if token == "-" else token for token in argv]
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        message = " ".join(str(error).replace(_STREAM, "-").split())
        _error_line(f"unrain: error: {message.rstrip('.')} (unrain --help tells more)")
        return EXIT_USAGE
    except UnrainError as error:
        _error_line(f"unrain: error: {error}")
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_PIPE_CLOSED
    return result if isinstance(result, int) else 0


def _flush(code: int) -> int:
    """Bring out what standard output still holds, and return the exit code."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or EXIT_PIPE_CLOSED
        _abandon_stdout()
    except OSError as error:
        if not code:
            _error_line(f"unrain: error: {_stdout_problem(error)}")
        code = code or EXIT_FAILED
        _abandon_stdout()
    return code


def _abandon_stdout() -> None:
    """Keep Python from trying to flush once more at exit, and from complaining that it cannot."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(line: str) -> None:
    # A file's name may hold what the terminal's encoding cannot.
    encoding = sys.stdout.encoding
    try:
        sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UnrainError(_stdout_problem(error)) from error


def _stdout_problem(error: OSError) -> str:
    return f"standard output: cannot be written ({error.strerror}), send it elsewhere"


def _error_line(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
