"""The loop of `unrain live`: the newest frame, the network, the output; and what it says meanwhile."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unrain.layer import at_strength
from unrain.live.camera import Camera
from unrain.live.events import RainEvents
from unrain.live.outputs import Output
from unrain.video.shot import Shot

if TYPE_CHECKING:
    from unrain.derainer import Derainer

# Seconds between two lines about the state, and between two scores.
_SAY_EVERY, _SCORE_EVERY = 10.0, 1.0


@dataclass
class Report:
    """How it went.

    Attributes:
        frames: Frames that were derained.
        received: Frames that came in.
        dropped: How many of those were too many for the network.
        connections: How often the camera was connected.
        latencies: Seconds from a frame's arrival to its output, of the last thousand.
    """

    frames: int = 0
    received: int = 0
    dropped: int = 0
    connections: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=1000))


def run(
    camera: Camera,
    output: Output,
    derainer: "Derainer",
    *,
    strength: float = 1.0,
    events: RainEvents | None = None,
    duration: float | None = None,
    say: Callable[[str], object] = lambda line: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Report:
    """Derain what a camera sees until it is stopped.

    No frame waits for another: while the network is busy the camera's frames replace each other, so that the
    latency is at most that of two frames, however slow the network is.

    Args:
        camera: Where frames come from; it is started and stopped here.
        output: Where they go; it is closed here.
        derainer: Takes the rain out.
        strength: How much of the rain is taken away.
        events: Is told about once a second what the derainer's scorer says.
        duration: Stop after so many seconds.
        say: Receives a line about the state now and then.
        stopped: Asked after each frame.

    Raises:
        UnrainError: The output cannot be written.
        KeyboardInterrupt: Ctrl-C; the output is finished first.
    """
    report = Report()
    shot = Shot()
    octaves: tuple[int, ...] | None = None
    begun = said = time.monotonic()
    scored = -_SCORE_EVERY
    before = (0, 0)
    camera.start()
    try:
        while not stopped():
            now = time.monotonic()
            if duration is not None and now - begun >= duration:
                break
            frame = camera.newest(0.5)
            if frame is not None:
                if shot.starts(frame.pixels):
                    octaves = None
                found = derainer.derain(frame.pixels, octaves=octaves)
                octaves = found.plan if octaves is None else octaves
                output.put(at_strength(frame.pixels, found.image, strength), frame.at)
                report.frames += 1
                report.latencies.append(time.monotonic() - frame.at)
                if events is not None and frame.at - scored >= _SCORE_EVERY:
                    scored = frame.at
                    if word := events.see(derainer.scorer(frame.pixels).score, frame.at):
                        say(f"rain {word}")
            report.received, report.dropped = camera.received, camera.dropped
            report.connections = camera.connections
            if now - said >= _SAY_EVERY:
                frames, received = report.frames - before[0], report.received - before[1]
                say(_state(frames, received, now - said, report))
                said, before = now, (report.frames, report.received)
    finally:
        camera.stop()
        output.close()
    return report


def _state(frames: int, received: int, seconds: float, report: Report) -> str:
    if not received:
        return "no picture from the camera"
    latency = max(list(report.latencies)[-max(1, frames) :], default=0.0)
    return (
        f"{received / seconds:.1f} frames a second in, {frames / seconds:.1f} out, "
        f"latency up to {latency:.2f} s, {report.dropped} dropped so far"
    )
