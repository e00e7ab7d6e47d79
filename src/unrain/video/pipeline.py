"""Derains a video frame by frame and keeps everything else in the file as it is (PyAV).

Three threads work at once, with a bounded queue between each two: one decodes, the caller's derains, one
steadies and encodes. Sound, subtitles, cover and attachments are copied as packets, without being decoded.
Timestamps are never computed: every frame keeps its own, in the time base of the source.

FFmpeg only ever gets open files and known containers, so that a playlist in disguise cannot make it open
another file or an address.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unrain import files, image
from unrain.errors import UnrainError
from unrain.image import Array
from unrain.image.animation import is_animation
from unrain.layer import at_strength, check_strength
from unrain.video.animation import AnimationReader, AnimationWriter
from unrain.video.frames import DerainedFrame, Frame, Item, Sink, Source, quarter_turns
from unrain.video.options import VideoOptions
from unrain.video.reader import Reader, opened
from unrain.video.shot import Shot, distance
from unrain.video.temporal import TemporalMedian
from unrain.video.writer import Writer, muxing

if TYPE_CHECKING:
    from unrain.derainer import Derainer

# Frames in each queue: enough to even out the threads' jitter, few enough for 4K.
_QUEUED_FRAMES = 4
# Two results are the same if they differ by less than this share of what was removed (RMS).
_SAME = 0.05


@dataclass(frozen=True)
class VideoReport:
    """The outcome of a video.

    Attributes:
        frames: Frames in the result.
        seconds: Their length.
        recursions: The most recursions that any frame took.
        warnings: What could not be kept, one sentence each.
        problem: Why the result is not the whole clip; empty if it is.
        interrupted: Whether Ctrl-C ended it early.
        hardly_any_rain: Whether next to no rain was found in every frame.
    """

    frames: int
    seconds: float
    recursions: int
    warnings: tuple[str, ...] = ()
    problem: str = ""
    interrupted: bool = False
    hardly_any_rain: bool = False


def derain(
    source: Path,
    target: Path,
    derainer: "Derainer",
    options: VideoOptions | None = None,
    *,
    strength: float = 1.0,
    max_pixels: int = image.MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
    preview: Callable[[Array, Array], None] | None = None,
    overwrite: bool = True,
    quality: int | None = None,
) -> VideoReport:
    """Take the rain out of a video, or of an animated GIF, WebP or PNG.

    The result is written whole or not at all, with one exception: Ctrl-C finishes the file with the frames
    that are done. A second Ctrl-C leaves nothing.

    Args:
        source: The video.
        target: The result; its extension, one of `writable(source)`, chooses the container.
        derainer: Derains each frame.
        options: Codec, quality and part of the clip.
        strength: How much of the rain is taken away: 0 none, 1 what is found, up to 1.5.
        max_pixels: Refuse frames with more pixels.
        progress: Called with the number of frames done and the expected total.
        preview: Called in another thread with each frame before and after, upright, H x W x 3.
        overwrite: Replace what is at `target`; else it is kept, also if it appears meanwhile.
        quality: 1 to 100 for an animated WebP.

    Returns:
        The outcome. A damaged clip is written as far as it can be decoded, so check `problem`.

    Raises:
        OptionError: The options do not fit the result's container.
        UsageError: The strength is out of range.
        UnrainError: Nothing could be read or written, or PyAV is missing.
        KeyboardInterrupt: Ctrl-C before the first frame was done.
    """
    options = options or VideoOptions()
    options.check(target)
    check_strength(strength)
    if is_animation(source):
        reader = AnimationReader(source, max_pixels)
        items, early = _begun(reader, source)
        with files.replacing(target, overwrite=overwrite) as file:
            with AnimationWriter(file, target, reader, quality) as frames:
                pipeline = Pipeline(reader, frames, derainer, options, strength, progress, preview)
                interrupted = pipeline.run(early, items)
            return pipeline.report(interrupted=interrupted)
    check_library(source)
    with opened(source, options.hwaccel) as container:
        video = Reader(container, source, options, max_pixels)
        items, early = _begun(video, source)
        with files.replacing(target, overwrite=overwrite) as file, muxing(source, target):
            with Writer(file, target, video, options) as writer:
                pipeline = Pipeline(video, writer, derainer, options, strength, progress, preview)
                interrupted = pipeline.run(early, items)
            return pipeline.report(interrupted=interrupted)


def expected_frames(source: Path, *, max_pixels: int = image.MAX_PIXELS) -> int:
    """Tell how many frames a video promises to have, without decoding any; 0 if it does not say.

    Raises:
        UnrainError: It cannot be opened, its frames are too large, or PyAV is missing.
    """
    if is_animation(source):
        return AnimationReader(source, max_pixels).total
    check_library(source)
    with opened(source) as container:
        return Reader(container, source, VideoOptions(), max_pixels).total


def _begun(reader: Reader | AnimationReader, source: Path) -> tuple[Iterator[Item], list[Item]]:
    """Read up to the first frame, so that nothing is written for a file without any."""
    items = reader.items()
    early: list[Item] = []
    while not (early and isinstance(early[-1], Frame)):
        item = next(items, None)
        if item is None:
            raise UnrainError(f"{source}: {reader.why_no_frames()}")
        early.append(item)
    return items, early


def check_library(source: Path) -> None:
    """Say how to install what reads videos if it is missing.

    Raises:
        UnrainError: It is.
    """
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as error:
        raise UnrainError(
            f"{source}: videos need {error.name}, which is not installed: pip install 'unrain[video]'"
        ) from error


class _FrameQueue:
    """A bounded queue between two threads that either end can close.

    Only frames count towards the bound. Packets are small, and must not keep frames from being decoded ahead.
    """

    def __init__(self, room: int) -> None:
        self._items: deque[Item] = deque()
        self._room = room
        self._frames = 0
        self._ended = False
        self._shut = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> bool:
        """Add an item once there is room; return False if the queue was shut."""
        with self._changed:
            counts = isinstance(item, Frame)
            while counts and self._frames >= self._room and not self._shut:
                # Without a timeout, Windows does not deliver Ctrl-C.
                self._changed.wait(0.5)
            if self._shut:
                return False
            self._items.append(item)
            self._frames += counts
            self._changed.notify_all()
            return True

    def end(self) -> None:
        """Close the putting end: iteration stops after the items that are left."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def shut(self) -> None:
        """Close both ends and drop the items that are left."""
        with self._changed:
            self._shut = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                while not self._items and not self._ended and not self._shut:
                    self._changed.wait(0.5)
                if not self._items:
                    return
                item = self._items.popleft()
                self._frames -= isinstance(item, Frame)
                self._changed.notify_all()
            yield item


