"""Files to arrays and back: EXIF turn, alpha, grey, 16 bit, ICC and metadata, atomic writing.

Pillow decodes and encodes everything, with one exception: it has no 16-bit colour modes and silently cuts
such files to 8 bits. Its decoders can hand out either byte of a 16-bit sample, though, so `read` decodes such
a file twice, high bytes and low bytes, and loses nothing. They are written here, with zlib and NumPy.
"""

import contextlib
import io
import re
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from unrain.errors import UnrainError
from unrain.files import one_line, reading_problem

Array = npt.NDArray[Any]

MAX_PIXELS = 400_000_000
FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".avif": "AVIF",
}
"""Which format a file name's extension asks for."""

_KNOWN = "JPEG, PNG, WebP, TIFF, BMP or AVIF"
_AGAIN = "get it again from its source"
# Only these decoders are ever tried on a file, so that no exotic one (EPS runs Ghostscript) can be reached.
_DECODERS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")
_SIGNATURES = re.compile(rb"\xff\xd8|\x89PNG|RIFF....WEBP|II[*+]\0|MM\0[*+]|BM|....ftypavi[fs]", re.DOTALL)
_DEEP = {"PNG", "TIFF"}
_MOST_DIRECTORIES = 100
_SIDE_LIMIT = {"JPEG": 65_500, "WEBP": 16_383, "AVIF": 65_536}
# Pillow's limit is a global, so one picture is decoded at a time.
_PILLOW_LIMIT = threading.Lock()

# What PNG chunks and TIFF tags mean for any pixels, as against those that describe the pixels of one file.
_PNG_KEPT = {b"cHRM", b"cICP", b"gAMA", b"sRGB", b"tEXt", b"zTXt", b"iTXt", b"tIME"}
_TIFF_LAYOUT = {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 274, 277, 278, 279, 280, 281, 284}
_TIFF_LAYOUT |= {
    288,
    289,
    290,
    291,
    292,
    293,
    301,
    317,
    320,
    321,
    322,
    323,
    324,
    325,
    330,
    332,
    334,
    338,
    339,
}
_TIFF_LAYOUT |= {340, 341, 342, 347, 512, 513, 514, 519, 520, 521, 529, 530, 531, 532, 700, 34675}


class TooManyPixelsError(UnrainError):
    """The picture is larger than allowed, as its header says; nothing of it was decoded."""


@dataclass(frozen=True)
class Metadata:
    """What a file says about its pixels, ready to be written beside other pixels of the same size.

    Attributes:
        icc: ICC profile.
        exif: EXIF block (a TIFF structure, without the `Exif` marker), orientation 1, no thumbnail.
        xmp: XMP packet.
        dpi: Dots per inch, across and down.
        comment: JPEG comment.
        iptc: Raw payload of a JPEG's APP13 segment (Photoshop and IPTC).
        chunks: PNG chunks to copy as they are.
        tables: A JPEG's quantisation tables.
        subsampling: A JPEG's chroma subsampling, in Pillow's numbers.
        progressive: Whether a JPEG was progressive.
        lossless: Whether the file is known to have been compressed without loss.
        compressed: Whether a TIFF was compressed.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    comment: bytes | None = None
    iptc: bytes | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    tables: dict[int, list[int]] | None = None
    subsampling: int = 0
    progressive: bool = False
    lossless: bool = False
    compressed: bool = True


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
    """

    pixels: Array
    alpha: Array | None = None
    colour: bool = True
    format: str = "PNG"
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> Array:
        """Pixels and alpha as they are stored: HxW or HxWxC."""
        colour = self.pixels
        if colour.ndim == 2 and self.colour:
            colour = np.repeat(colour[..., None], 3, axis=2)
        return colour if self.alpha is None else np.dstack((colour, self.alpha))


# ---------------------------------------------------------------------------------------------- reading


