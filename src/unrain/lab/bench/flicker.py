"""Flicker of derained videos: how much still places change from frame to frame; and PSNR to a clean clip.

    python -m unrain.lab.bench.flicker CLEAN VIDEO...

The first clip says what stands still, so it is the clean one, or the input where there is none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]


def still(before: Frame, after: Frame, *, tolerance: int = 2) -> NDArray[np.bool_]:
    """Tell where nothing moves between two frames of a clean clip.

    Args:
        before: H x W x 3.
        after: The next frame, same shape.
        tolerance: Steps of 8 bits which noise and compression may make.

    Returns:
        H x W.
    """
    return np.asarray(np.abs(after.astype(np.int16) - before).max(axis=2) <= tolerance)


def flicker(before: Frame, after: Frame, where: NDArray[np.bool_]) -> float:
    """Mean absolute difference of consecutive frames over still places, in steps of 8 bits.

    Args:
        before: H x W x 3.
        after: The next frame, same shape.
        where: H x W; NaN is returned if no place is still.
    """
    if not where.any():
        return float("nan")
    return float(np.abs(after.astype(np.int16) - before)[where].mean())


def measure(clean: Path, videos: Sequence[Path]) -> list[tuple[float, float]]:
    """Compare clips with a clean one, frame by frame by their order.

    Args:
        clean: What stands still is told by this one.
        videos: Clips of the same size and length, rainy or derained.

    Returns:
        For each: PSNR over all frames in dB, and the mean flicker.

    Raises:
        ValueError: The clips differ in length or size.
    """
    errors: list[list[float]] = [[] for _ in videos]
    flickers: list[list[float]] = [[] for _ in videos]
    last: tuple[Frame, ...] | None = None
    for shown in zip(*(_frames(path) for path in (clean, *videos)), strict=True):
        for number, frame in enumerate(shown[1:]):
            if frame.shape != shown[0].shape:
                raise ValueError(f"{videos[number]}: {frame.shape} instead of {shown[0].shape}")
            errors[number].append(float(np.mean(np.square(frame.astype(np.float32) - shown[0]))))
            if last is not None:
                where = still(last[0], shown[0])
                flickers[number].append(flicker(last[number + 1], frame, where))
        last = shown
    return [
        (float(10 * np.log10(255**2 / max(float(np.mean(error)), 1e-9))), float(np.nanmean(change)))
        for error, change in zip(errors, flickers, strict=True)
    ]


def _frames(path: Path) -> Iterator[Frame]:
    import av

    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            pixels: Any = frame.to_ndarray(format="rgb24")
            yield pixels


if __name__ == "__main__":
    names = [Path(name) for name in sys.argv[1:]]
    for name, (psnr, change) in zip(names, measure(names[0], names), strict=True):
        sys.stdout.write(f"{name}: PSNR {psnr:.2f} dB, flicker {change:.2f}\n")
