"""What every part shares: the budget, the table, and what is kept of a fault."""

import argparse
import importlib
import math
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from attack.mutate import culprit, minimised
from toys import ROOT

PARTS = ("files", "video", "models", "parsers", "disk", "kills", "server")


class Campaign:
    """One part's run: how much it may do, what chance it has, and what it found.

    A part asks `more()` before each round, counts what it did, and hands in each fault that it sees.
    """

    def __init__(self, part, work, keep, *, seed=0, seconds=math.inf, cases=math.inf, say=lambda line: None):
        self.part, self.work, self.keep, self.say = part, work, keep / part, say
        self.seed, self.random = seed, random.Random(f"{seed} {part}")
        self.stop, self.limit = time.monotonic() + seconds, cases
        self.cases = self.refused = self.results = 0
        self.faults: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.notes: list[str] = []

    def more(self):
        """Whether there is time for another case."""
        return self.cases < self.limit and time.monotonic() < self.stop

    def room(self, most):
        """How many cases the next round has."""
        return int(min(most, self.limit - self.cases))

    def fresh(self, name="case"):
        """An empty folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.work))

    def count(self, *, refused=0, results=0, cases=None):
        """Add to the table; what is neither refused nor a result is a fault or was lost by one."""
        self.cases += refused + results if cases is None else cases
        self.refused += refused
        self.results += results

    def fault(self, kind, detail, files: Mapping[str, bytes], same: Callable[..., bool] | None = None):
        """Count a fault, and keep the first of its sort.

        Args:
            kind: What sort of fault, one of the table's words.
            detail: What was seen; the last line is compared with those of earlier faults.
            files: What the case was made of.
            same: Whether other such files give the same fault; the one to blame is found and minimised with
                this.
        """
        last = detail.strip().rpartition("\n")[2][:300]
        signature = f"{kind}: {re.sub('[0-9a-fx]*[0-9][0-9a-f]*', '#', last)}"
        self.faults[kind] += 1
        self.seen[signature] += 1
        if self.seen[signature] > 1:
            return
        self.say(f"{self.part}: {kind}: {last}")
        folder = self.keep / f"{len(self.seen):03}-{kind.replace(' ', '-')}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "what.txt").write_text(
            f"{kind}, part {self.part}, seed {self.seed}\n{detail}\n", "utf-8", "replace"
        )
        if same is not None:
            files = culprit(files, same)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        # Looking for a smaller file that takes as long would take too long.
        if same is not None and len(files) == 1 and kind not in ("hang", "slow", "memory"):
            ((name, data),) = files.items()
            smaller = minimised(data, lambda some: same({name: some}))
            (folder / f"minimal-{name}").write_bytes(smaller)

    @property
    def row(self):
        """This part's row of the table."""
        what = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items())) or "none"
        return self.part, str(self.cases), str(self.refused), str(self.results), what


def table(rows):
    """Lay out rows of text."""
    rows = [("part", "cases", "refused", "results", "faults"), *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def run(part, keep, **budget):
    """Run one part in a temporary folder and return its campaign."""
    with tempfile.TemporaryDirectory(prefix="unrain-attack-", ignore_cleanup_errors=True) as work:
        campaign = Campaign(part, Path(work), keep, **budget)
        importlib.import_module(f"attack.{part}").attack(campaign)
    return campaign


def main():
    """Run the campaign and return 1 if it found a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description="Attack unrain from outside.")
    parser.add_argument("--minutes", type=float, default=10, help="how long, shared by the parts (10)")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part only; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="another seed attacks differently (0)")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "attack", help="folder for what failed")
    given = parser.parse_args()
    parts = [part for part in PARTS if part in (given.only or PARTS)]
    done = []
    start = time.monotonic()
    for number, part in enumerate(parts):
        # What an earlier part left over goes to the later ones.
        seconds = (60 * given.minutes - (time.monotonic() - start)) / (len(parts) - number)
        done.append(run(part, given.keep.resolve(), seed=given.seed, seconds=max(seconds, 1), say=print_line))
        print_line(f"{part}: {done[-1].cases} cases; {sum(done[-1].faults.values())} faults")
    print_line("\n".join(["", *(line for campaign in done for line in campaign.notes)]))
    print_line(table(campaign.row for campaign in done))
    return 1 if any(campaign.faults for campaign in done) else 0


def print_line(line):
    """Write a line now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
