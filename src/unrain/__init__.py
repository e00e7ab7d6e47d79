"""Take the rain out of pictures, offline and without a GPU.

>>> import unrain
>>> unrain.derain("photo.jpg").save("derained.jpg")  # doctest: +SKIP

Importing this package is cheap: NumPy, Pillow and ONNX Runtime are imported when a picture is derained.
"""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from unrain.errors import UnrainError, UsageError
from unrain.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

    from unrain.derainer import Derainer
    from unrain.image import Array
    from unrain.zoo import Model, models

# Read when ONNX Runtime is imported: from 1.29 on its wheels report every session to their maker otherwise.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__all__ = ["Derainer", "UnrainError", "UsageError", "__version__", "derain", "models"]


@overload
def derain(
    picture: "Array",
    *,
    model: "str | Path | Model | None" = None,
    recursions: int | None = None,
    until: float | None = None,
    tile: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    levels: int | None = None,
    strength: float = 1.0,
) -> "Array": ...


@overload
def derain(
    picture: "str | Path | Image",
    *,
    model: "str | Path | Model | None" = None,
    recursions: int | None = None,
    until: float | None = None,
    tile: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    levels: int | None = None,
    strength: float = 1.0,
) -> "Image": ...


def derain(
    picture: "Array | str | Path | Image",
    *,
    model: "str | Path | Model | None" = None,
    recursions: int | None = None,
    until: float | None = None,
    tile: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    levels: int | None = None,
    strength: float = 1.0,
) -> "Array | Image":
    """Take the rain out of one picture.

    The last model stays loaded until its file changes. For many pictures with several models, hold a
    `Derainer` each.

    Args:
        picture: A file (turned upright as its EXIF says), a Pillow image, or an array: H x W x 3 RGB or
            H x W grey, uint8, uint16 or float in [0, 1].
        model: A name from `models()` or the path of an ONNX file; None takes the default one.
        recursions: How often the network runs over the picture; None takes the model's own number.
        until: Stop after a recursion that changed the picture by less than this on average, in steps of
            8 bits.
        tile: Side in pixels of the square tiles into which large pictures are cut; None chooses by itself.
        device: What the network runs on: cpu, openvino, cuda, tensorrt, rocm, directml, coreml or torch, with
            :NUMBER for another than the first; auto for the fastest that is installed and works.
        precision: What it computes in: fp32, fp16 or bf16; auto for what the device is best at.
        threads: Processor threads; 0 takes all.
        levels: How many sizes of a large picture are looked at, each half of the one before; 1 for full size
            only, None for as many as bring the long side closest to 800 pixels.
        strength: How much of the rain is taken away: 0 none, 1 what is found, up to 1.5.

    Returns:
        For an array, an array of the same shape and type. Otherwise a Pillow image with the same alpha and
        metadata. Pillow has no 16-bit colour: a file with it comes back rounded to 8 bits, so read it into an
        array yourself, or use the `unrain` command, which keeps it.

    Raises:
        UsageError: An argument does not fit; the message says what to give instead.
        UnrainError: The file or the model cannot be used; the message says why and what to do.
    """
    from unrain import zoo

    found = zoo.find(zoo.DEFAULT if model is None else model) if not isinstance(model, zoo.Model) else model
    try:
        state = found.path.stat()
        version: tuple[object, ...] = (found.path.resolve(), state.st_ino, state.st_mtime_ns, state.st_size)
    except OSError:
        version = ()  # opening it says what is wrong
    return _derainer(found, version, recursions, until, tile, device, precision, threads, levels)(
        picture, strength=strength
    )


@functools.lru_cache(maxsize=1)
def _derainer(
    model: "Model",
    version: tuple[object, ...],
    recursions: int | None,
    until: float | None,
    tile: int | None,
    device: str,
    precision: str,
    threads: int,
    levels: int | None,
) -> "Derainer":
    from unrain.derainer import Derainer

    return Derainer(
        model,
        recursions=recursions,
        until=until,
        tile=tile,
        device=device,
        precision=precision,
        threads=threads,
        levels=levels,
    )


if not TYPE_CHECKING:
    # Type checkers would take any name for an attribute of the module.
    def __getattr__(name: str) -> Any:  # noqa: ANN401
        if name == "Derainer":
            from unrain.derainer import Derainer

            return Derainer
        if name == "models":
            from unrain.zoo import models

            return models
        raise AttributeError(f"module 'unrain' has no attribute {name!r}")
