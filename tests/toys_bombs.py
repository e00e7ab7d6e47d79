"""Small files that are built to take minutes or gigabytes to read, as the attack found them."""

import io
import struct
import zlib

from PIL import Image


def jpeg(segments=b"", **options):
    """A JPEG of 16 x 16 with further segments, or other bytes, before its own."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 100, 200)).save(buffer, "JPEG", **options)
    return buffer.getvalue()[:2] + segments + buffer.getvalue()[2:]


def scans(count, side=64, mode="L"):
    """A progressive JPEG whose last scan is repeated; each is a pass over all pixels."""
    buffer = io.BytesIO()
    Image.new(mode, (side, side), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - data.count(b"\xff\xda")) + b"\xff\xd9"


def segments(count):
    """A JPEG with empty comments."""
    return jpeg(b"\xff\xfe\0\2" * count)


def fill(count):
    """A JPEG with fill bytes between its segments."""
    return jpeg(b"\xff" * count)


def directory(*entries, link=0):
    """A TIFF's directory with 32-bit values, (tag, type, count, value), and where the next one is."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + packed + struct.pack("<I", link)


def tiff(*more, body=b""):
    """A grey TIFF of 16 x 16 with more tags; their values lie in `body`, from byte 264 on."""
    body = bytes(256) + body
    layout = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 16), (279, 256)]
    entries = sorted([*((tag, 4, 1, value) for tag, value in layout), *more])
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory(*entries)


def fractions(count):
    """A TIFF with a tag of fractions, each of which becomes an object."""
    return tiff((60000, 5, count, 264), body=struct.pack("<II", 1, 3) * count)


def shorts(count):
    """A TIFF with a tag of 16-bit numbers."""
    return tiff((60000, 3, count, 264), body=bytes(2 * count))


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(more=b"", last=b"", *, size=(16, 16), channels=1):
    """A black PNG, grey or of three channels, with more chunks before and after its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, {1: 0, 3: 2}[channels], 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(size[1] * (1 + channels * size[0]))))
    return b"\x89PNG\r\n\x1a\n" + header + more + pixels + last + chunk(b"IEND", b"")


def riff(count):
    """A WebP with empty chunks."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "WEBP")
    body = buffer.getvalue()[8:] + b"JUNK\0\0\0\0" * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


def exif_fractions(count):
    """An EXIF block with a tag of fractions."""
    values = struct.pack("<II", 1, 3) * count
    return b"II*\0\x08\0\0\0" + directory((60000, 5, count, 26)) + values


def in_app1(exif):
    """A JPEG with an EXIF block, over as many segments as it needs."""
    parts = (b"Exif\0\0" + exif[at : at + 65_000] for at in range(0, len(exif), 65_000))
    return jpeg(b"".join(b"\xff\xe1" + struct.pack(">H", len(p) + 2) + p for p in parts))
