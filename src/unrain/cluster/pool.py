"""The workers of a Ray cluster: pools of actors that grow while there is work for them and shrink at its end.

Only names and rows travel: pictures go from storage to a worker and back, never through the driver or Ray's
object store. Tasks are handed out in groups of so many bytes. A group whose worker was lost is handed out
again, each task by itself; a task that has lost three workers by itself is a failed row.
"""

import contextlib
import hashlib
import io
import logging
import math
import os
import platform
import socket
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unrain import files, zoo
from unrain.batch import Settings
from unrain.cluster.inputs import Task
from unrain.cluster.log import LogRow, now
from unrain.cluster.worker import Worker
from unrain.errors import UnrainError
from unrain.files import one_line
from unrain.version import __version__

# A group ends with the task that reaches either; a file of unknown size counts as this many bytes.
_GROUP_BYTES, _GROUP_TASKS, _UNKNOWN_BYTES = 8_000_000, 16, 2_000_000
# Groups that each worker has: one to do, one in reserve.
_AHEAD = 2
_ATTEMPTS = 3
# Seconds: for a connection, until it is said why nothing happens, between two looks at the cluster's size,
# for an answer, and for workers to leave.
_CONNECTING, _WAITING, _LOOKING, _TICK, _LEAVING = 10.0, 30.0, 10.0, 1.0, 5.0
# Names and rows need next to nothing; Ray takes 30 % of the memory otherwise.
_STORE_BYTES = 100_000_000


@dataclass(frozen=True)
class Size:
    """How large the pools are.

    Attributes:
        bounds: The least and the most workers of each; None for as many as fit at the start.
        cpus: Of each worker.
        gpus: Of each worker.
    """

    bounds: tuple[int, int] | None = None
    cpus: float = 1.0
    gpus: float = 0.0


@dataclass(frozen=True)
class ShippedModel:
    """A model on its way to machines that do not have its file.

    Attributes:
        name: As in the zoo.
        sha256: Digest of the ONNX file.
        card: Its card.
        data: The ONNX file; None for one that comes with the package.
    """

    name: str
    sha256: str
    card: dict[str, Any]
    data: bytes | None

    @classmethod
    def of(cls, model: zoo.Model) -> "ShippedModel":
        """Pack a model.

        Raises:
            UnrainError: Its file cannot be read.
        """
        with files.opened(model.path) as file:
            data = file.read()
        ours = model.path.parent == zoo.WEIGHTS
        return cls(model.name, hashlib.sha256(data).hexdigest(), model.card, None if ours else data)

    def unpacked(self, folder: Path) -> zoo.Model:
        """Return the model, with its file in a folder unless it comes with the package.

        Raises:
            UnrainError: The package here has another model of this name.
        """
        if self.data is not None:
            path = folder / "model.onnx"
            path.write_bytes(self.data)
            return zoo.Model(self.name, path, self.card)
        found = zoo.find(self.name)
        if hashlib.sha256(found.path.read_bytes()).hexdigest() != self.sha256:
            raise UnrainError(f"{self.name}: other weights on {platform.node()}, install the same unrain")
        return found


class Actor:
    """A worker in a process of its own; Ray makes it."""

    def __init__(self, model: ShippedModel, settings: Settings, version: str) -> None:
        """Take what all tasks share; nothing here may fail, for what it says would be lost."""
        self._model, self._settings, self._version = model, settings, version
        self._worker: Worker | None = None

    def start(self) -> None:
        """Open the model.

        Raises:
            UnrainError: The model cannot be opened, or this machine has another version of unrain.
        """
        if self._version != __version__:
            raise UnrainError(
                f"unrain {self._version} here, but {__version__} on {platform.node()}: install the same"
            )
        with tempfile.TemporaryDirectory(prefix="unrain-model-") as folder:
            self._worker = Worker(self._model.unpacked(Path(folder)), self._settings)
            self._worker.load()

    def run(self, tasks: Sequence[Task]) -> list[tuple[LogRow, bool]]:
        """Do tasks.

        Returns:
            The row of each, and whether the run is to end with it; then the rest is not done.
        """
        assert self._worker is not None
        done = []
        for task in tasks:
            row, outcome = self._worker.run(task)
            done.append((row, bool(outcome.ends_run)))
            if outcome.ends_run:
                break
        return done

    def close(self) -> None:
        """Leave nothing behind."""
        if self._worker is not None:
            self._worker.close()


@dataclass(eq=False)
class _Member:
    """A worker of a pool.

    Attributes:
        actor: Ray's handle.
        started: Ray's reference to the end of its start; None once it has started.
        groups: What it was given and has not answered yet, in order.
    """

    actor: Any
    started: Any
    groups: dict[Any, list[Task]] = field(default_factory=dict)


@dataclass(eq=False)
class _Pool:
    """Workers for one kind of input, and what is left for them.

    Attributes:
        queue: What is not given to any worker.
        members: The workers.
    """

    queue: deque[Task]
    members: list[_Member] = field(default_factory=list)

    @property
    def left(self) -> bool:
        return bool(self.queue) or any(member.groups for member in self.members)

    def group(self, workers: int) -> list[Task]:
        """Take the next tasks off the queue: less of them towards the end, so that all end together."""
        most = min(_GROUP_TASKS, math.ceil(len(self.queue) / (_AHEAD * workers)))
        group, size = [self.queue.popleft()], 0
        while self.queue and len(group) < most:
            size += group[-1].size or _UNKNOWN_BYTES
            # What was in a lost group is tried by itself.
            if size >= _GROUP_BYTES or group[-1].again or self.queue[0].again:
                break
            group.append(self.queue.popleft())
        return group


class Cluster:
    """The workers on a Ray cluster."""

    def __init__(
        self,
        address: str,
        host: tuple[str, int] | None,
        size: Size,
        model: zoo.Model,
        settings: Settings,
        say: Callable[[str], object],
    ) -> None:
        """Connect to a cluster, or start one on this machine.

        Args:
            address: local, auto, ray://HOST:10001 or HOST:6379.
            host: Where the last two listen.
            size: How large the pools are.
            model: The model.
            settings: What is wanted of every input.
            say: Receives a line for whoever waits.

        Raises:
            UnrainError: There is no such cluster, or it does not fit.
        """
        self._address, self._size, self._settings, self._say = address, size, settings, say
        shipped = ShippedModel.of(model)
        self._ray = _connected(address, host)
        self._model = self._ray.put(shipped)
        self._made = self._ray.remote(Actor).options(
            num_cpus=size.cpus, num_gpus=size.gpus, max_restarts=0, max_task_retries=0
        )
        self._pools: list[_Pool] = []
        # How often each task has lost a worker that it had to itself.
        self._lost: Counter[str] = Counter()
        self._failed_starts = 0
        self._leaving: list[Any] = []
        self._fit, self._looked = 0, -math.inf
        self._waiting_since = time.monotonic()

    def run(self, tasks: Iterable[Task]) -> Iterator[LogRow]:
        """Do tasks, in the order in which workers end them.

        Yields:
            The row of each; fewer after a full disk.

        Raises:
            UnrainError: No worker can start, or the cluster is gone.
        """
        videos, pictures = deque[Task](), deque[Task]()
        for task in tasks:
            (videos if task.is_video else pictures).append(task)
        self._pools = [_Pool(queue) for queue in (videos, pictures) if queue]
        try:
            while any(pool.left for pool in self._pools):
                self._feed()
                for row, ends_run in self._answers():
                    yield row
                    if ends_run:
                        for pool in self._pools:
                            pool.queue.clear()
        except self._ray.exceptions.RayError as error:
            raise UnrainError(
                f"--cluster {self._address}: lost ({_first_line(error)}); the same command resumes"
            ) from error

    def close(self) -> None:
        """End all workers, and the cluster if it was started here."""
        with contextlib.suppress(Exception):
            for pool in self._pools:
                for member in [one for one in pool.members if not one.groups]:
                    self._dismiss(pool, member)
            if self._leaving:
                self._ray.wait(self._leaving, num_returns=len(self._leaving), timeout=_LEAVING)
        for pool in self._pools:
            for member in pool.members:
                with contextlib.suppress(Exception):
                    self._ray.kill(member.actor)
        with contextlib.suppress(Exception):
            self._ray.shutdown()

    def _dismiss(self, pool: _Pool, member: _Member) -> None:
        """Let a worker tidy up and end."""
        pool.members.remove(member)
        self._leaving.append(member.actor.close.remote())
        member.actor.__ray_terminate__.remote()

    def _bounds(self) -> tuple[int, int]:
        if self._size.bounds is not None:
            return self._size.bounds
        if time.monotonic() - self._looked > _LOOKING:
            has = self._ray.cluster_resources()
            fits = [
                has.get(name, 0) / each
                for name, each in (("CPU", self._size.cpus), ("GPU", self._size.gpus))
                if each
            ]
            self._fit, self._looked = max(1, int(min(fits, default=1))), time.monotonic()
        return 1, self._fit

    def _feed(self) -> None:
        """Give every worker something to do, and bring the pools to their size."""
        least, most = self._bounds()
        for pool in self._pools:
            for member in pool.members:
                while pool.queue and member.started is None and len(member.groups) < _AHEAD:
                    group = pool.group(most)
                    member.groups[member.actor.run.remote(group)] = group
            wanted = min(most, max(least, len(pool.members) + len(pool.queue))) if pool.queue else 0
            while len(pool.members) < wanted:
                actor = self._made.remote(self._model, self._settings, __version__)
                pool.members.append(_Member(actor, actor.start.remote()))
            for member in [one for one in pool.members if not one.groups and not pool.queue]:
                self._dismiss(pool, member)
        self._complain()

    def _complain(self) -> None:
        """Say once why nothing happens."""
        if any(member.started is None for pool in self._pools for member in pool.members):
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > _WAITING:
            has = self._ray.cluster_resources()
            self._say(
                f"unrain: no worker could start yet: each needs {self._size.cpus:g} CPUs and "
                f"{self._size.gpus:g} GPUs, the cluster has {has.get('CPU', 0):g} and {has.get('GPU', 0):g}"
            )
            self._waiting_since = math.inf

    def _answers(self) -> Iterator[tuple[LogRow, bool]]:
        """Wait for workers to start, to answer or to be lost."""
        refs = [
            ref
            for pool in self._pools
            for member in pool.members
            for ref in (*([member.started] if member.started is not None else []), *member.groups)
        ]
        if not refs:
            return
        self._ray.wait(refs, num_returns=1, timeout=_TICK)
        ready = set(self._ray.wait(refs, num_returns=len(refs), timeout=0)[0])
        for pool in self._pools:
            for member in list(pool.members):
                if member.started in ready:
                    self._started(pool, member)
                for ref in [one for one in member.groups if one in ready]:
                    if ref in member.groups:
                        yield from self._answer(pool, member, ref)

    def _started(self, pool: _Pool, member: _Member) -> None:
        exceptions = self._ray.exceptions
        try:
            self._ray.get(member.started)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, UnrainError):
                raise error.cause from None
            raise UnrainError(_cannot_start(error)) from error
        except exceptions.RayError as error:
            pool.members.remove(member)
            self._failed_starts += 1
            if self._failed_starts >= _ATTEMPTS:
                raise UnrainError(_cannot_start(error)) from error
        else:
            member.started, self._failed_starts = None, 0

    def _answer(self, pool: _Pool, member: _Member, ref: Any) -> Iterator[tuple[LogRow, bool]]:  # noqa: ANN401
        try:
            rows = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            yield from self._lose(pool, member, error)
            return
        del member.groups[ref]
        yield from rows

    def _lose(self, pool: _Pool, member: _Member, error: Exception) -> Iterator[tuple[LogRow, bool]]:
        """Hand out again what a lost worker had."""
        with contextlib.suppress(Exception):
            self._ray.kill(member.actor)
        pool.members.remove(member)
        suspects = True
        for ref, group in member.groups.items():
            try:
                # What it answered before it was lost counts.
                rows = self._ray.get(ref, timeout=0)
            except self._ray.exceptions.RayError:
                pass
            else:
                yield from rows
                continue
            if suspects and len(group) == 1:
                self._lost[group[0].key] += 1
            suspects = False
            for task in group:
                if self._lost[task.key] < _ATTEMPTS:
                    pool.queue.append(replace(task, again=True))
                else:
                    yield _given_up(task, error), False
        member.groups = {}


