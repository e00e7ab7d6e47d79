"""Videos: `derain` takes the rain out of the frames and keeps everything else. Needs the extra `video`."""

from unrain.video.containers import SUFFIXES, WRITTEN, beside, is_video
from unrain.video.options import CODECS, OptionError, Settings, parse_time
from unrain.video.pipeline import Report, derain

__all__ = [
    "CODECS",
    "SUFFIXES",
    "WRITTEN",
    "OptionError",
    "Report",
    "Settings",
    "beside",
    "derain",
    "is_video",
    "parse_time",
]
