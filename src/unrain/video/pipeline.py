"""Frames of a video through a `Derainer`; everything else in the file stays what it is (PyAV).

Three threads work at once, with a bounded number of frames between them: one decodes, the caller's takes the
rain out, one steadies and encodes. Sound, subtitles, cover and attachments are copied as packets, without
being decoded. Timestamps are never computed: every frame keeps its own, in the time base of the source.

FFmpeg is only ever handed open files and known containers, so that no play list in disguise can make it open
another file or an address.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unrain import files, image
from unrain.errors import UnrainError
from unrain.video.frames import DerainedShot, Shot
from unrain.video.options import Settings
from unrain.video.reader import Reader, opened
from unrain.video.temporal import TemporalMedian
from unrain.video.writer import Writer, written

if TYPE_CHECKING:
    from unrain.derainer import Derainer

# Frames between two threads: enough that neither waits for the other's jitter, little enough for 4K.
_AHEAD = 4


@dataclass(frozen=True)
class Report:
    """What became of a video.

    Attributes:
        frames: How many frames the result has.
        seconds: How much of the clip they cover.
        recursions: The most passes that a frame took.
        warnings: What could not be kept as it was, one sentence each.
        problem: Why the result is not the whole clip; empty when it is.
        interrupted: Whether that was Ctrl-C.
    """

    frames: int
    seconds: float
    recursions: int
    warnings: tuple[str, ...] = ()
    problem: str = ""
    interrupted: bool = False


def derain(
    source: Path,
    target: Path,
    derainer: "Derainer",
    settings: Settings | None = None,
    *,
    max_pixels: int = image.MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Take the rain out of a video.

    The result appears whole or not at all, with one exception: Ctrl-C finishes the file with the frames that
    are done. A second Ctrl-C leaves nothing.

    Args:
        source: The video.
        target: The result; its extension, one of `WRITTEN`, decides the container.
        derainer: What takes the rain out of each frame.
        settings: Codec, quality and part of the clip.
        max_pixels: Refuse frames with more pixels than this.
        progress: Called with the frames done and, as far as that is known, the frames in all.

    Returns:
        What became of it: look at `problem`, since of a damaged clip what could be read is written.

    Raises:
        OptionError: The settings do not fit the result's container.
        UnrainError: Nothing could be read or written, or PyAV is missing.
        KeyboardInterrupt: Ctrl-C came before the first frame was done.
    """
    settings = settings or Settings()
    settings.check(target)
    _check_library(source)
    with opened(source) as container:
        reader = Reader(container, source, settings, max_pixels)
        items = reader.items()
        early: list[Any] = []
        while not (early and isinstance(early[-1], Shot)):
            item = next(items, None)
            if item is None:
                raise UnrainError(f"{source}: {reader.why_nothing()}")
            early.append(item)
        with files.replacing(target) as file, written(target):
            writer = Writer(file, target, reader, settings)
            with writer:
                work = _Work(reader, writer, derainer, settings, progress)
                interrupted = work.run(early, items)
            return work.report(interrupted=interrupted)


def _check_library(source: Path) -> None:
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as error:
        raise UnrainError(
            f"{source}: videos need {error.name}, which is not here: pip install 'unrain[video]'"
        ) from error


class _Pipe:
    """A queue between two threads which holds few frames, and which either end can shut.

    Packets of sound do not count: they are small, and must not keep frames from being decoded ahead.
    """

    def __init__(self, room: int) -> None:
        self._items: deque[Any] = deque()
        self._room = room
        self._shots = 0
        self._ended = False
        self._shut = False
        self._changed = threading.Condition()

    def put(self, item: Any) -> bool:  # noqa: ANN401
        """Add an item once there is room; False if nobody wants it any more."""
        with self._changed:
            counts = isinstance(item, Shot)
            while counts and self._shots >= self._room and not self._shut:
                # Without a time-out Windows would not let Ctrl-C through.
                self._changed.wait(0.5)
            if self._shut:
                return False
            self._items.append(item)
            self._shots += counts
            self._changed.notify_all()
            return True

    def end(self) -> None:
        """Say that nothing more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def shut(self) -> None:
        """Say that nothing more is wanted, and forget what is there."""
        with self._changed:
            self._shut = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Any]:
        while True:
            with self._changed:
                while not self._items and not self._ended and not self._shut:
                    self._changed.wait(0.5)
                if not self._items:
                    return
                item = self._items.popleft()
                self._shots -= isinstance(item, Shot)
                self._changed.notify_all()
            yield item


class _Work:
    """Reader, network and writer at once."""

    def __init__(
        self,
        reader: "Reader",
        writer: "Writer",
        derainer: "Derainer",
        settings: Settings,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._derainer = derainer
        self._progress = progress
        self._steadier: TemporalMedian[Shot] | None = TemporalMedian() if settings.neighbours else None
        self._incoming = _Pipe(_AHEAD)
        self._outgoing = _Pipe(_AHEAD)
        self._done = 0
        self._recursions = 0

    def run(self, early: "Sequence[Any]", rest: "Iterator[Any]") -> bool:
        """Work through all items; return whether Ctrl-C ended it early.

        Raises:
            KeyboardInterrupt: It came before the first frame was done, or twice.
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
                # All frames are done already: only a second one may throw them away.
                if interrupted:
                    self._outgoing.shut()
                    raise
                interrupted = True
                writing.result()
            reading.result()
        return interrupted

    def _read(self, early: "Sequence[Any]", rest: "Iterator[Any]") -> None:
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
            if not isinstance(item, Shot):
                if not self._outgoing.put(item):
                    return
                continue
            found = self._derainer.derain(item.pixels)
            self._recursions = max(self._recursions, found.recursions)
            if not self._outgoing.put(DerainedShot(found.image, item.pts, item.duration, item.pixels)):
                return
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, max(self._done, self._reader.total))

    def _write(self) -> None:
        try:
            for item in self._outgoing:
                for ready in self._steadied(item):
                    self._writer.put(ready)
            # Those that waited for neighbours.
            for shot, pixels in self._steadier.flush() if self._steadier is not None else ():
                self._writer.put(replace(shot, pixels=pixels))
            self._writer.finish()
        finally:
            # After an error nothing must wait for room that will never be there.
            self._outgoing.shut()

    def _steadied(self, item: Any) -> list[Any]:  # noqa: ANN401
        """Give what is ready once this item is there; packets always are."""
        if self._steadier is None or not isinstance(item, DerainedShot):
            return [item]
        ready = self._steadier.push(item, item.rainy, item.pixels)
        return [replace(shot, pixels=pixels) for shot, pixels in ready]

    def report(self, *, interrupted: bool) -> Report:
        """Sum up."""
        seconds = float(self._writer.until * self._reader.time_base - self._reader.origin)
        problem = self._reader.problem()
        if interrupted:
            problem = f"stopped after {self._writer.frames} frames ({seconds:.1f} s)"
        warnings = tuple(dict.fromkeys((*self._reader.warnings, *self._writer.warnings)))
        return Report(self._writer.frames, seconds, self._recursions, warnings, problem, interrupted)
