"""The lab's commands. Each imports its room when it runs, so that their help needs no PyTorch."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter, validators

from unrain import zoo
from unrain.cli.output import EXIT_FAILED, extra, print_line
from unrain.cli.progress import Bar
from unrain.errors import UsageError
from unrain.lab.bench.options import (
    BenchOptions,
    FidelityOptions,
    SheetOptions,
    SizesOptions,
    SpeedOptions,
    TaskOptions,
)

_Models = Annotated[str, Parameter(name="MODEL")]
_Flat = Parameter(name="*")
_BENCH, _SHEET, _SPEED, _TASK = BenchOptions(), SheetOptions(), SpeedOptions(), TaskOptions()
_SIZES = SizesOptions()
_FIDELITY = FidelityOptions()
_Positive = Parameter(validator=validators.Number(gte=1))


def train(
    recipe: Path,
    /,
    *,
    data: Path,
    devices: Annotated[int, _Positive] = 1,
    nodes: Annotated[int, _Positive] = 1,
    out: Path | None = None,
    resume: Annotated[bool, Parameter(negative="--no-resume")] = True,
) -> None:
    """Train a network by a recipe.

    Args:
        recipe: The TOML file that describes the training.
        data: Folder with the data sets.
        devices: How many GPUs, or processes on the CPU, of each machine.
        nodes: How many machines. The same command is run on each by torchrun or srun, with a folder of the
            run that all of them share.
        out: Folder for checkpoints and logs; runs/RECIPE by default.
        resume: Resume from the last checkpoint, if there is one.
    """
    with extra("lab", "train"):
        from unrain.lab.training.train import train as run_training

        made = run_training(recipe, data, devices=devices, nodes=nodes, out=out, resume=resume)
        if made is not None:
            print_line(f"{recipe} -> {made}")
            print_line(f"measure it: unrain bench {made} --data {data}")


def adapt(
    model: str,
    /,
    *,
    real: Path,
    clean: Path | None = None,
    pairs: Path | None = None,
    steps: Annotated[int, _Positive] = 500,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
) -> None:
    """Fine-tune a model on your own rainy pictures, in minutes.

    Args:
        model: A name that unrain models lists, or a checkpoint of unrain train.
        real: Folder with rainy pictures.
        clean: Folder with clean photographs, ideally from the same camera; rain is drawn on them. Without it,
            rain is drawn on what the model makes of the rainy pictures.
        pairs: Folder with a rainy and a clean sub-folder, also to learn from and to measure on.
        steps: Training steps.
        output: The ONNX file to write; MODEL-adapted.onnx by default.
    """
    with extra("lab", "adapt"):
        from unrain.lab.adapt import ALLOWED
        from unrain.lab.adapt import adapt as run_adapting

        found = run_adapting(model, real, clean=clean, pairs=pairs, steps=steps, out=output)
        verdict = "kept" if found.kept else "NOT kept"
        print_line(
            f"{found.pairs} pairs held out: {found.before:.2f} dB before, {found.after:.2f} dB after; "
            f"{verdict} within {ALLOWED} dB, with {found.share:.0%} of the change"
        )
        if pairs is None:
            print_line("these have drawn rain; other rain may get worse: --pairs holds some of it out")
        if found.streaks_before is not None and found.streaks_after is not None:
            print_line(
                f"streaks removed from your pictures: {found.streaks_before:.0%} before, "
                f"{found.streaks_after:.0%} after"
            )
        print_line(f"{steps} steps, {found.seconds:.0f} s; use it: unrain IN --model {found.model}")


def search(recipe: Path, /, *, data: Path, out: Path | None = None) -> None:
    """Find the skip connections of RDMC worth keeping.

    Args:
        recipe: The TOML file, with a [search] table.
        data: Folder with the data sets.
        out: Folder for checkpoints, logs and the recipe found.
    """
    with extra("lab", "search"):
        from unrain.lab.search import search as run_search

        found = run_search(recipe, data, out=out)
        for name, strength in found.skips.items():
            print_line(f"{name:6} {strength:+.4f}{'  kept' if name in found.kept else ''}")
        print_line(f"upsampling {found.bilinear:.3f} bilinear + {1 - found.bilinear:.3f} bicubic")
        print_line(f"train it: unrain train {found.recipe} --data {data}")


def ablate(plan: Path, /, *, data: Path, out: Path | None = None) -> None:
    """Measure what each part of a recipe is worth.

    Args:
        plan: The TOML file: a recipe, and what is changed in it.
        data: Folder with the data sets.
        out: Folder for the runs and the results; runs/PLAN by default.
    """
    with extra("lab", "ablate"):
        from unrain.lab.ablate import ablate as run_ablation

        for row in run_ablation(plan, data, out=out):
            each = ", ".join(f"{one.psnr:.2f}" for one in row.results)
            print_line(f"{row.group:24} {row.run:24} {row.psnr:6.2f} dB ({each})")


def export(
    source: Annotated[str, Parameter(name="SOURCE")],
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    darktable: Annotated[Path | None, Parameter(name="--darktable")] = None,
    average: tuple[Path, ...] = (),
    share: tuple[float, ...] = (),
    argument: dict[str, float] | None = None,
    recursions: Annotated[int | None, _Positive] = None,
    default: Annotated[int | None, _Positive] = None,
) -> None:
    """Turn a checkpoint into an ONNX model, or a model into a package for darktable.

    Args:
        source: The trained weights: weights.safetensors, or last.ckpt of an unfinished run. With --darktable
            a name that unrain models lists, or an ONNX file.
        output: The ONNX file to write; its card is written beside it. A .safetensors file instead keeps the
            weights in half precision to train on from.
        darktable: Instead of -o: the .dtmodel file to write, which darktable 5.6 imports in its preferences
            (AI, import from file) and uses in place of a denoiser.
        average: More weights of the same network, of runs that went on from the same start; may be given
            several times. The mean of all is written.
        share: Of SOURCE in the mean, then of each --average in their order; equal by default. 3, 1 and 1 are
            the same as 0.6, 0.2 and 0.2.
        argument: A setting of the network that has no weights, such as --argument.threshold 1.5 for
            rdmc-lite; that of the checkpoint otherwise.
        recursions: Fix the number of recursions in the file; otherwise it is chosen when the model runs.
        default: Recursions when the user chooses none; the network's own number by default.
    """
    if (output is None) == (darktable is None):
        raise UsageError("export: give one of -o FILE and --darktable FILE")
    with extra("lab", "export"):
        if darktable is not None:
            if recursions is not None or default is not None or average or share or argument:
                raise UsageError("export: --darktable takes a model as it is: leave the other options out")
            from unrain.lab.darktable import write_package

            write_package(zoo.find(source), darktable)
            print_line(f"{source} -> {darktable}")
            return
        assert output is not None
        from unrain.lab.export import export_checkpoint

        made = export_checkpoint(
            Path(source),
            output,
            recursions=recursions,
            default=default,
            others=average,
            shares=share,
            # A count is a whole number.
            arguments={name: int(v) if v.is_integer() else v for name, v in (argument or {}).items()},
        )
        print_line(f"{', '.join([source, *map(str, average)])} -> {made}")
        if output.suffix == ".onnx":
            print_line(f"use it: unrain IN --model {made}")


def reproduce(
    *tables: Annotated[str, Parameter(name="TABLE")],
    data: Path | None = None,
    peers: Path | None = None,
    threads: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
) -> int:
    """Measure the README's figures again.

    Args:
        tables: Which: sets (that they are the right ones), scores, real (rain), speed, large (pictures); all
            by default.
        data: Folder with the data sets.
        peers: Folder with PReNet's weights, prenet_rain100l.safetensors and prenet_rain100h.safetensors.
        threads: Processor threads for scores, 0 for all.
    """
    with extra("lab", "reproduce"), Bar() as bar:
        from unrain.lab.bench.reproduce import TABLES
        from unrain.lab.bench.reproduce import reproduce as measured

        found = []
        for table in tables or TABLES:
            bar.print(table)
            for one in measured(table, data, peers, threads=threads, note=bar.note, progress=bar.step):
                verdict = {True: "agrees", False: "DIFFERS", None: "depends on the machine"}[one.agrees]
                line = f"stated {one.stated}, measured {one.measured}: {verdict}"
                bar.print(f"  {one.name}: {f'left out, {one.why}' if one.why else line}")
                found.append(one)
        differ = sum(one.agrees is False for one in found)
        left_out = sum(bool(one.why) for one in found)
        agree = sum(one.agrees is True for one in found)
        timed = len(found) - agree - differ - left_out
        bar.print(f"{agree} agree, {differ} differ, {timed} depend on the machine, {left_out} left out")
        return EXIT_FAILED if differ or left_out else 0


bench = App(name="bench")


@bench.default
def bench_quality(*models: _Models, options: Annotated[BenchOptions, _Flat] = _BENCH) -> None:
    """Measure models on whole test sets.

    Args:
        models: Models of the zoo, ONNX files, checkpoints of unrain train, or folders of derained pictures,
            which are matched by name (in a sub-folder with the name of the test set, if there is one). The
            default model if none is given.
        options: The rest.
    """
    with extra("lab", "bench"), Bar() as bar:
        from unrain.lab.bench import command

        command.measure(models, options, say=bar.print, note=bar.note, progress=bar.step)


@bench.command(name="speed")
def bench_speed(*models: _Models, options: Annotated[SpeedOptions, _Flat] = _SPEED) -> None:
    """Time models.

    Models are run in turn, beside the machine's own matrix product; with --peer they are compared with the
    first one.

    Args:
        models: Models of the zoo, ONNX files, or checkpoints of unrain train; the default model if none is
            given.
        options: The rest.
    """
    with extra("lab", "bench speed"), Bar(animated=False) as bar:
        from unrain.lab.bench import command

        command.time_models(models, options, say=bar.print, progress=bar.step)


@bench.command(name="fidelity")
def bench_fidelity(*models: _Models, options: Annotated[FidelityOptions, _Flat] = _FIDELITY) -> None:
    """Compare devices and precisions with the CPU in fp32, on whole test sets.

    PSNR is that of the two results in RGB, not rounded; then of the Y channel to the ground truth, by the
    device and by the CPU.

    Args:
        models: Models of the zoo or ONNX files; the default model if none is given.
        options: The rest.
    """
    with extra("lab", "bench fidelity"), Bar() as bar:
        from unrain.lab.bench import command

        command.compare_devices(models, options, say=bar.print, progress=bar.step)


@bench.command(name="sizes")
def bench_sizes(*models: _Models, photos: Path, options: Annotated[SizesOptions, _Flat] = _SIZES) -> None:
    """Measure models on large photographs in several sizes, in drawn rain.

    Scores are kept in runs/bench.

    Args:
        models: Models of the zoo, ONNX files, or checkpoints of unrain train; the default model if none is
            given.
        photos: Folder with clean, large photographs.
        options: The rest.
    """
    with extra("lab", "bench sizes"), Bar(animated=False) as bar:
        from unrain.lab.bench import command

        command.compare_sizes(models, photos, options, say=bar.print, progress=bar.step)


@bench.command(name="sheet")
def bench_sheet(
    *models: _Models,
    output: Annotated[Path, Parameter(alias="-o")],
    options: Annotated[SheetOptions, _Flat] = _SHEET,
) -> None:
    """Draw a contact sheet: pictures of a test set, derained by each model, side by side.

    Args:
        models: As for unrain bench.
        output: The picture to write; several test sets give FILE-SET.EXT each.
        options: The rest.
    """
    with extra("lab", "bench sheet"), Bar() as bar:
        from unrain.lab.bench import command

        command.draw(models, output, options, say=bar.print, progress=bar.step)


@bench.command(name="tasks")
def bench_tasks(*models: _Models, data: Path, options: Annotated[TaskOptions, _Flat] = _TASK) -> None:
    """Measure what deraining does for detection and segmentation.

    Your networks look at photographs without rain, with drawn rain of three strengths, and derained; mAP and
    mIoU are in per cent. Scores are kept in runs/bench. Needs pip install 'unrain[tasks]'.

    Args:
        models: Models of the zoo, ONNX files, or checkpoints of unrain train; the default model if none is
            given.
        data: Folder with the data sets.
        options: The rest.
    """
    with extra("tasks", "bench tasks"), Bar() as bar:
        from unrain.lab.bench import command

        command.measure_tasks(models, data, options, say=bar.print, note=bar.note, progress=bar.step)
