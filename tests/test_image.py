"""Files to arrays and back: nothing that a picture holds may be lost or changed on the way."""

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin

from toys import png_of
from unrain import image
from unrain.errors import UnrainError
from unrain.image import Metadata, Picture
from unrain.image.raw import RAW_SUFFIXES

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def saved(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def again(picture, kind="PNG", **options):
    """Write a picture and read it back."""
    return image.decode(image.encode(picture, kind, **options)[0], "again")


def exif_block(orientation, width=70, height=40):
    """EXIF as a camera writes it: big-endian, an inner directory, a maker note, a thumbnail."""
    inner_at, note_at, thumbnail_at = 100, 160, 200
    outer = [
        (0x010F, 2, 4, b"Cam\0"),
        (0x0112, 3, 1, struct.pack(">HH", orientation, 0)),
        (0x8769, 4, 1, struct.pack(">I", inner_at)),
    ]
    inner = [
        (0x927C, 7, 6, struct.pack(">I", note_at)),
        (0xA002, 4, 1, struct.pack(">I", width)),
        (0xA003, 4, 1, struct.pack(">I", height)),
    ]
    block = bytearray(240)
    block[:8] = b"MM\0*" + struct.pack(">I", 8)
    for at, entries, following in ((8, outer, thumbnail_at), (inner_at, inner, 0)):
        body = b"".join(struct.pack(">HHI", tag, kind, count) + value for tag, kind, count, value in entries)
        body = struct.pack(">H", len(entries)) + body + struct.pack(">I", following)
        block[at : at + len(body)] = body
    block[note_at : note_at + 6] = b"secret"
    return bytes(block)


# ----------------------------------------------------------------------------------------- depth and alpha

pictures = st.builds(
    lambda size, dtype, colour, alpha, seed: Picture(
        noise(*size, *((3,) if colour else ()), dtype=dtype, seed=seed),
        noise(*size, dtype=dtype, seed=seed + 1) if alpha else None,
        colour=colour,
    ),
    size=st.tuples(st.integers(1, 40), st.integers(2, 40)),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    colour=st.booleans(),
    alpha=st.booleans(),
    seed=st.integers(0, 1000),
)


@settings(deadline=None, max_examples=80)
@given(pictures, st.sampled_from(["PNG", "TIFF"]), st.booleans())
def test_depth_alpha_and_every_sample_survive(picture, kind, compressed):
    back = again(replace(picture, metadata=Metadata(compressed=compressed)), kind)
    np.testing.assert_array_equal(back.pixels, picture.pixels)
    assert back.pixels.dtype == picture.pixels.dtype
    assert (back.alpha is None) == (picture.alpha is None)
    if picture.alpha is not None:
        np.testing.assert_array_equal(back.alpha, picture.alpha)
    assert back.notes == ()


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.uint16, st.tuples(st.integers(1, 140), st.integers(1, 9), st.sampled_from([3, 4]))))
def test_the_png_filters_are_what_the_standard_says(channels):
    # Pillow undoes the filters: more than one block of rows, extreme differences, narrow pictures.
    picture = Picture(channels[..., :3], channels[..., 3] if channels.shape[2] == 4 else None)
    back = again(picture)
    np.testing.assert_array_equal(back.channels, picture.channels)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("shape", [(31, 17), (31, 17, 3), (31, 17, 4)])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
def test_16_bit_tiffs_of_another_writer(tmp_path, order, shape, options):
    tifffile = pytest.importorskip("tifffile")
    channels = noise(*shape, dtype=np.uint16)
    extra = {"extrasamples": ["unassalpha"]} if shape[2:] == (4,) else {}
    photometric = "rgb" if len(shape) == 3 else "minisblack"
    path = tmp_path / "picture.tif"
    tifffile.imwrite(path, channels, byteorder=order, photometric=photometric, **options, **extra)
    np.testing.assert_array_equal(image.read(path).channels, channels)


