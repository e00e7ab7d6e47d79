"""The one queue in front of the network, and a bound on what is in memory.

Pictures take their turns in the order of their arrival, one at a time, in one thread. Everything else here
runs in the event loop, so that nothing needs a lock.
"""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from unrain import zoo
from unrain.engine import Engine, OnnxEngine
from unrain.errors import UnrainError
from unrain.web.job import Answer, Job


@dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes:
        upload: Bytes of one picture's file.
        pixels: Pixels of one picture.
        queue: Pictures that wait, besides the one that is in the network.
        timeout: Seconds from a picture's arrival to its result.
        transfer: Seconds in which a picture has to arrive, and an answer to be taken.
        held: Files, of the largest size, that are in memory at once: arriving, waiting and being sent.
    """

    upload: int = 25_000_000
    pixels: int = 40_000_000
    queue: int = 8
    timeout: float = 300
    transfer: float = 60
    held: int = 16


class BusyError(Exception):
    """There is no room for another picture now."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OverdueError(Exception):
    """A picture was not done in time."""


@dataclass
class Hold:
    """The bytes that one request keeps in memory."""

    desk: "Desk"
    size: int = 0

    def grow(self, size: int) -> None:
        """Keep more.

        Raises:
            BusyError: All requests together would keep too much.
        """
        if self.desk.held + size > self.desk.limits.held * self.desk.limits.upload:
            raise BusyError("too many pictures at once, try again", self.desk.retry_after())
        self.size += size
        self.desk.held += size

    def become(self, size: int) -> None:
        """Keep something else instead; a result is never refused."""
        self.desk.held += size - self.size
        self.size = size

    def release(self) -> None:
        """Keep nothing any more."""
        self.become(0)


@dataclass
class Desk:
    """Takes jobs, lets them wait, runs them.

    Attributes:
        limits: What it takes on.
        engines: The networks by their models' names.
        held: Bytes in memory for all requests.
        line: Jobs that wait, in order; the first is the one in the network.
    """

    limits: Limits
    engines: Mapping[str, Engine]
    held: int = 0
    line: list[Job] = field(default_factory=list)
    _pace: float = 1.0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="unrain-network")
    )

    def check_room(self) -> None:
        """Refuse before a picture is even read.

        Raises:
            BusyError: The queue is full.
        """
        if len(self.line) > self.limits.queue:
            waiting = f"{self.limits.queue} picture{'s' * (self.limits.queue != 1)}"
            raise BusyError(f"{waiting} wait already, try again", self.retry_after())

    def retry_after(self) -> int:
        """Seconds after which there will be room again, as far as one can tell."""
        return min(120, max(1, math.ceil(self._pace)))

    @contextmanager
    def hold(self) -> Iterator[Hold]:
        """Count the bytes of a request until it is over."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            hold.release()

    def find(self, ticket: str) -> tuple[Job, int] | None:
        """The job of a ticket, and how many are before it."""
        return next(((job, at) for at, job in enumerate(self.line) if job.options.ticket == ticket), None)

    async def run(self, job: Job) -> Answer:
        """Wait for a turn and run a job. Cancelling this stops the job after the tile that it is at.

        Raises:
            BusyError: The queue is full.
            OverdueError: It took too long.
            UnrainError: The picture or an option cannot be used.
        """
        self.check_room()
        ticket = job.options.ticket
        if ticket is not None and self.find(ticket) is not None:
            raise UnrainError("ticket: in use, take a new one for each picture")
        engine = self.engines[job.options.model or next(iter(self.engines))]
        self.line.append(job)
        try:
            async with asyncio.timeout(self.limits.timeout), self._turn:
                answer = await asyncio.get_running_loop().run_in_executor(
                    self._thread, job.run, engine, self.limits.pixels
                )
        except TimeoutError as error:
            raise OverdueError from error
        finally:
            job.abandon()
            self.line.remove(job)
        self._pace += 0.3 * (answer.seconds - self._pace)
        return answer

    def close(self) -> None:
        """Stop all work as soon as may be."""
        for job in self.line:
            job.abandon()
        self._thread.shutdown(wait=False, cancel_futures=True)


def open_engines(models: Sequence[zoo.Model], threads: int = 0) -> dict[str, Engine]:
    """Open networks, so that a broken one is told of at the start.

    Raises:
        UnrainError: One cannot be opened, two have the same name, or there is none.
    """
    if not models:
        raise UnrainError("no models came with this installation, install unrain again")
    engines: dict[str, Engine] = {}
    for model in models:
        if model.name in engines:
            raise UnrainError(f"{model.path}: a second model called {model.name}, give it another file name")
        engines[model.name] = OnnxEngine(model, threads)
    return engines
