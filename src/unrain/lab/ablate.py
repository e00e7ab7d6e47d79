"""Ablations, what each part is worth: `unrain ablate PLAN --data FOLDER`.

A plan is a TOML file: a whole recipe as its [base], and groups of runs that each change something in it. All
are trained and measured on a whole test set, or on pictures held out of training: choices made by a test set
would flatter its score. Runs of a group that end closer together than `close` are
trained again with the next seed, since so small a difference may be chance.

An ablation lives in its folder (runs/PLAN): one folder for each run and seed, the pairs held out,
results.csv, table.md and plot.svg. When it was killed it resumes; finished runs are not trained again.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("svg")
from matplotlib import pyplot
from torch import nn

from unrain.errors import UnrainError
from unrain.files import write
from unrain.lab.bench.candidates import Candidate
from unrain.lab.bench.run import run as measure
from unrain.lab.checkpoint import load_checkpoint
from unrain.lab.nets.layers import RecursiveNet
from unrain.lab.training.recipe import Recipe, from_table, read_recipe, read_table, recipe_from, write_recipe
from unrain.lab.training.train import train

HELD_OUT = "held-out"
HELD_OUT_SIDE = 256


@dataclass(frozen=True)
class Run:
    """One thing to try.

    Attributes:
        name: What the table calls it.
        change: What differs from the base: a table that is laid over it, key by key; a table laid over an
            array of tables is laid over each of them.
    """

    name: str
    change: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Runs that are to be compared with each other.

    Attributes:
        name: What differs between them.
        runs: What is tried, in the order of the table. Equal ones in several groups are trained once.
    """

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Ablation:
    """An ablation.

    Attributes:
        base: The recipe that all runs have in common, as a table.
        groups: The comparisons.
        suite: The test set.
        hold_out: Every so-manieth picture and rain layer of each source is left out of training, and these
            are measured in place of the test set (`hold_out`); 0 for the test set.
        seeds: The first for every run; the others, one after the other, for those that end close together.
        close: Difference of two runs of a group in dB, of the means over their seeds, below which they get
            another seed.
    """

    base: dict[str, Any]
    groups: tuple[Group, ...]
    suite: str = "rain100l/test"
    hold_out: int = 0
    seeds: tuple[int, ...] = (1, 2)
    close: float = 0.2

    @property
    def measured_on(self) -> str:
        """Return what results are named after."""
        return HELD_OUT if self.hold_out else self.suite


@dataclass(frozen=True)
class Result:
    """How a run came out with one seed.

    Attributes:
        seed: The seed.
        psnr: Mean Y-channel PSNR of the test set in dB.
        ssim: Mean Y-channel SSIM.
        parameters: Weights of the network.
        steps: Optimiser steps.
        train_seconds: Wall time of the training.
        seconds: Mean time for a picture of the test set.
        own: The PSNR when BatchNorm normalises by each picture's own statistics, see `own_statistics`; `psnr`
            for a network without BatchNorm.
    """

    seed: int
    psnr: float
    ssim: float
    parameters: int
    steps: int
    train_seconds: float
    seconds: float
    own: float


@dataclass(frozen=True)
class RunResults:
    """A run of a group with all its results."""

    group: str
    run: str
    results: tuple[Result, ...]

    @property
    def psnr(self) -> float:
        """Return the mean over the seeds."""
        return mean(result.psnr for result in self.results)

    @property
    def own(self) -> float:
        """Return the mean over the seeds by own statistics."""
        return mean(result.own for result in self.results)


def read_ablation(path: Path) -> Ablation:
    """Read a plan and check the recipe of each of its runs.

    Raises:
        UnrainError: The file is missing, is no TOML, or has something in it that a plan or recipe has not.
    """
    plan = from_table(Ablation, read_table(path), str(path))
    if not plan.groups or not all(group.runs for group in plan.groups):
        raise UnrainError(f"{path}: needs at least one [[groups]] with [[groups.runs]]")
    if not plan.seeds:
        raise UnrainError(f"{path}: seeds is empty")
    for group in plan.groups:
        for run in group.runs:
            recipe_of(plan, run, plan.seeds[0], path, f"{path}: {group.name}: {run.name}")
    return plan


def recipe_of(plan: Ablation, run: Run, seed: int, path: Path, where: str = "") -> Recipe:
    """Lay a run's changes over the base.

    Args:
        plan: The plan, read from
        path: this file, which the files named in it are relative to.
        run: The run.
        seed: Its seed.
        where: What errors begin with; the path when empty.
    """
    recipe = recipe_from(laid_over(plan.base, run.change), where or str(path), path.parent)
    sources = tuple(dataclasses.replace(one, hold_out=plan.hold_out) for one in recipe.sources)
    return dataclasses.replace(
        recipe, seed=seed, validation=(), sources=sources if plan.hold_out else recipe.sources
    )


