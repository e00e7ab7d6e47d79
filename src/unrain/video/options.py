"""What is asked of a video: codec, quality and part of the clip."""

import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from unrain.errors import UsageError
from unrain.video.containers import WRITTEN


class OptionError(UsageError):
    """An option that cannot be, or not together with another."""


@dataclass(frozen=True)
class Codec:
    """A way to compress the result.

    Attributes:
        encoder: FFmpeg's name.
        crf: Quality unless something else is asked for; less is better and larger.
        worst: The largest number that the encoder knows.
        options: What else to tell it.
        even: Whether it wants an even height and width where colour is stored at half of them.
    """

    encoder: str
    crf: int
    worst: int
    options: dict[str, str] = field(default_factory=dict)
    even: bool = True


CODECS = {
    "h264": Codec("libx264", 18, 51),
    "hevc": Codec("libx265", 20, 51, {"x265-params": "log-level=none"}),
    "vp9": Codec("libvpx-vp9", 24, 63, {"row-mt": "1", "cpu-used": "3"}, even=False),
    "av1": Codec("libsvtav1", 24, 63, {"preset": "8"}),
}

_BY_CONTAINER = {"mp4": "h264", "mov": "h264", "matroska": "h264", "webm": "vp9"}


@dataclass(frozen=True)
class Settings:
    """What is wanted of a result.

    Attributes:
        codec: One of `CODECS`; None takes H.264, in WebM VP9.
        crf: The encoder's quality, less is better; None takes the codec's own.
        start: Where to begin, in seconds.
        duration: How many seconds to take; None goes on to the end.
        neighbours: Whether still places are steadied with what the frames before and after know.

    Raises:
        OptionError: The codec is unknown or a number impossible.
    """

    codec: str | None = None
    crf: int | None = None
    start: Fraction = Fraction(0)
    duration: Fraction | None = None
    neighbours: bool = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.codec is not None and self.codec not in CODECS:
            raise OptionError(f"--codec {self.codec}: unknown, choose one of {', '.join(CODECS)}")
        # Without a codec the container decides, and `check` knows it.
        possible = _BY_CONTAINER.values() if self.codec is None else [self.codec]
        worst = max(CODECS[codec].worst for codec in possible)
        if self.crf is not None and not 0 <= self.crf <= worst:
            raise OptionError(f"--crf {self.crf}: give 0 (best) to {worst}")
        if self.duration is not None and self.duration <= 0:
            raise OptionError("--duration: give more than 0 seconds")

    def codec_for(self, target: Path) -> str:
        """The codec of a result: the one asked for, otherwise that of its container."""
        return self.codec or _BY_CONTAINER[WRITTEN[target.suffix.lower()]]

    def check(self, target: Path) -> None:
        """Check what depends on the result's container.

        Args:
            target: The result; its extension is one of `WRITTEN`.

        Raises:
            OptionError: `crf` is more than the codec of this container knows.
        """
        codec = self.codec_for(target)
        worst = CODECS[codec].worst
        if self.crf is not None and self.crf > worst:
            raise OptionError(f"--crf {self.crf}: {target} is written with {codec}, give 0 (best) to {worst}")


def parse_time(text: str, option: str) -> Fraction:
    """Read a time: seconds, MM:SS or HH:MM:SS, each with decimals.

    Raises:
        OptionError: It is no such time.
    """
    match = re.fullmatch(r"(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:\.\d*)?|\.\d+)", text.strip())
    if not match or (match[2] and float(match[3]) >= 60):
        raise OptionError(f"{option} {text}: give seconds, MM:SS or HH:MM:SS, such as 90, 1:30 or 0:01:30.5")
    hours, minutes, seconds = (Fraction(part) if part else Fraction(0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds
