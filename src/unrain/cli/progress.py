"""The progress bar of every command that takes long."""

import sys
from typing import TYPE_CHECKING

from unrain.cli.output import error_line, escaped, print_line

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """A progress bar on standard error, if that is a terminal; lines are written above it."""

    def __init__(self, total: int = 1, *, shown: bool = True, animated: bool = True) -> None:
        """Prepare a bar.

        Args:
            total: What there is to do.
            shown: False to draw nothing, whatever standard error is.
            animated: False to draw only when something was done, so that no thread disturbs a measurement.
        """
        self._total = total
        self._shown = shown
        self._animated = animated
        self._label = ""
        self.progress: Progress | None = None

    def __enter__(self) -> "Bar":
        if self._shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            self.progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                auto_refresh=self._animated,
                # A frame of 4K may take longer than the half minute that is usual here.
                speed_estimate_period=600,
                transient=True,
                # Standard output may be a file, which the bar's own terminal must not take lines from.
                redirect_stdout=False,
            )
            self._task = self.progress.add_task("unrain", total=self._total)
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def update(self, done: float, label: str | None = None) -> None:
        """Move the bar.

        Args:
            done: What is done of the total.
            label: What stands before the bar; as before when None.
        """
        if self.progress is not None:
            shown = None if label is None else escaped(label)
            self.progress.update(self._task, completed=done, description=shown, refresh=not self._animated)

    def step(self, label: str, done: int, total: int) -> None:
        """Show how far one part of the work is; a new label starts the bar anew.

        Args:
            label: The part.
            done: Its pictures or rounds that are done.
            total: Its pictures or rounds in all.
        """
        if self.progress is not None:
            if label != self._label:
                self._label = label
                self.progress.reset(self._task, total=total)
            self.update(done, f"{label} {done}/{total}")

    def say(self, line: str) -> None:
        """Write a line to standard error."""
        if self.progress is None:
            error_line(line)
        else:
            self.progress.console.print(escaped(line), markup=False, highlight=False, soft_wrap=True)

    def note(self, line: str) -> None:
        """Write a remark to standard error."""
        self.say(f"unrain: {line}")

    def print(self, line: str) -> None:
        """Write a line of the result to standard output."""
        if self.progress is None or not sys.stdout.isatty():
            print_line(line)
            return
        self.progress.stop()
        print_line(line)
        sys.stdout.flush()
        self.progress.start()
