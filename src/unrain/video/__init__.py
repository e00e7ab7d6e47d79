"""Videos: `derain` takes the rain out of the frames and keeps everything else. Needs the extra `video`."""

import importlib
from typing import TYPE_CHECKING, Any

from unrain.video.containers import SUFFIXES, WRITTEN, beside, is_video, writable
from unrain.video.options import CODECS, OptionError, VideoOptions, parse_time

if TYPE_CHECKING:
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

# Imported when first used, so that a picture need not wait for what only videos need.
_MODULES = {
    "RawFormat": "raw",
    "VideoReport": "pipeline",
    "VideoScore": "score",
    "derain": "pipeline",
    "derain_raw": "raw",
    "expected_frames": "pipeline",
    "parse_raw": "raw",
    "score_video": "score",
}

if not TYPE_CHECKING:
    # Type checkers would take any name for an attribute of the module.
    def __getattr__(name: str) -> Any:  # noqa: ANN401
        if name not in _MODULES:
            raise AttributeError(f"module 'unrain.video' has no attribute {name!r}")
        return getattr(importlib.import_module(f"unrain.video.{_MODULES[name]}"), name)
