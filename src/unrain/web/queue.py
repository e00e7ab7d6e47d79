"""The queue in front of the network, and the bound on the memory of all requests.

Pictures are derained in the order of their arrival, one at a time, by a `Runner` in one thread.
Everything else here runs in the event loop, so nothing needs a lock.
"""

import asyncio
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from unrain.errors import UnrainError
from unrain.web.job import Answer, WebJob
from unrain.web.runner import Runner

# Seconds after which a picture that nobody waits for must have left the network.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Limits:
    """What the server accepts.

    Attributes:
        upload: Bytes of a picture's file.
        pixels: Pixels of a picture.
        queue: Pictures that may wait, besides the one in the network.
        timeout: Seconds from a picture's arrival to its result.
        transfer: Seconds for a picture to arrive, and for an answer to be received.
        files: Files of the largest size that are in memory at once: arriving, waiting and being sent.
        decoding: Seconds in which a worker process has to decode a file.
        memory: Bytes of address space of a worker process, None for what the largest picture needs.
        video_size: Bytes of a video's file; 0 to take no videos.
        video_frames: Frames of a video.
        video_queue: Videos that may wait, besides the one in the network.
        video_keep: Seconds after which a video that its client does not ask about is deleted, done or not.
    """

    upload: int = 25_000_000
    pixels: int = 40_000_000
    queue: int = 8
    timeout: float = 300
    transfer: float = 60
    files: int = 16
    decoding: float = 30
    memory: int | None = None
    video_size: int = 500_000_000
    video_frames: int = 18_000
    video_queue: int = 4
    video_keep: float = 600


class BusyError(Exception):
    """There is no room for another picture at the moment."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OverdueError(Exception):
    """A picture took longer than the server's time limit."""


@dataclass
class MemoryReservation:
    """The bytes that one request keeps in memory.

    Attributes:
        queue: Where the bytes of all requests are counted.
        size: Bytes of this request.
    """

    queue: "JobQueue"
    size: int = 0

    def grow(self, size: int) -> None:
        """Reserve more.

        Args:
            size: Further bytes.

        Raises:
            BusyError: All requests together would exceed the bound.
        """
        if self.queue.reserved + size > self.queue.limits.files * self.queue.limits.upload:
            raise BusyError("too many pictures at once, try again", self.queue.retry_after())
        self.size += size
        self.queue.reserved += size

    def resize(self, size: int) -> None:
        """Change to so many bytes in all, without a check: a result is never refused."""
        self.queue.reserved += size - self.size
        self.size = size

    def release(self) -> None:
        """Give all of it back."""
        self.resize(0)


@dataclass
class JobQueue:
    """Runs jobs one after the other.

    Attributes:
        limits: What is accepted.
        runner: What runs them.
        reserved: Bytes in memory for all requests.
        pending: Unfinished jobs in order; the first is in the network.
        running: The job that occupies the runner, even after it was given up.
        requests: Requests with pictures that are under way, those whose answer is being sent included.
        draining: Whether the server is about to end.
        takes_until: When a server that is about to end stops to take pictures (`time.monotonic`).
    """

    limits: Limits
    runner: Runner
    reserved: int = 0
    pending: list[WebJob] = field(default_factory=list)
    running: WebJob | None = None
    requests: int = 0
    draining: bool = False
    takes_until: float = 0.0
    _since: float = 0.0
    _given_up: float = 0.0
    _pace: float = 1.0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="unrain-network")
    )

    def check_room(self) -> None:
        """Refuse a picture before it is read.

        Raises:
            BusyError: The queue is full.
        """
        if len(self.pending) > self.limits.queue:
            waiting = f"{self.limits.queue} picture{'s' * (self.limits.queue != 1)}"
            raise BusyError(f"{waiting} are waiting already, try again", self.retry_after())

    def retry_after(self) -> int:
        """Estimate the seconds until there is room again."""
        return min(120, max(1, math.ceil(self._pace)))

    @contextmanager
    def reserve(self) -> Iterator[MemoryReservation]:
        """Reserve memory for a request until it is over; none at first."""
        reservation = MemoryReservation(self)
        try:
            yield reservation
        finally:
            reservation.release()

    def find(self, ticket: str) -> tuple[WebJob, int] | None:
        """Find the job of a ticket, and the number of jobs before it."""
        return next(((job, at) for at, job in enumerate(self.pending) if job.options.ticket == ticket), None)

    async def run(self, job: WebJob) -> Answer:
        """Wait for a turn and run a job; cancelling stops it after the current tile.

        Raises:
            BusyError: The queue is full.
            OverdueError: It took longer than `limits.timeout`.
            UnrainError: The picture or an option cannot be used.
            WorkerDiedError: It broke the process that it ran in.
        """
        self.check_room()
        ticket = job.options.ticket
        if ticket is not None and self.find(ticket) is not None:
            raise UnrainError("ticket: in use, choose a new one for each picture")
        self.pending.append(job)
        try:
            async with asyncio.timeout(self.limits.timeout), self._turn:
                answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, job)
        except TimeoutError as error:
            raise OverdueError from error
        finally:
            job.abandon()
            self._given_up = time.monotonic()
            self.runner.give_up(job)
            self.pending.remove(job)
        self._pace += 0.3 * (answer.seconds - self._pace)
        return answer

    def _run(self, job: WebJob) -> Answer:
        self.running, self._since = job, time.monotonic()
        try:
            return self.runner.run(job)
        finally:
            self.running = None

    @property
    def busy(self) -> float:
        """Seconds for which the same picture has been in the network, 0 if there is none."""
        return 0.0 if self.running is None else time.monotonic() - self._since

    @property
    def blocked(self) -> bool:
        """Whether a picture that nobody waits for keeps the network from all others."""
        job = self.running
        return job is not None and job.abandoned and time.monotonic() - self._given_up > _PATIENCE

    @property
    def closed(self) -> bool:
        """Whether no further pictures are taken."""
        return self.draining and time.monotonic() >= self.takes_until

    @property
    def unready(self) -> str:
        """Why another server should be given the next picture; empty if this one takes it."""
        if self.draining:
            return "draining"
        if self.blocked:
            return "blocked"
        return "full" if len(self.pending) > self.limits.queue else ""

    def close(self) -> None:
        """Stop all work as soon as possible."""
        for job in self.pending:
            job.abandon()
        self.runner.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
