"""Damage to bytes, and the way back: the smallest damage with the same effect."""

import struct
import time
import zlib
from itertools import pairwise

_PNG = b"\x89PNG\r\n\x1a\n"
_HOLDERS = (b"moov", b"trak", b"edts", b"mdia", b"minf", b"dinf", b"stbl", b"udta", b"iprp", b"ipco")
_NUMBERS = [
    struct.pack(order + kind, number & mask)
    for kind, mask in (("H", 0xFFFF), ("I", 0xFFFFFFFF), ("Q", 2**64 - 1))
    for order in "<>"
    for number in (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, -1, -2, 1 << 31, 1 << 40)
]


def pieces(data):
    """Cut a file where its format does (PNG, JPEG, RIFF, MP4), another one into blocks."""
    cuts, at = [0], 0
    if data.startswith(_PNG):
        cuts, at = [0, 8], 8
        while at + 12 <= len(data):
            at += 12 + int.from_bytes(data[at : at + 4])
            cuts.append(at)
    elif data.startswith(b"\xff\xd8"):
        cuts, at = [0, 2], 2
        while at + 4 <= len(data) and data[at] == 0xFF:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
            if data[at + 1] == 0xDA:
                while end + 1 < len(data) and (data[end] != 0xFF or data[end + 1] in (0, *range(0xD0, 0xD8))):
                    end += 1
            at = end
            cuts.append(at)
    elif data.startswith(b"RIFF"):
        cuts, at = [0, 12], 12
        while at + 8 <= len(data):
            at += 8 + (int.from_bytes(data[at + 4 : at + 8], "little") + 1) // 2 * 2
            cuts.append(at)
    elif data[4:8] == b"ftyp":
        while at + 8 <= len(data) and (size := int.from_bytes(data[at : at + 4])) >= 8:
            # What holds other boxes is cut between them.
            at += 8 if data[at + 4 : at + 8] in _HOLDERS else size
            cuts.append(at)
    cuts = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    if len(cuts) < 4:
        cuts = [*range(0, len(data), max(16, len(data) // 64)), len(data)]
    return [data[a:b] for a, b in pairwise(cuts)]


def mended(data):
    """Give every chunk of a PNG its right checksum, so that damage gets past it."""
    if not data.startswith(_PNG):
        return data
    out, at = [_PNG], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        body = data[at + 4 : at + 8 + size]
        out.append(data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + size
    return b"".join(out) + data[at:]


def mutant(random, data, others):
    """Damage a file in one to three ways."""
    for _ in range(random.choice((1, 1, 1, 1, 2, 3))):
        data = random.choice(_WAYS)(random, data, others)
    return mended(data) if random.random() < 0.6 else data


def _flip(random, data, others):
    out = bytearray(data)
    for _ in range(random.choice((1, 3, 20))):
        if out:
            out[_place(random, out)] ^= 1 << random.randrange(8)
    return bytes(out)


def _number(random, data, others):
    number = random.choice(_NUMBERS)
    at = _place(random, data) if data else 0
    return data[:at] + number + data[at + len(number) :]


def _cut(random, data, others):
    return data[: random.randrange(len(data) + 1)]


def _cut_out(random, data, others):
    at = random.randrange(len(data) + 1)
    return data[:at] + data[at + random.choice((1, 4, 64, 1000)) :]


def _splice(random, data, others):
    other = random.choice(others)
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


def _noise(random, data, others):
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(random.choice((1, 4, 64, 1000))) + data[at:]


def _shuffle(random, data, others):
    """Repeat, drop, swap or borrow a piece."""
    parts = pieces(data)
    at = random.randrange(len(parts)) if parts else 0
    way = random.randrange(4)
    if way == 0 and parts:
        parts[at:at] = [parts[at]] * random.choice((1, 2, 30))
    elif way == 1:
        del parts[at : at + 1]
    elif way == 2 and parts:
        other = random.randrange(len(parts))
        parts[at], parts[other] = parts[other], parts[at]
    else:
        parts.insert(at, random.choice(pieces(random.choice(others)) or [b""]))
    return b"".join(parts)


_WAYS = (_flip, _number, _number, _cut, _cut_out, _splice, _noise, _shuffle, _shuffle)


def _place(random, data):
    """A place, rather in the first bytes, where headers are."""
    return random.randrange(min(len(data), random.choice((32, 256, len(data)))))


def minimised(data, same, *, tries=60, seconds=40):
    """Delta debugging: leave out pieces, then bytes, as long as the fault stays the same.

    Args:
        data: What fails.
        same: Whether other bytes fail in the same way.
        tries: How often to ask.
        seconds: How long to ask.
    """
    end = time.monotonic() + seconds
    for parts in (pieces(data), None):
        parts = parts or [data[at : at + 1] for at in range(len(data))]
        step = max(1, len(parts) // 2)
        while step:
            at = 0
            while at < len(parts):
                if tries <= 0 or time.monotonic() > end:
                    return b"".join(parts)
                tries -= 1
                fewer = parts[:at] + parts[at + step :]
                if same(b"".join(fewer)):
                    parts = fewer
                else:
                    at += step
            step //= 2
        data = b"".join(parts)
    return data


def culprit(cases, same):
    """Halve some files until one alone gives the fault; all of them if none does."""
    left = list(cases.items())
    while len(left) > 1:
        half = left[: len(left) // 2]
        left = half if same(dict(half)) else left[len(left) // 2 :]
    return dict(left) if len(cases) == 1 or same(dict(left)) else cases