def _given_up(task: Task, error: Exception) -> LogRow:
    message = (
        f"{task.source}: its worker was lost {_ATTEMPTS} times ({_first_line(error)}), perhaps for want of "
        "memory: give workers more, or try a smaller --tile"
    )
    return LogRow(
        task.source, task.key, "failed", message, bytes=task.size, finished=now(), unrain=__version__
    )


def _cannot_start(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if "Error" in line]
    reason = one_line(lines[-1] if lines else error)[:300]
    return f"--cluster: no worker can start ({reason}), install the same unrain on every machine"


def _first_line(error: Exception) -> str:
    return one_line(next(iter(str(error).strip().splitlines()), "") or type(error).__name__)[:200]


def _connected(address: str, host: tuple[str, int] | None) -> Any:  # noqa: ANN401  (Ray's module)
    """Connect Ray to a cluster, without its reports of usage.

    Raises:
        UnrainError: There is none, or it is of another version.
    """
    # Ray looks at these when it is imported. A cluster told not to report reports that it was told so, hence
    # the address where nobody listens.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_USAGE_STATS_REPORT_URL"] = "http://127.0.0.1:9/"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if host is not None:
        # Found out within seconds; Ray would take minutes.
        try:
            socket.create_connection(host, timeout=_CONNECTING).close()
        except OSError as error:
            raise UnrainError(
                f"--cluster {address}: nobody answers there ({error.strerror or error}), start the cluster "
                "or give another address"
            ) from error
    import ray

    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        settings |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            ray.init(address=address, **settings)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and its own
        text = str(error)
        if "ersion mismatch" in text or "ersions" in text:
            reason = f"runs another version than Ray {ray.__version__} and Python {platform.python_version()}"
            remedy = "install the same here and there"
        else:
            reason, remedy = (
                f"no Ray cluster there ({_first_line(error)})",
                "start one, or give another address",
            )
        raise UnrainError(f"--cluster {address}: {reason}, {remedy}") from error
    return ray