def laid_over(base: Any, change: Any) -> Any:  # noqa: ANN401  (TOML's values)
    """Return a TOML value with another laid over it, tables key by key."""
    if isinstance(change, dict) and isinstance(base, dict):
        return base | {key: laid_over(base.get(key), value) for key, value in change.items()}
    if isinstance(change, dict) and isinstance(base, list):
        return [laid_over(one, change) for one in base]
    return change


def ablate(path: Path, data: Path, *, out: Path | None = None) -> list[RunResults]:
    """Train and measure everything in a plan, resuming where an earlier call stopped.

    Args:
        path: The TOML file.
        data: The folder that the recipe's sets and the test set are in.
        out: Folder of the ablation; runs/PLAN when None.

    Raises:
        UnrainError: Plan, data or gradients are not right, or the folder holds runs of another plan.
    """
    plan = read_ablation(path)
    out = out or Path("runs") / path.stem
    if plan.hold_out:
        write_held_out(recipe_of(plan, Run(""), 0, path), data, out / HELD_OUT)
    runs = [(group.name, run) for group in plan.groups for run in group.runs]
    recipes = [recipe_of(plan, run, plan.seeds[0], path) for _, run in runs]
    counts = [1] * len(runs)
    while True:
        rows = [
            RunResults(
                group,
                run.name,
                tuple(
                    run_once(recipe_of(plan, run, seed, path), plan, data, out) for seed in plan.seeds[:count]
                ),
            )
            for (group, run), count in zip(runs, counts, strict=True)
        ]
        write_results(rows, plan, out, f"unrain ablate {path} --data {data}")
        near = list(close_rows(rows, plan.close))
        # By recipe: a run that is in several groups has as many seeds in each.
        again = [recipe for row, recipe in zip(rows, recipes, strict=True) if row in near]
        more = [
            min(count + (recipe in again), len(plan.seeds))
            for recipe, count in zip(recipes, counts, strict=True)
        ]
        if more == counts:
            return rows
        counts = more


def close_rows(rows: list[RunResults], close: float) -> Iterator[RunResults]:
    """Yield the rows that another row of their group is closer to than `close` dB, by either PSNR."""
    for row in rows:
        others = [other for other in rows if other.group == row.group and other is not row]
        if any(min(abs(row.psnr - other.psnr), abs(row.own - other.own)) < close for other in others):
            yield row


