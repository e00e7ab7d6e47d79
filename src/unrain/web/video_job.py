"""One video of a request: its options, and the way from the uploaded file to the result's file."""

import io
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from unrain import video
from unrain.derainer import Derainer
from unrain.errors import UnrainError
from unrain.image import Array
from unrain.web.job import AbandonedError, Answer, ModelName, Networks, Recursions, Strength, WebJob, zipped

# Seconds between two frames that are shown, and the most pixels of their long side.
_SHOW_EVERY, _SHOWN_SIDE = 2.0, 1280


class VideoRequest(BaseModel):
    """The options of a video: those of the command line, except the operator's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelName = None
    recursions: Recursions = None
    strength: Strength = 1.0
    format: Annotated[
        Literal["mp4", "m4v", "mov", "mkv", "webm"] | None,
        Field(description="Container of the result; the video's own if left out, mkv if that is only read."),
    ] = None
    codec: Annotated[
        Literal["h264", "hevc", "vp9", "av1"] | None,
        Field(description="Codec of the result; VP9 in WebM and H.264 elsewhere if left out."),
    ] = None
    crf: Annotated[
        int | None,
        Field(ge=0, le=63, description="Quality of the result, lower is better; the codec's if left out."),
    ] = None


@dataclass(eq=False)
class VideoJob(WebJob):
    """A video that waits for the network, or is in it. Its files lie in a folder of its own.

    Attributes:
        source: The video's file, whose name is `name`.
        target: The result's.
        codec: See `video.VideoOptions`.
        crf: See `video.VideoOptions`.
        most_frames: Refuse videos with more.
        frame: The last frame that is shown, before.jpg and after.jpg in a zip; empty before the first.
        shown: Its number; 0 before the first.
    """

    source: Path = Path()
    target: Path = Path()
    codec: str | None = None
    crf: int | None = None
    most_frames: int = 0
    frame: bytes = b""
    shown: int = 0
    _written: int = 0
    _next: float = 0.0

    def run(self, networks: Networks, max_pixels: int) -> Answer:
        """Derain the video into the target; the answer is JSON about it.

        Args:
            networks: One of them is used.
            max_pixels: Refuse videos with larger frames.

        Raises:
            AbandonedError: `abandon` was called.
            UnrainError: The video or an option cannot be used.
        """
        start = time.monotonic()
        if self.abandoned:
            raise AbandonedError
        options = self.options
        try:
            settings = video.VideoOptions(self.codec, self.crf)
            settings.check(self.target)
            if not video.is_video(self.source):
                raise UnrainError(f"{self.name}: not a video, send pictures to /api/derain")
            self.decoding = True
            self._changed()
            self._check_length(video.expected_frames(self.source, max_pixels=max_pixels))
            self.decoding = False
            self._changed()
            report = video.derain(
                self.source,
                self.target,
                Derainer(networks.engine(options.model), recursions=options.recursions),
                settings,
                strength=options.strength,
                max_pixels=max_pixels,
                progress=self._frame_done,
                preview=self._show,
            )
        except UnrainError as error:
            raise UnrainError(self._without_paths(str(error))) from error
        self._changed()
        told = {"frames": report.frames, "duration": report.seconds, "problem": report.problem}
        return Answer(
            json.dumps(told).encode(),
            "application/json",
            self.target.name,
            tuple(map(self._without_paths, report.warnings)),
            report.recursions,
            time.monotonic() - start,
            report.hardly_any_rain,
        )

    def _check_length(self, frames: int) -> None:
        if frames > self.most_frames:
            raise UnrainError(
                f"{self.name}: more than {self.most_frames:,} frames, the limit of this server, "
                "cut it into parts"
            )

    def _frame_done(self, done: int, total: int) -> None:
        # A header may promise less than there is.
        self._check_length(done)
        self._step(done, total)

    def _show(self, before: Array, after: Array) -> None:
        """Keep a frame now and then, in the thread that writes the result."""
        self._written += 1
        if time.monotonic() < self._next:
            return
        self.frame, self.shown = _both(before, after), self._written
        self._next = time.monotonic() + _SHOW_EVERY

    def _without_paths(self, text: str) -> str:
        """Name files and options as the client knows them."""
        text = text.replace(f"{self.source.parent}/", "").replace(f"{self.source.parent}\\", "")
        text = text.replace("raise it with --max-pixels if you trust the file", "make it smaller")
        return re.sub(r"--(codec|crf)\b", r"\1", text).replace("with -o, such as .mkv", "such as format mkv")


def _both(before: Array, after: Array) -> bytes:
    """Two frames as JPEGs in a zip, reduced to what a screen shows."""
    shown = {}
    for name, pixels in (("before.jpg", before), ("after.jpg", after)):
        frame = Image.fromarray((pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels)
        frame.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
        jpeg = io.BytesIO()
        frame.save(jpeg, "JPEG", quality=88)
        shown[name] = jpeg.getvalue()
    return zipped(shown)
