"""Does it rain in a video: the rain scores of frames that are spread over it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unrain import image
from unrain.errors import UnrainError
from unrain.image import Array
from unrain.image.animation import is_animation
from unrain.video.animation import AnimationReader
from unrain.video.frames import Frame
from unrain.video.options import VideoOptions
from unrain.video.pipeline import check_library
from unrain.video.reader import Reader, opened

if TYPE_CHECKING:
    from unrain.score import Score

# A frame a second, but so many of a short and of a long clip.
_FEWEST, MOST = 5, 24
# It rains in a clip if it does in more than this share of its frames: a false alarm costs only time.
_SHARE = 0.125


@dataclass(frozen=True)
class VideoScore:
    """What is said of a video.

    Attributes:
        score: That of the frame which an eighth of the frames score above.
        frames: How many were looked at.
        at: When it rains most, in seconds from the beginning of the part that was looked at.
        most: The score there.
    """

    score: "Score"
    frames: int
    at: float
    most: float

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON, rounded."""
        more = {"frames": self.frames, "at": round(self.at, 2), "most": round(self.most, 1)}
        return {**self.score.as_dict(), **more}


def score_video(
    source: Path,
    scorer: "Callable[[Array], Score]",
    options: VideoOptions | None = None,
    *,
    max_pixels: int = image.MAX_PIXELS,
) -> VideoScore:
    """Tell whether it rains in a video, or in an animated GIF, WebP or PNG.

    Args:
        source: The video.
        scorer: Scores a frame, see `unrain.score`.
        options: Which part of the clip is meant.
        max_pixels: Refuse frames with more pixels.

    Returns:
        The outcome. Of a damaged clip it is that of the frames that can be decoded.

    Raises:
        UnrainError: No frame can be read, or PyAV is missing.
    """
    found = [(at, scorer(pixels)) for at, pixels in _sampled(source, options or VideoOptions(), max_pixels)]
    ranked = sorted(found, key=lambda one: one[1].score, reverse=True)
    return VideoScore(ranked[int(_SHARE * len(ranked))][1], len(found), ranked[0][0], ranked[0][1].score)


def _sampled(source: Path, options: VideoOptions, max_pixels: int) -> Iterator[tuple[float, Array]]:
    """Yield frames with their times, in seconds."""
    if is_animation(source):
        reader = AnimationReader(source, max_pixels)
        step = max(1, -(-reader.total // MOST))
        number = 0
        for number, item in enumerate(reader.items(), 1):
            if isinstance(item, Frame) and (number - 1) % step == 0:
                yield item.pts / 1000, item.pixels
        if not number:
            raise UnrainError(f"{source}: {reader.why_no_frames()}")
        return
    check_library(source)
    with opened(source) as container:
        video = Reader(container, source, options, max_pixels)
        frame = None
        for frame in video.frames_from(_times(video.length)):
            yield float(frame.pts * video.time_base - video.origin), frame.pixels
        if frame is None:
            raise UnrainError(f"{source}: {video.why_no_frames()}")


def _times(length: Fraction) -> Iterator[Fraction]:
    """Yield the times at which a clip is looked at; without end if its length is unknown."""
    if not length:
        at, step = Fraction(0), 1
        for number in count(1):
            yield at
            step *= 1 if number % MOST else 2
            at += step
    wanted = min(max(_FEWEST, round(length)), MOST)
    yield from (length * Fraction(number, wanted) for number in range(wanted))
