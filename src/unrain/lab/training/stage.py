"""The parts of a training run: how long, on what patches, at which learning rate."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One part of a training run.

    Attributes:
        steps: How many optimiser steps it lasts.
        patch: Side of the square patches.
        batch: Patches in a step, over all devices.
        real: Patches of real rain in a step, besides, over all devices.
        recursions: Passes T in this stage.
        split: Whether each pass has a share of the batch to itself and starts from a finished estimate, so
            that T passes cost little more than one; if not, gradients run back through all of them.
        lr: Peak learning rate; each stage has a cosine of its own, down to zero.
        warmup: Steps of linear warm-up before the peak.
        milestones: Steps within the stage at which the learning rate falls, in place of the cosine, and
        factor: what it is multiplied by there.
        frozen: Whether BatchNorm keeps the statistics that it has and normalises by them; beside real rain it
            does in any case.
    """

    steps: int
    patch: int = 64
    batch: int = 8
    real: int = 0
    recursions: int = 1
    split: bool = False
    lr: float = 1e-3
    warmup: int = 200
    milestones: tuple[int, ...] = ()
    factor: float = 0.2
    frozen: bool = False

    @property
    def keeps_statistics(self) -> bool:
        """Return whether BatchNorm learns no statistics: those of real rain would not be those of pairs."""
        return self.frozen or self.real > 0


def stage_at(stages: tuple[Stage, ...], step: int) -> tuple[Stage, int]:
    """Return the stage of a step, and the step within it; beyond the end, the end of the last stage."""
    for stage in stages:
        if step < stage.steps:
            return stage, step
        step -= stage.steps
    return stages[-1], stages[-1].steps