class Pipeline:
    """Runs reader, network and writer in three threads."""

    def __init__(
        self,
        reader: Source,
        writer: Sink,
        derainer: "Derainer",
        options: VideoOptions,
        strength: float,
        progress: Callable[[int, int], None] | None,
        preview: Callable[[Array, Array], None] | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._derainer = derainer
        self._strength = strength
        self._progress = progress
        self._preview = preview
        self._median: TemporalMedian[DerainedFrame] | None = TemporalMedian() if options.neighbours else None
        self._incoming = _FrameQueue(_QUEUED_FRAMES)
        self._outgoing = _FrameQueue(_QUEUED_FRAMES)
        self._done = 0
        self._recursions = 0
        self._hardly_any_rain = True
        self._shot = Shot()
        self._octaves: tuple[int, ...] | None = None

    def run(self, early: Sequence[Item], rest: Iterator[Item]) -> bool:
        """Process all items.

        Args:
            early: Items that were read already.
            rest: Those that follow.

        Returns:
            Whether Ctrl-C ended it early.

        Raises:
            KeyboardInterrupt: Ctrl-C before the first frame was done, or twice.
        """
        interrupted = False
        with ThreadPoolExecutor(2, "unrain-video") as threads:
            try:
                # Started here, so that an interrupt between the two still shuts the queues.
                try:
                    reading = threads.submit(self._read, early, rest)
                    writing = threads.submit(self._write)
                    self._derain()
                except KeyboardInterrupt:
                    interrupted = True
                    if not self._done:
                        self._outgoing.shut()
                        raise
                finally:
                    self._incoming.shut()
            finally:
                self._outgoing.end()
            try:
                writing.result()
            except KeyboardInterrupt:
                # All frames are done already: only a second Ctrl-C may discard them.
                if interrupted:
                    self._outgoing.shut()
                    raise
                interrupted = True
                writing.result()
            reading.result()
        return interrupted

    def _read(self, early: Sequence[Item], rest: Iterator[Item]) -> None:
        try:
            for item in early:
                self._incoming.put(item)
            for item in rest:
                if not self._incoming.put(item):
                    return
        finally:
            self._incoming.end()

    def _derain(self) -> None:
        for item in self._incoming:
            if not isinstance(item, Frame):
                if not self._outgoing.put(item):
                    return
                continue
            if self._shot.starts(item.pixels):
                self._octaves = None
            found = self._derainer.derain(item.pixels, octaves=self._octaves)
            if self._octaves is None:
                # One choice for a whole shot, and whole frames: blocks that come and go would flicker.
                self._octaves = found.plan
                if min(found.shares) < 1:
                    found = self._derainer.derain(item.pixels, octaves=self._octaves)
                if len(found.plan) > 1 and found.plan[-1] == 0:
                    # Where full size alone gives the same, the coarser octaves are left out.
                    alone = self._derainer.derain(item.pixels, octaves=(0,))
                    if distance(alone.image, found.image) < _SAME * distance(item.pixels, found.image):
                        self._octaves, found = alone.plan, alone
            self._recursions = max(self._recursions, found.recursions)
            self._hardly_any_rain = self._hardly_any_rain and found.hardly_any_rain
            if not self._outgoing.put(DerainedFrame(found.image, item.pts, item.duration, item.pixels)):
                return
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, max(self._done, self._reader.total))

    def _write(self) -> None:
        try:
            for item in self._outgoing:
                for ready in self._steadied(item):
                    self._put(ready)
            # The last frames have waited for neighbours.
            for frame, pixels in self._median.flush() if self._median is not None else ():
                self._put(replace(frame, pixels=pixels))
            self._writer.finish()
        finally:
            # After an error no thread may wait for room that never comes.
            self._outgoing.shut()

    def _put(self, item: Item) -> None:
        """Write a packet, or a frame at its strength: the median before has seen all of what was removed."""
        if isinstance(item, DerainedFrame):
            item = replace(item, pixels=at_strength(item.rainy, item.pixels, self._strength))
            if self._preview is not None:
                turns = quarter_turns(self._reader.rotation)
                self._preview(np.rot90(item.rainy, turns), np.rot90(item.pixels, turns))
        self._writer.put(item)

    def _steadied(self, item: Item) -> Sequence[Item]:
        """Add an item and return those that are ready now; packets always are."""
        if self._median is None or not isinstance(item, DerainedFrame):
            return [item]
        ready = self._median.push(item, item.rainy, item.pixels)
        return [replace(frame, pixels=pixels) for frame, pixels in ready]

    def report(self, *, interrupted: bool) -> VideoReport:
        """Sum up the outcome."""
        seconds = float(self._writer.until * self._reader.time_base - self._reader.origin)
        problem = self._reader.problem()
        if interrupted:
            problem = f"stopped after {self._writer.frames} frames ({seconds:.1f} s)"
        warnings = tuple(dict.fromkeys((*self._reader.warnings, *self._writer.warnings)))
        return VideoReport(
            self._writer.frames,
            seconds,
            self._recursions,
            warnings,
            problem,
            interrupted,
            self._hardly_any_rain,
        )
