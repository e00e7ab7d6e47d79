"""`python -m unrain.lab.training.campaign`: train several recipes on one machine, for so many minutes.

A plan is a TOML file of lanes. Lanes run side by side, the recipes of a lane in turn; each is `unrain train`
in a process of its own, with its log beside its folder. Started again, the campaign goes on where it was:
finished runs are left alone, others resume from their checkpoints.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter, validators

from unrain import files
from unrain.cli.output import error_line, print_line, run_module
from unrain.errors import UnrainError
from unrain.lab.training.recipe import Recipe, from_table, read_recipe, read_table, write_recipe

app = App(name="python -m unrain.lab.training.campaign", help_format="plaintext")
# Lightning ends a step after SIGTERM; checkpoints are written before, so that nothing waits for it.
_PATIENCE = 20.0
# Patches in a step of a rehearsal: the recipes of all rain share a batch out to five.
_FEW_PATCHES = 5


@dataclass(frozen=True)
class Lane:
    """Recipes that are trained one after the other.

    Attributes:
        recipes: Files, relative to the plan; a later one may start from an earlier one's weights.
    """

    recipes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a campaign trains.

    Attributes:
        lanes: Run side by side; the first is started first.
    """

    lanes: tuple[Lane, ...]


@app.default
def campaign(
    plan: Path,
    /,
    *,
    data: Path,
    out: Path = Path("runs"),
    minutes: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 30.0,
    rehearsal: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
) -> int:
    """Train the recipes of a plan.

    Args:
        plan: The TOML file of lanes.
        data: Folder with the data sets.
        out: Folder of the runs: each recipe has a folder and a log of its own there.
        minutes: When they are over, what still runs is stopped; the same command goes on.
        rehearsal: Only try the plan, in a folder of that name in `out`: so many steps of each stage on five
            patches, without validation. It shows that everything is there and that each recipe can start
            from the one before, not how much memory the batches need.

    Returns:
        0 when all are trained, 1 when a run failed or time was too short.

    Raises:
        UnrainError: The plan or one of its recipes cannot be read.
    """
    lanes = [
        [(plan.parent / name).resolve() for name in lane.recipes]
        for lane in from_table(Plan, read_table(plan), str(plan)).lanes
    ]
    every = [recipe for lane in lanes for recipe in lane]
    if not every:
        raise UnrainError(f"{plan}: needs at least one [[lanes]] with recipes")
    read = {recipe: read_recipe(recipe) for recipe in every}
    if rehearsal is not None:
        out = out / "rehearsal"
        shortened = {recipe: _shortened(read[recipe], out, rehearsal, every) for recipe in every}
        out.mkdir(parents=True, exist_ok=True)
        for recipe, short in shortened.items():
            write_recipe(short, out / recipe.name, f"{recipe.name}, shortened for a rehearsal.")
        lanes = [[(out / recipe.name).resolve() for recipe in lane] for lane in lanes]
        every = [recipe for lane in lanes for recipe in lane]
    out.mkdir(parents=True, exist_ok=True)
    failed = asyncio.run(_lanes(lanes, data, out, minutes))
    left = [recipe for recipe in every if not _finished(recipe, out)]
    for recipe in every:
        state = "trained" if recipe not in left else "failed" if recipe in failed else "not finished"
        print_line(f"{recipe.stem}: {state}")
    for recipe in failed:
        log = _log(recipe, out)
        error_line(f"unrain: {recipe.name}: {_last_line(log)}; see {log}")
    if len(left) > len(failed):
        error_line(f"unrain: {len(left) - len(failed)} left: the same command goes on")
    return 1 if left else 0


def _shortened(recipe: Recipe, out: Path, steps: int, plan: list[Path]) -> Recipe:
    """Cut each stage to a few steps; what starts from a run of the plan starts from its rehearsal."""
    stages = (
        replace(stage, steps=steps, warmup=0, milestones=(), batch=min(stage.batch, _FEW_PATCHES))
        for stage in recipe.stages
    )
    initial = recipe.initial
    if initial and (run := Path(initial.weights).parent.name) in [other.stem for other in plan]:
        initial = replace(initial, weights=str((out / run / "weights.safetensors").resolve()))
    return replace(recipe, stages=tuple(stages), initial=initial, validation=())


async def _lanes(lanes: list[list[Path]], data: Path, out: Path, minutes: float) -> list[Path]:
    """Run all lanes until they end or time is over; return the recipes that failed."""
    threads = str(max(1, (os.cpu_count() or 1) // len(lanes)))
    failed: list[Path] = []

    async def run(lane: list[Path]) -> None:
        for recipe in lane:
            if not _finished(recipe, out) and await _train(recipe, data, out, threads):
                failed.append(recipe)
                return  # what comes after it starts from it

    try:
        async with asyncio.timeout(60 * minutes):
            await asyncio.gather(*map(run, lanes))
    except TimeoutError:
        pass
    return failed


async def _train(recipe: Path, data: Path, out: Path, threads: str) -> int:
    """Train one recipe, stopping it when this is cancelled; return its exit code."""
    options = ("--data", str(data), "--out", str(out / recipe.stem))
    command = (sys.executable, "-m", "unrain", "train", str(recipe), *options)
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    with _log(recipe, out).open("ab") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=environment)
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                try:
                    async with asyncio.timeout(_PATIENCE):
                        await process.wait()
                except TimeoutError:
                    process.kill()
                    await process.wait()


def _finished(recipe: Path, out: Path) -> bool:
    """Return whether a run has ended: its weights are written last."""
    return (out / recipe.stem / "weights.safetensors").is_file()


def _log(recipe: Path, out: Path) -> Path:
    return out / f"{recipe.stem}.log"


def _last_line(log: Path) -> str:
    """Return what a failed run said last."""
    lines = log.read_text("utf-8", "replace").splitlines()
    said = (line.removeprefix("unrain: ").strip() for line in reversed(lines))
    return files.one_line(next(filter(None, said), "said nothing"))


if __name__ == "__main__":
    run_module(app)
