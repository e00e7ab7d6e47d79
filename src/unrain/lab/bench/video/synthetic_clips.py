"""Clips that are known without their rain: photographs in motion, with rain that is elsewhere in every frame.

The photographs are Kodak's (`clean/kodak24` in the data folder) and one of a street (`clean/weather`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates

from unrain import files
from unrain.lab.data.pairs import read
from unrain.lab.data.rain import RGB8, RainMaker, StreakRain, add_layer

if TYPE_CHECKING:
    from av.container import OutputContainer

WIDTH, HEIGHT, FRAMES = 352, 240, 12
RAINS = {
    "none": None,
    "light": RainMaker(
        from_scratch=StreakRain(
            depths=(2, 2),
            direction=(12, 12),
            length=(8, 30),
            width=(0.5, 1.0),
            density=(0.002, 0.004),
            intensity=(60, 110),
        )
    ),
    "heavy": RainMaker(
        from_scratch=StreakRain(
            depths=(3, 3),
            direction=(-15, -15),
            length=(10, 50),
            width=(0.5, 1.4),
            density=(0.006, 0.010),
            intensity=(80, 150),
        )
    ),
}
"""Kinds of rain, and none."""

DEMO_WIDTH, DEMO_HEIGHT, DEMO_RATE, DEMO_FRAMES = 1280, 720, 24, 240
_DEMO_RAIN = StreakRain(
    depths=(2, 2),
    direction=(10, 10),
    length=(15, 50),
    width=(0.6, 1.2),
    density=(0.002, 0.004),
    intensity=(70, 120),
)
# The drawn field is larger than a frame: each frame shows another part of it.
_DEMO_FIELD = (1000, 1600)
_SOUND_RATE, _SOUND_FRAME = 48_000, 1024

_SEED = 100
_SCALED_WIDTH = 520


@dataclass(frozen=True)
class Clip:
    """A clip without rain.

    Attributes:
        name: What moves in it.
        frames: HEIGHT x WIDTH x 3 uint8 each.
    """

    name: str
    frames: Sequence[RGB8]

    def rainy(self, rain: str) -> list[RGB8]:
        """Put one of `RAINS` on it, with a seed of its own for each frame."""
        maker = RAINS[rain]
        if maker is None:
            return list(self.frames)
        return [
            maker(frame, [], np.random.default_rng(_SEED + number))
            for number, frame in enumerate(self.frames)
        ]


def made_clips(root: Path, count: int = FRAMES) -> list[Clip]:
    """Make clips in which each moves something else.

    Args:
        root: The data folder.
        count: How many frames each has.

    Raises:
        UnrainError: A photograph is missing.
    """
    flowers = _photograph(root, "kodak24/kodim07.jpg", _SCALED_WIDTH)
    hats = _photograph(root, "kodak24/kodim03.jpg", _SCALED_WIDTH)
    rider = _photograph(root, "kodak24/kodim05.jpg", 200)[40:110, 60:130]
    street = _photograph(root, "weather/cloudy13.jpg", _SCALED_WIDTH)
    still = _part(flowers, 10, 20)
    times = range(count)
    return [
        Clip("still camera", [still] * count),
        Clip("pan, 1 pixel a frame", [_part(street, 5, 10 + t) for t in times]),
        Clip("pan, 0.4 pixels a frame", [_part(flowers, 10, 20 + 0.4 * t) for t in times]),
        Clip("zoom", [_zoomed(street, t) for t in times]),
        Clip(
            "large thing, 5 pixels a frame",
            [_with(_part(street, 5, 10), rider, 90, 20 + 5 * t) for t in times],
        ),
        Clip("small things, 6 to 9 pixels a frame", [_with_small_things(still, t) for t in times]),
        Clip("scene cut", [still] * (count // 2) + [_part(hats, 10, 20)] * (count - count // 2)),
    ]


def write_demo(path: Path, root: Path, *, rainy: bool, count: int = DEMO_FRAMES) -> None:
    """Write an MP4 of 1280x720, 24 frames a second, with two tones as sound.

    A photograph stands still for five seconds and is then panned over by a pixel a frame; a piece of another
    one moves across it by four.

    Args:
        path: The file.
        root: The data folder.
        rainy: Whether it rains.
        count: How many frames.

    Raises:
        UnrainError: A photograph is missing or the file cannot be written.
    """
    import av

    frames = _demo_frames(root, count)
    shown = _rained(frames) if rainy else frames
    with files.replacing(path) as file:
        container = av.open(
            file, "w", format="mp4", container_options={"video_track_timescale": str(512 * DEMO_RATE)}
        )
        with container:
            container.metadata["title"] = "rain"
            _write(container, shown)


def _photograph(root: Path, name: str, width: int, height: int | None = None) -> RGB8:
    """Read a photograph in another size; without a height its shape is kept."""
    photograph = Image.fromarray(read(root / "clean" / name))
    height = height or round(photograph.height * width / photograph.width)
    return np.asarray(photograph.resize((width, height), Image.Resampling.LANCZOS))


def _part(photograph: RGB8, y: float, x: float) -> RGB8:
    """Cut a frame out of a photograph, between its pixels too."""
    if x == int(x) and y == int(y):
        return photograph[int(y) : int(y) + HEIGHT, int(x) : int(x) + WIDTH].copy()
    rows, columns = np.mgrid[y : y + HEIGHT - 1 : HEIGHT * 1j, x : x + WIDTH - 1 : WIDTH * 1j]
    planes = [
        map_coordinates(photograph[..., c].astype(np.float32), [rows, columns], order=3, mode="nearest")
        for c in range(3)
    ]
    return np.stack(planes, -1).round().clip(0, 255).astype(np.uint8)


def _zoomed(photograph: RGB8, t: int) -> RGB8:
    box = (20 + 2 * t, 10 + t, 20 + WIDTH - t, 10 + HEIGHT - t)
    part = Image.fromarray(photograph).crop(box)
    return np.asarray(part.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def _with(frame: RGB8, thing: RGB8, y: int, x: int) -> RGB8:
    frame[y : y + thing.shape[0], x : x + thing.shape[1]] = thing
    return frame


def _with_small_things(frame: RGB8, t: int) -> RGB8:
    """Lay a dark and a bright dot and a thin dark line over a frame, as after t steps."""
    frame = frame.copy()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frame[(y - 60 - 3 * t) ** 2 + (x - 40 - 8 * t) ** 2 <= 9] = 15
    frame[(y - 160) ** 2 + (x - 300 + 7 * t) ** 2 <= 12] = 250
    frame[:, 200 + 6 * t : 202 + 6 * t] = 20
    return frame


def _demo_frames(root: Path, count: int) -> Iterator[RGB8]:
    scene = _photograph(root, "kodak24/kodim23.jpg", 1536, 1024)
    thing = _photograph(root, "kodak24/kodim05.jpg", 384, 256)[40:200, 60:260]
    for t in range(count):
        x = 60 + max(0, t - 5 * DEMO_RATE)
        frame = scene[150 : 150 + DEMO_HEIGHT, x : x + DEMO_WIDTH].copy()
        yield _with(frame, thing, 380, 100 + 4 * t)


def _rained(frames: Iterable[RGB8]) -> Iterator[RGB8]:
    field = _DEMO_RAIN.layer(_DEMO_FIELD, np.random.default_rng(1))
    for t, frame in enumerate(frames):
        rng = np.random.default_rng(1000 + t)
        y, x = rng.integers(0, _DEMO_FIELD[0] - DEMO_HEIGHT), rng.integers(0, _DEMO_FIELD[1] - DEMO_WIDTH)
        yield add_layer(frame, field[y : y + DEMO_HEIGHT, x : x + DEMO_WIDTH])


def _write(container: OutputContainer, frames: Iterable[RGB8]) -> None:
    """Encode frames, and for each the sound that belongs to it."""
    import av

    video = container.add_stream("libx264", rate=DEMO_RATE, options={"crf": "14", "preset": "veryfast"})
    video.width, video.height, video.pix_fmt = DEMO_WIDTH, DEMO_HEIGHT, "yuv420p"
    context = video.codec_context
    context.time_base = unit = Fraction(1, DEMO_RATE)
    # Limited range, BT.709.
    context.color_range = context.colorspace = context.color_primaries = context.color_trc = 1
    sound: Any = container.add_stream("aac", rate=_SOUND_RATE)
    sound.layout = "stereo"
    heard = 0
    for t, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=1, src_color_range=2, dst_color_range=1
        )
        frame.pts, frame.time_base = t, unit
        container.mux(video.encode(frame))
        while heard < _SOUND_RATE * (t + 1) // DEMO_RATE:
            _encode_sound(container, sound, heard)
            heard += _SOUND_FRAME
    container.mux(video.encode(None))
    container.mux(sound.encode(None))


def _encode_sound(container: OutputContainer, stream: Any, start: int) -> None:  # noqa: ANN401
    import av

    times = 2 * np.pi * np.arange(start, start + _SOUND_FRAME) / _SOUND_RATE
    tones = np.stack([np.sin(440 * times), np.sin(660 * times)]).astype(np.float32) * np.float32(0.2)
    frame = av.AudioFrame.from_ndarray(tones, format="fltp", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = _SOUND_RATE, start, Fraction(1, _SOUND_RATE)
    container.mux(stream.encode(frame))
