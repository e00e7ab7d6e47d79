"""What a picture's file says besides its pixels: EXIF, XMP, IPTC, profile, resolution."""

import contextlib
import re
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

# What PNG chunks and TIFF tags mean for any pixels, as against those that describe the pixels of one file.
_PNG_KEPT = {b"cHRM", b"cICP", b"gAMA", b"sRGB", b"tEXt", b"zTXt", b"iTXt", b"tIME"}
# fmt: off
TIFF_LAYOUT = frozenset({
    254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 274, 277, 278, 279, 280, 281, 284,
    288, 289, 290, 291, 292, 293, 301, 317, 320, 321, 322, 323, 324, 325, 330, 332, 334, 338, 339,
    340, 341, 342, 347, 512, 513, 514, 519, 520, 521, 529, 530, 531, 532, 700, 34675,
})
# fmt: on


_XMP_THUMBNAILS = re.compile(rb"<(xmp|xap):Thumbnails\b")
_PHOTOSHOP = b"Photoshop 3.0\0"
_RESOURCE_THUMBNAILS = {1033, 1036}


@dataclass(frozen=True)
class Metadata:
    """What a file says about its pixels, ready to be written beside other pixels of the same size.

    Attributes:
        icc: ICC profile.
        exif: EXIF block (a TIFF structure, without the `Exif` marker), orientation 1, no thumbnail.
        xmp: XMP packet, no thumbnail.
        dpi: Dots per inch, across and down.
        comment: JPEG comment.
        iptc: Raw payload of a JPEG's APP13 segment (Photoshop and IPTC), no thumbnail.
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


def exif_block(image: Image.Image) -> bytes:
    """The EXIF block as the file has it."""
    block: bytes = image.info.get("exif") or b""
    if not block and "Raw profile type exif" in image.info:
        # ImageMagick writes it into a PNG as text: name, length, hexadecimal digits.
        with contextlib.suppress(ValueError):
            block = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    return re.sub(b"^(Exif\x00\x00)+", b"", block)


def tiff_exif(image: Image.Image) -> bytes:
    """A TIFF's own tags, less those which describe how its pixels are stored."""
    tags = image.getexif()
    for tag in TIFF_LAYOUT.intersection(tags):
        del tags[tag]
    if isinstance(resources := tags.get(34377), bytes):
        tags[34377] = _without_resource_thumbnails(resources)
    return tags.tobytes()[6:] if tags else b""


def without_thumbnail(exif: bytes) -> bytes:
    """Take the thumbnail, which shows the rain, out of an EXIF block; every other byte keeps its place.

    Returns:
        The block, empty if it cannot be read.
    """
    block = bytearray(exif)
    try:
        order = _byte_order(exif)
        _, next_offset = _entries(block, order, struct.unpack_from(order + "I", block, 4)[0])
        _drop_thumbnail(block, order, next_offset)
    except (KeyError, struct.error):
        return b""
    return bytes(block)


def upright_exif(exif: bytes) -> tuple[bytes, int]:
    """Set the orientation to 1 and take out the thumbnail; every other byte keeps its place.

    Rewriting the block instead would break maker notes, which hold absolute offsets.

    Returns:
        The block, empty if it cannot be read, and the orientation that it had, 0 for none.
    """
    block = bytearray(exif)
    try:
        order = _byte_order(exif)
        entries, next_offset = _entries(block, order, struct.unpack_from(order + "I", block, 4)[0])
        orientation = 0
        if 0x0112 in entries:
            at = entries[0x0112]
            kind = order + ("I" if struct.unpack_from(order + "H", block, at + 2)[0] == 4 else "H")
            orientation = struct.unpack_from(kind, block, at + 8)[0]
            struct.pack_into(kind, block, at + 8, 1)
        _drop_thumbnail(block, order, next_offset)
        if 5 <= orientation <= 8:
            _swap_sides(block, entries.get(0x0100), entries.get(0x0101))
            if 0x8769 in entries:
                start = struct.unpack_from(order + "I", block, entries[0x8769] + 8)[0]
                inner, _ = _entries(block, order, start)
                _swap_sides(block, inner.get(0xA002), inner.get(0xA003))
    except (KeyError, struct.error):
        return b"", 0
    return bytes(block), orientation if 1 <= orientation <= 8 else 0


def _byte_order(exif: bytes) -> str:
    return {b"II": "<", b"MM": ">"}[exif[:2]]


