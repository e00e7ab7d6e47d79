"""What a user can choose for a video: codec, quality, and which part of the clip."""

import re
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from unrain.errors import UsageError
from unrain.image.animation import ANIMATIONS
from unrain.video.containers import WRITTEN


class OptionError(UsageError):
    """An option for videos is out of range, or does not fit another option."""


@dataclass(frozen=True)
class Codec:
    """How a result is compressed.

    Attributes:
        encoder: FFmpeg's name for the encoder.
        crf: Default quality; lower is better and larger.
        worst: The highest `crf` that the encoder takes.
        options: Further options of the encoder.
        even: Whether width and height must be even where colour is stored at half resolution.
        least: Smallest width and height that the encoder can be trusted with.
    """

    encoder: str
    crf: int
    worst: int
    options: dict[str, str] = field(default_factory=dict)
    even: bool = True
    least: tuple[int, int] = (1, 1)


CODECS = {
    "h264": Codec("libx264", 18, 51),
    # x265 writes beyond its memory at widths such as 40 and 48.
    "hevc": Codec("libx265", 20, 51, {"x265-params": "log-level=none"}, least=(64, 1)),
    "vp9": Codec("libvpx-vp9", 24, 63, {"row-mt": "1", "cpu-used": "3"}, even=False),
    # SVT-AV1 waits forever if one side is below 25 and the other above 64.
    "av1": Codec("libsvtav1", 24, 63, {"preset": "8"}, least=(32, 32)),
}

HWACCELS = ("cuda", "qsv", "vaapi", "videotoolbox", "d3d11va", "d3d12va", "amf", "drm", "vulkan")
"""FFmpeg's names of what may decode besides the processor."""


@dataclass(frozen=True)
class Hardware:
    """FFmpeg's encoders on the hardware of one maker.

    Attributes:
        scales: The codecs there are, each with the encoder's own number for the best quality and the worst.
        quality: The encoder's options that take this number.
        options: Those that make it hold.
    """

    scales: dict[str, tuple[int, int]]
    quality: tuple[str, ...]
    options: dict[str, str] = field(default_factory=dict)

    def settings(self, codec: str, crf: int | None) -> dict[str, str]:
        """The encoder's options for a quality, which is spread over its own scale."""
        best, worst = self.scales[codec]
        chosen = CODECS[codec].crf if crf is None else crf
        value = round(best + (worst - best) * chosen / CODECS[codec].worst)
        return {**self.options, **dict.fromkeys(self.quality, str(value))}


# VAAPI is missing: its encoders take frames in the graphics card's memory only, and PyAV's build has none.
ENCODERS = {
    # At 0 it would choose the quality itself.
    "nvenc": Hardware({"h264": (1, 51), "hevc": (1, 51), "av1": (1, 63)}, ("cq",), {"rc": "vbr"}),
    # 1 to 51 for all codecs: its "intelligent constant quality".
    "qsv": Hardware(dict.fromkeys(CODECS, (1, 51)), ("global_quality",)),
    "amf": Hardware(
        {"h264": (0, 51), "hevc": (0, 51), "av1": (1, 255)}, ("qp_i", "qp_p", "qp_b"), {"rc": "cqp"}
    ),
    # 100 is the best there. FFmpeg divides by 118.
    "videotoolbox": Hardware(
        dict.fromkeys(("h264", "hevc"), (100 * 118, 118)), ("global_quality",), {"flags": "+qscale"}
    ),
}
"""FFmpeg's names of what may encode besides the processor."""

# What FFmpeg writes into each container; the first is the default.
_CODECS_OF = {
    "mp4": tuple(CODECS),
    "mov": ("h264", "hevc"),
    "matroska": tuple(CODECS),
    "webm": ("vp9", "av1"),
}


@dataclass(frozen=True)
class VideoOptions:
    """What a user can choose for a video.

    Attributes:
        codec: One of `CODECS`; None for the container's default: VP9 in WebM, H.264 elsewhere.
        crf: Quality, lower is better; None for the codec's default.
        start: Where to start, in seconds.
        duration: How many seconds to process; None for all up to the end.
        neighbours: Whether to steady still areas with the frames before and after.
        hwaccel: What decodes it, as FFmpeg calls it: cuda, qsv, vaapi, videotoolbox, d3d11va, amf; None for
            the processor.
        encoder: What encodes it, one of `ENCODERS`; None for the processor.

    Raises:
        OptionError: The codec is unknown or a number is out of range.
    """

    codec: str | None = None
    crf: int | None = None
    start: Fraction = Fraction(0)
    duration: Fraction | None = None
    neighbours: bool = True
    hwaccel: str | None = None
    encoder: str | None = None

    def __post_init__(self) -> None:
        """Check everything that does not depend on the container."""
        if self.codec is not None and self.codec not in CODECS:
            raise OptionError(f"--codec {self.codec}: unknown, choose one of {', '.join(CODECS)}")
        if self.hwaccel is not None and self.hwaccel not in HWACCELS:
            raise OptionError(f"--hwaccel {self.hwaccel}: unknown, choose one of {', '.join(HWACCELS)}")
        if self.encoder is not None and self.encoder not in ENCODERS:
            raise OptionError(f"--encoder {self.encoder}: unknown, choose one of {', '.join(ENCODERS)}")
        if self.encoder is not None and self.codec not in (None, *ENCODERS[self.encoder].scales):
            having = " or ".join(ENCODERS[self.encoder].scales)
            raise OptionError(f"--encoder {self.encoder}: it has no {self.codec}, choose --codec {having}")
        possible = [held[0] for held in _CODECS_OF.values()] if self.codec is None else [self.codec]
        worst = max(CODECS[codec].worst for codec in possible)
        if self.crf is not None and not 0 <= self.crf <= worst:
            raise OptionError(f"--crf {self.crf}: give 0 (best) to {worst}")
        if self.duration is not None and self.duration <= 0:
            raise OptionError("--duration: give more than 0 seconds")

    def codec_for(self, target: Path) -> str:
        """The codec of a result: the chosen one, or the default of its container."""
        return self.codec or _CODECS_OF[WRITTEN[target.suffix.lower()]][0]

    def check(self, target: Path) -> None:
        """Check the options against the container of a result.

        Args:
            target: The result, with an extension from `WRITTEN`, or of an animation.

        Raises:
            OptionError: The container or the encoder does not have the codec, or `crf` is out of
                the codec's range.
        """
        if target.suffix.lower() in ANIMATIONS:
            if replace(self, neighbours=True) != VideoOptions():
                raise OptionError(
                    f"{target}: an animation takes no --codec, --crf, --start, --duration, --hwaccel or "
                    "--encoder"
                )
            return
        codec = self.codec_for(target)
        held = _CODECS_OF[WRITTEN[target.suffix.lower()]]
        if codec not in held:
            raise OptionError(f"--codec {codec}: {target} cannot hold it, choose {' or '.join(held)}")
        having = tuple(held) if self.encoder is None else tuple(ENCODERS[self.encoder].scales)
        if codec not in having:
            both = " or ".join(name for name in held if name in having)
            remedy = f"choose --codec {both}" if both else "choose another container with -o, such as .mkv"
            raise OptionError(
                f"--encoder {self.encoder}: {target} is written with {codec}, which it does not have, "
                f"{remedy}"
            )
        worst = CODECS[codec].worst
        if self.crf is not None and self.crf > worst:
            raise OptionError(f"--crf {self.crf}: {target} is written with {codec}, give 0 (best) to {worst}")


def parse_time(text: str, option: str) -> Fraction:
    """Parse a time as seconds, MM:SS or HH:MM:SS, each with optional decimals.

    Args:
        text: What the user wrote.
        option: The option it was given to, for the message.

    Returns:
        Seconds.

    Raises:
        OptionError: The text is not a time.
    """
    match = re.fullmatch(r"(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:\.\d*)?|\.\d+)", text.strip())
    if not match or (match[2] and float(match[3]) >= 60):
        raise OptionError(f"{option} {text}: give seconds, MM:SS or HH:MM:SS, such as 90, 1:30 or 0:01:30.5")
    hours, minutes, seconds = (Fraction(part) if part else Fraction(0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds
