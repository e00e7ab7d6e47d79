"""What does the work, in this process or in one of a cluster: one task after the other.

A file of this machine is read and written where it is. An object is copied into a folder of the worker and
derained there like any file, and its result is put back in one piece.
"""

import functools
import hashlib
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from unrain import batch, files, zoo
from unrain.cluster import storage
from unrain.cluster.inputs import Task
from unrain.cluster.log import LogRow, now
from unrain.errors import UnrainError
from unrain.plan import Job, Kind, Outcome
from unrain.version import __version__

_SCRATCH = "unrain-work-"


class Worker:
    """Does tasks, and keeps the model open between them."""

    def __init__(self, model: zoo.Model, settings: batch.Settings) -> None:
        """Take what all tasks share.

        Args:
            model: The model; opened when a task first needs it.
            settings: What is wanted of every input.
        """
        self._settings = settings
        self._scratch, self._lock = files.scratch(_SCRATCH)
        self.load = functools.cache(lambda: settings.open(model))

    def close(self) -> None:
        """Remove the folder of copies."""
        files.discard(self._scratch, self._lock)

    def run(self, task: Task) -> tuple[LogRow, Outcome]:
        """Do a task.

        Returns:
            What became of it, for the log and for the run.

        Raises:
            UnrainError: The model cannot be loaded.
        """
        start = time.monotonic()
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        try:
            outcome = self._outcome(task, folder)
            row = LogRow(
                input=task.source,
                result=task.key,
                status=outcome.status,
                message=outcome.message,
                seconds=round(time.monotonic() - start, 3),
                recursions=outcome.recursions,
                device=self.load().processor if outcome.recursions else "",
                bytes=_size(task.source, folder),
                input_sha256=_digest(task.source, folder),
                result_sha256=_digest(task.targets["derained"], folder),
                written=tuple(map(str, outcome.written)),
                frames=outcome.frames,
                hardly_any_rain=outcome.hardly_any_rain,
                warnings=outcome.warnings,
                notes=outcome.notes,
                host=platform.node(),
                finished=now(),
                unrain=__version__,
            )
            return row, outcome
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _outcome(self, task: Task, folder: Path) -> Outcome:
        # A task that a lost worker began had no result before: what is there now is its own.
        overwrite = self._settings.overwrite or task.again
        try:
            source = _fetched(task.source, folder)
            targets = {kind: _copy(name, folder) for kind, name in task.targets.items()}
            for name in task.targets.values():
                if not overwrite and storage.is_address(name) and storage.exists(name):
                    _fetched(name, folder)
        except UnrainError as error:
            return Outcome(task.source, "failed", str(error))
        self.load()
        try:
            settings = replace(self._settings, overwrite=overwrite)
            outcome = batch.run_job(Job(source, targets), self.load, settings)
        # Days of work must not end with what nobody foresaw of one file.
        except Exception as error:
            message = f"{task.source}: {type(error).__name__} ({files.one_line(error)}), please report this"
            outcome = Outcome(task.source, "failed", message)
        return _put_back(outcome, task, source, targets, overwrite=overwrite)


def _put_back(
    outcome: Outcome, task: Task, source: Path, targets: Mapping[Kind, Path], *, overwrite: bool
) -> Outcome:
    """Put copies of results where they belong, and call everything by its own name."""
    names = {str(path): task.targets[kind] for kind, path in targets.items()} | {str(source): task.source}
    for path in map(str, outcome.written):
        if path not in names:
            # A video that was copied as it was keeps its extension.
            names[path] = (
                task.targets["derained"].removesuffix(targets["derained"].suffix) + Path(path).suffix
            )
    written, problems = [], []
    for path in map(str, outcome.written):
        try:
            if path != names[path]:
                storage.put(Path(path), names[path], overwrite=overwrite)
            written.append(names[path])
        except UnrainError as error:
            problems.append(str(error))

    def named(text: str) -> str:
        for path, name in names.items():
            text = text.replace(path, name)
        return text

    message = "; ".join(filter(None, (named(outcome.message), *problems)))
    return replace(
        outcome,
        name=task.source,
        status="failed" if problems else outcome.status,
        message=message,
        written=tuple(written),
        notes=tuple(map(named, outcome.notes)),
        warnings=tuple(map(named, outcome.warnings)),
    )


def _copy(name: str, folder: Path) -> Path:
    """Return where a file is worked on: an object as a copy below `folder`, the others in their place."""
    if not storage.is_address(name):
        return Path(name)
    # Two objects of one name do not meet, and the copy keeps the name, which decides what it is.
    below = folder / hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
    below.mkdir(exist_ok=True)
    return below / name.rpartition("/")[2]


def _fetched(name: str, folder: Path) -> Path:
    """Return where a file is read, after it was copied if it is an object.

    Raises:
        UnrainError: It cannot be read.
    """
    copy = _copy(name, folder)
    if storage.is_address(name) and not copy.exists():
        storage.fetch(name, copy)
    return copy


def _size(name: str, folder: Path) -> int:
    try:
        return _copy(name, folder).stat().st_size
    except OSError:
        return 0


def _digest(name: str, folder: Path) -> str:
    """Return the SHA-256 of a file or object; empty if it is not there or cannot be read."""
    try:
        with files.opened(_fetched(name, folder)) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (UnrainError, OSError):
        return ""
