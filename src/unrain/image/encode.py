"""A picture to the bytes of a file, or to a Pillow image.

Pillow encodes everything but what it has no modes for: PNGs and TIFFs with 16 bits a channel, and BMPs with
alpha. Those are written here, with zlib and NumPy.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from unrain.errors import UnrainError
from unrain.files import one_line
from unrain.image import jxl
from unrain.image.metadata import TIFF_LAYOUT, Metadata, exif_tags
from unrain.image.picture import Array, Picture, eight_bit, on_white

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
    ".jxl": "JXL",
}
"""Which format a file name's extension asks for."""
_DEEP = {"PNG", "TIFF"}
_SIDE_LIMIT = {"JPEG": 65_500, "WEBP": 16_383, "AVIF": 65_536}


def encode(picture: Picture, kind: str, *, quality: int | None = None) -> tuple[bytes, tuple[str, ...]]:
    """Turn a picture into the bytes of a file.

    Args:
        picture: The picture.
        kind: Pillow's name of the format, one of `FORMATS`' values.
        quality: 1 to 100 for JPEG, WebP, AVIF and JPEG XL; None keeps a JPEG's own tables and is 95 or 90
            otherwise.

    Returns:
        The bytes, and what could not be kept, one sentence each.

    Raises:
        UnrainError: The format cannot hold the picture.
    """
    if picture.further:
        return _pages(picture, kind)
    height, width = picture.pixels.shape[:2]
    if max(height, width) > _SIDE_LIMIT.get(kind, 2**31 - 1):
        raise UnrainError(f"{width} x {height} pixels are too many for {kind}, name an output in PNG or TIFF")
    picture, notes = _fit(picture, kind)
    try:
        if kind == "TIFF":
            return _tiff(picture), notes
        if kind == "PNG" and picture.pixels.dtype == np.uint16:
            return _deep_png(picture), notes
        if kind == "JXL":
            return jxl.encode(picture, quality), notes
        if kind == "BMP" and picture.alpha is not None:
            return _bmp(picture), notes
        options, lost = _options(picture, kind, quality)
        buffer = io.BytesIO()
        Image.fromarray(picture.channels).save(buffer, kind, **options)
    except (OSError, ValueError, struct.error) as error:
        problem = f"cannot be written as {kind} ({one_line(error)}), name an output in PNG"
        raise UnrainError(problem) from error
    return buffer.getvalue(), (*notes, *lost)


def _pages(picture: Picture, kind: str) -> tuple[bytes, tuple[str, ...]]:
    """Write the pages of a TIFF, one after the other."""
    pages = (replace(picture, further=()), *picture.further)
    if kind != "TIFF":
        raise UnrainError(f"{len(pages)} pages are too many for {kind}, name an output in TIFF")
    fitted = [_fit(page, kind) for page in pages]
    notes = tuple(dict.fromkeys(note for _, lost in fitted for note in lost))
    try:
        return _tiff(*(page for page, _ in fitted)), notes
    except (OSError, ValueError, struct.error) as error:
        raise UnrainError(f"cannot be written as TIFF ({one_line(error)})") from error


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


def _fit(picture: Picture, kind: str) -> tuple[Picture, tuple[str, ...]]:
    """Reduce a picture to what a format can hold."""
    notes = []
    if picture.pixels.dtype == np.uint16 and kind not in _DEEP:
        notes.append(f"{kind} holds 8 bits a channel: 16 are reduced to 8")
        picture = eight_bit(picture)
    if picture.alpha is not None and kind == "JPEG":
        notes.append("JPEG holds no transparency: the picture is laid on white")
        picture = on_white(picture)
    if kind in {"TIFF", "AVIF"} and picture.metadata.exif and not exif_tags(picture.metadata.exif):
        notes.append(f"EXIF is damaged: {kind} cannot take it over")
        picture = replace(picture, metadata=replace(picture.metadata, exif=None))
    if picture.alpha is not None and kind != "PNG":
        # Grey with alpha is PNG's alone.
        picture = replace(picture, colour=True)
    return picture, tuple(notes)


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


def _tiff(*pages: Picture) -> bytes:
    """Write a TIFF of 8 or 16 bits a channel, deflated unless the source was uncompressed."""
    out = io.BytesIO()
    out.write(b"II*\0" + struct.pack("<I", 8))
    for page in pages:
        out.write(bytes(out.tell() % 2))
        start = out.tell()
        directory, strips = _tiff_page(page)
        out.write(directory.tobytes(start))
        for strip in strips:
            out.write(strip)
        if page is not pages[-1]:
            # Where the next directory is, an even place, stands behind the entries of this one.
            (count,) = struct.unpack_from("<H", out.getbuffer(), start)
            struct.pack_into("<I", out.getbuffer(), start + 2 + 12 * count, out.tell() + out.tell() % 2)
    if out.tell() >= 2**32 - 2**24:
        raise ValueError("larger than the 4 GB of a TIFF")
    return out.getvalue()


def _tiff_page(picture: Picture) -> tuple[TiffImagePlugin.ImageFileDirectory_v2, list[bytes]]:
    """Make the directory of a page, and its strips, which follow it."""
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
    for tag, value in (exif_tags(known.exif) if known.exif else {}).items():
        if tag not in TIFF_LAYOUT:
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
    return directory, strips


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
