"""Flicker of derained videos: how much still places change from frame to frame; and PSNR to the clean clip.

    python -m unrain.lab.bench.video.flicker table --data DATA # made clips, with neighbours and without
    python -m unrain.lab.bench.video.flicker starts --data DATA # what else a recursion could start from
    python -m unrain.lab.bench.video.flicker demo demo.mp4 --data DATA # ten seconds of 1280x720, with sound
    python -m unrain.lab.bench.video.flicker files CLEAN RAINY DERAINED    # any clips, after their codecs

docs/video.md has the figures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import App, Parameter, validators
from numpy.typing import NDArray

from unrain import zoo
from unrain.derainer import Derainer
from unrain.errors import UnrainError
from unrain.lab.bench.video.synthetic_clips import FRAMES, HEIGHT, RAINS, WIDTH, Clip, made_clips, write_demo
from unrain.video.temporal import TemporalMedian

Frame = NDArray[np.uint8]

_TOLERANCE = 2


def still(before: Frame, after: Frame) -> NDArray[np.bool_]:
    """Tell where nothing moves between two frames of a clean clip: no colour changes by more than 2 steps.

    Args:
        before: H x W x 3.
        after: The next frame, same shape.

    Returns:
        H x W.
    """
    return np.asarray(np.abs(after.astype(np.int16) - before).max(axis=2) <= _TOLERANCE)


@dataclass
class Meter:
    """Takes a clip frame by frame beside the clean one.

    Attributes:
        errors: Mean squared error of each frame, in squared steps of 8 bits.
    """

    errors: list[float] = field(default_factory=list)
    _last: tuple[Frame, Frame] | None = None
    _change: float = 0.0
    _places: int = 0

    def add(self, clean: Frame, shown: Frame) -> None:
        """Take the next frame, H x W x 3, of the clean clip and of the one that is measured."""
        self.errors.append(float(np.mean(np.square(shown.astype(np.float32) - clean))))
        if self._last is not None:
            where = still(self._last[0], clean)
            self._change += float(np.abs(shown.astype(np.int16) - self._last[1])[where].sum())
            self._places += 3 * int(where.sum())
        self._last = clean, shown

    @property
    def psnr(self) -> float:
        """Over all pixels, colours and frames, in dB."""
        return _decibels(float(np.mean(self.errors)))

    @property
    def flicker(self) -> float:
        """Mean absolute change from frame to frame where the clean clip stands still, in steps of 8 bits.

        NaN if no place stands still.
        """
        return self._change / self._places if self._places else float("nan")

    def __str__(self) -> str:
        return f"{self.psnr:.2f} / {self.flicker:.2f}"


def _decibels(error: float) -> float:
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def _measured(clean: Sequence[Frame], shown: Sequence[Frame]) -> Meter:
    meter = Meter()
    for one, other in zip(clean, shown, strict=True):
        meter.add(one, other)
    return meter


@dataclass(frozen=True)
class Comparison:
    """What one clip in one rain came to.

    Attributes:
        clean: The clip itself.
        rainy: With its rain.
        alone: Each frame derained by itself.
        steadied: With neighbours.
    """

    clean: Meter
    rainy: Meter
    alone: Meter
    steadied: Meter

    @property
    def worst(self) -> float:
        """What neighbours gave the frame to which they gave least, in dB."""
        pairs = zip(self.steadied.errors, self.alone.errors, strict=True)
        return min(_decibels(after) - _decibels(before) for after, before in pairs)


def compare(clip: Clip, rain: str, derainer: Derainer) -> Comparison:
    """Derain a clip with and without neighbours.

    Args:
        clip: The clip without rain.
        rain: One of `RAINS`.
        derainer: What takes the rain out of each frame.
    """
    rainy = clip.rainy(rain)
    alone = [derainer(frame) for frame in rainy]
    steadier: TemporalMedian[None] = TemporalMedian()
    steadied = [
        frame
        for before, after in zip(rainy, alone, strict=True)
        for _, frame in steadier.push(None, before, after)
    ]
    steadied += [frame for _, frame in steadier.flush()]
    return Comparison(*(_measured(clip.frames, shown) for shown in (clip.frames, rainy, alone, steadied)))


def compare_starts(clip: Clip, rain: str, derainer: Derainer) -> dict[str, Meter]:
    """Derain each frame of a clip from different first estimates.

    Args:
        clip: The clip without rain.
        rain: One of `RAINS`.
        derainer: Its network is run; it has to be recursive.

    Returns:
        By the estimate that a recursion started from.

    Raises:
        UnrainError: The network is not recursive.
    """
    if not derainer.engine.recursive:
        raise UnrainError("this model makes one recursion only, from the rainy picture: name a recursive one")
    rainy = clip.rainy(rain)

    def step(frame: Frame, estimate: Frame) -> Frame:
        planes = (
            np.ascontiguousarray(one.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
            for one in (frame, estimate)
        )
        result: Frame = np.rint(derainer.engine.step(*planes)[0].clip(0, 1).transpose(1, 2, 0) * 255)
        return result.astype(np.uint8)

    once = [step(frame, frame) for frame in rainy]
    before = once[:1]
    for frame in rainy[1:]:
        before.append(step(frame, before[-1]))
    lowest = [np.minimum.reduce(rainy[max(0, t - 1) : t + 2]) for t in range(len(rainy))]
    found = {
        "the frame itself": once,
        "the frame itself, two recursions": list(map(step, rainy, once)),
        "the result of the frame before": before,
        "the minimum of three frames": list(map(step, rainy, lowest)),
    }
    return {name: _measured(clip.frames, shown) for name, shown in found.items()}


def measure(clean: Path, videos: Sequence[Path], frames: int | None = None) -> list[Meter]:
    """Compare clips with a clean one, frame by frame by their order.

    Args:
        clean: What stands still is told by this one.
        videos: Clips of the same size and length, rainy or derained.
        frames: Compare only so many from the beginning, which all of them have.

    Returns:
        One for each video.

    Raises:
        UnrainError: A clip cannot be read, or they differ in length or size.
    """
    paths = (clean, *videos)
    meters = [Meter() for _ in videos]
    count = 0
    decoded = [islice(_frames(path), frames) for path in paths]
    while True:
        shown = [next(one, None) for one in decoded]
        there = [one for one in shown if one is not None]
        if len(there) < len(shown):
            if there or (frames is not None and count < frames):
                ended = paths[next(number for number, one in enumerate(shown) if one is None)]
                raise UnrainError(f"{ended}: ends after {count} frames, give --frames {count} or less")
            return meters
        count += 1
        for path, frame in zip(paths, there, strict=True):
            if frame.shape != there[0].shape:
                size, other = ("{1} x {0}".format(*each.shape) for each in (frame, there[0]))
                raise UnrainError(f"{path}: {size} pixels, but {clean} has {other}")
        for meter, frame in zip(meters, there[1:], strict=True):
            meter.add(there[0], frame)


def _frames(path: Path) -> Iterator[Frame]:
    import av

    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                pixels: Any = frame.to_ndarray(format="rgb24")
                yield pixels
    except (av.FFmpegError, OSError, IndexError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnrainError(f"{path}: no video that can be read to its end ({reason})") from error


# ------------------------------------------------------------------------------------------- the commands

app = App(
    name="python -m unrain.lab.bench.video.flicker",
    help="Measure how much still places of derained videos flicker.",
    help_format="plaintext",
    version_flags=[],
    default_parameter=Parameter(negative=(), show_default=False),
)

Count = Annotated[int | None, Parameter(validator=validators.Number(gte=1))]
Threads = Annotated[int, Parameter(validator=validators.Number(gte=0))]


@app.command
def table(model: str = zoo.DEFAULT, *, data: Path, recursions: Count = None, threads: Threads = 0) -> None:
    """Measure made clips, each frame by itself and with neighbours: PSNR in dB / flicker.

    Args:
        model: A name that unrain models lists, or an ONNX file.
        data: Folder with the data sets.
        recursions: Count of the network, its own number if not given.
        threads: Processor threads, 0 for all.
    """
    derainer = Derainer(model, recursions=recursions, threads=threads)
    clips = made_clips(data)
    _say(f"{model}, {_recursions(derainer.recursions)}, {FRAMES} frames of {WIDTH}x{HEIGHT}\n")
    _say("| clip | rain | rainy | each frame by itself | with neighbours | clean | worst frame |")
    _say("|---|---|---|---|---|---|---|")
    for clip in clips:
        for rain in RAINS:
            row = compare(clip, rain, derainer)
            _say(
                f"| {clip.name} | {rain} | {row.rainy if rain != 'none' else ''} | {row.alone} "
                # Zero has no minus.
                f"| {row.steadied} | {row.clean.flicker:.2f} | {round(row.worst, 2) + 0.0:+.2f} |"
            )


@app.command
def starts(model: str = zoo.DEFAULT, *, data: Path, threads: Threads = 0) -> None:
    """Measure what a recursion over a frame makes of other first estimates: PSNR in dB / flicker.

    Args:
        model: A name that unrain models lists, or an ONNX file.
        data: Folder with the data sets.
        threads: Processor threads, 0 for all.
    """
    derainer = Derainer(model, recursions=1, threads=threads)
    still_camera, pan, *_ = made_clips(data)
    found = {
        f"{clip.name}, {rain}": compare_starts(clip, rain, derainer)
        for clip in (still_camera, pan)
        for rain in ("light", "heavy")
    }
    _say(f"{model}, one recursion, {FRAMES} frames of {WIDTH}x{HEIGHT}\n")
    _say(f"| started from | {' | '.join(found)} |")
    _say("|---" * (1 + len(found)) + "|")
    for name in next(iter(found.values())):
        _say(f"| {name} | {' | '.join(str(meters[name]) for meters in found.values())} |")


@app.command
def demo(output: Path, *, data: Path) -> None:
    """Write a clip of ten seconds, 1280x720 with sound, in the rain, and as NAME_clean.mp4 without it.

    Args:
        output: The clip to write, an MP4.
        data: Folder with the data sets.
    """
    if output.suffix.lower() != ".mp4":
        raise UnrainError(f"{output}: give a name that ends in .mp4")
    for path, rainy in ((output, True), (output.with_stem(f"{output.stem}_clean"), False)):
        write_demo(path, data, rainy=rainy)
        _say(str(path))


@app.command
def files(
    *clips: Annotated[Path, Parameter(name="CLIP")],
    frames: Annotated[int | None, Parameter(validator=validators.Number(gte=2))] = None,
) -> None:
    """Measure clips in files: PSNR in dB / flicker.

    Args:
        clips: The clean one first, or where there is none the input; then any others of its size and length.
        frames: Compare only so many frames from the beginning.
    """
    if not clips:
        raise UnrainError("no clips: name the clean one, then those to measure")
    for path, meter in zip(clips, measure(clips[0], clips, frames), strict=True):
        _say(f"{path}: {meter}")


def _recursions(count: int) -> str:
    return f"{count} recursion{'s' * (count != 1)}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    try:
        app(argv, result_action="return_value")
    except UnrainError as error:
        sys.stderr.write(f"flicker: error: {error}\n")
        return 1
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        sys.stderr.write("flicker: error: needs av, which is not here: pip install 'unrain[video]'\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
