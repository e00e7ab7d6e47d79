"""Take the rain out of pictures, offline and without a GPU.

>>> import unrain
>>> unrain.derain("photo.jpg").save("dry.jpg")  # doctest: +SKIP

Importing this package is cheap: NumPy, Pillow and ONNX Runtime are imported when a picture is derained.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from unrain.errors import UnrainError
from unrain.version import __version__

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

    from unrain.derainer import Derainer
    from unrain.zoo import Model, models

__all__ = ["Derainer", "UnrainError", "__version__", "derain", "models"]


@overload
def derain(
    picture: "npt.NDArray[Any]",
    *,
    model: "str | Path | Model | None" = None,
    recursions: int | None = None,
    tile: int | None = None,
    threads: int = 0,
) -> "npt.NDArray[Any]": ...


@overload
def derain(
    picture: "str | Path | Image",
    *,
    model: "str | Path | Model | None" = None,
    recursions: int | None = None,
    tile: int | None = None,
    threads: int = 0,
) -> "Image": ...


def derain(
    picture: "npt.NDArray[Any] | str | Path | Image",
    *,
    model: "str | Path | Model | None" = None,
    recursions: int | None = None,
    tile: int | None = None,
    threads: int = 0,
) -> "npt.NDArray[Any] | Image":
    """Take the rain out of one picture.

    The model that was used last stays loaded. For many pictures with several models, hold a `Derainer` each.

    Args:
        picture: A file (turned upright as its EXIF says), a Pillow image, or an array: HxWx3 RGB or HxW grey,
            uint8, uint16 or float in [0, 1].
        model: A name from `models()` or the path of an ONNX file; None takes the default one.
        recursions: How many passes the network makes; None takes the model's own number.
        tile: Side of the square tiles in which large pictures are worked on; None chooses by itself.
        threads: Processor threads; 0 takes all.

    Returns:
        For an array, an array of the same shape and type. Otherwise a Pillow image with the same alpha and
        metadata. Pillow has no 16-bit colour: a file with it comes back rounded to 8 bits, so read it into an
        array yourself, or use the `unrain` command, which keeps it.

    Raises:
        UnrainError: The file or the model cannot be used; the message says why and what to do.
    """
    import numpy as np

    run = _derainer(model, recursions, tile, threads)
    if isinstance(picture, np.ndarray):
        return run(picture)

    from dataclasses import replace

    from unrain import image

    source = image.read(Path(picture)) if isinstance(picture, str | Path) else image.from_pil(picture)
    return image.to_pil(replace(source, pixels=run(source.pixels)))


@functools.lru_cache(maxsize=1)
def _derainer(
    model: "str | Path | Model | None", recursions: int | None, tile: int | None, threads: int
) -> "Derainer":
    from unrain import zoo
    from unrain.derainer import Derainer

    return Derainer(
        zoo.DEFAULT if model is None else model, recursions=recursions, tile=tile, threads=threads
    )


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "Derainer":
        from unrain.derainer import Derainer

        return Derainer
    if name == "models":
        from unrain.zoo import models

        return models
    raise AttributeError(f"module 'unrain' has no attribute {name!r}")
