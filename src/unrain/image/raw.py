"""RAW files of cameras, developed by rawpy (LibRaw). Needs the extra `raw`."""

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import PurePath

from PIL import Image, TiffImagePlugin

from unrain.errors import UnrainError
from unrain.files import one_line
from unrain.image import structure
from unrain.image.limits import check_size
from unrain.image.metadata import Metadata
from unrain.image.picture import Picture, of_channels

# fmt: off
RAW_SUFFIXES = frozenset({
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef",
    ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw",
    ".x3f",
})
# fmt: on
"""Extensions of cameras' RAW files."""

# Olympus, Panasonic, Fujifilm, Sigma, Canon's three kinds, Minolta.
_SIGNATURES = re.compile(
    rb"II(RO|RS|U\0)|MMOR|FUJIFILMCCD-RAW|FOVb|....ftypcrx |II\*\0....CR|......HEAPCCDR|\0MRM", re.DOTALL
)
_NEW_SUBFILE_TYPE, _PHOTOMETRIC, _SUB_IFDS, _DNG_VERSION = 254, 262, 330, 50706
# Colour filter array; linear RAW.
_RAW_PHOTOMETRIC = {32803, 34892}
# So much of the picture may be white: streaks of rain are bright, and LibRaw's usual hundredth clips them.
_WHITE = 0.001
# Description, make, model, software, date, artist, copyright: what is true of any other file of the picture.
_EXIF_KEPT = (270, 271, 272, 305, 306, 315, 33432)
_EXIF, _GPS, _MAKER_NOTE, _INTEROPERABILITY = 0x8769, 0x8825, 0x927C, 0xA005


def is_raw(data: bytes, name: str) -> bool:
    """Whether a file is a camera's RAW file, of which Pillow would decode the embedded thumbnail."""
    if PurePath(name).suffix.lower() in RAW_SUFFIXES or _SIGNATURES.match(data):
        return True
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Pillow's parser raises anything on damaged directories, which are refused later and as such.
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
            file = io.BytesIO(data)
            file.seek(tags.next)
            tags.load(file)
            return (
                _DNG_VERSION in tags
                or tags.get(_PHOTOMETRIC) in _RAW_PHOTOMETRIC
                or bool(tags.get(_NEW_SUBFILE_TYPE, 0) & 1 and _SUB_IFDS in tags)
            )
        except Exception:
            return False


def decode(data: bytes, name: str, max_pixels: int) -> Picture:
    """Develop a RAW file: the camera's white balance, sRGB.

    Args:
        data: The whole file.
        name: How messages call it.
        max_pixels: Refuse pictures with more pixels.

    Returns:
        Upright, of 16 bits a channel; its result is a TIFF.

    Raises:
        TooManyPixelsError: It is too large.
        UnrainError: The extra is missing.
        Exception: It is damaged; the library raises what it likes.
    """
    try:
        import rawpy
    except ModuleNotFoundError as error:
        raise UnrainError(
            f"{name}: a camera's RAW file needs {error.name}, which is not installed: "
            "pip install 'unrain[raw]', or develop it to JPEG or 16-bit TIFF first"
        ) from error
    try:
        with _quiet(), rawpy.imread(io.BytesIO(data)) as file:
            sizes = file.sizes
            size = max(sizes.raw_width, sizes.width), max(sizes.raw_height, sizes.height)
            check_size(name, size, max_pixels)
            pixels = file.postprocess(use_camera_wb=True, output_bps=16, auto_bright_thr=_WHITE)
    except rawpy.LibRawError as error:
        raise UnrainError(
            f"{name}: a camera's RAW file that cannot be developed ({_said(error)}), develop it to JPEG or "
            "16-bit TIFF first"
        ) from error
    note = "RAW is developed with the camera's white balance; the result is a TIFF unless -o names another"
    exif = _exif(data, name)
    lost = () if exif else ("EXIF of this kind of RAW file is not read",)
    return of_channels(pixels, format="TIFF", metadata=Metadata(exif=exif or None), notes=(note, *lost))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep LibRaw's own lines off standard error; rawpy gives no way to its handler of damaged data."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def _said(error: Exception) -> str:
    """Return what LibRaw says, which comes as bytes."""
    said = error.args[0] if error.args else ""
    return one_line(said.decode("ascii", "replace") if isinstance(said, bytes) else said)


def _exif(data: bytes, name: str) -> bytes:
    """Take over what a RAW file built like a TIFF says of the picture; the library has turned it upright."""
    if data[:2] not in (b"II", b"MM"):
        return b""
    # Olympus and Panasonic have numbers of their own where a TIFF has 42.
    data = data[:2] + (b"*\0" if data[:2] == b"II" else b"\0*") + data[4:]
    structure.check_directories(data, name)
    found, kept = Image.Exif(), Image.Exif()
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        found.load(data)
        for tag in set(_EXIF_KEPT).intersection(found):
            kept[tag] = found[tag]
        for directory in (_EXIF, _GPS):
            inner = found.get_ifd(directory)
            # Maker notes hold offsets into the file that they came from.
            inner = {tag: inner[tag] for tag in inner if tag not in (_MAKER_NOTE, _INTEROPERABILITY)}
            if inner:
                kept[directory] = inner
        return kept.tobytes()[6:] if kept else b""
    return b""
