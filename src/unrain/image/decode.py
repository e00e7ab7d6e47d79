"""The bytes of a file, or a Pillow image, to an upright picture: alpha, grey, palettes, inks, 16 bits.

Pillow decodes everything, with one exception: it has no 16-bit colour modes and silently cuts such files to
8 bits. Its decoders can hand out either byte of a 16-bit sample, though, so such a file is decoded twice,
high bytes and low bytes, and nothing is lost.
"""

import contextlib
import ctypes
import io
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError, _imaging

from unrain import files
from unrain.errors import UnrainError
from unrain.files import one_line
from unrain.image import heif, jxl, raw, structure
from unrain.image.limits import MAX_PIXELS, TooManyPixelsError, check_size, too_large
from unrain.image.metadata import (
    Metadata,
    exif_block,
    metadata_of,
    tiff_exif,
    upright_exif,
    upright_xmp,
    without_thumbnail,
    xmp_without_thumbnails,
)
from unrain.image.picture import Array, Picture, of_channels, straight_alpha

_KNOWN = "JPEG, PNG, WebP, TIFF, BMP, AVIF, HEIC, JPEG XL or RAW"
_AGAIN = "get it again from its source"
_ORIENTATION = 0x0112
# Only these decoders are ever tried on a file, so that no exotic one (EPS runs Ghostscript) can be reached.
_DECODERS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")
_SIGNATURES = re.compile(rb"\xff\xd8|\x89PNG|RIFF....WEBP|II[*+]\0|MM\0[*+]|BM|....ftypavi[fs]", re.DOTALL)
_GIF = (b"GIF87a", b"GIF89a")
# Python prints what nobody listens to, and what Pillow says of a damaged file is in our own message.
logging.getLogger("PIL").addHandler(logging.NullHandler())
# Pillow's limit and libtiff's handler are global, so one picture is decoded at a time.
_PILLOW_LIMIT = threading.Lock()


def read(path: Path, *, max_pixels: int = MAX_PIXELS, pages: bool = False) -> Picture:
    """Read a picture file.

    Args:
        path: The file.
        max_pixels: Refuse pictures with more pixels than this.
        pages: Take a TIFF of several pages too, see `Picture.further`.

    Raises:
        UnrainError: The file is missing, unreadable, no picture, damaged, animated or too large.
    """
    data = files.read(path, *_most_bytes(max_pixels))
    return decode(data, str(path), max_pixels=max_pixels, pages=pages)


def read_stream(stream: BinaryIO, name: str, *, max_pixels: int = MAX_PIXELS, pages: bool = False) -> Picture:
    """Read a picture from a stream such as standard input.

    Args:
        stream: Where its bytes come from, to their end.
        name: How messages call it.
        max_pixels: Refuse pictures with more pixels than this.
        pages: Take a TIFF of several pages too, see `Picture.further`.

    Raises:
        UnrainError: The bytes are no picture, or a damaged, animated or too large one.
    """
    data = files.drain(stream, name, *_most_bytes(max_pixels))
    return decode(data, name, max_pixels=max_pixels, pages=pages)


def _most_bytes(max_pixels: int) -> tuple[int, str]:
    """Return how many bytes a picture may have, and what to do about more."""
    # Sixteen bits of four channels, and room for metadata.
    most = 8 * max_pixels + (1 << 26)
    return most, f"more than {max_pixels:,} pixels take: raise --max-pixels if you trust it"


def size_of(path: Path) -> tuple[int, int]:
    """Return the width and height of an upright picture, from its header where that tells.

    Raises:
        UnrainError: The file is no readable picture.
    """
    try:
        with files.opened(path) as file, Image.open(file, formats=_DECODERS) as header:
            width, height = header.size
            # Pillow has already turned the size of a TIFF.
            turned = header.format != "TIFF" and header.getexif().get(_ORIENTATION, 1) >= 5
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        # The reader says what is wrong with it.
        height, width = read(path).pixels.shape[:2]
        turned = False
    return (height, width) if turned else (width, height)


