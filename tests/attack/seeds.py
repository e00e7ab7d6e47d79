"""What is damaged: sound pictures, videos and models, small and of every kind; and a folder's model."""

import functools
import importlib.util
import io
import json
from dataclasses import replace

import numpy as np
from PIL import Image, TiffImagePlugin

from toys import CONTRACT, natural, tiny_network
from toys_formats import DEEP_HEIC, HEIC, dng
from unrain import image
from unrain.image.animation import encode_animation

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def exif():
    """An EXIF block with an orientation, an inner directory, a GPS position and a thumbnail's directory."""
    tags = Image.Exif()
    tags[0x0112], tags[0x010F], tags[0x0132] = 6, "Regen", "2026:01:02 03:04:05"
    tags.get_ifd(0x8769).update({0x9286: b"ASCII\0\0\0wet", 0xA002: 40, 0xA003: 30, 0x927C: bytes(range(64))})
    tags.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 0.5)})
    return tags.tobytes()


def _saved(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def pictures():
    """Sound pictures by file name."""
    rgb = Image.fromarray(natural(30, 40))
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(natural(30, 40, 1)[..., 0]))
    wide = natural(30, 40).astype(np.uint16) * 257 - natural(30, 40, 2)
    deep = image.Picture(wide, format="PNG")
    see_through = replace(deep, alpha=wide[..., 0].copy())
    palette = rgb.quantize(16)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274], tags[700], tags[305] = 8, XMP, "toy"
    known = {"exif": exif(), "icc_profile": _profile()}
    return {
        "rgb.png": _saved(rgb, "PNG", **known),
        "alpha.png": _saved(alpha, "PNG", dpi=(72, 72)),
        "palette.png": _saved(palette, "PNG", transparency=3),
        "grey.png": _saved(rgb.convert("L"), "PNG"),
        "bit.png": _saved(rgb.convert("1"), "PNG"),
        "deep.png": image.encode(deep, "PNG")[0],
        "deep-alpha.png": image.encode(see_through, "PNG")[0],
        "deep-grey.png": image.encode(replace(deep, pixels=wide[..., 0], colour=False), "PNG")[0],
        "rgb.jpg": _saved(rgb, "JPEG", comment=b"wet", xmp=XMP, **known),
        "grey.jpg": _saved(rgb.convert("L"), "JPEG"),
        "progressive.jpg": _saved(rgb, "JPEG", progressive=True, quality=90),
        "inks.jpg": _saved(rgb.convert("CMYK"), "JPEG"),
        "lossy.webp": _saved(rgb, "WEBP", xmp=XMP, **known),
        "lossless.webp": _saved(alpha, "WEBP", lossless=True),
        "rgb.tif": _saved(rgb, "TIFF", tiffinfo=tags),
        "deflate.tif": _saved(alpha, "TIFF", compression="tiff_adobe_deflate"),
        "lzw.tif": _saved(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": _saved(rgb, "TIFF", compression="jpeg"),
        "inks.tif": _saved(rgb.convert("CMYK"), "TIFF"),
        "deep.tif": image.encode(deep, "TIFF")[0],
        "deep-alpha.tif": image.encode(see_through, "TIFF")[0],
        "rgb.bmp": _saved(rgb, "BMP"),
        "palette.bmp": _saved(palette, "BMP"),
        "rgb.avif": _saved(rgb, "AVIF", exif=exif()),
    }


@functools.cache
def other_pictures():
    """Sound files by name of the formats that Pillow cannot read, or that hold several pictures."""
    rgb = Image.fromarray(natural(30, 40))
    found = {
        "pages.tif": _saved(rgb, "TIFF", save_all=True, append_images=[rgb.convert("L")]),
        "phone.heic": HEIC,
        "deep.heic": DEEP_HEIC,
        "film.gif": _film("GIF"),
        "film.webp": _film("WEBP"),
        "film.png": _film("PNG"),
    }
    if importlib.util.find_spec("rawpy"):
        found["camera.dng"] = dng(natural(30, 40).astype(np.uint16)[..., 0] * 257)
    if importlib.util.find_spec("pylibjxl"):
        found["rgb.jxl"] = image.encode(image.Picture(natural(30, 40)), "JXL")[0]
    return found


def _film(kind):
    frames = [(natural(30, 40, number), None) for number in range(3)]
    return encode_animation(frames, [50, 60, 70], kind)


def _profile():
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def videos(folder):
    """Sound videos by file name; they are made in a folder."""
    from toys_video import clip

    small = {"frames": 6, "size": (48, 32)}
    made = [
        clip(folder / "sound.mp4", **small),
        clip(folder / "turned.mov", turned=True, sound=False, **small),
        clip(folder / "text.mkv", text=True, **small),
        clip(folder / "vp9.webm", codec="libvpx-vp9", **small),
        clip(folder / "old.avi", codec="mpeg4", sound=False, **small),
        clip(folder / "stream.ts", **small),
        clip(folder / "deep.mkv", codec="libx265", kind="yuv420p10le", sound=False, frames=6, size=(64, 64)),
    ]
    return {path.name: path.read_bytes() for path in made}


@functools.cache
def model():
    """The bytes of a sound model, and those of its card."""
    card = {"name": "tiny", "summary": "made by hand", "network": "none", **CONTRACT}
    return tiny_network().SerializeToString(), json.dumps(card).encode()


def model_file(folder):
    """Put the sound model into a folder."""
    data, card = model()
    (folder / "tiny.onnx").write_bytes(data)
    (folder / "tiny.json").write_bytes(card)
    return folder / "tiny.onnx"


def network(nodes, constants=(), *, kind=None, output=None, metadata=None):
    """An ONNX file of a few nodes from `rainy` and `estimate` to `derained`."""
    from onnx import TensorProto, helper

    def port(name):
        return helper.make_tensor_value_info(name, kind or TensorProto.FLOAT, ["batch", 3, "height", "width"])

    graph = helper.make_graph(
        list(nodes), "bad", [port("rainy"), port("estimate")], [output or port("derained")], list(constants)
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    text = json.dumps(CONTRACT) if metadata is None else metadata
    helper.set_model_props(made, {"unrain": text})
    return made
