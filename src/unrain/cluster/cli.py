"""What `unrain IN...` does with --cluster or --shard: the same lines, summary and exit codes."""

import contextlib
from collections.abc import Sequence

from unrain import zoo
from unrain.batch import Settings
from unrain.cli.derain import Screen, check_for_videos, left_aside, terminable
from unrain.cli.output import EXIT_FAILED, error_line, extra, print_line
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
        if dry_run:
            return _dry_run(resumed)
        screen = Screen(len(resumed.left) + len(resumed.over), quiet=quiet, verbose=verbose)
        with screen, terminable(screen):
            if verbose:
                screen.say(f"model {model.name} ({model.path})")
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


def _dry_run(resumed: command.Resumed) -> int:
    for task in resumed.left:
        for target in task.targets.values():
            print_line(f"{task.source} -> {target}")
    for outcome in resumed.over:
        word = "error: " if outcome.status == "failed" else f"{outcome.name}: skipped, "
        error_line(f"unrain: {word}{outcome.message}")
    return EXIT_FAILED if any(outcome.status == "failed" for outcome in resumed.over) else 0
