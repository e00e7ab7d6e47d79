"""Videos: `derain` takes the rain out of the frames and keeps everything else. Needs the extra `video`."""

from unrain.video.containers import SUFFIXES, WRITTEN, beside, is_video, writable
from unrain.video.options import CODECS, OptionError, VideoOptions, parse_time
from unrain.video.pipeline import VideoReport, derain, expected_frames
from unrain.video.raw import RawFormat, derain_raw, parse_raw
from unrain.video.score import VideoScore, score_video

__all__ = [
    "CODECS",
    "SUFFIXES",
    "WRITTEN",
    "OptionError",
    "RawFormat",
    "VideoOptions",
    "VideoReport",
    "VideoScore",
    "beside",
    "derain",
    "derain_raw",
    "expected_frames",
    "is_video",
    "parse_raw",
    "parse_time",
    "score_video",
    "writable",
]
