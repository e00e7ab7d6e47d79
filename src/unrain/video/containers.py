"""Which files are videos, and which containers a result can have."""

from collections.abc import Collection
from pathlib import Path

from unrain.image.animation import ANIMATIONS, is_animation

WRITTEN = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""Extensions of results, and FFmpeg's name for the container."""

SUFFIXES = {*WRITTEN, ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".flv"}
SUFFIXES |= {".3gp", ".3g2", ".ogv"}
"""Extensions of videos."""

DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,live_flv,ogg,h264,hevc,m4v"
)
"""FFmpeg's names of the containers that are read."""

STATES_LENGTH = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
"""Containers whose header states the length of the whole, so that a missing end is noticed."""


def is_video(path: Path) -> bool:
    """Whether a file goes the way of videos: by its extension, or as an animated GIF, WebP or PNG."""
    return path.suffix.lower() in SUFFIXES or is_animation(path)


def writable(source: Path) -> Collection[str]:
    """The extensions that the result of a video or an animation can have."""
    return ANIMATIONS if is_animation(source) else WRITTEN


def beside(source: Path) -> Path:
    """The default path of a result: beside the source, in Matroska if its own container is only read."""
    suffix = source.suffix if source.suffix.lower() in {*WRITTEN, *ANIMATIONS} else ".mkv"
    return source.with_name(f"{source.stem}_derained{suffix}")
