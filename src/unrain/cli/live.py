"""`unrain live SOURCE -o OUT`: derain what a camera sees."""

import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from unrain.cli.output import EXIT_INTERRUPTED, devices_named, error_line
from unrain.cli.signals import terminable
from unrain.errors import UnrainError
from unrain.files import writing_error

if TYPE_CHECKING:
    from typing import TextIO

_Positive = Parameter(validator=validators.Number(gt=0))


def live(
    source: Annotated[str, Parameter(name="SOURCE")],
    /,
    *,
    output: Annotated[str, Parameter(alias="-o")],
    model: str = "rdmc-lite-xs",
    strength: float = 1.0,
    segment: Annotated[float, _Positive] = 60.0,
    events: Annotated[str | None, Parameter(show_default="none")] = None,
    duration: Annotated[float | None, _Positive, Parameter(show_default="until Ctrl-C")] = None,
    device: str = "auto",
    precision: str = "auto",
    threads: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    max_pixels: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 9_000_000,
) -> int:
    """Derain what a camera sees, as it comes in.

    The newest frame always wins: a camera that is faster than the network loses frames and gains no delay. A
    camera that is lost is connected again. Needs the extra video: pip install 'unrain[video]'.

    Args:
        source: The camera: rtsp://, rtsps://, http:// or https://, or a device such as /dev/video0.
        output: A folder for MP4 files, which can be played after a kill; http://127.0.0.1:PORT/ to serve
            MJPEG there; or rtsp://... to send to a server.
        model: A name that unrain models lists, or an ONNX file.
        strength: How much of the rain is taken away: 0 none, 1 what is found, up to 1.5.
        segment: Seconds of each MP4 file.
        events: A file to which a JSON line is added when rain begins or ends; - for standard output.
        duration: Stop after so many seconds.
        device: What the network runs on, see unrain devices; auto for the fastest that works.
        precision: What it computes in: fp32, fp16 or bf16; auto for what the device is best at.
        threads: Processor threads, 0 for all.
        max_pixels: Refuse frames with more pixels.
    """
    from unrain import layer, zoo
    from unrain.derainer import Derainer
    from unrain.live.camera import Camera, check_library
    from unrain.live.events import RainEvents
    from unrain.live.outputs import make_output
    from unrain.live.run import run

    def say(line: str) -> None:
        error_line(f"unrain: {line}")

    layer.check_strength(strength)
    check_library("live")
    camera = Camera(source, say, max_pixels)
    with devices_named(error_line):
        derainer = Derainer(zoo.find(model), device=device, precision=precision, threads=threads)
    stop = threading.Event()
    with ExitStack() as stack, terminable(stop.set):
        rain = None
        if events is not None:
            rain = RainEvents(derainer.scorer.threshold, _opened(events, stack))
        try:
            report = run(
                camera,
                make_output(output, segment, say),
                derainer,
                strength=strength,
                events=rain,
                duration=duration,
                say=say,
                stopped=stop.is_set,
            )
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
    say(f"{report.frames} of {report.received} frames derained, {report.dropped} dropped for newer ones")
    if not report.frames:
        raise UnrainError(f"{source}: no picture came from there")
    return 0


def _opened(events: str, stack: ExitStack) -> "TextIO":
    # The command line's stand-in for a lone hyphen.
    if events == "\0":
        return sys.stdout
    try:
        return stack.enter_context(Path(events).open("a", encoding="utf-8"))
    except OSError as error:
        raise writing_error(error, Path(events)) from error
