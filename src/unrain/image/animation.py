"""Animations in GIF, WebP and PNG: their frames as a person sees them, and back. Pillow does both."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from unrain import files
from unrain.errors import UnrainError
from unrain.files import one_line
from unrain.image import structure
from unrain.image.decode import pillow_open
from unrain.image.limits import MAX_PIXELS, check_size
from unrain.image.metadata import exif_block, upright_exif
from unrain.image.picture import RGB8, Array

ANIMATIONS = {".gif": "GIF", ".apng": "PNG", ".png": "PNG", ".webp": "WEBP"}
"""Extensions of animations, and Pillow's name of the format."""

# A file with one of these extensions goes the way of videos even if it holds a single frame.
_ALWAYS = {".gif", ".apng"}
# An animation's header comes before its pixels; programs put a few chunks of metadata before it.
_CHUNKS = 100


def is_animation(path: Path) -> bool:
    """Whether a file is an animation: by its name, and by its first bytes where the name does not tell."""
    suffix = path.suffix.lower()
    if suffix not in ANIMATIONS or suffix in _ALWAYS:
        return suffix in _ALWAYS
    try:
        with files.opened(path) as file:
            return _says_so(file)
    except (OSError, UnrainError):
        # Whoever reads it says what is wrong.
        return False


def _says_so(file: BinaryIO) -> bool:
    head = file.read(21)
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":
        return bool(head[20] & 2) if len(head) == 21 else False
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return True
    if head[:8] != b"\x89PNG\r\n\x1a\n":
        return False
    at = 8
    for _ in range(_CHUNKS):
        file.seek(at)
        chunk = file.read(8)
        if len(chunk) < 8 or chunk[4:] == b"IDAT":
            return False
        if chunk[4:] == b"acTL":
            return True
        at += int.from_bytes(chunk[:4]) + 12
    return False


@dataclass(frozen=True, eq=False)
class AnimationFrame:
    """One frame as it is shown.

    Attributes:
        pixels: H x W x 3.
        alpha: H x W; None if the frame is opaque.
        duration: How long it is shown, in milliseconds.
    """

    pixels: RGB8
    alpha: RGB8 | None
    duration: float


class Animation:
    """An animation whose frames are read one after the other.

    Attributes:
        format: Pillow's name of the format.
        width: In pixels.
        height: In pixels.
        total: How many frames its header promises.
        loop: How often it is played, 0 for without end; None if it does not say.
        lossless: Whether it is a WebP without loss.
        problem: Why not all frames could be read, known after the last; empty if all could.
        exif: EXIF block, orientation 1.
        icc: ICC profile.
    """

    def __init__(self, path: Path, max_pixels: int = MAX_PIXELS) -> None:
        """Open a file.

        Args:
            path: The file.
            max_pixels: Refuse animations with more pixels, all frames together.

        Raises:
            UnrainError: It is missing, no animation, damaged or too large.
        """
        data = files.read(path, 8 * max_pixels + (1 << 26), "raise --max-pixels if you trust it")
        if not data:
            raise UnrainError(f"{path}: the file is empty, get it again from its source")
        structure.check(data, str(path))
        self._name = str(path)
        try:
            self._image = pillow_open(data, ("GIF", "PNG", "WEBP"), max_pixels)
            self.width, self.height = self._image.size
            check_size(self._name, (self.width, self.height), max_pixels)
            self.total: int = getattr(self._image, "n_frames", 1)
        except UnrainError:
            raise
        except Exception as error:  # Pillow raises nearly anything on damaged data
            raise UnrainError(
                f"{path}: no animation that can be read ({one_line(error)}), get it again from its source"
            ) from error
        check_size(self._name, (self.width, self.height), max_pixels, self.total)
        self.format = self._image.format or "GIF"
        self.loop: int | None = self._image.info.get("loop")
        self.lossless = self.format == "WEBP" and b"VP8L" in data and b"VP8 " not in data
        self.icc: bytes | None = self._image.info.get("icc_profile")
        block = exif_block(self._image)
        structure.check_directories(block, self._name)
        self.exif = upright_exif(block)[0] or None
        self.problem = ""

    def frames(self) -> Iterator[AnimationFrame]:
        """Yield the frames in turn, as far as they can be read."""
        # A PNG may begin with a picture for programs that know no animations, which is no frame.
        first = int(bool(self._image.info.get("default_image")))
        for number in range(first, self.total):
            try:
                self._image.seek(number)
                shown = self._image.convert("RGBA" if self._image.has_transparency_data else "RGB")
            except Exception as error:  # as above
                self.problem = f"cannot be read beyond frame {number - first} ({one_line(error)})"
                return
            channels = np.asarray(shown)
            alpha = np.ascontiguousarray(channels[..., 3]) if channels.shape[2] == 4 else None
            alpha = None if alpha is not None and alpha.min() == 255 else alpha
            # WebP's decoder knows when a frame ends only once the frame is decoded.
            duration = float(self._image.info.get("duration") or 0)
            yield AnimationFrame(np.ascontiguousarray(channels[..., :3]), alpha, duration)


def encode_animation(
    frames: Sequence[tuple[Array, Array | None]],
    durations: Sequence[float],
    kind: str,
    *,
    loop: int | None = 0,
    quality: int | None = None,
    lossless: bool = False,
    exif: bytes | None = None,
    icc: bytes | None = None,
) -> bytes:
    """Turn frames into the bytes of an animation.

    Args:
        frames: Pixels, H x W x 3 uint8, and alpha, H x W or None, of each frame.
        durations: How long each is shown, in milliseconds.
        kind: `GIF`, `PNG` or `WEBP`.
        loop: How often it is played, 0 for without end; None says nothing.
        quality: 1 to 100 for WebP; None is 90.
        lossless: Write a WebP without loss if no quality is given.
        exif: EXIF block.
        icc: ICC profile.

    Raises:
        UnrainError: The format cannot hold it.
    """
    see_through = any(alpha is not None for _, alpha in frames)

    def whole(number: int) -> Image.Image:
        pixels, alpha = frames[number]
        if not see_through:
            return Image.fromarray(pixels)
        opaque = np.full(pixels.shape[:2], 255, np.uint8) if alpha is None else alpha
        return Image.fromarray(np.dstack((pixels, opaque)))

    options: dict[str, object] = {"icc_profile": icc}
    if kind == "GIF":
        # A GIF counts in hundredths of a second. Where nothing may shine through, frames are drawn anew.
        durations = [max(10 * round(duration / 10), 10 if duration else 0) for duration in durations]
        options |= {"disposal": 2} if see_through else {}
    else:
        options |= {"exif": None if exif is None else b"Exif\0\0" + exif}
    if kind == "WEBP":
        durations = [round(duration) for duration in durations]
        options |= {"quality": quality or 90, "lossless": lossless and quality is None, "exact": True}
    options |= {"loop": loop if loop is not None or kind == "GIF" else 1}
    buffer = io.BytesIO()
    try:
        whole(0).save(
            buffer,
            kind,
            save_all=True,
            append_images=[whole(number) for number in range(1, len(frames))],
            duration=list(durations),
            **{key: value for key, value in options.items() if value is not None},
        )
    except (OSError, ValueError) as error:
        problem = f"cannot be written as {kind} ({one_line(error)}), name an output in WebP"
        raise UnrainError(problem) from error
    return buffer.getvalue()
