"""Which files are pictures by their names, and what their results are."""

import importlib.util
from pathlib import Path

from unrain.image.encode import FORMATS
from unrain.image.heif import SUFFIXES as HEIF_SUFFIXES
from unrain.image.raw import RAW_SUFFIXES

SUFFIXES = {*FORMATS, *HEIF_SUFFIXES, *RAW_SUFFIXES}
"""Extensions of pictures that are read; `FORMATS` has those that are written."""

# What reads a format that needs an extra, and the extra.
_EXTRAS = {".jxl": ("pylibjxl", "jxl"), **dict.fromkeys(RAW_SUFFIXES, ("rawpy", "raw"))}


def result_suffix(path: Path) -> str:
    """Return the extension of a result: the picture's own, or that of a format which can be written."""
    suffix = path.suffix.lower()
    if suffix in HEIF_SUFFIXES:
        return ".jpg"
    return ".tif" if suffix in RAW_SUFFIXES else path.suffix


def missing_extra(path: Path) -> str:
    """Return the extra that a picture needs and that is not installed; empty if nothing is missing."""
    package, extra = _EXTRAS.get(path.suffix.lower(), ("", ""))
    return extra if package and importlib.util.find_spec(package) is None else ""
