"""`unrain - --raw SIZE`: raw frames from standard input to standard output."""

import os
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from unrain.cli.output import stdout_problem
from unrain.errors import UnrainError, UsageError

if TYPE_CHECKING:
    from unrain.derainer import Derainer
    from unrain.plan import Outcome, Plan
    from unrain.video import RawFormat, VideoOptions

_EXAMPLE = "give it as: ... | unrain - --raw 1920x1080 | ..."


def check(planned: "Plan", settings: "VideoOptions", *, quality: int | None, dry_run: bool) -> None:
    """Refuse what has no meaning for raw frames.

    Raises:
        UsageError: An input or option does not go with them.
    """
    from unrain import video

    if not all(job.source is None and job.to_stdout for job in planned.jobs):
        raise UsageError(f"--raw: frames come from standard input and go to standard output, {_EXAMPLE}")
    if replace(settings, neighbours=True) != video.VideoOptions() or quality is not None or dry_run:
        raise UsageError(
            "--raw: --codec, --crf, --start, --duration, --hwaccel, --encoder, --quality and --dry-run are "
            "not for raw frames, leave them to the programs before and after"
        )


def derain_frames(
    form: "RawFormat", derainer: "Derainer", settings: "VideoOptions", strength: float
) -> "Outcome":
    """Take the rain out of raw frames until standard input ends.

    Raises:
        UnrainError: Nothing came, or something cannot be read or written.
        BrokenPipeError: Nobody reads standard output any more.
    """
    from unrain import video
    from unrain.plan import Outcome

    start = time.monotonic()
    try:
        report = video.derain_raw(
            sys.stdin.buffer, sys.stdout.buffer, form, derainer, settings, strength=strength
        )
    except BrokenPipeError:
        # What is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
    except OSError as error:
        raise UnrainError(stdout_problem(error)) from error
    return Outcome(
        "standard input",
        "failed" if report.problem else "derained",
        report.problem,
        seconds=time.monotonic() - start,
        recursions=report.recursions,
        warnings=report.warnings,
        frames=report.frames,
        hardly_any_rain=report.hardly_any_rain,
    )
