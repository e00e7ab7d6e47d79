"""A worker process of `unrain serve`: decodes, derains and encodes pictures or videos, one at a time.

It reads messages from its standard input and writes to its standard output; nobody else starts it.
"""

import contextlib
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import IO

from unrain import zoo
from unrain.devices import Processor
from unrain.errors import UnrainError
from unrain.web.job import WebJob
from unrain.web.messages import (
    PROGRESS,
    REFUSALS,
    Kind,
    answer_parts,
    frame_parts,
    job_of,
    packed,
    receive,
    refusal_parts,
    send,
    unpacked,
)
from unrain.web.runner import InProcess
from unrain.web.video_job import VideoJob

# A job is as large as the server lets it be.
_ANY = 2**62


def main() -> None:
    """Serve jobs until standard input ends."""
    # Ctrl-C reaches the server, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source = sys.stdin.buffer
    target = os.fdopen(os.dup(1), "wb")
    # Whatever a library prints must not get between the messages.
    os.dup2(2, 1)
    settings, _ = unpacked(receive(source)[1], 0)
    if settings["memory"] is not None:
        _limit_memory(settings["memory"])
    if settings["behind"] and hasattr(os, "nice"):
        os.nice(settings["behind"])
    try:
        models = [zoo.find(Path(path)) for path in settings["models"]]
        runner = InProcess(models, Processor(*settings["processor"]), settings["pixels"])
    except UnrainError as error:
        send(target, Kind.REFUSAL, *refusal_parts(error))
        return
    contracts = {name: [engine.recursions, engine.recursive] for name, engine in runner.engines.items()}
    send(target, Kind.READY, *packed(contracts))
    _Jobs(source, target, runner).run()


class _Jobs:
    """Runs jobs in this thread while another one listens for those that are given up."""

    def __init__(self, source: IO[bytes], target: IO[bytes], runner: InProcess) -> None:
        self._source, self._target, self._runner = source, target, runner
        self._waiting: queue.SimpleQueue[WebJob] = queue.SimpleQueue()
        self._current: WebJob | None = None
        self._shown = 0

    def run(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            job = self._waiting.get()
            self._shown = 0
            job.watch = self._report
            self._answer(job)

    def _listen(self) -> None:
        try:
            while True:
                kind, body = receive(self._source, _ANY)
                if kind is Kind.JOB:
                    self._current = job_of(body)
                    self._waiting.put(self._current)
                elif self._current is not None:
                    self._current.abandon()
        finally:
            # The server has gone, and a decoder may never come back.
            os._exit(0)

    def _report(self, job: WebJob) -> None:
        send(self._target, Kind.DECODING, b"\1" if job.decoding else b"\0")
        send(self._target, Kind.PROGRESS, PROGRESS.pack(job.done, job.total))
        if isinstance(job, VideoJob) and job.shown > self._shown:
            self._shown = job.shown
            send(self._target, Kind.FRAME, *frame_parts(job))

    def _answer(self, job: WebJob) -> None:
        try:
            answer = self._runner.run(job)
        except Exception as error:
            if not isinstance(error, REFUSALS[:-1]):
                # The server's log has it, the client has not.
                traceback.print_exc()
            send(self._target, Kind.REFUSAL, *refusal_parts(error))
        else:
            send(self._target, Kind.ANSWER, *answer_parts(answer))


def _limit_memory(most: int) -> None:
    """Let allocations fail above so many bytes of address space, where the system can do that."""
    try:
        import resource
    except ModuleNotFoundError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    # macOS refuses a limit below what its libraries have mapped.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    # A core file would hold a client's picture.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
