"""`unrain watch IN -o OUT`: derain every file that appears in a folder."""

import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from unrain import devices, zoo
from unrain.cli.derain import Screen
from unrain.cli.output import EXIT_INTERRUPTED, devices_named, extra
from unrain.cli.signals import terminable
from unrain.errors import UsageError

if TYPE_CHECKING:
    from unrain.derainer import Derainer


def watch(
    folder: Annotated[Path, Parameter(name="IN")],
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    strength: float = 1.0,
    model: str = zoo.DEFAULT,
    device: str = "auto",
    precision: str = "auto",
    threads: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    quiet: Annotated[bool, Parameter(alias="-q")] = False,
    verbose: Annotated[bool, Parameter(alias="-v")] = False,
) -> int:
    """Derain every picture and video that appears in a folder, until Ctrl-C.

    Files that are there already are derained too, unless their results are. A file is taken once it has not
    changed for two seconds. After a kill the next run resumes. Needs the extra watch:
    pip install 'unrain[watch]'.

    Args:
        folder: The folder, with all below it.
        output: The folder of the results.
        strength: How much of the rain is taken away: 0 none, 1 what is found, up to 1.5.
        model: A name that unrain models lists, or an ONNX file.
        device: What the network runs on, see unrain devices; auto for the fastest that works.
        precision: What it computes in: fp32, fp16 or bf16; auto for what the device is best at.
        threads: Processor threads, 0 for all.
        quiet: Print errors only.
        verbose: Say what was done to each file.
    """
    from unrain import batch, layer

    with extra("watch", "watch"):
        import watchfiles  # noqa: F401
    from unrain.watch import plans

    layer.check_strength(strength)
    devices.parse(device)
    devices.check_precision(precision)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: a file, give a folder after -o")
    output.mkdir(parents=True, exist_ok=True)
    chosen = zoo.find(model)
    settings = batch.Settings(
        {"device": device, "precision": precision, "threads": threads}, strength=strength
    )

    @functools.cache
    def load() -> "Derainer":
        with devices_named(screen.say):
            return settings.open(chosen)

    stop = threading.Event()
    with Screen(0, quiet=quiet, verbose=verbose) as screen, terminable(stop.set):
        if not quiet:
            screen.say(f"unrain: watching {folder} (Ctrl-C to stop)")
        try:
            for plan in plans(folder, output, stop.is_set):
                for outcome in batch.run(plan, load, settings):
                    screen.settle(outcome)
                    if stop.is_set():
                        break
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
    return 0
