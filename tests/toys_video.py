"""Toys of the tests of videos: an engine that finds no rain, clips, and a run."""

from fractions import Fraction

import av
import numpy as np

from unrain import video
from unrain.derainer import Derainer
from unrain.video import VideoOptions

TICK = Fraction(1, 600)
# Rotated by 90 degrees, in the layout of an MP4's track header.
QUARTER_TURN = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)


class Same:
    """An engine that finds no rain."""

    multiple, halo, recursions, recursive, levels = 1, 0, 1, False, 1

    def step(self, rainy, estimate):
        return rainy


def clip(
    path,
    *,
    frames=10,
    size=(64, 48),
    codec="libx264",
    kind="yuv420p",
    full=False,
    sound=True,
    times=None,
    **more,
):
    """Make a clip: a gradient, a moving bar, and a sine tone of the same length."""
    width, height = size
    times = times or [24 * number for number in range(frames)]
    container_options = {"movflags": more.pop("movflags", "")} if "movflags" in more else {}
    if path.suffix in (".mp4", ".mov"):
        container_options["video_track_timescale"] = "600"
    with av.open(str(path), "w", container_options=container_options) as file:
        file.metadata.update({"title": "Regen", "comment": "wet"})
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = file.add_stream(
            codec, rate=25, options={**options, "crf": "10"} if "x26" in codec else options
        )
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, kind
        context.time_base = stream.time_base = TICK
        context.color_range = 2 if full else 1
        context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1
        context.sample_aspect_ratio = Fraction(4, 3)
        stream.metadata["language"] = "deu"
        if more.get("turned"):
            stream.set_display_matrix(QUARTER_TURN)
        tone = None
        if sound:
            tone = file.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48000, layout="mono")
        text = more.get("text") and file.add_mux_stream("subrip")
        for number, at in enumerate(times):
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[..., 0] = np.linspace(0, 255, width)
            pixels[..., 1] = np.linspace(0, 255, height)[:, None]
            pixels[5:15, 3 * number % width : 3 * number % width + 8, 2] = 200
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(
                format=kind, dst_colorspace=1, src_color_range=2, dst_color_range=2 if full else 1
            )
            frame.pts, frame.time_base = at, TICK
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        for start in range(0, int((times[-1] + 24) * TICK * 48000) if tone else 0, 960):
            wave = (
                np.sin(2 * np.pi * 440 * np.arange(start, start + 960) / 48000).astype(np.float32)[None] * 0.3
            )
            piece = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = 48000, start, Fraction(1, 48000)
            file.mux(tone.encode(piece))
        if tone:
            file.mux(tone.encode(None))
        if text:
            packet = av.Packet(b"rain")
            packet.stream, packet.time_base = text, Fraction(1, 1000)
            packet.pts = packet.dts = 40
            packet.duration = 100
            file.mux(packet)
    return path


def raw_h264(size, frames=6):
    """Frames without a container: several of different size can follow each other."""
    width, height = size
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "yuv420p", TICK
    encoder.options = {"x264-params": "annexb=1:repeat-headers=1"}
    packets = []
    for number in range(frames):
        pixels = np.full((height, width, 3), 20 * number, np.uint8)
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p")
        frame.pts = 24 * number
        packets += encoder.encode(frame)
    return b"".join(map(bytes, [*packets, *encoder.encode(None)]))


def run(source, engine=None, target=None, **options):
    target = target or video.beside(source)
    return video.derain(source, target, Derainer(engine or Same()), VideoOptions(**options)), target
