"""Counts the parts of a picture's file before a decoder sees them.

A small file can hold so many parts that decoding it takes minutes or gigabytes: a JPEG of 15,000 scans, a
TIFF with millions of fractions. Every limit here is far above what cameras and programs write.
"""

import re
import struct

from unrain.errors import UnrainError

MOST_DIRECTORIES = 100
"""Directories of a TIFF that are ever looked at."""

# Programs write about ten scans, and 64 coefficients can hardly be spread over more than a hundred.
_SCANS = 200
# An ICC profile has 255 segments at most, extended XMP a few hundred.
_SEGMENTS = 10_000
_JUNK = 65_536
# Encoders write chunks of 8 KB or more.
_CHUNKS, _BYTES_A_CHUNK = 10_000, 1_000
_ENTRIES = 4_096
# A table of transfer functions has 3 x 65,536 numbers; more strips than rows make no sense.
_NUMBERS_A_TAG, _NUMBERS, _FRACTIONS = 200_000, 1_000_000, 10_000

# What ends a JPEG's scan or begins a segment; 0 and 0xFF are data, 0xD0 to 0xD7 stand inside of scans.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SOI, _EOI, _SOS, _TEM, _APP1 = 0xD8, 0xD9, 0xDA, 0x01, 0xE1
_EXIF = b"Exif\0\0"
# Bytes of a TIFF's types by their numbers. Text and raw bytes cost nothing, fractions become objects.
_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_RAW_TYPES, _FRACTION_TYPES = {1, 2, 7}, {5, 10}
# EXIF, GPS, interoperability.
_INNER_DIRECTORIES = {0x8769, 0x8825, 0xA005}


def check(data: bytes, name: str) -> None:
    """Refuse a picture's file with far too many parts. Damage is left to the decoder.

    Args:
        data: The whole file.
        name: How messages call it.

    Raises:
        UnrainError: It would take too long to decode.
    """
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data, name)
    elif data.startswith((b"\x89PNG\r\n\x1a\n", b"RIFF")):
        _check_chunks(data, name)
    else:
        check_directories(data, name)


def check_directories(data: bytes, name: str) -> None:
    """Refuse a TIFF, or an EXIF block, with far too many entries or values.

    Args:
        data: The whole file, or the block without its marker; nothing is done if it is something else.
        name: How messages call it.

    Raises:
        UnrainError: It would take too long to read.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return
    waiting: list[int] = []
    seen: set[int] = set()
    numbers = fractions = 0
    try:
        big = struct.unpack_from(order + "H", data, 2)[0] == 43
        count_kind, entry, link = (
            (order + "Q", order + "HHQQ", order + "Q") if big else (order + "H", order + "HHII", order + "I")
        )
        waiting.append(struct.unpack_from(link, data, 8 if big else 4)[0])
        while waiting and len(seen) < MOST_DIRECTORIES:
            start = waiting.pop()
            if start in seen or not 0 < start < len(data):
                continue
            seen.add(start)
            count = struct.unpack_from(count_kind, data, start)[0]
            if count > _ENTRIES:
                raise _refusal(name, _ENTRIES, "tags in one directory")
            start += struct.calcsize(count_kind)
            end = start + count * struct.calcsize(entry)
            stored = 0
            for tag, kind, many, value in struct.iter_unpack(entry, data[start:end]):
                stored += many * _SIZES.get(kind, 0)
                if kind in _FRACTION_TYPES:
                    fractions += many
                elif kind not in _RAW_TYPES:
                    numbers += many
                    if many > _NUMBERS_A_TAG and kind in _SIZES:
                        raise _refusal(name, _NUMBERS_A_TAG, "numbers in one tag")
                if tag in _INNER_DIRECTORIES:
                    # A classic TIFF in big-endian order has a short in the upper half; no program writes one.
                    waiting.append(value)
            if stored > len(data) + 8 * _ENTRIES:
                raise _refusal(name, len(data), "bytes in the tags of one directory")
            if numbers > _NUMBERS:
                raise _refusal(name, _NUMBERS, "numbers in its tags")
            if fractions > _FRACTIONS:
                raise _refusal(name, _FRACTIONS, "fractions in its tags")
            waiting.append(struct.unpack_from(link, data, end)[0])
    except struct.error:
        return


def _check_jpeg(data: bytes, name: str) -> None:
    at, segments, scans, junk, exif = 2, 0, 0, 0, bytearray()
    while found := _MARKER.search(data, at):
        # Pillow skips what lies between the segments of the header byte by byte.
        junk += 0 if scans else found.start() - at
        marker, at = data[found.start() + 1], found.end()
        segments += 1
        if marker == _EOI:
            break
        if marker in (_SOI, _TEM):
            continue
        size = int.from_bytes(data[at : at + 2])
        scans += marker == _SOS
        if marker == _APP1 and data[at + 2 : at + 8] == _EXIF:
            exif += data[at + 8 : at + size]
        at += max(2, size)
        if segments > _SEGMENTS or scans > _SCANS or junk > _JUNK:
            break
    if scans > _SCANS:
        raise _refusal(name, _SCANS, "scans")
    if segments > _SEGMENTS:
        raise _refusal(name, _SEGMENTS, "segments")
    if junk > _JUNK:
        raise _refusal(name, _JUNK, "bytes that belong to no segment")
    check_directories(bytes(exif), name)


def _check_chunks(data: bytes, name: str) -> None:
    """Count the chunks of a PNG (size, kind, data, checksum) or a WebP (kind, size, padded data).

    What follows the last one is no part of the picture.
    """
    png = data.startswith(b"\x89PNG")
    at, end = (8, len(data)) if png else (12, min(len(data), 8 + int.from_bytes(data[4:8], "little")))
    count, limit = 0, _CHUNKS + len(data) // _BYTES_A_CHUNK
    while at + 8 <= end:
        first, second = data[at : at + 4], data[at + 4 : at + 8]
        if png:
            at += int.from_bytes(first) + 12
            if second == b"IEND":
                return
        else:
            size = int.from_bytes(second, "little")
            at += 8 + size + size % 2
        count += 1
        if count > limit:
            raise _refusal(name, limit, "chunks")


def _refusal(name: str, limit: int, what: str) -> UnrainError:
    return UnrainError(
        f"{name}: more than {limit:,} {what}, decoding it could take minutes: open it in another program and "
        "save it again"
    )