def decode(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, pages: bool = False) -> Picture:
    """Turn the bytes of a picture file into an upright picture.

    Args:
        data: The whole file.
        name: How messages call it.
        max_pixels: Refuse pictures with more pixels than this.
        pages: Take a TIFF of several pages too, see `Picture.further`.

    Raises:
        UnrainError: The bytes are no picture, or a damaged, animated or too large one, or one that would
            take minutes to decode, or an extra is missing.
    """
    if not data:
        raise UnrainError(f"{name}: the file is empty, {_AGAIN}")
    structure.check(data, name)
    if data.startswith(_GIF):
        raise UnrainError(f"{name}: a GIF, which is taken as a file whose name ends in .gif: unrain NAME.gif")
    with (
        _PILLOW_LIMIT,
        _pillow_limit(max_pixels),
        _quiet_libtiff(),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        try:
            picture = _decode(data, name, max_pixels, pages=pages)
        except UnrainError:
            raise
        except Image.DecompressionBombError as error:
            raise TooManyPixelsError(too_large(name, "far ", max_pixels)) from error
        except UnidentifiedImageError as error:
            if is_picture(data):
                raise UnrainError(f"{name}: damaged or of a rare kind, {_AGAIN}") from error
            raise UnrainError(f"{name}: no picture in {_KNOWN}, convert it to PNG first") from error
        except MemoryError as error:
            raise UnrainError(f"{name}: not enough memory for a picture of this size") from error
        # Decoders raise nearly anything on damaged data: struct.error, IndexError, SyntaxError, zlib.error...
        except Exception as error:
            raise UnrainError(f"{name}: damaged ({one_line(error)}), get it again from its source") from error
    heard = tuple(one_line(w.message) for w in caught if not issubclass(w.category, DeprecationWarning))
    return replace(picture, notes=picture.notes + heard)


def is_picture(data: bytes) -> bool:
    """Whether a file that begins like this is a picture of a known kind."""
    known = _SIGNATURES.match(data) is not None or data.startswith(_GIF)
    return known or heif.is_heif(data) or jxl.is_jxl(data)


def from_pil(image: Image.Image) -> Picture:
    """Take the pixels of a Pillow image, as they are: no EXIF turn. Thumbnails are left out.

    Raises:
        UnrainError: It holds 32-bit or floating-point samples.
    """
    plain = _plain_mode(image, "image", [])
    channels = np.asarray(plain)
    channels = channels.astype(np.uint16) if channels.dtype.itemsize == 2 else channels
    info = plain.info
    known = Metadata(
        icc=info.get("icc_profile"),
        exif=without_thumbnail(exif_block(plain)) or None,
        xmp=xmp_without_thumbnails(info.get("xmp") or b"") or None,
        dpi=info.get("dpi"),
    )
    return replace(of_channels(channels, _key_alpha(image, image.mode, channels)), metadata=known)


@contextlib.contextmanager
def _quiet_libtiff() -> Iterator[None]:
    """Keep libtiff's own lines, which may hold what a file likes, off standard error."""
    try:
        # Looked up in what Pillow is linked with; a Pillow built without libtiff has none.
        handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (AttributeError, OSError):
        yield
        return
    handler.restype, handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    before = handler(None)
    try:
        yield
    finally:
        handler(before)


@contextlib.contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Let Pillow refuse what we refuse, and nothing else."""
    before = Image.MAX_IMAGE_PIXELS
    # Pillow warns above its limit and raises above twice that; _decode checks the exact number.
    Image.MAX_IMAGE_PIXELS = max(1, max_pixels)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _decode(data: bytes, name: str, max_pixels: int, *, pages: bool) -> Picture:
    if raw.is_raw(data, name):
        return raw.decode(data, name, max_pixels)
    if heif.is_heif(data):
        return heif.decode(data, name, max_pixels)
    if jxl.is_jxl(data):
        return jxl.decode(data, name, max_pixels)
    source = _open(data)
    check_size(name, source.size, max_pixels)
    if isinstance(source, TiffImagePlugin.TiffImageFile):
        return _decode_tiff(data, name, max_pixels, pages=pages)
    frames: int = 1 if source.format == "MPO" else getattr(source, "n_frames", 1)
    if frames > 1 and source.format in ("PNG", "WEBP"):
        raise UnrainError(f"{name}: an animation, which is taken as a file only: unrain FILE")
    if frames > 1:
        raise UnrainError(f"{name}: holds {frames} pictures, unrain takes one a file: split it first")
    return _decode_page(data, source, name, 0)


def _decode_tiff(data: bytes, name: str, max_pixels: int, *, pages: bool) -> Picture:
    """Decode one page after the other."""
    found = _pages(data, name, max_pixels)
    if len(found) > 1 and not pages:
        raise UnrainError(f"{name}: a TIFF of {len(found)} pages, which `unrain FILE` takes page by page")
    first, *further = (_decode_page(data, _open(data, page), name, page) for page in found)
    notes = tuple(dict.fromkeys(note for page in (first, *further) for note in page.notes))
    return replace(first, further=tuple(further), notes=notes)


def _decode_page(data: bytes, source: ImageFile.ImageFile, name: str, page: int) -> Picture:
    """Decode a picture that was opened."""
    notes = ["only the main one of the file's pictures is kept"] if source.format == "MPO" else []
    rawmode = _rawmode(source)
    tags: dict[int, Any] = dict(source.tag_v2) if isinstance(source, TiffImagePlugin.TiffImageFile) else {}
    image: Image.Image = source
    if deep := re.fullmatch(r"(RGB|RGBA|RGBX|RGBa|LA);16([BLN])", rawmode):
        if tags.get(284) == 2:
            raise UnrainError(
                f"{name}: 16-bit channels in separate planes, save it with interleaved ones first"
            )
        channels, source = _deep_channels(data, page, deep[1], deep[2])
        channels = straight_alpha(channels) if deep[1] == "RGBa" else channels
    else:
        source.load()
        image = _plain_mode(source, name, notes)
        channels = np.asarray(image)
        if channels.dtype.itemsize == 2:
            channels = channels.astype(np.uint16)
            # Pillow heeds WhiteIsZero for 8 bits only.
            channels = 65535 - channels if tags.get(262) == 0 else channels
    # Pillow turns a TIFF's pixels itself when it loads them.
    block = exif_block(source)
    structure.check_directories(block, name)
    exif, orientation = upright_exif(tiff_exif(source) if tags else block)
    xmp, other = upright_xmp(tags.get(700) or source.info.get("xmp") or b"")
    orientation = 1 if tags else orientation or other or 1
    picture = _turn(of_channels(channels, _key_alpha(source, rawmode, channels)), orientation)
    metadata = replace(metadata_of(source, data, tags), exif=exif or None, xmp=xmp or None)
    if source.mode == "CMYK":
        metadata = replace(metadata, icc=image.info.get("icc_profile"))
    kind = "JPEG" if source.format == "MPO" else source.format or "PNG"
    return replace(picture, format=kind, metadata=metadata, notes=tuple(notes))


def pillow_open(data: bytes, formats: tuple[str, ...], max_pixels: int) -> ImageFile.ImageFile:
    """Open a picture or animation of one of Pillow's formats; its pixels are decoded later.

    Raises:
        Exception: It is none, or too large by far; Pillow raises what it likes.
    """
    with _PILLOW_LIMIT, _pillow_limit(max_pixels), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data), formats=formats)


def _open(data: bytes, page: int = 0) -> ImageFile.ImageFile:
    image = Image.open(io.BytesIO(data), formats=_DECODERS)
    if page:
        image.seek(page)
    return image


def _rawmode(image: ImageFile.ImageFile) -> str:
    """How the samples lie in the file, in Pillow's words."""
    args = image.tile[0].args if image.tile else None
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def _pages(data: bytes, name: str, max_pixels: int) -> list[int]:
    """Find the pages of a TIFF that a person would count, together no larger than the limit."""
    image = _open(data)
    pages, pixels = [], 0
    # Asking for the number would read every directory, and a small file can hold a million.
    for page in range(structure.MOST_DIRECTORIES):
        try:
            image.seek(page)
        except EOFError:
            break
        # Bits 0 and 2 of NewSubfileType: a smaller copy (thumbnail), a transparency mask.
        if isinstance(image, TiffImagePlugin.TiffImageFile) and not image.tag_v2.get(254, 0) & 0b101:
            pages.append(page)
            pixels += image.width * image.height
        if pixels > max_pixels:
            raise TooManyPixelsError(too_large(name, f"{len(pages)} pages, ", max_pixels))
    else:
        raise UnrainError(f"{name}: more than {structure.MOST_DIRECTORIES - 1} pages, split it first")
    return pages or [0]


def _deep_channels(data: bytes, page: int, layout: str, order: str) -> tuple[Array, ImageFile.ImageFile]:
    """Decode 16-bit colour, which Pillow would cut to its high bytes.

    Returns:
        HxWxC uint16, and the image with everything else that was read.
    """
    if layout == "LA":
        # Four bytes a pixel, handed out as they are.
        image = _opened_as(data, page, "RGBA")
        raw: Array = np.asarray(image)
        return raw.view(">u2").astype(np.uint16), image
    order = {"little": "L", "big": "B"}[sys.byteorder] if order == "N" else order
    layout = "RGBA" if layout == "RGBa" else layout
    image = _opened_as(data, page, f"{layout};16{order}")
    wide: Array = np.asarray(image).astype(np.uint16) << 8
    # Read in the wrong byte order, the high byte is the low one.
    wide |= np.asarray(_opened_as(data, page, f"{layout};16{'L' if order == 'B' else 'B'}"))
    return wide, image


def _opened_as(data: bytes, page: int, rawmode: str) -> ImageFile.ImageFile:
    image = _open(data, page)
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]
    image.load()
    return image


