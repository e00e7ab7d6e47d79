"""Kills at random moments over folders, videos, training and bench: the next run ends as if nothing was."""

import contextlib
import json
import os
import shutil
import signal
import time
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from attack import seeds
from attack.process import faults, leftovers, unrain, watched
from toys import natural, toy_pairs
from toys_training import TOY
from toys_video import clip

_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Folder:
    """A folder of pictures."""

    overwrite: tuple[str, ...] = ()

    def __init__(self, place):
        self.place = place
        (place / "in").mkdir()
        self.model = seeds.model_file(place)
        self.fill()

    def fill(self):
        for number in range(10):
            Image.fromarray(natural(120, 160, number)).save(self.place / "in" / f"{number}.png")

    def command(self, out):
        words = ["--model", self.model, "--threads", "1", *self.overwrite]
        return unrain(self.place / "in", "-o", out / "out", *words)

    def result(self, out):
        """What has a final name."""
        return {path.name: path.read_bytes() for path in (out / "out").glob("[!.]*")}

    def half(self, right, found):
        """The files that are neither missing nor whole."""
        return [name for name, data in found.items() if right.get(name) != data]


class Video(Folder):
    """A video, of which Ctrl-C leaves the first part on purpose: the next run is told to replace that."""

    overwrite = ("--overwrite",)

    def fill(self):
        clip(self.place / "in" / "a.mp4", frames=40, size=(160, 120))

    def half(self, right, found):
        return []  # a first part that can be played is no half file


class Bench(Folder):
    """Scores of a test set, each kept as soon as it is measured."""

    def fill(self):
        toy_pairs(self.place, 12, 60, 80)

    def command(self, out):
        return unrain(
            "bench", self.model, "--data", self.place / "data", "--suite", "set", "--json", "--threads", "1"
        )

    def result(self, out):
        """Every picture's scores, less how long it took."""
        return {
            path.name: sorted(
                json.dumps({key: value for key, value in json.loads(line).items() if key != "seconds"})
                for line in path.read_text().splitlines()
            )
            for path in (out / "runs" / "bench").glob("*.jsonl")
        }

    def half(self, right, found):
        return []  # its file grows by a line at a time


class Training(Bench):
    """A tiny recipe with a checkpoint every other step."""

    def fill(self):
        super().fill()
        (self.place / "toy.toml").write_text(TOY.format(more="").replace("steps = 4", "steps = 14"))

    def command(self, out):
        return unrain("train", self.place / "toy.toml", "--data", self.place / "data", "--out", out / "run")

    def result(self, out):
        """The trained weights without the card, which tells the time it took."""
        weights = out / "run" / "weights.safetensors"
        data = weights.read_bytes() if weights.exists() else b""
        return {"weights": data[8 + int.from_bytes(data[:8], "little") :]}

    def half(self, right, found):
        return [name for name, data in found.items() if data and right[name] != data]


_KINDS = {"folder": Folder, "video": Video, "bench": Bench, "training": Training}


def attack(campaign):
    """Kill each in turn at a random moment, run it anew, and compare with a run that nobody disturbed."""
    kinds = [kind for kind in _KINDS if kind in ("folder", "video") or find_spec("torch")]
    ready, number = {}, 0
    while campaign.more():
        kind = kinds[number % len(kinds)]
        number += 1
        if kind not in ready:
            ready[kind] = _undisturbed(campaign, kind)
        _kill(campaign, kind, *ready[kind])


def _undisturbed(campaign, kind):
    task, out = _KINDS[kind](campaign.fresh(kind)), campaign.fresh("right")
    started = time.monotonic()
    ran = watched(task.command(out), cwd=out, limited=False, patience=300)
    if ran.code:
        campaign.fault("exit code", f"{kind}, undisturbed\n{ran.err[-2000:]}", {})
    return task, task.result(out), time.monotonic() - started


def _kill(campaign, kind, task, right, took):
    out, sent = campaign.fresh(kind), campaign.random.choice(_SIGNALS)
    # Most of a short run goes into imports, where there is nothing to lose yet.
    at = time.monotonic() + took * campaign.random.uniform(0.2, 1.0)
    sources = _tree(task.place)
    due = [sent]

    def strike(process):
        if due and time.monotonic() > at:
            os.kill(process.pid, due.pop())

    ran = watched(task.command(out), cwd=out, limited=False, patience=300, meanwhile=strike)
    what = f"{kind}, {sent.name} after {took:.1f} s at most"
    if ran.code is None:
        campaign.fault("hang", f"{what}\nstill running", {})
    elif ran.code < 0 and ran.code != -sent:
        campaign.fault("crash", f"{what}\n{ran.err[-2000:]}\nexit code {ran.code}", {})
    for name in task.half(right, task.result(out)):
        campaign.fault("half file", f"{what}\n{name}", {})
    ran = watched(task.command(out), cwd=out, limited=False, patience=300)
    found = task.result(out)
    campaign.count(cases=1, results=int(found == right))
    if ran.code or found != right:
        lost = sorted(name for name in right if found.get(name) != right[name])
        shutil.copytree(out, campaign.keep / out.name, dirs_exist_ok=True)
        campaign.fault("rerun differs", f"{what}\n{ran.err[-2000:]}\nexit code {ran.code}, {lost}", {})
    for fault, detail in faults(ran, megabytes=4000, cpu=300):
        if kind in ("folder", "video") or fault != "stray line":
            campaign.fault(fault, f"{what}, rerun\n{detail}", {})
    for path in leftovers(out):
        campaign.fault("left-over", f"{what}\n{Path(path).name}", {})
    if _tree(task.place) != sources:
        campaign.fault("input touched", what, {})
    with contextlib.suppress(OSError):
        shutil.rmtree(out)


def _tree(place):
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
