"""Videos: `derain` takes the rain out of the frames and keeps everything else. Needs the extra `video`."""

from unrain.video.containers import SUFFIXES, WRITTEN, beside, is_video, writable
from unrain.video.options import CODECS, OptionError, VideoOptions, parse_time
from unrain.video.pipeline import VideoReport, derain

__all__ = [
    "CODECS",
    "SUFFIXES",
    "WRITTEN",
    "OptionError",
    "VideoOptions",
    "VideoReport",
    "beside",
    "derain",
    "is_video",
    "parse_time",
    "writable",
]
