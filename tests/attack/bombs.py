"""Small files that want much: time, memory or patience. Each is named by the file name that it goes by."""

import functools
import io
import struct
import zlib

from PIL import Image

from attack.seeds import pictures
from toys import png_of
from toys_bombs import chunk, directory, fractions, jpeg, png, scans

_MOST = 24_000_000  # what the server takes


def _png(*chunks, size=(8, 8)):
    """A PNG with further chunks before its pixels."""
    return png(b"".join(chunk(kind, body) for kind, body in chunks), size=size, channels=3)


def _tiff(entries, tail=b"", link=0):
    """A little TIFF with these directory entries: tag, type, count, value."""
    base = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    base += [(273, 4, 1, 8), (278, 4, 1, 8), (279, 4, 1, 64)]
    rows = sorted({tag: (tag, *rest) for tag, *rest in [*base, *entries]}.values())
    head = b"II*\0" + struct.pack("<I", 72) + bytes(64)
    return head + directory(*rows, link=link) + tail


def _pages():
    """A hundred thousand directories, linked one after the other."""
    one = struct.pack("<H", 1) + struct.pack("<HHII", 254, 4, 1, 0)
    start = 8 + 64 + 2 + 12 * 9 + 4
    links = range(start + 18, start + 18 * 100_001, 18)
    return _tiff([], b"".join(one + struct.pack("<I", link) for link in links), start)


def _exif_loop():
    """EXIF whose inner directory is the outer one, with as many entries as fit."""
    rows = struct.pack(">HHII", 0x8769, 4, 1, 8) + struct.pack(">HHII", 0x010F, 2, 65_000, 0) * 4000
    block = b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", 4001) + rows + struct.pack(">I", 8)
    return jpeg(exif=b"Exif\0\0" + block)


def _frames():
    """An animated WebP of a thousand frames."""
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), (n % 256, n // 256, 0)) for n in range(1000)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True, method=0)
    return buffer.getvalue()


BOMBS = {
    "scans.jpg": lambda: scans(15_000, 1600, "RGB"),
    "rationals.tif": lambda: fractions(3_000_000),
    "pages.tif": _pages,
    "page-loop.tif": lambda: _tiff([], link=72),
    "huge-count.tif": lambda: _tiff([(50721, 1, 0xFFFFFFF0, 8), (700, 7, 0x7FFFFFFF, 8)]),
    "text.png": lambda: _png(*[(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000), 9))] * 500),
    "profile.png": lambda: _png((b"iCCP", b"a\0\0" + zlib.compress(bytes(500_000_000), 9))),
    "thumbnails.png": lambda: _png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<xmp:Thumbnails>" * 60_000)),
    "unread.png": lambda: _png((b"tEXt", b"a\0" + b"<xmp:Thumbnails>" * 60_000)),
    "open-tag.png": lambda: _png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<xmp:Thumbnails " * 60_000)),
    "thumbnails.tif": lambda: _tiff([(700, 1, 16 * 500_000, 194)], b"<xmp:Thumbnails>" * 500_000),
    "chunks.png": lambda: _png(*[(b"abCd", b"")] * (_MOST // 12)),
    "texts.png": lambda: _png(*[(b"tEXt", b"a\0")] * 500_000),
    "segments.jpg": lambda: jpeg(b"\xff\xe1\0\x02" * (_MOST // 4)),
    "comments.jpg": lambda: jpeg(b"\xff\xfe\0\x03a" * (_MOST // 5)),
    "resources.jpg": lambda: jpeg(
        (b"\xff\xed\xff\xff" + b"Photoshop 3.0\0" + (b"8BIM\x04\x04" + bytes(6)) * 5459 + bytes(11)) * 300
    ),
    "exif-loop.jpg": _exif_loop,
    "profile.jpg": lambda: jpeg(b"\xff\xe2\xff\xffICC_PROFILE\0\x01\x01" + bytes(65_519)) * 300,
    "frames.webp": _frames,
    "chunks.webp": lambda: pictures()["lossy.webp"] + b"abcd\0\0\0\0" * (_MOST // 8),
    "huge.png": lambda: png_of(60_000, 60_000),
    "wide.png": lambda: png_of(2**31 - 1, 1),
    "zeros.png": lambda: _png(size=(3000, 1300)),
    "huge.bmp": lambda: (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 1 << 30, -4, 1, 24, *[0] * 6)
    ),
    "names.png": lambda: _png(*[(b"tEXt", b"%d\0" % n) for n in range(300_000)]),
}


@functools.cache
def bomb(name):
    """The bytes of a bomb."""
    return BOMBS[name]()
