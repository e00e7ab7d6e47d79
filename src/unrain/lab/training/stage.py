"""The parts of a training run: how long, on what patches, at which learning rate."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One part of a training run.

    Attributes:
        steps: How many optimiser steps it lasts.
        patch: Side of the square patches.
        batch: Patches in a step, over all devices.
        real: Additional patches of real rain in a step, over all devices.
        recursions: Recursions T in this stage.
        split: Whether each recursion has its own share of the batch and starts from a finished estimate, so
            that T recursions cost little more than one; if not, gradients run back through all of them.
        lifted: In a stage with `split`, the weight of one share more, beside the recursions' weights: it
            starts from the lifted estimate of the half-size picture, as finer octaves do.
        lr: Peak learning rate; each stage has its own cosine, down to zero.
        warmup: Steps of linear warm-up before the peak.
        milestones: Steps within the stage at which the learning rate falls, in place of the cosine, and
        factor: what it is multiplied by there.
        frozen: Whether BatchNorm normalises by its running statistics and leaves them unchanged; always so in
            a stage with real rain.
    """

    steps: int
    patch: int = 64
    batch: int = 8
    real: int = 0
    recursions: int = 1
    split: bool = False
    lifted: float = 0.0
    lr: float = 1e-3
    warmup: int = 200
    milestones: tuple[int, ...] = ()
    factor: float = 0.2
    frozen: bool = False

    @property
    def keeps_statistics(self) -> bool:
        """Return whether BatchNorm's statistics stay: those of real rain differ from those of pairs."""
        return self.frozen or self.real > 0


def stage_at(stages: tuple[Stage, ...], step: int) -> tuple[Stage, int]:
    """Return the stage of a step, and the step within it; beyond the end, the end of the last stage."""
    for stage in stages:
        if step < stage.steps:
            return stage, step
        step -= stage.steps
    return stages[-1], stages[-1].steps
