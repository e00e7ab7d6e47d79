"""Formats that are only read, need an extra, or hold several pictures."""

import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from toys import natural
from toys_formats import DEEP_HEIC, HEIC, dng
from unrain import cli, image
from unrain.errors import UnrainError
from unrain.image.animation import Animation, encode_animation, is_animation


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without(monkeypatch, package):
    """Let a package be missing."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())


def grey_dng(**options):
    """A grey wedge, seen by a camera to which grey is twice as green."""
    ramp = np.tile(np.linspace(500, 50_000, 40), (24, 1))
    mosaic = ramp * 0.5
    mosaic[0::2, 1::2] = ramp[0::2, 1::2]
    mosaic[1::2, 0::2] = ramp[1::2, 0::2]
    return dng(mosaic.astype(np.uint16), **options)


# --------------------------------------------------------------------------------------------------- HEIC


def test_heic_is_turned_once_and_keeps_its_exif(here):
    Path("phone.HEIC").write_bytes(HEIC)
    picture = image.read(Path("phone.HEIC"))
    assert picture.pixels.shape == (64, 48, 3) and picture.format == "JPEG"
    red = picture.pixels[..., 0].astype(int) - picture.pixels[..., 2]
    # The red lights were at the bottom as stored: a quarter turn clockwise brings them to the left.
    assert red[:, :10].mean() > red[:, -10:].mean() + 20
    assert cli.main(["phone.HEIC"]) == 0
    with Image.open("phone_derained.jpg") as result:
        assert result.size == (48, 64) and result.getexif()[0x010F] == "Regen"
        assert result.getexif()[0x0112] == 1


def test_pixels_of_a_heic_are_our_own_memory():
    for data in (HEIC, DEEP_HEIC):
        pixels = image.decode(data, "x").pixels
        # The library frees what it decoded: a view of that would show whatever comes there next.
        assert pixels.flags.owndata and pixels.base is None


def test_heic_of_ten_bits_with_transparency():
    picture = image.decode(DEEP_HEIC, "deep.heic")
    y, x = np.mgrid[:64, :64]
    ramps = np.dstack((x * 1000, y * 1000, (x + y) * 500))
    assert picture.pixels.dtype == np.uint16
    # Where nothing can be seen the encoder is free.
    assert np.abs(picture.pixels[:, :30].astype(int) - ramps[:, :30]).mean() < 400
    assert (picture.alpha[:, :30] == 65535).all() and (picture.alpha[:, 34:] == 0).all()
    back = image.decode(image.encode(picture, "PNG")[0], "x")
    np.testing.assert_array_equal(back.pixels, picture.pixels)


def test_a_heic_that_is_too_large_or_damaged_gets_one_line():
    with pytest.raises(image.TooManyPixelsError, match="48 x 64, more than the limit of 3,000 pixels"):
        image.decode(HEIC, "phone.heic", max_pixels=3000)
    for cut in (40, len(HEIC) // 2, len(HEIC) - 200):
        with pytest.raises(UnrainError, match="phone: damaged") as caught:
            image.decode(HEIC[:cut], "phone")
        assert "\n" not in str(caught.value)


def test_what_is_only_read_is_said_once(here, capsys):
    for name in ("a.heic", "b.heic"):
        Path(name).write_bytes(HEIC)
    said = "unrain: HEIC is only read: 2 results written as .jpg"
    assert cli.main(["a.heic", "b.heic", "--dry-run"]) == 0
    assert said in capsys.readouterr().err.splitlines()
    assert cli.main(["a.heic", "b.heic"]) == 0
    assert capsys.readouterr().err.splitlines().count(said) == 1


def test_a_heic_beside_its_jpeg_gets_another_name(here):
    Path("in").mkdir()
    Path("in/a.HEIC").write_bytes(HEIC)
    Image.fromarray(natural(8, 8)).save("in/a.JPG")
    assert cli.main(["in", "-o", "out"]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["a_derained.JPG", "a_heic_derained.jpg"]


@pytest.mark.parametrize("output", ["x.heic", "x.dng"])
def test_formats_that_are_only_read_are_not_written(here, output, capsys):
    Path("a.heic").write_bytes(HEIC)
    assert cli.main(["a.heic", "-o", output]) == 2
    assert f"{output}: extension {Path(output).suffix}: use one of" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ JPEG XL


def test_jpeg_xl_comes_back_as_it_was(here):
    library = pytest.importorskip("pylibjxl")
    pixels = natural(40, 60)
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Regen", 1
    data = library.encode(pixels, lossless=True, exif=exif.tobytes()[6:])
    picture = image.decode(data, "x.jxl")
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.format == "JXL" and picture.metadata.exif
    Path("a.jxl").write_bytes(data)
    assert cli.main(["a.jxl"]) == 0
    result = image.read(Path("a_derained.jxl"))
    assert result.pixels.shape == pixels.shape
    assert b"Regen" in result.metadata.exif


def test_jpeg_xl_with_transparency_in_grey_and_lossless():
    pytest.importorskip("pylibjxl")
    pixels = natural(20, 30)
    for picture in (
        image.Picture(pixels, alpha=pixels[..., 0].copy()),
        image.Picture(pixels[..., 0].copy(), colour=False),
        image.Picture(pixels),
    ):
        back = image.decode(image.encode(picture, "JXL", quality=100)[0], "x")
        np.testing.assert_array_equal(back.pixels, picture.pixels)
        if picture.alpha is not None:
            np.testing.assert_array_equal(back.alpha, picture.alpha)


def test_a_jpeg_xl_bomb_is_refused_by_its_header(monkeypatch):
    library = pytest.importorskip("pylibjxl")
    data = library.encode(np.zeros((900, 900, 3), np.uint8), effort=1, lossless=True)
    monkeypatch.setattr(library, "decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(image.TooManyPixelsError, match="900 x 900, more than the limit"):
        image.decode(data, "bomb", max_pixels=800_000)


@pytest.mark.parametrize(
    ("package", "name", "data", "extra"),
    [("pylibjxl", "a.jxl", b"\xff\x0a" + bytes(50), "jxl"), ("rawpy", "a.dng", grey_dng(), "raw")],
)
def test_a_missing_extra_is_named(here, monkeypatch, capsys, package, name, data, extra):
    without(monkeypatch, package)
    Path("in").mkdir()
    Path("in", name).write_bytes(data)
    with pytest.raises(UnrainError, match=re.escape(f"pip install 'unrain[{extra}]'")) as caught:
        image.read(Path("in", name))
    assert "\n" not in str(caught.value)
    Image.fromarray(natural(8, 8)).save("in/b.png")
    assert cli.main(["in", "-o", "out"]) == 0
    kind = Path(name).suffix
    said = f"unrain: 1 file left aside ({kind} 1): pip install 'unrain[{extra}]'"
    assert said in capsys.readouterr().err.splitlines()


# ---------------------------------------------------------------------------------------------------- RAW


def test_raw_is_developed_with_the_cameras_white_balance(here):
    pytest.importorskip("rawpy")
    picture = image.decode(grey_dng(), "x.dng")
    assert picture.pixels.dtype == np.uint16 and picture.format == "TIFF"
    inner = (picture.pixels if picture.pixels.ndim == 3 else picture.pixels[..., None]).astype(int)[
        2:-2, 2:-2
    ]
    assert (inner.max(axis=2) - inner.min(axis=2)).max() < 0.02 * 65535
    assert (np.diff(inner.mean(axis=(0, 2))) > 0).all()


def test_raw_becomes_an_upright_tiff_of_16_bits(here):
    pytest.importorskip("rawpy")
    Path("photo.dng").write_bytes(grey_dng(orientation=6))
    assert cli.main(["photo.dng"]) == 0
    result = image.read(Path("photo_derained.tif"))
    assert result.pixels.shape[:2] == (40, 24) and result.pixels.dtype == np.uint16
    with Image.open("photo_derained.tif") as file:
        assert file.getexif()[0x010F] == "Regen" and file.getexif().get(0x0112, 1) == 1
    with pytest.raises(image.TooManyPixelsError, match="40 x 24, more than the limit of 900 pixels"):
        image.read(Path("photo.dng"), max_pixels=900)


# ---------------------------------------------------------------------------------------------- animations


def frames(count=4, *, alpha=False):
    """Frames that differ, of few colours, so that a GIF holds them as they are."""
    found = []
    for number in range(count):
        pixels = np.zeros((24, 32, 3), np.uint8)
        pixels[:, : 4 + 5 * number] = (250, 10 * number, 30)
        opaque = np.where(np.arange(32) < 20, 255, 0).astype(np.uint8)[None].repeat(24, 0) if alpha else None
        found.append((pixels, opaque))
    return found


def animation(kind, **options):
    alpha = options.pop("alpha", False)
    return encode_animation(frames(alpha=alpha), [40, 120, 80, 200], kind, **options)


def read_back(path):
    with Image.open(path) as file:
        shown = []
        for number in range(file.n_frames):
            file.seek(number)
            shown.append((np.asarray(file.convert("RGBA")), file.info["duration"]))
        return shown, file.info.get("loop"), file.format


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".gif", "GIF"), (".webp", "WEBP"), (".png", "PNG"), (".apng", "PNG")]
)
@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "transparent"])
def test_an_animation_comes_back_as_what_it_was(here, suffix, kind, alpha):
    source = Path(f"film{suffix}")
    source.write_bytes(animation(kind, alpha=alpha, loop=3))
    assert cli.main([str(source), "--strength", "0", "--quality", "100"]) == 0
    before, _, _ = read_back(source)
    shown, loop, found = read_back(f"film_derained{suffix}")
    assert found == kind and loop == 3
    assert [duration for _, duration in shown] == [40, 120, 80, 200]
    for (one, _), (other, _) in zip(before, shown, strict=True):
        np.testing.assert_array_equal(one[..., 3], other[..., 3])
        seen = one[..., 3] > 0
        assert np.abs(one[seen].astype(int) - other[seen]).mean() <= (3 if kind == "WEBP" else 0)


def test_animations_are_told_from_pictures(here):
    still = Image.fromarray(natural(20, 20))
    known = {}
    for name, kind in (("a.webp", "WEBP"), ("b.png", "PNG")):
        still.save(name)
        known[name] = False
        Path(f"m{name}").write_bytes(animation(kind))
        known[f"m{name}"] = True
    still.convert("P").save("c.gif")
    Path("d.jpg").write_bytes(animation("GIF"))
    Path("e.png").write_bytes(animation("GIF"))
    Path("f.webp").write_bytes(b"RIFF")
    known |= {"c.gif": True, "d.jpg": False, "e.png": True, "f.webp": False, "gone.png": False}
    assert {name: is_animation(Path(name)) for name in known} == known
    with pytest.raises(
        UnrainError, match=r"d\.jpg: a GIF, which is taken as a file whose name ends in \.gif"
    ):
        image.read(Path("d.jpg"))
    with pytest.raises(UnrainError, match="an animation, which is taken as a file only"):
        image.decode(animation("WEBP"), "upload.webp")


def test_an_animation_goes_through_the_network_and_the_median(here, capsys):
    Path("film.gif").write_bytes(animation("GIF"))
    assert cli.main(["film.gif", "-o", "clear.webp", "--no-neighbours"]) == 0
    assert "film.gif -> clear.webp" in capsys.readouterr().err
    shown, _, kind = read_back("clear.webp")
    assert kind == "WEBP" and len(shown) == 4
    for options in (["--crf", "20"], ["-o", "x.mp4"], ["--start", "1"]):
        assert cli.main(["film.gif", *options]) == 2


def test_an_animation_too_large_as_a_whole_is_refused(here):
    Path("film.gif").write_bytes(animation("GIF"))
    with pytest.raises(image.TooManyPixelsError, match="4 of 32 x 24, more than the limit of 3,000 pixels"):
        Animation(Path("film.gif"), 3000)
    assert Animation(Path("film.gif"), 3072).total == 4


def test_a_truncated_animation_is_written_as_far_as_it_goes(here, capsys):
    noise = [(natural(60, 80, number), None) for number in range(5)]
    data = encode_animation(noise, [100] * 5, "PNG")
    Path("film.png").write_bytes(data[: len(data) * 3 // 5])
    assert cli.main(["film.png"]) == 1
    error = capsys.readouterr().err
    assert "cannot be read beyond frame" in error and "holds what was done" in error
    shown, _, _ = read_back("film_derained.png")
    assert 1 <= len(shown) < 5
    Path("none.gif").write_bytes(b"GIF89a" + bytes(4))
    assert cli.main(["none.gif"]) == 1
    assert not Path("none_derained.gif").exists()


# --------------------------------------------------------------------------------------------------- pages


def pages_of(data):
    with Image.open(io.BytesIO(data)) as file:
        found = []
        for number in range(file.n_frames):
            file.seek(number)
            found.append((np.asarray(file), dict(file.tag_v2)))
        return found


def test_a_tiff_is_derained_page_by_page(here):
    first, second = Image.fromarray(natural(20, 30)), Image.fromarray(natural(16, 12)).convert("L")
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[271] = "Regen"
    first.save("scan.tif", save_all=True, append_images=[second], tiffinfo=tags)
    assert cli.main(["scan.tif", "--strength", "0"]) == 0
    (one, known), (other, _) = pages_of(Path("scan_derained.tif").read_bytes())
    np.testing.assert_array_equal(one, np.asarray(first))
    np.testing.assert_array_equal(other, np.asarray(second))
    assert known[271] == "Regen"
    with pytest.raises(UnrainError, match="a TIFF of 2 pages, which `unrain FILE` takes page by page"):
        image.read(Path("scan.tif"))
    assert cli.main(["scan.tif", "-o", "scan.png"]) == 1


def test_pages_of_16_bits_with_exif_are_kept():
    deep = natural(9, 7).astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x010F] = "Regen"
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0wet"
    one = image.Picture(deep, format="TIFF", metadata=image.Metadata(exif=exif.tobytes()[6:]))
    two = replace(one, pixels=deep[::-1].copy(), alpha=deep[..., 0].copy())
    data, _ = image.encode(replace(one, further=(two, one)), "TIFF")
    back = image.decode(data, "x", pages=True)
    assert len(back.further) == 2
    for written, read in zip((one, two, one), (back, *back.further), strict=True):
        np.testing.assert_array_equal(written.pixels, read.pixels)
        with Image.open(io.BytesIO(image.encode(replace(read, further=()), "TIFF")[0])) as file:
            assert file.getexif()[0x010F] == "Regen"
            assert file.getexif().get_ifd(0x8769)[0x9286] == b"ASCII\0\0\0wet"
    np.testing.assert_array_equal(back.further[0].alpha, two.alpha)
    with pytest.raises(image.TooManyPixelsError, match="2 pages, more than the limit of 100 pixels"):
        image.decode(data, "x", max_pixels=100, pages=True)
