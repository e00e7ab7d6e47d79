"""The lane of videos: one at a time, in a worker process, beside the queue of pictures.

A video's files lie in a folder of their own, which goes when its result was fetched, when its client cancels
it, when nobody asked about it for a while, and when the server ends. What a killed server left is removed by
the next one.
"""

import asyncio
import contextlib
import secrets
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from unrain import files
from unrain.errors import UnrainError
from unrain.web.job import AbandonedError, Answer
from unrain.web.queue import BusyError, Limits
from unrain.web.runner import Runner, WorkerDiedError
from unrain.web.video_job import VideoJob

_PREFIX = "unrain-videos-"
# Seconds between two looks at what is over, and after which a client that is silent counts as gone.
_LOOK_EVERY, _SILENT = 0.5, 10.0
# Seconds at the server's end for a video that is given up to leave the network.
_PATIENCE = 3.0

Outcome = Literal["fetched", "failed", "cancelled", "expired"]


@dataclass(eq=False)
class Video:
    """A video and what became of it.

    Attributes:
        id: By which its client finds it.
        folder: Where its files are.
        state: Where it is on its way.
        job: What is to be done, None while it arrives.
        asked: When its client was last heard of (`time.monotonic`).
        begun: When it came into the network.
        sending: Whether its result is being sent.
        detail: Why it failed.
        answer: About its result.
        counted: Whether its outcome was told.
    """

    id: str
    folder: Path
    state: Literal["arriving", "waiting", "working", "done", "failed", "removed"] = "arriving"
    job: VideoJob | None = None
    asked: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    sending: bool = False
    detail: str = ""
    answer: Answer | None = None
    counted: bool = False