def _plain_mode(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """Bring any Pillow mode to grey or RGB, with or without alpha."""
    mode = image.mode
    if mode in {"L", "LA", "RGB", "RGBA", "I;16", "I;16L", "I;16B"}:
        return image
    if mode == "CMYK":
        notes.append("CMYK is converted to RGB")
        return _from_cmyk(image)
    target = {"1": "L", "La": "LA", "RGBX": "RGB", "RGBa": "RGBA", "YCbCr": "RGB"}.get(mode)
    if mode in {"P", "PA"}:
        target = "RGBA" if image.has_transparency_data else "RGB"
    if target is None:
        kind = {"I": "32-bit or signed integer", "F": "floating-point"}.get(mode, mode)
        raise UnrainError(f"{name}: {kind} samples, convert it to 8 or 16 bits a channel first")
    return image.convert(target)


def _from_cmyk(image: Image.Image) -> Image.Image:
    """Convert inks to sRGB by the file's own profile, or by Pillow's rule of thumb without one."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    converted = None
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            inks = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, inks, srgb, outputMode="RGB")
    result = converted or image.convert("RGB")
    result.info["icc_profile"] = srgb.tobytes() if converted else None
    return result


def _key_alpha(image: Image.Image, rawmode: str, channels: Array) -> Array | None:
    """Alpha of a picture in which one colour stands for transparent (a PNG's tRNS), or None."""
    key = image.info.get("transparency")
    if key is None or image.mode not in {"1", "L", "RGB", "I;16"}:
        return None
    # The key of a 2 or 4-bit grey picture counts in that picture's own steps.
    key = np.array(key) * {"L;2": 85, "L;4": 17}.get(rawmode, 1)
    differs: Array = channels != key
    opaque = differs if channels.ndim == 2 else differs.any(axis=2)
    return np.where(opaque, np.iinfo(channels.dtype).max, 0).astype(channels.dtype)


def _turn(picture: Picture, orientation: int) -> Picture:
    """Apply an EXIF orientation of 1 to 8."""

    def turned(pixels: Array) -> Array:
        if orientation >= 5:
            pixels = pixels.swapaxes(0, 1)
        # By the standard, row 0 lies at the bottom in 3, 4, 7 and 8 (5 to 8: after the swap, as columns).
        if orientation in (3, 4, 7, 8):
            pixels = pixels[::-1]
        if orientation in (2, 3, 6, 7):
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels)

    if orientation == 1:
        return picture
    alpha = None if picture.alpha is None else turned(picture.alpha)
    return replace(picture, pixels=turned(picture.pixels), alpha=alpha)
