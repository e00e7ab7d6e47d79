"""What runs a job: the server's own process, or a worker process that can be killed."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from unrain import zoo
from unrain.devices import Processor
from unrain.engine import Engine, open_engine
from unrain.errors import UnrainError
from unrain.web.job import AbandonedError, Answer, Networks, WebJob
from unrain.web.messages import (
    PROGRESS,
    Kind,
    MessageError,
    answer_of,
    frame_of,
    job_parts,
    packed,
    receive,
    refusal_of,
    send,
    unpacked,
)
from unrain.web.video_job import VideoJob

# Seconds for a job that was given up to end by itself, and for the worker to open the models.
_GRACE, _START = 2.0, 120.0
_FAULTS = (MessageError, OSError, ValueError)


@dataclass(frozen=True)
class Contract:
    """What clients are told of how a model runs.

    Attributes:
        recursions: How many it was trained for.
        recursive: Whether another number can be chosen.
    """

    recursions: int
    recursive: bool


class Runner(Protocol):
    """Runs one job at a time."""

    @property
    def models(self) -> Mapping[str, Contract | Engine]:
        """The models by their names, the default first."""

    def run(self, job: WebJob) -> Answer:
        """Run a job in the caller's thread.

        Raises:
            AbandonedError: It was given up.
            WorkerDiedError: It broke the process that it ran in.
            UnrainError: The picture or an option cannot be used.
        """

    def give_up(self, job: WebJob) -> None:
        """End a job that may be running, as soon as that is possible."""

    def close(self) -> None:
        """End everything."""


class WorkerDiedError(Exception):
    """The process in which a picture was processed came to an end."""


class InProcess:
    """Runs jobs in this process, where a decoder that takes long cannot be stopped.

    Attributes:
        engines: The networks by the names of their models.
    """

    def __init__(self, models: Sequence[zoo.Model], processor: Processor, pixels: int) -> None:
        """Open the networks.

        Args:
            models: The models, the default first.
            processor: What they run on.
            pixels: Refuse pictures with more.

        Raises:
            UnrainError: One cannot be opened, two have the same name, or there is none.
        """
        self.engines = _open_engines(models, processor)
        self._networks = Networks(self.engines)
        self._pixels = pixels

    @property
    def models(self) -> Mapping[str, Engine]:
        """The networks by the names of their models."""
        return self.engines

    def run(self, job: WebJob) -> Answer:
        """Run a job."""
        return job.run(self._networks, self._pixels)

    def give_up(self, job: WebJob) -> None:
        """Let a job end after its current tile."""

    def close(self) -> None:
        """Do nothing: a thread cannot be ended."""


@dataclass(frozen=True)
class Bounds:
    """What a worker may use.

    Attributes:
        pixels: Pixels of a picture.
        answer: Bytes of an answer.
        memory: Bytes of address space, None for any number.
        decoding: Seconds to decode a file.
        behind: By how much its processes stand back behind others (Unix: nice).
    """

    pixels: int
    answer: int
    memory: int | None
    decoding: float
    behind: int = 0


class Isolated:
    """Runs jobs in a worker process, which is killed and started again if it breaks or takes too long.

    Attributes:
        models: What the worker says of its models, by their names.
    """

    def __init__(self, models: Sequence[zoo.Model], processor: Processor, bounds: Bounds) -> None:
        """Start the worker.

        Args:
            models: The models to open, the default first.
            processor: What the models run on.
            bounds: What it may use.

        Raises:
            UnrainError: A model cannot be opened.
        """
        self._settings = {
            "models": [str(model.path.absolute()) for model in models],
            "processor": [processor.device, processor.precision, processor.threads],
            "pixels": bounds.pixels,
            "memory": bounds.memory,
            "behind": bounds.behind,
        }
        self._bounds = bounds
        # Held while the worker is killed, and while the job that it runs is changed.
        self._lock = threading.Lock()
        self._job: WebJob | None = None
        self._overdue = self._closed = False
        self._worker: subprocess.Popen[bytes] | None = None
        self._deadline: threading.Timer | None = None
        self.models: dict[str, Contract | Engine] = {}
        self._start()

    def run(self, job: WebJob) -> Answer:
        """Run a job in the worker."""
        with self._lock:
            if job.abandoned or self._closed:
                raise AbandonedError
            self._job, self._overdue, job.decoding = job, False, True
        try:
            return self._exchange(job)
        except _FAULTS as error:
            self._end()
            if job.abandoned:
                raise AbandonedError from error
            if self._overdue:
                raise UnrainError(
                    f"{job.name}: took more than {self._bounds.decoding:g} seconds to decode, open it in "
                    "another program and save it again"
                ) from error
            raise WorkerDiedError from error
        finally:
            with self._lock:
                self._job, job.decoding = None, False
            self._cancel()

    def give_up(self, job: WebJob) -> None:
        """Kill the worker unless it ends the job by itself soon."""
        if self._job is job:
            self._later(_GRACE, self._grace_over, job)

    def close(self) -> None:
        """Kill the worker."""
        with self._lock:
            self._closed = True
        self._end()

    @property
    def pid(self) -> int | None:
        """The worker's process, None while there is none."""
        return None if self._worker is None else self._worker.pid

    def _exchange(self, job: WebJob) -> Answer:
        try:
            worker = self._worker or self._start()
        except UnrainError as error:
            raise WorkerDiedError from error
        assert worker.stdin is not None and worker.stdout is not None
        self._watch_decoding(job)
        send(worker.stdin, Kind.JOB, *job_parts(job))
        job.release()
        told = False
        while True:
            kind, body = receive(worker.stdout, self._bounds.answer)
            if kind is Kind.ANSWER:
                return answer_of(body)
            if kind is Kind.REFUSAL:
                raise refusal_of(body)
            if kind is Kind.PROGRESS and len(body) == PROGRESS.size:
                job.done, job.total = PROGRESS.unpack(body)
            elif kind is Kind.FRAME and isinstance(job, VideoJob):
                job.shown, job.frame = frame_of(body)
            elif kind is Kind.DECODING and body in (b"\0", b"\1"):
                job.decoding = body == b"\1"
                if job.decoding:
                    self._watch_decoding(job)
                else:
                    self._cancel()
            else:
                raise MessageError(f"{kind} out of turn")
            if job.abandoned and not told:
                send(worker.stdin, Kind.GIVE_UP)
                told = True

    def _watch_decoding(self, job: WebJob) -> None:
        """Kill the worker if it does not say in time that it has decoded the file."""
        self._cancel()
        self._deadline = self._later(self._bounds.decoding, self._decoding_over, job)

    def _decoding_over(self, job: WebJob) -> None:
        with self._lock:
            if self._job is job and job.decoding and self._worker is not None:
                self._overdue = True
                self._worker.kill()

    def _grace_over(self, job: WebJob) -> None:
        with self._lock:
            if self._job is job and self._worker is not None:
                self._worker.kill()

    def _later(self, seconds: float, act: Callable[[WebJob], None], job: WebJob) -> threading.Timer:
        timer = threading.Timer(seconds, act, (job,))
        timer.daemon = True
        timer.start()
        return timer

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _start(self) -> "subprocess.Popen[bytes]":
        """Start a worker and wait until it has opened the models."""
        # -P: a module in the current folder must not take the place of one that the worker imports.
        # In the one-file application sys.executable is the application, which knows these words.
        command = [sys.executable, "-P", "-m", "unrain.web.worker"]
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert worker.stdin is not None and worker.stdout is not None
        with self._lock:
            self._worker = worker
        timer = threading.Timer(_START, worker.kill)
        timer.start()
        try:
            send(worker.stdin, Kind.SETTINGS, *packed(self._settings))
            kind, body = receive(worker.stdout)
            if kind is Kind.REFUSAL:
                raise refusal_of(body)
            told, _ = unpacked(body, 0)
            self.models = {name: Contract(int(of[0]), bool(of[1])) for name, of in told.items()}
        except (*_FAULTS, TypeError, IndexError) as error:
            self._end()
            raise UnrainError("the worker process cannot be started, serve with --no-isolate") from error
        except BaseException:
            self._end()
            raise
        finally:
            timer.cancel()
        return worker

    def _end(self) -> None:
        """Kill the worker and wait for its end."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                # What could not be sent any more is of no use.
                with contextlib.suppress(OSError, ValueError):
                    pipe.close()  # type: ignore[union-attr]


def _open_engines(models: Sequence[zoo.Model], processor: Processor) -> dict[str, Engine]:
    """Open all networks, so that a broken one is reported at the start.

    Raises:
        UnrainError: One cannot be opened, two have the same name, or there is none.
    """
    if not models:
        raise UnrainError("no models came with this installation, install unrain again")
    engines: dict[str, Engine] = {}
    for model in models:
        if model.name in engines:
            raise UnrainError(f"{model.path}: a second model called {model.name}, give it another file name")
        engines[model.name] = open_engine(model, processor)
    return engines
