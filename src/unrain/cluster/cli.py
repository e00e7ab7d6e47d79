"""What `unrain IN...` does with --cluster or --shard: the same lines, summary and exit codes."""

import contextlib
from collections.abc import Sequence

from unrain import zoo
from unrain.batch import Settings
from unrain.cli.derain import Screen, check_for_videos, converted, left_aside, say_plan
from unrain.cli.output import extra
from unrain.cli.signals import terminable
from unrain.cluster import command
from unrain.cluster.options import Scale


def derain(
    inputs: Sequence[str],
    output: str | None,
    scale: Scale,
    model: zoo.Model,
    settings: Settings,
    *,
    rain_layer: bool,
    compare: bool,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Run on a cluster, or one share of a run.

    Args:
        inputs: Files, folders, patterns, addresses and manifests.
        output: The folder or address of the results.
        scale: How the work is spread.
        model: The model.
        settings: What is wanted of every input.
        rain_layer: Also write the rain that was removed.
        compare: Also write before and after side by side.
        dry_run: Say what would be written, and stop.
        quiet: Print errors only.
        verbose: Say what was done to each picture.

    Returns:
        The exit code.

    Raises:
        UnrainError: The run cannot begin, or cannot continue.
    """
    with extra("cluster", "--cluster and object storage"):
        work, output = command.find(inputs, output, scale, rain_layer=rain_layer, compare=compare)
        if settings.video is not None and work.tasks:
            check_for_videos(settings.video, work.tasks)
        resumed = command.resume(work, output, scale, overwrite=settings.overwrite)
        lines = converted(task.job for task in resumed.left)
        if dry_run:
            return say_plan(
                ((task.source, target) for task in resumed.left for target in task.targets.values()),
                resumed.over,
                [*lines, *left_aside(work.ignored, verbose=verbose)],
            )
        screen = Screen(len(resumed.left) + len(resumed.over), quiet=quiet, verbose=verbose)
        with screen, terminable(screen.terminate):
            if verbose:
                screen.say(f"model {model.name} ({model.path})")
            if not quiet:
                for line in lines:
                    screen.say(line)
            try:
                with contextlib.closing(
                    command.run(resumed, scale, model, settings, say=screen.say)
                ) as outcomes:
                    for outcome in outcomes:
                        screen.settle(outcome)
            except KeyboardInterrupt:
                screen.interrupted = True
            if not quiet:
                for line in left_aside(work.ignored, verbose=verbose):
                    screen.say(line)
        return screen.summary()