def test_16_bit_tiff_for_another_reader(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    channels = noise(300, 200, 4, dtype=np.uint16)
    path = tmp_path / "picture.tif"
    path.write_bytes(image.encode(Picture(channels[..., :3], channels[..., 3]), "TIFF")[0])
    with tifffile.TiffFile(path) as file:
        np.testing.assert_array_equal(file.asarray(), channels)
        assert file.pages[0].extrasamples == (tifffile.EXTRASAMPLE.UNASSALPHA,)


def test_16_bit_tiff_with_premultiplied_alpha(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    colour = np.full((4, 4, 3), 40000, np.uint16)
    alpha = np.array([65535, 32768, 16384, 1000], np.uint16)[None].repeat(4, axis=0)
    stored = np.dstack(((colour * (alpha[..., None] / 65535)).round().astype(np.uint16), alpha))
    path = tmp_path / "picture.tif"
    tifffile.imwrite(path, stored, photometric="rgb", extrasamples=["assocalpha"])
    back = image.read(path)
    np.testing.assert_allclose(back.channels[..., :3].astype(int), 40000, atol=40)
    np.testing.assert_array_equal(back.alpha, alpha)


def test_white_is_zero(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    grey = noise(5, 6, dtype=np.uint16)
    path = tmp_path / "picture.tif"
    tifffile.imwrite(path, grey, photometric="miniswhite")
    np.testing.assert_array_equal(image.read(path).pixels, 65535 - grey)


def test_16_bit_planes_are_refused_rather_than_misread(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "picture.tif"
    planes = noise(3, 16, 20, dtype=np.uint16)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", compression="zlib")
    with pytest.raises(UnrainError, match=r"picture\.tif: 16-bit channels in separate planes"):
        image.read(path)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "AVIF"])
def test_formats_of_8_bits_say_what_they_reduce(kind):
    deep = Picture(np.full((16, 16, 3), [60000, 30000, 128], np.uint16))
    data, notes = image.encode(deep, kind)
    assert any("16 are reduced to 8" in note for note in notes)
    np.testing.assert_allclose(
        image.decode(data, "x").pixels.astype(int), np.full((16, 16, 3), [233, 117, 0]), atol=3
    )


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "BMP"])
def test_alpha_survives_in_8_bits(kind):
    alpha = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    back = again(Picture(np.full((32, 32, 3), [200, 100, 50], np.uint8), alpha), kind)
    np.testing.assert_allclose(back.alpha.astype(int), alpha, atol=2)


def test_jpeg_lays_transparency_on_white():
    data, notes = image.encode(
        Picture(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), colour=True), "JPEG"
    )
    assert any("laid on white" in note for note in notes)
    assert image.decode(data, "x").pixels.min() > 250


# --------------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
def test_grey_stays_grey(kind):
    source = image.decode(saved(Image.fromarray(noise(20, 30)), kind), "x")
    assert source.pixels.ndim == 2
    with Image.open(io.BytesIO(image.encode(source, kind)[0])) as back:
        assert back.mode == "L"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_grey_in_three_channels_is_worked_on_as_grey(kind):
    grey = Image.fromarray(noise(20, 30)).convert("RGB")
    source = image.decode(saved(grey, kind, lossless=True), "x")
    assert source.pixels.ndim == 2
    with Image.open(io.BytesIO(image.encode(source, kind)[0])) as back:
        assert back.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(back), np.asarray(grey))


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128, 255])])
def test_palette_becomes_colour(transparency):
    picture = Image.new("P", (3, 2))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putdata([0, 1, 2, 2, 1, 0])
    options = {} if transparency is None else {"transparency": transparency}
    back = image.decode(saved(picture, "PNG", **options), "x")
    np.testing.assert_array_equal(back.pixels[0], np.diag([255, 255, 255]))
    expected = {None: None, 0: [0, 255, 255]}.get(transparency, [0, 128, 255])
    assert (back.alpha is None) if expected is None else (back.alpha[0].tolist() == expected)