class VideoQueue:
    """Runs videos one after the other.

    Attributes:
        limits: What is accepted.
        videos: Those that are here, by their ids, in order.
        over: Called with each outcome, the frames and the seconds that it took.
    """

    def __init__(self, limits: Limits, start: Callable[[], Runner]) -> None:
        """Make the lane; nothing is started before the first video.

        Args:
            limits: What to accept.
            start: Starts what runs videos.
        """
        self.limits = limits
        self.videos: dict[str, Video] = {}
        self.over: Callable[[Outcome, int, float], None] = lambda *_: None
        self._start = start
        self._runner: Runner | None = None
        self._root: Path | None = None
        self._lock: BinaryIO | None = None
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="unrain-videos")

    # --------------------------------------------------------------------------------------------- arrivals

    def check_room(self) -> None:
        """Refuse a video before it is read.

        Raises:
            BusyError: Too many are waiting, or have not been fetched.
        """
        unfinished = sum(video.state in ("arriving", "waiting", "working") for video in self.videos.values())
        most = self.limits.video_queue
        if unfinished > most:
            waiting = "1 video is" if most == 1 else f"{most} videos are"
            raise BusyError(f"{waiting} waiting already, try again", 30)
        if len(self.videos) > 2 * most + 1:
            raise BusyError("too many videos have not been fetched, try again", 30)

    def arriving(self) -> Video:
        """Make a place for a video, with an empty folder.

        Raises:
            BusyError: There is none.
            OSError: The disk has none.
        """
        self.check_room()
        identifier = secrets.token_urlsafe(16)
        folder = self._folder() / identifier
        folder.mkdir(mode=0o700)
        video = self.videos[identifier] = Video(identifier, folder)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        return video

    def _folder(self) -> Path:
        if self._root is None:
            self._root, self._lock = files.scratch(_PREFIX)
        return self._root

    def enter(self, video: Video, job: VideoJob) -> None:
        """Put a video that has arrived into the lane."""
        video.job, video.state, video.asked = job, "waiting", time.monotonic()
        task = asyncio.create_task(self._process(video, job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ----------------------------------------------------------------------------------------------- answers

    def find(self, identifier: str) -> Video | None:
        """Find a video by its id, and note that its client is there."""
        video = self.videos.get(identifier)
        if video is not None:
            video.asked = time.monotonic()
        return video

    def ahead(self, video: Video) -> int:
        """Count the videos before one that waits."""
        waiting = [other for other in self.videos.values() if other.state in ("waiting", "working")]
        return waiting.index(video) if video in waiting else 0

    def left(self, video: Video) -> float | None:
        """Estimate the seconds until a video is done; None if that cannot be told yet."""
        job = video.job
        if video.state != "working" or job is None or not job.done or job.total < job.done:
            return None
        return (time.monotonic() - video.begun) * (job.total - job.done) / job.done

    def remove(self, video: Video, outcome: Outcome) -> None:
        """Delete everything of a video, and stop it if it is in the network."""
        if self.videos.pop(video.id, None) is None:
            return
        working, video.state = video.state == "working", "removed"
        self._count(video, outcome)
        if video.job is not None:
            video.job.abandon()
        if working and video.job is not None and self._runner is not None:
            # Its files go when the worker has let go of them.
            self._runner.give_up(video.job)
        else:
            shutil.rmtree(video.folder, ignore_errors=True)

    def _count(self, video: Video, outcome: Outcome) -> None:
        if video.counted:
            return
        video.counted = True
        done = 0 if video.job is None else video.job.done
        self.over(outcome, done, 0.0 if video.answer is None else video.answer.seconds)

    # ------------------------------------------------------------------------------------------------- work

    async def _process(self, video: Video, job: VideoJob) -> None:
        async with self._turn:
            if video.state == "removed":
                return
            video.state, video.begun = "working", time.monotonic()
            run, overdue = asyncio.get_running_loop().run_in_executor, False
            try:
                runner = await run(self._thread, self._started)
                video.begun = time.monotonic()
                work = run(self._thread, runner.run, job)
                overdue = await self._stalled(job, work)
                video.answer = await work
            except AbandonedError:
                self._fail(video, f"{job.name}: no frame within {self.limits.timeout:g} seconds")
            except UnrainError as error:
                self._fail(video, str(error))
            except (WorkerDiedError, MemoryError):
                why = f"no frame within {self.limits.timeout:g} seconds" if overdue else "broke off"
                remedy = ", it needs more memory than there is or is damaged, try a smaller one"
                self._fail(video, f"{job.name}: {why}{remedy * (not overdue)}")
            except Exception:
                self._fail(video, "the server failed, its log says why")
                raise
            else:
                video.state = "done" if video.state == "working" else video.state
            finally:
                video.asked = max(video.asked, time.monotonic() - self.limits.video_keep / 2)
                # Of a video that is done only the result is kept.
                gone = video.state in ("removed", "failed")
                where = video.folder if gone else job.source
                await asyncio.to_thread(_delete, where)

    async def _stalled(self, job: VideoJob, work: "asyncio.Future[Answer]") -> bool:
        """Wait for a job; give it up, and say so, if no frame is done for too long."""
        done, since = 0, time.monotonic()
        while not (await asyncio.wait({work}, timeout=_LOOK_EVERY))[0]:
            if job.done != done:
                done, since = job.done, time.monotonic()
            elif time.monotonic() - since > self.limits.timeout and self._runner is not None:
                job.abandon()
                self._runner.give_up(job)
                await asyncio.wait({work})
                return True
        return False

    def _started(self) -> Runner:
        if self._runner is None:
            self._runner = self._start()
        return self._runner

    def _fail(self, video: Video, detail: str) -> None:
        if video.state != "removed":
            video.state, video.detail = "failed", detail
            self._count(video, "failed")

    async def _watch(self) -> None:
        """Remove videos that nobody asks about."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            now = time.monotonic()
            for video in list(self.videos.values()):
                silent = now - video.asked > self.limits.video_keep
                if silent and video.state != "arriving" and not video.sending:
                    self.remove(video, "expired")

    # ------------------------------------------------------------------------------------------ end of server

    @property
    def unfinished(self) -> bool:
        """Whether a server that is about to end should wait: for work, or for a client that fetches."""
        now = time.monotonic()
        return any(
            video.sending
            or video.state in ("arriving", "waiting", "working")
            or (video.state == "done" and now - video.asked < _SILENT)
            for video in self.videos.values()
        )

    @property
    def size(self) -> int:
        """Bytes of all files."""
        if self._root is None:
            return 0
        total = 0
        for path in self._root.rglob("*"):
            with contextlib.suppress(OSError):
                total += path.lstat().st_size
        return total

    async def close(self) -> None:
        """Stop all work and delete all files."""
        if self._watching is not None:
            self._watching.cancel()
        for video in self.videos.values():
            video.state = "removed"
            if video.job is not None:
                video.job.abandon()
        self.videos.clear()
        if self._runner is not None:
            await asyncio.to_thread(self._runner.close)
        if self._tasks:
            # What is no worker's ends after its frame.
            await asyncio.wait(self._tasks, timeout=_PATIENCE)
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._root is not None and self._lock is not None:
            await asyncio.to_thread(files.discard, self._root, self._lock)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