def own_statistics(net: RecursiveNet) -> RecursiveNet | None:
    """Return a copy whose BatchNorm uses each picture's own statistics; None when there is no BatchNorm.

    After a short training, the running statistics are far off on pictures unlike any patch: a picture that is
    half sky comes out 30 levels too dark or not, by chance, and that decides the mean of a test set. A
    picture's own statistics show what the layers have learnt.
    """
    own = copy.deepcopy(net)
    norms = [layer for layer in own.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return own if norms else None


def write_held_out(recipe: Recipe, data: Path, folder: Path) -> None:
    """Draw one pair of every picture that a recipe's sources hold out, and write them as a set of pairs.

    The pairs are `HELD_OUT_SIDE` pixels square, drawn as for training, always the same. Sources that stay
    without rain have none: their PSNR would hide the others'.

    Raises:
        UnrainError: A picture is missing or broken, or nothing is held out.
    """
    for earlier in folder.glob("*/*.png"):
        earlier.unlink()
    drawn = 0
    for number, spec in enumerate(recipe.sources, 1):
        if spec.pairs is None and spec.rain is None:
            continue
        held_out = spec.load(data, held_out=True)
        for index in range(len(held_out)):
            pair = held_out.patch(HELD_OUT_SIDE, np.random.default_rng((number, index)), index)
            for side, picture in zip(("rain", "clean"), pair, strict=True):
                file = io.BytesIO()
                Image.fromarray(picture).save(file, "PNG")
                (folder / side).mkdir(parents=True, exist_ok=True)
                write(file.getvalue(), folder / side / f"{number}-{index + 1:03}.png")
            drawn += 1
    if not drawn:
        raise UnrainError(f"hold_out: no source of the base has so many pictures with rain in {data}")


def run_once(recipe: Recipe, plan: Ablation, data: Path, out: Path) -> Result:
    """Train and measure one recipe, or read its earlier result."""
    for folder in sorted(out.glob("*/")):
        if (folder / "recipe.toml").exists() and read_recipe(folder / "recipe.toml") == recipe:
            break
    else:
        taken = [int(folder.name) for folder in out.glob("*/") if folder.name.isdigit()]
        folder = out / f"{max(taken, default=0) + 1:02}"
        folder.mkdir(parents=True)
        write_recipe(recipe, folder / "recipe.toml", "One run of an ablation, identified by its contents.")
    done = folder / "result.json"
    if done.exists():
        return Result(**json.loads(done.read_text(encoding="utf-8")))
    weights = folder / "weights.safetensors"
    if not weights.exists():
        train(folder / "recipe.toml", data, out=folder)
    checkpoint = load_checkpoint(weights)
    own = own_statistics(checkpoint.net)
    recursions = (recipe.stages[-1].recursions,)
    nets = [net for net in (checkpoint.net, own) if net is not None]
    candidates = [Candidate("run", net) for net in nets]
    suite = (out, HELD_OUT, False) if plan.hold_out else (data, plan.suite, False)
    scores = [one.scores[0] for one in measure(candidates, [suite], recursions=recursions)]
    score, own_psnr = scores[0], scores[-1].psnr
    if score.psnr is None or score.ssim is None or score.seconds is None or own_psnr is None:
        raise UnrainError(f"{plan.suite}: real rain has no PSNR to compare runs by, name a set of pairs")
    result = Result(
        seed=recipe.seed,
        psnr=score.psnr,
        ssim=score.ssim,
        parameters=sum(parameter.numel() for parameter in checkpoint.net.parameters()),
        steps=recipe.steps,
        train_seconds=float(checkpoint.card["wall_time"]),
        seconds=score.seconds,
        own=own_psnr,
    )
    write(json.dumps(dataclasses.asdict(result)).encode(), done)
    return result


def write_results(rows: list[RunResults], plan: Ablation, out: Path, command: str) -> None:
    """Write results.csv, table.md and plot.svg."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["group", "run", *(one.name for one in dataclasses.fields(Result))])
    for row in rows:
        writer.writerows([row.group, row.run, *dataclasses.astuple(one)] for one in row.results)
    write(text.getvalue().encode(), out / "results.csv")
    write(table(rows, plan.measured_on, command).encode(), out / "table.md")
    plot(rows, plan.measured_on, out / "plot.svg")


def table(rows: list[RunResults], suite: str, command: str) -> str:
    """Return the results as Markdown; several seeds as their mean and, in brackets, each."""
    lines = [
        f"`{command}`; whole {suite}, Y channel.",
        "",
        "| | | weights | steps | training, s | a picture, s | PSNR | SSIM | PSNR by own statistics |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    before = None
    for row in rows:
        first, several = row.results[0], len(row.results) > 1
        each, each_own = (
            f" ({', '.join(f'{value:.2f}' for value in values)})" if several else ""
            for values in ([one.psnr for one in row.results], [one.own for one in row.results])
        )
        group = row.group if row.group != before else ""
        lines.append(
            f"| {group} | {row.run} | {first.parameters:,} | {first.steps:,} "
            f"| {mean(one.train_seconds for one in row.results):.0f} "
            f"| {mean(one.seconds for one in row.results):.2f} "
            f"| {row.psnr:.2f}{each} | {mean(one.ssim for one in row.results):.4f} "
            f"| {row.own:.2f}{each_own} |"
        )
        before = row.group
    return "\n".join(lines) + "\n"


def plot(rows: list[RunResults], suite: str, path: Path) -> None:
    """Plot every run as a bar, group below group, and its seeds as dots."""
    lowest = min(result.psnr for row in rows for result in row.results)
    highest = max(result.psnr for row in rows for result in row.results)
    margin = max(0.1, 0.1 * (highest - lowest))
    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.32 * len(rows)), layout="constrained")
    labels, before, colour = [], None, -1
    for at, row in enumerate(rows):
        colour += row.group != before
        before = row.group
        axes.barh(at, row.psnr - lowest + margin, left=lowest - margin, color=f"C{colour % 10}", alpha=0.6)
        axes.plot([one.psnr for one in row.results], [at] * len(row.results), "k.", markersize=5)
        labels.append(f"{row.group}: {row.run}")
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.set_xlim(lowest - margin, highest + margin)
    axes.set_xlabel(f"{suite}, Y PSNR in dB; a dot for each seed")
    axes.spines[["top", "right"]].set_visible(False)
    # Neither date nor random ids: the same results give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "unrain"}):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    write(drawn.getvalue(), path)
    pyplot.close(figure)
