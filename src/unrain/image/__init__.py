"""Files to arrays and back: nothing that a picture's file holds is lost or changed on the way."""

from unrain.image.animation import ANIMATIONS
from unrain.image.decode import (
    decode,
    from_pil,
    is_picture,
    read,
    read_stream,
    size_of,
)
from unrain.image.encode import FORMATS, encode, to_pil
from unrain.image.formats import SUFFIXES, missing_extra, result_suffix
from unrain.image.limits import MAX_PIXELS, TooManyPixelsError
from unrain.image.metadata import Metadata
from unrain.image.picture import RGB8, Array, Picture, eight_bit

__all__ = [
    "ANIMATIONS",
    "FORMATS",
    "MAX_PIXELS",
    "RGB8",
    "SUFFIXES",
    "Array",
    "Metadata",
    "Picture",
    "TooManyPixelsError",
    "decode",
    "eight_bit",
    "encode",
    "from_pil",
    "is_picture",
    "missing_extra",
    "read",
    "read_stream",
    "result_suffix",
    "size_of",
    "to_pil",
]