@pytest.mark.parametrize(
    ("mode", "fill", "key"),
    [("L", 9, 9), ("RGB", (1, 2, 3), (1, 2, 3)), ("1", 255, 1), ("I;16", 300, 300)],
)
def test_a_transparent_colour_becomes_alpha(mode, fill, key):
    picture = Image.new(mode, (4, 2), fill)
    picture.putpixel((0, 0), (9, 9, 9) if mode == "RGB" else 0)
    back = image.decode(saved(picture, "PNG", transparency=key), "x")
    full = np.iinfo(back.pixels.dtype).max
    assert back.alpha.tolist() == [[full, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(again(back).channels, back.channels)


def test_one_bit_becomes_grey():
    back = image.decode(saved(Image.fromarray(noise(8, 8) > 99), "PNG"), "x")
    assert back.pixels.ndim == 2
    assert set(np.unique(back.pixels)) <= {0, 255}


def test_cmyk_becomes_rgb_and_says_so():
    source = image.decode(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), "x")
    assert source.notes == ("CMYK is converted to RGB",)
    np.testing.assert_allclose(source.pixels[0, 0].astype(int), [255, 0, 0], atol=12)
    with Image.open(io.BytesIO(image.encode(source, "JPEG")[0])) as back:
        assert back.mode == "RGB"


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_samples_are_refused(mode):
    with pytest.raises(UnrainError, match="convert it to 8 or 16 bits"):
        image.decode(saved(Image.new(mode, (4, 4)), "TIFF"), "x.tif")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("PNG", "an animation, which is taken as a file only"),
        ("WEBP", "an animation, which is taken as a file only"),
        ("TIFF", "a TIFF of 3 pages"),
        ("AVIF", "holds 3 pictures.*split it"),
    ],
)
def test_animations_and_pages_are_refused(kind, message):
    frames = [Image.fromarray(noise(16, 16, 3, seed=i)) for i in range(3)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(UnrainError, match=f"film: {message}"):
        image.decode(data, "film")


def test_a_tiff_with_a_thumbnail_is_one_picture():
    small = Image.fromarray(noise(4, 4, 3))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    data = saved(Image.fromarray(noise(16, 16, 3)), "TIFF", save_all=True, append_images=[small])
    assert image.decode(data, "x").pixels.shape == (16, 16, 3)


def test_a_phone_s_jpeg_of_several_pictures_is_a_jpeg():
    frames = [Image.fromarray(noise(16, 16, 3, seed=i)) for i in range(2)]
    back = image.decode(saved(frames[0], "MPO", save_all=True, append_images=frames[1:]), "x")
    assert back.format == "JPEG"
    assert back.metadata.tables
    assert "only the main one" in back.notes[0]


# ------------------------------------------------------------------------------------------------ metadata


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_exif_turn_is_applied_once(kind, orientation):
    corners = np.zeros((40, 70, 3), np.uint8)
    corners[:20, :35], corners[:20, 35:], corners[20:, :35] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Cam"
    data = saved(Image.fromarray(corners), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)
    once = image.decode(data, "x")
    np.testing.assert_allclose(once.pixels.astype(int), expected, atol=1)
    written = image.encode(once, kind)[0]
    with Image.open(io.BytesIO(written)) as back:
        assert back.getexif().get(0x0112, 1) == 1
        assert back.getexif()[0x010F] == "Cam"
    assert np.abs(image.decode(written, "x").pixels - expected).mean() < 5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_stays_byte_for_byte_where_it_may(kind):
    data = saved(Image.fromarray(noise(40, 70, 3)), kind, exif=b"Exif\0\0" + exif_block(6))
    source = image.decode(data, "x")
    with Image.open(io.BytesIO(image.encode(source, kind)[0])) as back:
        block = back.info["exif"].removeprefix(b"Exif\0\0")
        inner = back.getexif().get_ifd(0x8769)
    # Upright, sides swapped, no link to the thumbnail; the maker note stays at its place.
    changed = exif_block(1, width=40, height=70).replace(struct.pack(">I", 200), bytes(4))
    assert block == changed
    assert (inner[0xA002], inner[0xA003], inner[0x927C]) == (40, 70, b"secret")


@pytest.mark.parametrize("source_kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_profile_exif_and_xmp_go_from_any_format_to_any(source_kind, kind):
    exif = Image.Exif()
    exif[0x013B] = "Somebody"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    options = {"exif": exif, "icc_profile": SRGB}
    if source_kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif source_kind == "TIFF":
        exif[700] = xmp
        # Pillow writes the inner directories only of EXIF that was read.
        options["exif"] = Image.Exif()
        options["exif"].load(exif.tobytes())
    else:
        options["xmp"] = xmp
    source = image.decode(saved(Image.fromarray(noise(20, 30, 3)), source_kind, **options), "x")
    assert source.pixels.shape == (30, 20, 3)
    data, notes = image.encode(source, kind)
    assert notes == ()
    with Image.open(io.BytesIO(data)) as back:
        # Not loaded: loading a TIFF, Pillow takes the orientation out of its XMP.
        found = (
            back.info.get("xmp") or back.getexif().get(700) or back.info.get("XML:com.adobe.xmp", "").encode()
        )
        assert back.info["icc_profile"] == SRGB
        assert back.getexif()[0x013B] == "Somebody"
        assert back.getexif().get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"
        assert found.replace(b'"1"', b'"6"') == xmp
        assert b'"1"' in found


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resolution_survives(kind, dtype):
    picture = Picture(noise(9, 9, 3, dtype=dtype), metadata=Metadata(dpi=(300.0, 150.0)))
    assert again(picture, kind).metadata.dpi == pytest.approx((300, 150), abs=0.1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_text_and_gamma_survive(dtype):
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "me")
    info.add_text("Long", "story " * 100, zip=True)
    info.add(b"gAMA", struct.pack(">I", 45455))
    source = image.decode(saved(Image.fromarray(noise(9, 9, 3)), "PNG", pnginfo=info), "x")
    data = image.encode(replace(source, pixels=source.pixels.astype(dtype)), "PNG")[0]
    with Image.open(io.BytesIO(data)) as back:
        assert back.text == {"Author": "me", "Long": "story " * 100}
        assert back.info["gamma"] == pytest.approx(0.45455)


def test_exif_as_text_is_turned_too():
    # ImageMagick's way to put EXIF into a PNG.
    block = b"Exif\0\0" + exif_block(6)
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n", zip=True)
    source = image.decode(saved(Image.fromarray(noise(40, 70, 3)), "PNG", pnginfo=info), "x")
    assert source.pixels.shape == (70, 40, 3)
    with Image.open(io.BytesIO(image.encode(source, "PNG")[0])) as back:
        assert ImageOps.exif_transpose(back).size == back.size == (40, 70)


def test_a_jpeg_keeps_its_own_quality():
    data = saved(
        Image.fromarray(noise(64, 64, 3)),
        "JPEG",
        quality=63,
        subsampling=1,
        progressive=True,
        comment=b"hello",
    )
    before, after = (
        Image.open(io.BytesIO(data)),
        Image.open(io.BytesIO(image.encode(image.decode(data, "x"), "JPEG")[0])),
    )
    assert after.quantization == before.quantization
    assert [layer[1:3] for layer in after.layer] == [layer[1:3] for layer in before.layer]
    assert after.info["progressive"]
    assert after.info["comment"] == b"hello"
    coarse = Image.open(io.BytesIO(image.encode(image.decode(data, "x"), "JPEG", quality=20)[0]))
    assert sum(coarse.quantization[0]) > sum(before.quantization[0])


def test_iptc_survives():
    payload = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x09\x1c\x02\x78\0\x04rain\0"
    segment = b"\xff\xed" + struct.pack(">H", len(payload) + 2) + payload
    data = saved(Image.fromarray(noise(16, 16, 3)), "JPEG", extra=segment)
    with Image.open(io.BytesIO(image.encode(image.decode(data, "x"), "JPEG")[0])) as back:
        assert ("APP13", payload) in back.applist


def test_what_is_too_long_for_a_jpeg_is_left_out_and_said():
    known = Metadata(exif=exif_block(1) + bytes(70_000), xmp=b"x" * 70_000)
    data, notes = image.encode(Picture(noise(8, 8, 3), metadata=known), "JPEG")
    assert notes == ("EXIF is too long for JPEG and left out", "XMP is too long for JPEG and left out")
    assert "exif" not in Image.open(io.BytesIO(data)).info


def test_lossless_webp_stays_lossless():
    pixels = noise(20, 30, 3)
    source = image.decode(saved(Image.fromarray(pixels), "WEBP", lossless=True, exif=exif_block(1)), "x")
    assert source.metadata.lossless
    np.testing.assert_array_equal(again(source, "WEBP").pixels, pixels)
    assert not image.decode(saved(Image.fromarray(pixels), "WEBP"), "x").metadata.lossless


# ---------------------------------------------------------------------------------------------- thumbnails

THUMBNAIL = saved(Image.new("RGB", (16, 8), (1, 200, 3)), "JPEG")


def exif_with_thumbnail():
    """The camera's block with a second directory, and the thumbnail that this links to."""
    block = bytearray(exif_block(1))
    at = len(block)
    links = [(0x0201, at), (0x0202, len(THUMBNAIL))]
    body = struct.pack(">H", len(links))
    body += b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in links)
    block[200 : 200 + len(body) + 4] = body + bytes(4)
    return bytes(block) + THUMBNAIL


def resources(*numbers):
    """Photoshop's image resources of some numbers."""
    padded = THUMBNAIL + bytes(len(THUMBNAIL) % 2)
    return b"".join(
        b"8BIM" + struct.pack(">H", number) + b"\0\0" + struct.pack(">I", len(THUMBNAIL)) + padded
        for number in numbers
    )


def has_thumbnail(data):
    with Image.open(io.BytesIO(data)) as back:
        exif = back.getexif()
    return bool(exif.get_ifd(ExifTags.IFD.IFD1)) or THUMBNAIL in data or THUMBNAIL[:200] in data


@pytest.mark.parametrize("source_kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_no_thumbnail_in_exif_survives(source_kind, kind):
    data = saved(Image.fromarray(noise(40, 70, 3)), source_kind, exif=b"Exif\0\0" + exif_with_thumbnail())
    written = image.encode(image.decode(data, "x"), kind)[0]
    assert not has_thumbnail(written)
    with Image.open(io.BytesIO(written)) as back:
        assert back.getexif()[0x010F] == "Cam"


def test_nor_through_pillow():
    data = saved(Image.fromarray(noise(40, 70, 3)), "JPEG", exif=b"Exif\0\0" + exif_with_thumbnail())
    assert has_thumbnail(data)
    back = image.to_pil(image.from_pil(Image.open(io.BytesIO(data))))
    assert THUMBNAIL not in back.info["exif"]
    assert not back.getexif().get_ifd(ExifTags.IFD.IFD1)


def test_thumbnails_of_photoshop_are_left_out():
    payload = b"Photoshop 3.0\0" + resources(1033, 1028, 1036)
    segment = b"\xff\xed" + struct.pack(">H", len(payload) + 2) + payload
    data = saved(Image.fromarray(noise(16, 16, 3)), "JPEG", extra=segment)
    assert image.decode(data, "x").metadata.iptc == b"Photoshop 3.0\0" + resources(1028)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[34377] = 7
    tags[34377] = resources(1036, 1028)
    data = saved(Image.fromarray(noise(16, 16, 3)), "TIFF", tiffinfo=tags)
    with Image.open(io.BytesIO(image.encode(image.decode(data, "x"), "TIFF")[0])) as back:
        assert back.tag_v2[34377] == resources(1028)


def test_thumbnails_in_xmp_are_left_out():
    xmp = b"<x:xmpmeta><xmp:Rating>3</xmp:Rating>%s</x:xmpmeta>"
    thumbnail = b"<xmp:Thumbnails><rdf:Alt><rdf:li>\n/9j/4AAQ</rdf:li></rdf:Alt></xmp:Thumbnails>"
    data = saved(Image.fromarray(noise(16, 16, 3)), "WEBP", xmp=xmp % thumbnail)
    assert image.decode(data, "x").metadata.xmp == xmp % b""
    assert image.from_pil(Image.open(io.BytesIO(data))).metadata.xmp == xmp % b""


# ---------------------------------------------------------------------------------------------------- RAW


def tiff_with(tags, order="<", head=b""):
    """A TIFF whose thumbnail Pillow can decode, with tags besides: what a camera's RAW file looks like."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0" if order == "<" else b"MM\0*\0\0\0\0")
    layout = {256: 4, 257: 3, 258: (8, 8, 8), 259: 1, 262: 2, 273: 0, 277: 3, 278: 3, 279: 36}
    for tag, value in (layout | tags).items():
        if tag in (273, 279, 330):
            directory.tagtype[tag] = 4
        elif tag == 50706:
            directory.tagtype[tag] = 1
        directory[tag] = value
    out = io.BytesIO()
    directory.save(out)
    return out.getvalue() + bytes(36)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "tags",
    [{50706: b"\1\4\0\0"}, {262: 32803, 258: (8,), 277: 1, 279: 12}, {262: 34892}, {254: 1, 330: (8, 9)}],
    ids=["DNG version", "filter array", "linear RAW", "thumbnail first"],
)
def test_raw_files_are_refused_by_their_tags(tags, order):
    with pytest.raises(UnrainError, match=r"real\.tif: a camera's RAW file.*, (or )?develop it to JPEG"):
        image.decode(tiff_with(tags, order), "real.tif")


@pytest.mark.parametrize("tags", [{}, {254: 0, 330: (8, 9)}, {254: 1}])
def test_other_tiffs_are_not_taken_for_raw(tags):
    assert image.decode(tiff_with(tags), "scan.tif").pixels.shape[:2] == (3, 4)


@pytest.mark.parametrize("suffix", sorted(RAW_SUFFIXES))
def test_raw_files_are_refused_by_their_names(suffix):
    with pytest.raises(UnrainError, match="a camera's RAW file"):
        image.decode(tiff_with({}), f"real{suffix.upper()}")


@pytest.mark.parametrize(
    "head",
    [
        *(b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW 0201", b"FOVb", b"\0MRM"),
        *(b"\0\0\0\x18ftypcrx ", b"II*\0\x10\0\0\0CR\2\0", b"II\x1a\0\0\0HEAPCCDR"),
    ],
)
def test_raw_files_are_refused_by_their_first_bytes(head):
    with pytest.raises(UnrainError, match="a camera's RAW file"):
        image.decode(head + bytes(100), "upload")


# ---------------------------------------------------------------------------------------------- bad input


def test_missing_empty_and_foreign_files(tmp_path):
    for name, content, message in (
        ("empty.jpg", b"", "the file is empty, get it again"),
        (
            "text.png",
            b"hello, this is text\n" * 50,
            "no picture in JPEG, PNG, WebP, TIFF, BMP, AVIF, HEIC, JPEG XL or RAW",
        ),
        ("film.gif", saved(Image.new("L", (4, 4)), "GIF"), "a GIF, which is taken as a file"),
        ("head.png", b"\x89PNG\r\n\x1a\nrubbish", "damaged or of a rare kind"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnrainError) as caught:
            image.read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")
        assert "\n" not in str(caught.value)
    with pytest.raises(UnrainError, match=r"gone\.jpg: no such file, check the name"):
        image.read(tmp_path / "gone.jpg")
    with pytest.raises(UnrainError, match="a folder, name a file"):
        image.read(tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF"])
def test_truncated_files(kind):
    data = saved(Image.fromarray(noise(64, 64, 3)), kind)
    with pytest.raises(UnrainError, match="half: damaged"):
        image.decode(data[: len(data) // 2], "half")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damage_gives_a_picture_or_one_line(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]))
    content = bytearray(saved(Image.fromarray(noise(16, 16, 3)), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        picture = image.decode(bytes(content), "x", max_pixels=100_000)
        image.encode(picture, "TIFF")
    except UnrainError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("side", [21_000, 60_000])
def test_decompression_bombs(side):
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(
        UnrainError, match="more than the limit of 400,000,000 pixels, raise it with --max-pixels"
    ):
        image.decode(png_of(side, side), "bomb.png")
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_limit_can_be_set():
    data = saved(Image.new("RGB", (20, 10)), "PNG")
    assert image.decode(data, "x", max_pixels=200).pixels.shape[:2] == (10, 20)
    with pytest.raises(UnrainError, match="20 x 10, more than the limit of 199 pixels"):
        image.decode(data, "x", max_pixels=199)


def test_a_side_that_the_format_cannot_hold():
    with pytest.raises(UnrainError, match="too many for WEBP"):
        image.encode(Picture(np.zeros((1, 17_000, 3), np.uint8)), "WEBP")


# ------------------------------------------------------------------------------------------ Pillow's images


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16"])
def test_pillow_images_keep_their_mode(mode):
    shape = (9, 7, len(Image.new(mode, (1, 1)).getbands()))
    channels = noise(*shape, dtype=np.uint16 if mode == "I;16" else np.uint8)
    picture = Image.fromarray(channels.squeeze())
    assert picture.mode == mode
    back = image.to_pil(image.from_pil(picture))
    assert back.mode == mode
    np.testing.assert_array_equal(np.asarray(back), np.asarray(picture))


def test_pillow_images_are_not_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(io.BytesIO(saved(Image.fromarray(noise(40, 70, 3)), "PNG", exif=exif)))
    back = image.to_pil(image.from_pil(picture))
    assert back.size == (70, 40)
    assert back.getexif()[0x0112] == 6


def test_the_size_of_a_decompression_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(60_000, 60_000))
    with pytest.raises(UnrainError, match=r"bomb\.png: .*more than the limit"):
        image.size_of(path)


def test_libraries_print_nothing_about_damaged_files(capfd):
    whole = saved(Image.fromarray(noise(64, 64, 3)), "TIFF", compression="tiff_lzw")
    data = bytearray(whole)
    # In the middle of the strip, where codes stand that are not in LZW's table.
    data[len(data) // 3 : len(data) // 3 + 50] = b"\xff" * 50
    with pytest.raises(UnrainError, match=r"x\.tif: damaged"):
        image.decode(bytes(data), "x.tif")
    # SamplesPerPixel, of which Pillow's own log speaks.
    at = whole.index(b"\x15\x01\x03\x00")
    with pytest.raises(UnrainError, match=r"x\.tif: "):
        image.decode(whole[: at + 8] + b"\x00\x6c" + whole[at + 10 :], "x.tif")
    assert capfd.readouterr() == ("", "")


def test_a_stream_without_end_is_refused():
    class Endless(io.RawIOBase):
        def read(self, size=-1):
            assert size > 0
            return bytes(size)

    with pytest.raises(
        UnrainError, match=r"standard input: larger than 67,116,864 bytes, more than 1,000 pix"
    ):
        image.read_stream(Endless(), "standard input", max_pixels=1000)
