"""Animated GIF, WebP and PNG as videos: what the pipeline reads from and writes to. Needs no extra."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from unrain.errors import UnrainError
from unrain.files import one_line
from unrain.image import Array
from unrain.image.animation import ANIMATIONS, Animation, encode_animation
from unrain.video.frames import Frame, Item


class AnimationReader:
    """Reads the frames of an animation, for the pipeline.

    Attributes:
        time_base: The unit of time: milliseconds.
        origin: Where the result starts.
        total: The expected number of frames.
        warnings: What is not kept, one sentence each.
        rotation: None: nothing is to be turned.
    """

    def __init__(self, source: Path, max_pixels: int) -> None:
        self.animation = Animation(source, max_pixels)
        self.time_base = Fraction(1, 1000)
        self.origin = Fraction(0)
        self.total = self.animation.total
        self.warnings: list[str] = []
        self.rotation: tuple[int, ...] | None = None
        self.alphas: list[Array | None] = []
        self.durations: list[float] = []

    def items(self) -> Iterator[Item]:
        """Yield the frames."""
        at = 0.0
        for frame in self.animation.frames():
            self.alphas.append(frame.alpha)
            self.durations.append(frame.duration)
            yield Frame(frame.pixels, round(at), round(frame.duration))
            at += frame.duration

    def why_no_frames(self) -> str:
        """Say why not a single frame could be decoded."""
        reason = self.animation.problem or "there is none"
        return f"no frame can be decoded ({reason}), get it again from its source"

    def problem(self) -> str:
        """Say what is missing; empty if nothing is."""
        return self.animation.problem


class AnimationWriter:
    """Collects the frames and writes them at the end: these formats are made of all of them.

    Attributes:
        frames: Frames so far.
        until: When the last one ends, in milliseconds.
        warnings: What could not be kept, one sentence each.
    """

    def __init__(self, file: BinaryIO, target: Path, reader: AnimationReader, quality: int | None) -> None:
        self.frames = 0
        self.until = 0
        self.warnings: list[str] = []
        self._file = file
        self._target = target
        self._reader = reader
        self._quality = quality
        self._pixels: list[Array] = []

    def __enter__(self) -> "AnimationWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._pixels.clear()

    def put(self, item: Item) -> None:
        """Take a frame."""
        assert isinstance(item, Frame)
        self._pixels.append(item.pixels)
        self.frames += 1
        self.until = item.pts + item.duration

    def finish(self) -> None:
        """Write the file."""
        known = self._reader.animation
        count = len(self._pixels)
        try:
            data = encode_animation(
                list(zip(self._pixels, self._reader.alphas, strict=False)),
                self._reader.durations[:count],
                ANIMATIONS[self._target.suffix.lower()],
                loop=known.loop,
                quality=self._quality,
                lossless=known.lossless,
                exif=known.exif,
                icc=known.icc,
            )
        except UnrainError as error:
            raise UnrainError(f"{self._target}: {one_line(error)}") from error
        self._file.write(data)
