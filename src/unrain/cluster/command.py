"""`unrain IN... -o OUT --cluster ADDRESS` and `--shard I/N`: one plan, one log, one way to resume."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from unrain import batch, plan, zoo
from unrain.batch import Settings
from unrain.cluster import storage
from unrain.cluster.inputs import Task, Work, find_work
from unrain.cluster.log import PARQUET, Log, LogRow
from unrain.cluster.options import Scale
from unrain.cluster.worker import Worker
from unrain.plan import Outcome, Status


def find(
    inputs: Sequence[str],
    output: str | None,
    scale: Scale,
    *,
    rain_layer: bool = False,
    compare: bool = False,
) -> tuple[Work, str]:
    """Decide what a run reads and where its results go.

    Returns:
        The work, and the folder or address of the results.

    Raises:
        UsageError: The names or the options contradict each other.
        UnrainError: An input cannot be listed.
    """
    if output is None or output == plan.STREAM:
        raise plan.PlanError("--cluster and --shard need a folder or an address for all results after -o")
    output = storage.checked(output)
    if not storage.is_address(output):
        output = str(plan.result_folder(output))
    share = scale.share if scale.shard is not None else (1, 1)
    return find_work(inputs, output, rain_layer=rain_layer, compare=compare, share=share), output


@dataclass(frozen=True)
class Resumed:
    """What is left of a run's work, after earlier runs.

    Attributes:
        log: The log of the run.
        left: What is to be done.
        over: What is said of the rest.
        complete: Whether the log has its Parquet file.
    """

    log: Log
    left: list[Task]
    over: list[Outcome]
    complete: bool


def resume(work: Work, output: str, scale: Scale, *, overwrite: bool) -> Resumed:
    """Find out, from the log and from the results that are there, what is left to do.

    Args:
        work: What there is to do.
        output: The folder or address of the results.
        scale: Says which share of the work this is, and whether what failed is tried again.
        overwrite: Do everything anew.

    Raises:
        UnrainError: The log or the results cannot be listed or read.
    """
    first, last = scale.share if scale.shard is not None else (1, 1)
    there = storage.find(output)
    log = Log(output, f"{first}-of-{last}")
    left, over = list(work.tasks), list(work.settled)
    if not overwrite:
        earlier, left = log.earlier(), []
        for task in work.tasks:
            whole = all(storage.below(output, name) in there for name in task.targets.values())
            known = _known(task, earlier.get(task.key), scale, whole=whole)
            if known is None:
                left.append(task)
            else:
                over.append(known)
    return Resumed(log, left, over, PARQUET in there)


def _known(task: Task, row: tuple[Status, str] | None, scale: Scale, *, whole: bool) -> Outcome | None:
    """What is said of a task that is not to be done again; None for one that is. `whole`: has its results."""
    status, message = row or (None, "")
    if whole and status in ("derained", "skipped"):
        return Outcome(task.source, "skipped", "done by an earlier run, --overwrite does it anew")
    if not whole and status == "failed" and not scale.retry_failed:
        return Outcome(task.source, "failed", f"{message} (of an earlier run, --retry-failed tries again)")
    return None


def run(
    resumed: Resumed, scale: Scale, model: zoo.Model, settings: Settings, *, say: Callable[[str], object]
) -> Generator[Outcome]:
    """Do what is left, and log it.

    Args:
        resumed: What is left.
        scale: How the work is spread.
        model: The model.
        settings: What is wanted of every input.
        say: Receives a line for whoever waits.

    Yields:
        What became of each input.

    Raises:
        UnrainError: No result can be written, the model cannot be opened, or the cluster cannot be used.
        UsageError: The settings do not fit the results.
        KeyboardInterrupt: Ctrl-C.
    """
    batch.check((task.job for task in resumed.left), settings)
    yield from resumed.over
    log = resumed.log
    if resumed.left:
        with contextlib.closing(_workers(scale, model, settings, say)) as workers:
            # Better a refusal now than one after each picture.
            log.open({"model": model.name, **asdict(settings)})
            try:
                for row in workers.run(resumed.left):
                    log.add(row)
                    yield row.outcome
            finally:
                log.close()
    if resumed.left or (log.before and not resumed.complete):
        log.write_parquet()


class Workers(Protocol):
    """What does the tasks of a run."""

    def run(self, tasks: Sequence[Task]) -> Iterator[LogRow]:
        """Do tasks, and yield the row of each; fewer after a full disk."""

    def close(self) -> None:
        """End everything."""


class _OneProcess:
    """Does the tasks one after the other, here."""

    def __init__(self, model: zoo.Model, settings: Settings) -> None:
        self._worker = Worker(model, settings)

    def run(self, tasks: Sequence[Task]) -> Iterator[LogRow]:
        for task in tasks:
            row, outcome = self._worker.run(task)
            yield row
            if outcome.ends_run == "interrupted":
                raise KeyboardInterrupt
            if outcome.ends_run:
                return

    def close(self) -> None:
        self._worker.close()


def _workers(scale: Scale, model: zoo.Model, settings: Settings, say: Callable[[str], object]) -> Workers:
    if scale.cluster is None:
        return _OneProcess(model, settings)
    from unrain.cluster.pool import Cluster, Size

    cpus = 1.0 if scale.cpus_per_worker is None else scale.cpus_per_worker
    # As many threads as cores, unless the user says otherwise.
    threads = settings.derainer.get("threads") or max(1, int(cpus))
    settings = replace(settings, derainer={**settings.derainer, "threads": threads})
    size = Size(scale.bounds, cpus, scale.gpus_per_worker or 0.0)
    return Cluster(scale.cluster, scale.host, size, model, settings, say)
