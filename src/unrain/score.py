"""How likely it rains in a picture, how much light the rain adds, and from where it falls: `unrain score`.

The tiny network of the zoo looks at the picture at its working size, once. What its deepest features say is
the score; the layer that it would take away says the rest. The lab's `score.py` makes the detector.
"""

import functools
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unrain import zoo
from unrain.devices import Processor
from unrain.engine import open_engine
from unrain.image import Array
from unrain.layer import luma
from unrain.octaves import coarsest, shrink

Verdict = Literal["clear", "light", "heavy"]

DETECTOR = zoo.WEIGHTS / "score" / "rain.onnx"
MOST = 100.0
# Light that rain adds, in 8-bit levels on average, from which on it is heavy: that of the lighter half of
# Rain100L, whose rain everybody calls so.
HEAVY = 4.0
# From so much light on it rains, whatever the features say, which have not seen rain as dense as that. The
# clean photographs that were measured have 2 at most.
CERTAIN = 16.0
# Layers with less light, in the same unit, or with less agreement of their gradients have no direction.
_FAINT, _AGREED = 0.05, 0.15
_SMALLEST = 16


@dataclass(frozen=True)
class Score:
    """What is said of a picture.

    Attributes:
        score: How likely it rains in it, in percent, if half of all pictures are of rain; 100 from `CERTAIN`
            on.
        verdict: `clear` below the detector's threshold; else `light`, or `heavy` from `HEAVY` on.
        layer: Light that the rain adds, in 8-bit levels on average.
        direction: Of the streaks: degrees from upright, -90 to 90, positive if they lean to the right at
            their top; None if there is none.
    """

    score: float
    verdict: Verdict
    layer: float
    direction: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON, rounded."""
        found = asdict(self)
        found["score"], found["layer"] = round(self.score, 1), round(self.layer, 2)
        found["direction"] = None if self.direction is None else round(self.direction)
        return found


class Scorer:
    """Scores pictures.

    Attributes:
        threshold: The score from which on a picture is called rainy.
    """

    def __init__(
        self,
        model: zoo.Model | None = None,
        *,
        threshold: float | None = None,
        processor: Processor | None = None,
    ) -> None:
        """Open the detector.

        Args:
            model: Another detector; None for the one of the package.
            threshold: Another threshold than its card's.
            processor: What it runs on.

        Raises:
            UnrainError: The device cannot be had, or the model is no detector.
        """
        model = model or zoo.find(DETECTOR)
        self.threshold = float(model.card["threshold"]) if threshold is None else threshold
        self._engine = open_engine(model, processor)

    def __call__(self, image: Array) -> Score:
        """Score a picture.

        Args:
            image: H x W x 3 RGB or H x W grey, uint8 or uint16 in full range, or float in [0, 1].
        """
        evidence, layer = self.evidence(image)
        light = 255 * float(np.maximum(layer, 0).mean())
        score = MOST / (1 + math.exp(-float(np.clip(evidence[0], -50, 50)))) if light < CERTAIN else MOST
        verdict: Verdict = "clear" if score < self.threshold else "heavy" if light >= HEAVY else "light"
        return Score(score, verdict, light, _direction(layer) if light >= _FAINT else None)

    def evidence(self, image: Array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run the network.

        Returns:
            The evidence, and the luminance of the layer at the picture's working size.
        """
        scale = 1 if image.dtype.kind == "f" else int(np.iinfo(image.dtype).max)
        small: NDArray[np.float32] = shrink(image, coarsest(*image.shape[:2]), scale)
        small = np.repeat(small[..., None], 3, axis=2) if small.ndim == 2 else small
        height, width = small.shape[:2]
        rows, columns = ((0, -side % self._engine.multiple) for side in (height, width))
        padded = np.pad(small, (rows, columns, (0, 0)), mode="symmetric")
        derained, evidence = self._engine.detect(np.ascontiguousarray(padded.transpose(2, 0, 1)[None]))
        after = derained[0, :, :height, :width].transpose(1, 2, 0)
        return np.asarray(evidence[0], np.float32), luma(small - after)


@functools.lru_cache(maxsize=1)
def scorer(processor: Processor | None = None) -> Scorer:
    """Return the package's detector on a processor, opened once."""
    return Scorer(processor=processor)


def usual_threshold() -> float:
    """Return the threshold of the package's detector, without opening it."""
    return float(zoo.find(DETECTOR).card["threshold"])


def _direction(layer: NDArray[np.float32]) -> float | None:
    """Return the direction across which the layer changes least (its structure tensor), None without one."""
    if min(layer.shape) < _SMALLEST:
        return None
    # Thin streaks are steps of whole pixels until they are blurred.
    for axis in (0, 1, 0, 1):
        parts = (np.roll(layer, shift, axis) for shift in (-1, 0, 1))
        layer = np.asarray(sum(parts), np.float32) / np.float32(3)
    across, down = layer[2:-2, 4:] - layer[2:-2, :-4], layer[4:, 2:-2] - layer[:-4, 2:-2]
    xx, yy, xy = (
        float((one * other).sum(dtype=np.float64))
        for one, other in ((across, across), (down, down), (across, down))
    )
    if xx + yy <= 0 or math.hypot(xx - yy, 2 * xy) < _AGREED * (xx + yy):
        return None
    # Gradients point across the streaks.
    return math.degrees(math.atan2(2 * xy, xx - yy)) / 2
