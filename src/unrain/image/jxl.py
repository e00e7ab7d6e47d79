"""JPEG XL, by pylibjxl (libjxl). Needs the extra `jxl`."""

from types import ModuleType

import numpy as np

from unrain.errors import UnrainError
from unrain.image import structure
from unrain.image.limits import check_size
from unrain.image.metadata import Metadata, upright_exif, upright_xmp
from unrain.image.picture import Picture, of_channels

_SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")


def is_jxl(data: bytes) -> bool:
    """Whether a file begins like JPEG XL, bare or in its container."""
    return data.startswith(_SIGNATURES)


def decode(data: bytes, name: str, max_pixels: int) -> Picture:
    """Decode a picture, which the library turns upright.

    Args:
        data: The whole file.
        name: How messages call it.
        max_pixels: Refuse pictures with more pixels.

    Returns:
        Of 8 bits a channel: the library gives no more.

    Raises:
        TooManyPixelsError: It is too large.
        UnrainError: It is animated, or the extra is missing.
        Exception: It is damaged; the library raises what it likes.
    """
    library = _library(name)
    header = library.probe(data)
    if header["have_animation"]:
        raise UnrainError(f"{name}: an animation in JPEG XL, convert it to WebP or GIF first")
    check_size(name, (header["width"], header["height"]), max_pixels)
    channels, known = library.decode(data, metadata=True)
    exif = known.get("exif", b"")
    structure.check_directories(exif, name)
    deep = header["bits_per_sample"] > 8
    metadata = Metadata(
        icc=known.get("icc") or None,
        exif=upright_exif(exif)[0] or None,
        xmp=upright_xmp(known.get("xmp", b""))[0] or None,
    )
    notes = (f"JPEG XL is read with 8 bits a channel: {header['bits_per_sample']} are reduced to 8",) * deep
    return of_channels(channels, format="JXL", metadata=metadata, notes=notes)


def encode(picture: Picture, quality: int | None) -> bytes:
    """Encode a picture of 8 bits a channel.

    Args:
        picture: The picture.
        quality: 1 to 100, as libjxl's own tool counts: 90, which None stands for, is meant to look the same,
            and 100 is without loss.

    Raises:
        UnrainError: The extra is missing.
    """
    known = picture.metadata
    data: bytes = _library("JPEG XL").encode(
        np.ascontiguousarray(picture.channels),
        distance=_distance(quality or 90),
        lossless=quality == 100,
        exif=known.exif,
        xmp=known.xmp,
        icc=known.icc,
    )
    return data


def _distance(quality: int) -> float:
    """Return libjxl's Butteraugli distance for a quality (JxlEncoderDistanceFromQuality)."""
    if quality >= 30:
        return 0.1 + (100 - quality) * 0.09
    return 53 / 3000 * quality**2 - 23 / 20 * quality + 25


def _library(name: str) -> ModuleType:
    try:
        import pylibjxl
    except ModuleNotFoundError as error:
        raise UnrainError(
            f"{name}: JPEG XL needs {error.name}, which is not installed: pip install 'unrain[jxl]'"
        ) from error
    module: ModuleType = pylibjxl
    return module
