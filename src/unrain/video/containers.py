"""Which files are videos, and which containers a result may have."""

from pathlib import Path

WRITTEN = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""Extensions that a result may have, and FFmpeg's name for the container."""

SUFFIXES = {*WRITTEN, ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".flv"}
SUFFIXES |= {".3gp", ".3g2", ".ogv"}
"""Extensions by which a file is taken for a video."""

DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,live_flv,ogg,h264,hevc,m4v"
)
# Containers whose header says how long the whole is, so that a missing end can be told.
TELLS_LENGTH = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}


def is_video(path: Path) -> bool:
    """Whether a file's name says that it is a video."""
    return path.suffix.lower() in SUFFIXES


def beside(source: Path) -> Path:
    """Where the result of a video goes if nobody says; Matroska takes what old containers hold."""
    suffix = source.suffix if source.suffix.lower() in WRITTEN else ".mkv"
    return source.with_name(f"{source.stem}_derained{suffix}")
