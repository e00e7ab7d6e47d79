"""HEIC and HEIF, as phones write them: read by pi-heif (libheif, libde265), never written."""

import io
import re

import numpy as np

from unrain.image import structure
from unrain.image.limits import check_size
from unrain.image.metadata import Metadata, upright_exif, upright_xmp
from unrain.image.picture import Picture, of_channels, straight_alpha

SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""Extensions of pictures of this kind."""

_BRANDS = re.compile(rb"....ftyp(hei[cxms]|mif1)", re.DOTALL)
# Transfer characteristics of HDR, by their numbers in ITU-T H.273.
_HDR = {16: "PQ", 18: "HLG"}


def is_heif(data: bytes) -> bool:
    """Whether a file begins like a still picture of this kind; AVIF may begin so too and then says so."""
    return _BRANDS.match(data) is not None and b"avif" not in data[: int.from_bytes(data[:4])][:256]


def decode(data: bytes, name: str, max_pixels: int) -> Picture:
    """Decode the main picture of a file.

    Args:
        data: The whole file.
        name: How messages call it.
        max_pixels: Refuse pictures with more pixels.

    Returns:
        Upright, of 8 bits a channel, or of 16 where the file has more than 8; its result is a JPEG.

    Raises:
        TooManyPixelsError: It is too large.
        Exception: It is damaged; the library raises what it likes.
    """
    import pi_heif

    file = pi_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    main = file[file.primary_index]
    check_size(name, main.size, max_pixels)
    main.load()
    # What the header said need not be true.
    check_size(name, main.size, max_pixels)
    # A copy: the library frees its memory with the file.
    channels = np.array(main)
    if channels.dtype == np.uint16:
        # The library moves 10 or 12 bits to the top of 16, where the largest is not yet white.
        channels = channels | channels >> main.info["bit_depth"]
    channels = straight_alpha(channels) if main.premultiplied_alpha else channels
    # The library turns the pixels as the container says, and by the standard EXIF does not count.
    block = re.sub(b"^(Exif\x00\x00)+", b"", main.info.get("exif") or b"")
    structure.check_directories(block, name)
    notes = ["HEIC is only read: the result is a JPEG unless -o names another format"]
    if len(file) > 1:
        notes.append("only the main one of the file's pictures is kept")
    transfer = main.info.get("nclx_profile", {}).get("transfer_characteristics")
    if transfer in _HDR:
        notes.append(f"HDR ({_HDR[transfer]}): the network was trained on ordinary pictures")
    metadata = Metadata(
        icc=main.info.get("icc_profile") or None,
        exif=upright_exif(block)[0] or None,
        xmp=upright_xmp((main.info.get("xmp") or b"").rstrip(b"\0"))[0] or None,
    )
    return of_channels(channels, format="JPEG", metadata=metadata, notes=tuple(notes))