def read(path: Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture file.

    Args:
        path: The file.
        max_pixels: Refuse pictures with more pixels than this.

    Raises:
        UnrainError: The file is missing, unreadable, no picture, damaged, animated or too large.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnrainError(f"{path}: {reading_problem(error)}") from error
    return decode(data, str(path), max_pixels=max_pixels)


def decode(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Turn the bytes of a picture file into an upright picture.

    Args:
        data: The whole file.
        name: How messages call it.
        max_pixels: Refuse pictures with more pixels than this.

    Raises:
        UnrainError: The bytes are no picture, or a damaged, animated or too large one.
    """
    if not data:
        raise UnrainError(f"{name}: the file is empty, {_AGAIN}")
    with _PILLOW_LIMIT, _pillow_limit(max_pixels), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            picture = _decode(data, name, max_pixels)
        except UnrainError:
            raise
        except Image.DecompressionBombError as error:
            raise TooManyPixelsError(_too_large(name, "far ", max_pixels)) from error
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


def _decode(data: bytes, name: str, max_pixels: int) -> Picture:
    source = _open(data)
    if source.width * source.height > max_pixels:
        raise TooManyPixelsError(_too_large(name, f"{source.width} x {source.height}, ", max_pixels))
    frames = _frames(source)
    if frames > 1:
        raise UnrainError(f"{name}: holds {frames} pictures, unrain takes one a file: split it first")
    notes = ["only the main one of the file's pictures is kept"] if source.format == "MPO" else []
    rawmode = _rawmode(source)
    tags: dict[int, Any] = dict(source.tag_v2) if isinstance(source, TiffImagePlugin.TiffImageFile) else {}
    image: Image.Image = source
    if deep := re.fullmatch(r"(RGB|RGBA|RGBX|RGBa|LA);16([BLN])", rawmode):
        if tags.get(284) == 2:
            raise UnrainError(
                f"{name}: 16-bit channels in separate planes, save it with interleaved ones first"
            )
        channels, source = _deep_channels(data, deep[1], deep[2])
        channels = _straight_alpha(channels) if deep[1] == "RGBa" else channels
    else:
        source.load()
        image = _plain_mode(source, name, notes)
        channels = np.asarray(image)
        if channels.dtype.itemsize == 2:
            channels = channels.astype(np.uint16)
            # Pillow heeds WhiteIsZero for 8 bits only.
            channels = 65535 - channels if tags.get(262) == 0 else channels
    # Pillow turns a TIFF's pixels itself when it loads them.
    exif, orientation = _upright_exif(_tiff_exif(source) if tags else _exif(source))
    xmp, other = _upright_xmp(tags.get(700) or source.info.get("xmp") or b"")
    orientation = 1 if tags else orientation or other or 1
    picture = _turn(_split(channels, _key_alpha(source, rawmode, channels)), orientation)
    metadata = replace(_metadata(source, data, tags), exif=exif or None, xmp=xmp or None)
    if source.mode == "CMYK":
        metadata = replace(metadata, icc=image.info.get("icc_profile"))
    kind = "JPEG" if source.format == "MPO" else source.format or "PNG"
    return replace(picture, format=kind, metadata=metadata, notes=tuple(notes))


def _open(data: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(data), formats=_DECODERS)


def _rawmode(image: ImageFile.ImageFile) -> str:
    """How the samples lie in the file, in Pillow's words."""
    args = image.tile[0].args if image.tile else None
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def _frames(image: ImageFile.ImageFile) -> int:
    """How many pictures that a person would count are in the file."""
    if image.format == "MPO":
        return 1
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        frames: int = getattr(image, "n_frames", 1)
        return frames
    pages = 0
    # Asking for the number would read every directory, and a small file can hold a million.
    for page in range(_MOST_DIRECTORIES):
        try:
            image.seek(page)
        except EOFError:
            break
        # Bits 0 and 2 of NewSubfileType: a smaller copy (thumbnail), a transparency mask.
        pages += not image.tag_v2.get(254, 0) & 0b101
    image.seek(0)
    return pages


def _deep_channels(data: bytes, layout: str, order: str) -> tuple[Array, ImageFile.ImageFile]:
    """Decode 16-bit colour, which Pillow would cut to its high bytes.

    Returns:
        HxWxC uint16, and the image with everything else that was read.
    """
    if layout == "LA":
        # Four bytes a pixel, handed out as they are.
        image = _opened_as(data, "RGBA")
        raw: Array = np.asarray(image)
        return raw.view(">u2").astype(np.uint16), image
    order = {"little": "L", "big": "B"}[sys.byteorder] if order == "N" else order
    layout = "RGBA" if layout == "RGBa" else layout
    image = _opened_as(data, f"{layout};16{order}")
    wide: Array = np.asarray(image).astype(np.uint16) << 8
    # Read in the wrong byte order, the high byte is the low one.
    wide |= np.asarray(_opened_as(data, f"{layout};16{'L' if order == 'B' else 'B'}"))
    return wide, image


def _opened_as(data: bytes, rawmode: str) -> ImageFile.ImageFile:
    image = _open(data)
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]
    image.load()
    return image


def _straight_alpha(channels: Array) -> Array:
    """Undo the multiplication of 16-bit colour with its alpha."""
    alpha = channels[..., 3:].astype(np.uint32)
    colour = (channels[..., :3].astype(np.uint32) * 65535 + alpha // 2) // np.maximum(alpha, 1)
    return np.dstack((np.minimum(colour, 65535).astype(np.uint16), channels[..., 3]))


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


def _split(channels: Array, alpha: Array | None = None) -> Picture:
    """Part HxW, or HxWxC with one to four channels, into colour and alpha."""
    if channels.ndim == 3 and channels.shape[2] in (2, 4):
        channels, alpha = channels[..., :-1], np.ascontiguousarray(channels[..., -1])
    colour = channels.ndim == 3 and channels.shape[2] == 3
    first = channels[..., 0] if channels.ndim == 3 else channels
    # A grey picture in three equal channels (all that WebP and AVIF can hold) must not come out tinted.
    if colour and not all(np.array_equal(first, channels[..., c]) for c in (1, 2)):
        return Picture(np.ascontiguousarray(channels), alpha)
    return Picture(np.ascontiguousarray(first), alpha, colour=colour)


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


# --------------------------------------------------------------------------------------------- metadata


def _exif(image: Image.Image) -> bytes:
    """The EXIF block as the file has it."""
    block: bytes = image.info.get("exif") or b""
    if not block and "Raw profile type exif" in image.info:
        # ImageMagick writes it into a PNG as text: name, length, hexadecimal digits.
        with contextlib.suppress(ValueError):
            block = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    return re.sub(b"^(Exif\x00\x00)+", b"", block)


def _tiff_exif(image: Image.Image) -> bytes:
    """A TIFF's own tags, less those which describe how its pixels are stored."""
    tags = image.getexif()
    for tag in _TIFF_LAYOUT.intersection(tags):
        del tags[tag]
    return tags.tobytes()[6:] if tags else b""


def _upright_exif(exif: bytes) -> tuple[bytes, int]:
    """Set the orientation to 1 and unlink the thumbnail, which shows the rain; every other byte stays.

    Rewriting the block instead would break maker notes, which hold absolute offsets.

    Returns:
        The block, empty if it cannot be read, and the orientation that it had, 0 for none.
    """
    block = bytearray(exif)
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        entries, next_offset = _entries(block, order, struct.unpack_from(order + "I", block, 4)[0])
        orientation = 0
        if 0x0112 in entries:
            at = entries[0x0112]
            kind = order + ("I" if struct.unpack_from(order + "H", block, at + 2)[0] == 4 else "H")
            orientation = struct.unpack_from(kind, block, at + 8)[0]
            struct.pack_into(kind, block, at + 8, 1)
        struct.pack_into(order + "I", block, next_offset, 0)
        if 5 <= orientation <= 8:
            _swap_sides(block, entries.get(0x0100), entries.get(0x0101))
            if 0x8769 in entries:
                start = struct.unpack_from(order + "I", block, entries[0x8769] + 8)[0]
                inner, _ = _entries(block, order, start)
                _swap_sides(block, inner.get(0xA002), inner.get(0xA003))
    except (KeyError, struct.error):
        return b"", 0
    return bytes(block), orientation if 1 <= orientation <= 8 else 0


def _entries(block: bytearray, order: str, start: int) -> tuple[dict[int, int], int]:
    """Where each tag of a directory lies, and where the offset of the next directory lies."""
    count = struct.unpack_from(order + "H", block, start)[0]
    places = [start + 2 + 12 * i for i in range(count)]
    return {struct.unpack_from(order + "H", block, at)[0]: at for at in places}, start + 2 + 12 * count


def _swap_sides(block: bytearray, width: int | None, height: int | None) -> None:
    if width is not None and height is not None:
        wide, high = block[width + 2 : width + 12], block[height + 2 : height + 12]
        block[width + 2 : width + 12], block[height + 2 : height + 12] = high, wide


def _upright_xmp(xmp: bytes) -> tuple[bytes, int]:
    """Set the orientation in an XMP packet to 1; return the packet and the one it had, 0 for none."""
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])["<]', xmp)
    if not found:
        return xmp, 0
    return xmp[: found.start(1)] + b"1" + xmp[found.end(1) :], int(found[1])


def _metadata(image: Image.Image, data: bytes, tags: dict[int, Any]) -> Metadata:
    """Everything but EXIF and XMP."""
    info = image.info
    comment = info.get("comment")
    dpi = info.get("dpi")
    metadata = Metadata(
        icc=info.get("icc_profile") or None,
        dpi=(float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 0 else None,
        comment=comment if isinstance(comment, bytes) else None,
        compressed=tags.get(259, 1) != 1,
    )
    if image.format in {"JPEG", "MPO"}:
        iptc = [payload for marker, payload in getattr(image, "applist", ()) if marker == "APP13"]
        metadata = replace(metadata, iptc=iptc[0] if iptc else None, progressive="progressive" in info)
        # Four inks have other tables than the three channels which are written.
        if image.mode in {"L", "RGB"} and hasattr(image, "quantization"):
            from PIL import JpegImagePlugin

            metadata = replace(
                metadata,
                tables=image.quantization,
                subsampling=max(0, JpegImagePlugin.get_sampling(image)),
            )
    elif image.format == "PNG":
        metadata = replace(metadata, chunks=tuple(_png_chunks(data)))
    elif image.format == "WEBP":
        metadata = replace(metadata, lossless=any(kind == b"VP8L" for kind in _riff_chunks(data)))
    return metadata


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG that hold true for other pixels too."""
    at = 8
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + size]
        # EXIF as text still has the old orientation; it is written as a proper chunk.
        if kind in _PNG_KEPT and not body.startswith((b"Raw profile type exif", b"Raw profile type APP1")):
            yield kind, _upright_xmp(body)[0]
        at += size + 12


def _riff_chunks(data: bytes) -> Iterator[bytes]:
    """The kinds of the chunks of a WebP."""
    at = 12
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        yield kind
        at += 8 + size + size % 2


# ---------------------------------------------------------------------------------------------- writing


def encode(picture: Picture, kind: str, *, quality: int | None = None) -> tuple[bytes, tuple[str, ...]]:
    """Turn a picture into the bytes of a file.

    Args:
        picture: The picture.
        kind: Pillow's name of the format, one of `FORMATS`' values.
        quality: 1 to 100 for JPEG, WebP and AVIF; None keeps a JPEG's own tables and is 95 or 90 otherwise.

    Returns:
        The bytes, and what could not be kept, one sentence each.

    Raises:
        UnrainError: The format cannot hold the picture.
    """
    height, width = picture.pixels.shape[:2]
    if max(height, width) > _SIDE_LIMIT.get(kind, 2**31 - 1):
        raise UnrainError(f"{width} x {height} pixels are too many for {kind}, name an output in PNG or TIFF")
    picture, notes = _fit(picture, kind)
    try:
        if kind == "TIFF":
            return _tiff(picture), notes
        if kind == "PNG" and picture.pixels.dtype == np.uint16:
            return _deep_png(picture), notes
        if kind == "BMP" and picture.alpha is not None:
            return _bmp(picture), notes
        options, lost = _options(picture, kind, quality)
        buffer = io.BytesIO()
        Image.fromarray(picture.channels).save(buffer, kind, **options)
    except (OSError, ValueError, struct.error) as error:
        problem = f"cannot be written as {kind} ({one_line(error)}), name an output in PNG"
        raise UnrainError(problem) from error
    return buffer.getvalue(), (*notes, *lost)


def _fit(picture: Picture, kind: str) -> tuple[Picture, tuple[str, ...]]:
    """Reduce a picture to what a format can hold."""
    notes = []
    if picture.pixels.dtype == np.uint16 and kind not in _DEEP:
        notes.append(f"{kind} holds 8 bits a channel: 16 are reduced to 8")
        picture = eight_bit(picture)
    if picture.alpha is not None and kind == "JPEG":
        notes.append("JPEG holds no transparency: the picture is laid on white")
        picture = _on_white(picture)
    if kind in {"TIFF", "AVIF"} and picture.metadata.exif and not _tags(picture.metadata.exif):
        notes.append(f"EXIF is damaged: {kind} cannot take it over")
        picture = replace(picture, metadata=replace(picture.metadata, exif=None))
    if picture.alpha is not None and kind != "PNG":
        # Grey with alpha is PNG's alone.
        picture = replace(picture, colour=True)
    return picture, tuple(notes)


def _tags(exif: bytes) -> dict[int, Any]:
    """The tags of an EXIF block, those of its inner directories as dictionaries; empty if it is damaged."""
    tags = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Pillow's parser raises anything on damaged blocks, and its writer on what the parser let pass.
        try:
            tags.load(exif)
            tags.tobytes()
            return {tag: tags.get_ifd(tag) if tag in (0x8769, 0x8825) else tags[tag] for tag in tags}
        except Exception:
            return {}


def eight_bit(picture: Picture) -> Picture:
    """Round a 16-bit picture to 8 bits."""
    if picture.pixels.dtype != np.uint16:
        return picture
    alpha = None if picture.alpha is None else _rounded(picture.alpha)
    return replace(picture, pixels=_rounded(picture.pixels), alpha=alpha)


def _rounded(wide: Array) -> Array:
    # 65535 = 255 * 257, so this is exact rounding; 65535 + 128 needs more than 16 bits.
    return ((wide.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _on_white(picture: Picture) -> Picture:
    assert picture.alpha is not None
    opaque = picture.alpha.astype(np.float32) / 255
    opaque = opaque if picture.pixels.ndim == 2 else opaque[..., None]
    laid = np.rint(picture.pixels * opaque + 255 * (1 - opaque)).astype(np.uint8)
    return replace(picture, pixels=laid, alpha=None)


def _options(picture: Picture, kind: str, quality: int | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What to tell Pillow's encoder, and which metadata the format has no room for."""
    known = picture.metadata
    exif = b"Exif\0\0" + known.exif if known.exif else None
    options: dict[str, Any] = {"icc_profile": known.icc, "exif": exif, "xmp": known.xmp, "dpi": known.dpi}
    lost = []
    if kind == "JPEG":
        # A segment ends at 65,533 bytes, less the name that stands before an XMP packet.
        for key, room in (("exif", 65_533), ("xmp", 65_504)):
            if len(options[key] or b"") > room:
                lost.append(f"{key.upper()} is too long for JPEG and left out")
                options[key] = None
        options |= {"comment": known.comment, "progressive": known.progressive}
        options["subsampling"] = known.subsampling
        if known.tables and quality is None:
            options["qtables"] = known.tables
        else:
            options["quality"] = quality or 95
        if known.iptc:
            options["extra"] = b"\xff\xed" + struct.pack(">H", len(known.iptc) + 2) + known.iptc
    elif kind == "PNG":
        options["pnginfo"] = _png_info(known)
    elif kind == "WEBP":
        # exact: the colours under full transparency stay.
        options |= {"quality": quality or 90, "lossless": known.lossless and quality is None, "exact": True}
    elif kind == "AVIF":
        grey = picture.pixels.ndim == 2 and not picture.colour
        options |= {"quality": quality or 90, "subsampling": "4:0:0" if grey else "4:4:4"}
    return {key: value for key, value in options.items() if value is not None}, tuple(lost)


def _png_info(known: Metadata) -> PngImagePlugin.PngInfo:
    """PNG chunks other than the pixels, the profile, the resolution and EXIF."""
    info = PngImagePlugin.PngInfo()
    for chunk, body in known.chunks:
        info.add(chunk, body)
    if known.xmp and not any(body.startswith(b"XML:com.adobe.xmp\0") for _, body in known.chunks):
        info.add_itxt("XML:com.adobe.xmp", known.xmp.decode("utf-8", "replace"))
    return info


def _deep_png(picture: Picture) -> bytes:
    """Write a PNG of 16 bits a channel."""
    channels = picture.channels
    height, width = channels.shape[:2]
    count = 1 if channels.ndim == 2 else channels.shape[2]
    known = picture.metadata
    out = io.BytesIO()
    out.write(b"\x89PNG\r\n\x1a\n")
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[count]
    PngImagePlugin.putchunk(out, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    if known.icc:
        PngImagePlugin.putchunk(out, b"iCCP", b"ICC Profile\0\0" + zlib.compress(known.icc))
    for chunk, body, *_ in _png_info(known).chunks:
        if not (chunk == b"sRGB" and known.icc):
            PngImagePlugin.putchunk(out, chunk, body)
    if known.dpi:
        across, down = (round(dots / 0.0254) for dots in known.dpi)
        PngImagePlugin.putchunk(out, b"pHYs", struct.pack(">IIB", across, down, 1))
    if known.exif:
        PngImagePlugin.putchunk(out, b"eXIf", known.exif)
    packer = zlib.compressobj(6)
    for rows in _filtered(channels.reshape(height, width * count), 2 * count):
        if packed := packer.compress(rows):
            PngImagePlugin.putchunk(out, b"IDAT", packed)
    PngImagePlugin.putchunk(out, b"IDAT", packer.flush())
    PngImagePlugin.putchunk(out, b"IEND", b"")
    return out.getvalue()


def _filtered(samples: Array, step: int, block: int = 64) -> Iterator[bytes]:
    """PNG filtering: each row as its difference to the left, upper or Paeth neighbour, whichever is smallest.

    Args:
        samples: Rows of uint16.
        step: Bytes of a pixel.
        block: Rows that are filtered together.
    """
    above = np.zeros((1, samples.shape[1] * 2), np.int16)
    for start in range(0, len(samples), block):
        here = samples[start : start + block].astype(">u2").view(np.uint8).astype(np.int16)
        up = np.concatenate((above, here[:-1]))
        above = here[-1:]
        left, corner = np.zeros_like(here), np.zeros_like(here)
        left[:, step:], corner[:, step:] = here[:, :-step], up[:, :-step]
        to_left, to_up = np.abs(up - corner), np.abs(left - corner)
        to_corner = np.abs(left + up - 2 * corner)
        paeth = np.where(to_up <= to_corner, up, corner)
        paeth = np.where((to_left <= to_up) & (to_left <= to_corner), left, paeth)
        tries = np.stack([(here - guess).astype(np.uint8) for guess in (left, up, paeth)])
        best = np.abs(tries.view(np.int8).astype(np.int16)).sum(axis=2).argmin(axis=0)
        rows = np.empty((len(here), here.shape[1] + 1), np.uint8)
        rows[:, 0] = np.array([1, 2, 4])[best]
        rows[:, 1:] = tries[best, np.arange(len(here))]
        yield rows.tobytes()


def _tiff(picture: Picture) -> bytes:
    """Write a TIFF of 8 or 16 bits a channel, deflated unless the source was uncompressed."""
    channels = picture.channels
    channels = channels.reshape(*channels.shape[:2], -1)
    height, width, count = channels.shape
    known = picture.metadata
    rows = max(1, 2**20 // (width * count * channels.itemsize))
    strips = [_strip(channels[y : y + rows], deflate=known.compressed) for y in range(0, height, rows)]
    sizes = [len(strip) for strip in strips]
    if sum(sizes) >= 2**32 - 2**24:
        raise ValueError("larger than the 4 GB of a TIFF")
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in (_tags(known.exif) if known.exif else {}).items():
        if tag not in _TIFF_LAYOUT:
            directory[tag] = value
    layout: dict[int, Any] = {256: width, 257: height, 258: (channels.itemsize * 8,) * count}
    layout |= {259: 8 if known.compressed else 1, 262: 2 if count >= 3 else 1, 277: count, 278: rows, 284: 1}
    layout |= {317: 2} if known.compressed else {}
    layout |= {338: 2} if count == 4 else {}
    if known.dpi:
        layout |= {282: known.dpi[0], 283: known.dpi[1], 296: 2}
    layout |= {tag: value for tag, value in ((34675, known.icc), (700, known.xmp)) if value}
    for tag, value in layout.items():
        directory[tag] = value
    for tag, values in ((273, np.cumsum([0, *sizes[:-1]]).tolist()), (279, sizes)):
        # Pillow adds the length of the directory to the offsets: small ones must not stay 16-bit numbers.
        directory.tagtype[tag] = 4
        directory[tag] = tuple(values)
    out = io.BytesIO()
    directory.save(out)
    for strip in strips:
        out.write(strip)
    return out.getvalue()


def _strip(channels: Array, *, deflate: bool) -> bytes:
    """Pack some rows of HxWxC, in little-endian order, with horizontal differencing before deflate."""
    if deflate:
        channels = np.concatenate((channels[:, :1], np.diff(channels, axis=1)), axis=1)
    raw = channels.astype(channels.dtype.newbyteorder("<")).tobytes()
    return zlib.compress(raw, 6) if deflate else raw


def _bmp(picture: Picture) -> bytes:
    """Write a BMP with alpha, which needs the fourth version of the header: Pillow writes the third."""
    height, width = picture.alpha.shape if picture.alpha is not None else (0, 0)
    rows = picture.channels[::-1, :, [2, 1, 0, 3]].tobytes()
    across, down = (round(dots / 0.0254) for dots in picture.metadata.dpi or (0, 0))
    size = struct.calcsize("<2sIHHI") + 108
    file = struct.pack("<2sIHHI", b"BM", size + len(rows), 0, 0, size)
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(rows), across, down, 0, 0)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    return file + header + masks + b"BGRs" + bytes(48) + rows


def is_picture(data: bytes) -> bool:
    """Whether a file that begins like this is a picture of a known kind."""
    return _SIGNATURES.match(data) is not None


# ---------------------------------------------------------------------------------------- Pillow's images


def from_pil(image: Image.Image) -> Picture:
    """Take the pixels of a Pillow image, as they are: no EXIF turn.

    Raises:
        UnrainError: It holds 32-bit or floating-point samples.
    """
    plain = _plain_mode(image, "image", [])
    channels = np.asarray(plain)
    channels = channels.astype(np.uint16) if channels.dtype.itemsize == 2 else channels
    info = plain.info
    known = Metadata(icc=info.get("icc_profile"), exif=_exif(plain), xmp=info.get("xmp"), dpi=info.get("dpi"))
    return replace(_split(channels, _key_alpha(image, image.mode, channels)), metadata=known)


def to_pil(picture: Picture) -> Image.Image:
    """Make a Pillow image; 16-bit colour, which Pillow has not, is rounded to 8 bits."""
    if picture.channels.ndim == 3:
        picture = eight_bit(picture)
    image = Image.fromarray(picture.channels)
    known = picture.metadata
    exif = b"Exif\0\0" + known.exif if known.exif else None
    kept = {"icc_profile": known.icc, "exif": exif, "xmp": known.xmp, "dpi": known.dpi}
    image.info.update({key: value for key, value in kept.items() if value is not None})
    return image


# --------------------------------------------------------------------------------------------- messages


def _too_large(name: str, size: str, max_pixels: int) -> str:
    limit = f"{max_pixels:,} pixels"
    return f"{name}: {size}more than the limit of {limit}, raise it with --max-pixels if you trust the file"