def _drop_thumbnail(block: bytearray, order: str, link: int) -> None:
    """Blank the JPEG of the second directory, and the link to that directory."""
    (start,) = struct.unpack_from(order + "I", block, link)
    struct.pack_into(order + "I", block, link, 0)
    if start == 0:
        return
    with contextlib.suppress(KeyError, struct.error):
        entries, _ = _entries(block, order, start)
        first, size = (struct.unpack_from(order + "I", block, entries[tag] + 8)[0] for tag in (513, 514))
        # Damaged offsets could point anywhere: only what begins like a JPEG is blanked.
        if first + size <= len(block) and block[first : first + 2] == b"\xff\xd8":
            block[first : first + size] = bytes(size)


def _entries(block: bytearray, order: str, start: int) -> tuple[dict[int, int], int]:
    """Where each tag of a directory lies, and where the offset of the next directory lies."""
    count = struct.unpack_from(order + "H", block, start)[0]
    places = [start + 2 + 12 * i for i in range(count)]
    return {struct.unpack_from(order + "H", block, at)[0]: at for at in places}, start + 2 + 12 * count


def _swap_sides(block: bytearray, width: int | None, height: int | None) -> None:
    if width is not None and height is not None:
        wide, high = block[width + 2 : width + 12], block[height + 2 : height + 12]
        block[width + 2 : width + 12], block[height + 2 : height + 12] = high, wide


def xmp_without_thumbnails(xmp: bytes) -> bytes:
    """Take the thumbnails out of an XMP packet.

    The time grows with the packet's size and no faster, whatever is in it; one regular expression would look
    for the end of every unclosed element anew.
    """
    kept, done, at = [], 0, 0
    unclosed: set[bytes] = set()
    while found := _XMP_THUMBNAILS.search(xmp, at):
        if found[1] in unclosed:
            at = found.end()
            continue
        at = xmp.find(b">", found.end()) + 1
        if not at:
            break
        if xmp[at - 2 : at - 1] == b"/":
            continue
        closing = b"</%s:Thumbnails>" % found[1]
        end = xmp.find(closing, at)
        if end < 0:
            unclosed.add(found[1])
            at = found.end()
            continue
        kept.append(xmp[done : found.start()])
        done = at = end + len(closing)
    return b"".join(kept) + xmp[done:]


def upright_xmp(xmp: bytes) -> tuple[bytes, int]:
    """Set the orientation in an XMP packet to 1 and take out thumbnails.

    Returns:
        The packet, and the orientation that it had, 0 for none.
    """
    xmp = xmp_without_thumbnails(xmp)
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])["<]', xmp)
    if not found:
        return xmp, 0
    return xmp[: found.start(1)] + b"1" + xmp[found.end(1) :], int(found[1])


def exif_tags(exif: bytes) -> dict[int, Any]:
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


def metadata_of(image: Image.Image, data: bytes, tags: dict[int, Any]) -> Metadata:
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
        metadata = replace(
            metadata, iptc=_app13(iptc[0]) if iptc else None, progressive="progressive" in info
        )
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


def _app13(payload: bytes) -> bytes:
    """An APP13 segment without the thumbnails that Photoshop keeps in it."""
    if not payload.startswith(_PHOTOSHOP):
        return payload
    return _PHOTOSHOP + _without_resource_thumbnails(payload[len(_PHOTOSHOP) :])


def _without_resource_thumbnails(resources: bytes) -> bytes:
    """Leave thumbnails out of Photoshop's image resources: `8BIM`, number, padded name, size, padded data."""
    kept, at = [], 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        name = resources[at + 6] + 1
        body = at + 6 + name + name % 2
        if body + 4 > len(resources):
            break
        size = int.from_bytes(resources[body : body + 4])
        end = body + 4 + size + size % 2
        if int.from_bytes(resources[at + 4 : at + 6]) not in _RESOURCE_THUMBNAILS:
            kept.append(resources[at:end])
        at = end
    return b"".join(kept) + resources[at:]


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG that hold true for other pixels too."""
    at = 8
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return
        body = data[at + 8 : at + 8 + size]
        # EXIF as text still has the old orientation; it is written as a proper chunk.
        if kind in _PNG_KEPT and not body.startswith((b"Raw profile type exif", b"Raw profile type APP1")):
            yield kind, upright_xmp(body)[0]
        at += size + 12


def _riff_chunks(data: bytes) -> Iterator[bytes]:
    """The kinds of the chunks of a WebP."""
    at, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= end:
        kind, size = struct.unpack_from("<4sI", data, at)
        yield kind
        at += 8 + size + size % 2
