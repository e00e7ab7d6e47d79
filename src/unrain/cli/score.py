"""`unrain score IN...`: does it rain in a picture?"""

import json as jsonlib
from typing import Annotated

from cyclopts import Parameter, validators

from unrain import devices
from unrain.cli.derain import FileName
from unrain.cli.output import EXIT_FAILED, check_form, csv_line, devices_named, error_line, print_line
from unrain.cli.progress import Bar
from unrain.errors import UnrainError, UsageError

_FIELDS = ("score", "verdict", "layer", "direction", "frames", "at", "most")


def score(
    *inputs: Annotated[FileName, Parameter(name="IN")],
    csv: bool = False,
    json: bool = False,
    device: str = "auto",
    precision: str = "auto",
    threads: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    max_pixels: Annotated[
        int | None, Parameter(validator=validators.Number(gte=1), show_default="400 million")
    ] = None,
) -> int:
    """Tell how likely it rains in pictures and videos, how strongly, and from where.

    For each picture the score, 0 to 100; the verdict clear, light or heavy; the light that rain adds, in
    8-bit levels on average; the direction of the streaks in degrees from upright, positive if they lean to
    the right at their top. Of a video up to 24 frames are looked at: its score is the one that an eighth of
    them exceed; then when it rains most, and the score there.

    Args:
        inputs: Pictures, videos, and folders of them.
        csv: Print the scores as CSV.
        json: Print the scores as JSON.
        device: What the detector runs on, see unrain devices; auto for the fastest that works.
        precision: What it computes in: fp32, fp16 or bf16; auto for what the device is best at.
        threads: Processor threads, 0 for all.
        max_pixels: Refuse pictures with more pixels.
    """
    check_form(csv=csv, json=json)
    if not inputs:
        raise UsageError("score: name pictures or folders")
    devices.parse(device)
    devices.check_precision(precision)
    from unrain import image, plan, video
    from unrain.score import scorer

    most = image.MAX_PIXELS if max_pixels is None else max_pixels
    failed = False
    rows = []
    paths = list(plan.named([str(text) for text in inputs]))
    with devices_named(error_line):
        find = scorer(devices.Processor(device, precision, threads))
    if not json:
        print_line(csv_line(("file", *_FIELDS)) if csv else "score  verdict  layer  direction  file")
    with Bar(len(paths)) as bar:
        for number, path in enumerate(paths):
            try:
                if video.is_video(path):
                    found = video.score_video(path, find, max_pixels=most).as_dict()
                else:
                    found = find(image.read(path, max_pixels=most, pages=True).pixels).as_dict()
            except UnrainError as error:
                failed = True
                bar.say(f"unrain: error: {error}")
                continue
            finally:
                bar.update(number + 1, path.name)
            if json:
                rows.append({"file": str(path), **found})
            elif csv:
                bar.print(csv_line((path, *map(found.get, _FIELDS))))
            else:
                tilt = "-" if found["direction"] is None else f"{found['direction']:+d}"
                line = (
                    f"{found['score']:5.1f}  {found['verdict']:7}  {found['layer']:5.2f}  {tilt:>9}  {path}"
                )
                if "frames" in found:
                    line += f" ({found['frames']} frames, most at {found['at']:g} s: {found['most']:g})"
                bar.print(line)
    if json:
        for line in jsonlib.dumps(rows, indent=2, ensure_ascii=False).split("\n"):
            print_line(line)
    if not paths:
        error_line("unrain: error: no picture or video in what was named")
    return EXIT_FAILED if failed or not paths else 0
