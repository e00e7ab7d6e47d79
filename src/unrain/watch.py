"""A folder that is watched: every file is derained once it is finished. Needs the extra `watch`.

What was done is known from the results alone, so that a run that was killed resumes where it was.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from unrain.plan import Plan, make_plan

# Seconds for which a file must not have changed: whoever writes it writes at least that often.
SETTLED = 2.0
_TICK = 1000  # milliseconds between two looks at files that may be finished


class Watch:
    """Tells which files of a folder are finished and have no result yet."""

    def __init__(self, folder: Path, output: Path) -> None:
        """Look at nothing yet.

        Args:
            folder: Where files appear.
            output: Where their results go.
        """
        self._folder, self._output = folder, output
        self._seen: dict[Path, tuple[int, int, float]] = {}
        self._tried: dict[Path, tuple[int, int]] = {}

    def finished(self, now: float) -> Plan:
        """Return what is to be done now.

        Args:
            now: On the clock of `time.monotonic`.

        Returns:
            A plan with the files that have not changed for `SETTLED` seconds and have no result. Each is
            returned once, and again if it changes: one that failed because it was cut off may get whole.
        """
        plan = make_plan([str(self._folder)], str(self._output))
        jobs = []
        for job in plan.jobs:
            if job.source is None or not job.pending(overwrite=False):
                continue
            try:
                found = job.source.stat()
            except OSError:
                continue
            state = found.st_size, found.st_mtime_ns
            size, changed, since = self._seen.get(job.source, (-1, -1, now))
            if (size, changed) != state:
                self._seen[job.source] = (*state, now)
            elif now - since >= SETTLED and found.st_size and self._tried.get(job.source) != state:
                self._tried[job.source] = state
                jobs.append(job)
        return replace(plan, jobs=jobs, settled=[], ignored=())


def plans(folder: Path, output: Path, stopped: Callable[[], bool]) -> Iterator[Plan]:
    """Yield what is to be done whenever there is something, until it is stopped.

    Args:
        folder: Where files appear; those that are there already count too.
        output: Where their results go.
        stopped: Asked about once a second.

    Raises:
        ModuleNotFoundError: The extra is missing.
    """
    from watchfiles import watch as changes

    watch = Watch(folder, output)
    for _ in changes(folder, yield_on_timeout=True, rust_timeout=_TICK, debounce=_TICK, raise_interrupt=True):
        if stopped():
            return
        plan = watch.finished(time.monotonic())
        if plan.jobs:
            yield plan
