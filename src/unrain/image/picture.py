"""A picture in memory: its samples, its transparency and what its file said besides."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from unrain.image.metadata import Metadata

Array = npt.NDArray[Any]
RGB8 = npt.NDArray[np.uint8]
"""H x W x 3."""


@dataclass(frozen=True)
class Picture:
    """An upright picture in memory.

    Attributes:
        pixels: HxWx3, or HxW where the picture is grey, uint8 or uint16.
        alpha: HxW of the same type, or None.
        colour: Whether the file stores three channels (a grey picture may).
        format: The file's format in Pillow's name, such as `JPEG`.
        metadata: What goes into the result besides pixels.
        notes: What was not kept as it was, one sentence each.
        further: The pages of a TIFF after this one.
    """

    pixels: Array
    alpha: Array | None = None
    colour: bool = True
    format: str = "PNG"
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()
    further: "tuple[Picture, ...]" = ()

    @property
    def channels(self) -> Array:
        """Pixels and alpha as they are stored: HxW or HxWxC."""
        colour = self.pixels
        if colour.ndim == 2 and self.colour:
            colour = np.repeat(colour[..., None], 3, axis=2)
        return colour if self.alpha is None else np.dstack((colour, self.alpha))


def of_channels(
    channels: Array,
    alpha: Array | None = None,
    *,
    format: str = "PNG",
    metadata: Metadata | None = None,
    notes: tuple[str, ...] = (),
) -> Picture:
    """Part HxW, or HxWxC with one to four channels, into colour and alpha."""
    if channels.ndim == 3 and channels.shape[2] in (2, 4):
        channels, alpha = channels[..., :-1], np.ascontiguousarray(channels[..., -1])
    colour = channels.ndim == 3 and channels.shape[2] == 3
    first = channels[..., 0] if channels.ndim == 3 else channels
    # A grey picture in three equal channels (all that WebP and AVIF can hold) must not come out tinted.
    if colour and not all(np.array_equal(first, channels[..., c]) for c in (1, 2)):
        first = channels
    return Picture(
        np.ascontiguousarray(first),
        alpha,
        colour=colour,
        format=format,
        metadata=metadata or Metadata(),
        notes=notes,
    )


def straight_alpha(channels: Array) -> Array:
    """Undo the multiplication of HxWx4 colour, of 8 or 16 bits, with its alpha."""
    most = np.iinfo(channels.dtype).max
    alpha = channels[..., 3:].astype(np.uint32)
    colour = (channels[..., :3].astype(np.uint32) * most + alpha // 2) // np.maximum(alpha, 1)
    return np.dstack((np.minimum(colour, most).astype(channels.dtype), channels[..., 3]))


def eight_bit(picture: Picture) -> Picture:
    """Round a 16-bit picture to 8 bits."""
    if picture.pixels.dtype != np.uint16:
        return picture
    alpha = None if picture.alpha is None else _rounded(picture.alpha)
    return replace(picture, pixels=_rounded(picture.pixels), alpha=alpha)


def _rounded(wide: Array) -> Array:
    # 65535 = 255 * 257, so this is exact rounding; 65535 + 128 needs more than 16 bits.
    return ((wide.astype(np.uint32) + 128) // 257).astype(np.uint8)


def on_white(picture: Picture) -> Picture:
    """Lay a picture with 8-bit alpha on white."""
    assert picture.alpha is not None
    opaque = picture.alpha.astype(np.float32) / 255
    opaque = opaque if picture.pixels.ndim == 2 else opaque[..., None]
    laid = np.rint(picture.pixels * opaque + 255 * (1 - opaque)).astype(np.uint8)
    return replace(picture, pixels=laid, alpha=None)
