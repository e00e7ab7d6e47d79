"""Files of far too many parts are refused before anything decodes them; what programs write is not."""

import io
import random
import re
import struct
import subprocess
import sys

import pytest
from PIL import Image

import toys_bombs as bombs
from toys import ROOT
from unrain import image
from unrain.errors import UnrainError
from unrain.image import structure
from unrain.image.metadata import xmp_without_thumbnails

BIG = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1) + struct.pack("<HHQQ", 60000, 3, 200_001, 44) + bytes(8)

REFUSED = {
    "scans": (lambda: bombs.scans(201), "more than 200 scans"),
    "segments": (lambda: bombs.segments(10_001), "more than 10,000 segments"),
    "fill": (lambda: bombs.fill(65_600), "more than 65,536 bytes that belong to no segment"),
    "fractions": (lambda: bombs.fractions(10_001), "more than 10,000 fractions in its tags"),
    "shorts": (lambda: bombs.shorts(200_001), "more than 200,000 numbers in one tag"),
    "many numbers": (
        lambda: bombs.tiff(*((tag, 3, 190_000, 264) for tag in range(60_000, 60_006)), body=bytes(3_000_000)),
        "more than 1,000,000 numbers in its tags",
    ),
    "BigTIFF": (lambda: BIG + bytes(500_000), "more than 200,000 numbers in one tag"),
    "tags": (
        lambda: bombs.tiff(*((tag, 1, 1, 0) for tag in range(1000, 6000))),
        "more than 4,096 tags in one directory",
    ),
    "one value for many tags": (
        lambda: bombs.tiff(*((tag, 7, 500_000, 8) for tag in range(1000, 1010)), body=bytes(500_000)),
        "bytes in the tags of one directory",
    ),
    "chunks": (lambda: bombs.png(bombs.chunk(b"tIME", b"") * 10_200), "more than 10,"),
    "chunks of pixels": (lambda: bombs.png(last=bombs.chunk(b"IDAT", b"") * 10_200), "more than 10,"),
    "WebP": (lambda: bombs.riff(10_200), "more than 10,"),
    "EXIF in a PNG": (
        lambda: bombs.png(bombs.chunk(b"eXIf", bombs.exif_fractions(10_001))),
        "more than 10,000 fractions",
    ),
    "EXIF in a JPEG": (lambda: bombs.in_app1(bombs.exif_fractions(10_001)), "more than 10,000 fractions"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_of_too_many_parts_is_refused_before_it_is_decoded(monkeypatch, kind):
    make, reason = REFUSED[kind]
    if "PNG" not in kind:
        monkeypatch.setattr(sys.modules["unrain.image.decode"], "_open", None)
    with pytest.raises(UnrainError, match=re.escape("photo.bin: more than ")) as caught:
        image.decode(make(), "photo.bin")
    assert reason in str(caught.value)
    assert str(caught.value).endswith(
        "decoding it could take minutes: open it in another program and save it again"
    )


DECODED = {
    "scans": lambda: bombs.scans(200),
    "segments": lambda: bombs.segments(9_000),
    "fill": lambda: bombs.fill(65_000),
    "fractions": lambda: bombs.fractions(9_000),
    "shorts": lambda: bombs.shorts(196_608),
    "one profile for all": lambda: bombs.tiff((34675, 7, 500_000, 264), body=bytes(500_000)),
    "chunks": lambda: bombs.png(bombs.chunk(b"tIME", b"") * 9_000),
    "chunks of pixels": lambda: bombs.png(last=bombs.chunk(b"IDAT", b"") * 9_000),
    "WebP": lambda: bombs.riff(9_000),
    "zeros after a PNG": lambda: bombs.png() + bytes(500_000),
    "zeros after a WebP": lambda: bombs.riff(1) + bytes(500_000),
    "zeros after a JPEG": lambda: bombs.jpeg() + b"\xff\xfe\0\2" * 20_000,
    "EXIF": lambda: bombs.in_app1(bombs.exif_fractions(7_000)),
    "progressive": lambda: bombs.jpeg(progressive=True),
}


@pytest.mark.parametrize("kind", DECODED)
def test_what_is_within_the_limits_is_decoded(kind):
    assert max(image.decode(DECODED[kind](), "photo.bin").pixels.shape) in (16, 64)


def test_directories_in_a_circle_end():
    data = bytearray(bombs.tiff())
    data[-4:] = data[4:8]
    structure.check(bytes(data), "circle.tif")


def test_every_beginning_of_a_file_is_left_to_the_decoder():
    for whole in (bombs.scans(12), bombs.tiff(), bombs.png(), bombs.riff(3)):
        for end in range(0, len(whole), 7):
            structure.check(whole[:end], "cut")


def test_thumbnails_are_taken_out_of_xmp_as_a_plain_expression_says():
    plain = re.compile(rb"<(xmp|xap):Thumbnails\b[^>]*(?<!/)>.*?</\1:Thumbnails>", re.DOTALL)
    pieces = [
        b"<xmp:Thumbnails",
        b"<xap:Thumbnails ",
        b">",
        b"/>",
        b"</xmp:Thumbnails>",
        b"</xap:Thumbnails>",
        b"a",
    ]
    draw = random.Random(0)
    for _ in range(3000):
        packet = b"".join(draw.choices(pieces, k=draw.randrange(14)))
        assert xmp_without_thumbnails(packet) == plain.sub(b"", packet), packet


@pytest.mark.parametrize("piece", ["<xmp:Thumbnails>", "<xmp:Thumbnails "])
def test_unclosed_thumbnails_in_xmp_do_not_take_minutes(piece):
    code = f"from unrain.image.metadata import upright_xmp; upright_xmp(b'{piece}' * 200_000)"
    # A watchdog: it took hours.
    subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "src")}, timeout=60, check=True
    )


@pytest.mark.parametrize("kind", ["EPS", "PPM", "TGA", "PCX", "SGI"])
def test_decoders_of_other_formats_are_never_reached(monkeypatch, kind):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 100, 200)).save(buffer, kind)
    monkeypatch.setitem(Image.OPEN, kind, (lambda *_: pytest.fail("was decoded"), lambda _: True))
    with pytest.raises(UnrainError, match=r"photo\.bin: no picture in JPEG, PNG"):
        image.decode(buffer.getvalue(), "photo.bin")
