"""Files to arrays and back: nothing that a picture's file holds is lost or changed on the way."""

from unrain.image.decode import (
    MAX_PIXELS,
    RAW_SUFFIXES,
    TooManyPixelsError,
    decode,
    from_pil,
    is_picture,
    read,
    read_stream,
    size_of,
)
from unrain.image.encode import FORMATS, encode, to_pil
from unrain.image.metadata import Metadata
from unrain.image.picture import RGB8, Array, Picture, eight_bit

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "RAW_SUFFIXES",
    "RGB8",
    "Array",
    "Metadata",
    "Picture",
    "TooManyPixelsError",
    "decode",
    "eight_bit",
    "encode",
    "from_pil",
    "is_picture",
    "read",
    "read_stream",
    "size_of",
    "to_pil",
]
