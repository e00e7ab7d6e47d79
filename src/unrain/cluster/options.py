"""The options of runs on several machines; importing them costs nothing.

They are parameters of `unrain IN...`: the attributes' docstrings are what `--help` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from cyclopts import Group, Parameter, validators

from unrain.errors import UsageError

_GROUP = Group("Several machines", sort_key=4)
_AMOUNT = validators.Number(gte=0)


@dataclass(frozen=True)
class Scale:
    """How a run is spread, and what of it is repeated.

    Attributes:
        cluster: Run on a Ray cluster: local starts one here, auto finds the one of this machine,
            ray://HOST:10001 is one elsewhere. Needs the extra cluster.
        shard: Do share I of N only, as I/N: for Slurm arrays and GNU parallel.
        retry_failed: Try again what the log in OUT has as failed.
        workers: Of a cluster for pictures, and as many for videos: N, or LEAST-MOST to grow and shrink.
        cpus_per_worker: Processor cores of a worker, and the threads of its network.
        gpus_per_worker: GPUs of a worker, or a share of one such as 0.25.
    """

    cluster: Annotated[str | None, Parameter(show_default="this process alone")] = None
    shard: Annotated[str | None, Parameter(show_default="all of it")] = None
    retry_failed: bool = False
    workers: Annotated[str | None, Parameter(show_default="as many as fit at the start")] = None
    cpus_per_worker: Annotated[float | None, Parameter(validator=_AMOUNT, show_default="1")] = None
    gpus_per_worker: Annotated[float | None, Parameter(validator=_AMOUNT, show_default="none")] = None

    @property
    def wanted(self) -> bool:
        """Whether the run is to be logged and resumed: on a cluster, or one share of it."""
        return self.cluster is not None or self.shard is not None

    def check(self, names: Sequence[str]) -> None:
        """Refuse options that contradict each other, and what only these runs can do.

        Args:
            names: The inputs and the output.

        Raises:
            UsageError: There is such.
        """
        address = next((name for name in names if "://" in name), None)
        if address is not None and not self.wanted:
            raise UsageError(
                f"{address}: object storage is for runs with a log, add --shard 1/1 or --cluster"
            )
        if self.cluster is not None and self.shard is not None:
            raise UsageError("--cluster and --shard: a cluster shares the work by itself, give one of them")
        if self.retry_failed and not self.wanted:
            raise UsageError("--retry-failed: only with --cluster or --shard, other runs have no log")
        ours = {
            "--workers": self.workers,
            "--cpus-per-worker": self.cpus_per_worker,
            "--gpus-per-worker": self.gpus_per_worker,
        }
        given = [name for name, value in ours.items() if value is not None]
        if given and self.cluster is None:
            raise UsageError(f"{' and '.join(given)}: only with --cluster")
        # Each says what is wrong with it.
        _ = self.share, self.bounds, self.host

    @property
    def share(self) -> tuple[int, int]:
        """The share I of N.

        Raises:
            UsageError: It is none.
        """
        first, slash, last = (self.shard or "1/1").partition("/")
        if slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last):
            return int(first), int(last)
        raise UsageError(f"--shard {self.shard}: give I/N with 1 <= I <= N, for example 3/100")

    @property
    def host(self) -> tuple[str, int] | None:
        """Where the cluster listens; None for one that Ray finds or starts here.

        Raises:
            UsageError: It is no address.
        """
        if self.cluster in (None, "local", "auto"):
            return None
        where = urlsplit(self.cluster if "://" in self.cluster else f"//{self.cluster}")
        try:
            if where.scheme in ("", "ray") and where.hostname and where.port:
                return where.hostname, where.port
        except ValueError:
            pass
        raise UsageError(f"--cluster {self.cluster}: give local, auto or an address such as ray://HOST:10001")

    @property
    def bounds(self) -> tuple[int, int] | None:
        """The least and the most workers; None for what fits.

        Raises:
            UsageError: They are none.
        """
        if self.workers is None:
            return None
        first, dash, last = self.workers.partition("-")
        last = last if dash else first
        if first.isdecimal() and last.isdecimal() and 0 <= int(first) <= int(last) and int(last):
            return int(first), int(last)
        raise UsageError(f"--workers {self.workers}: give a number such as 8, or bounds such as 4-100")


SCALE = Parameter(name="*", group=_GROUP)
"""How the options appear on the command line: each by its own name."""
