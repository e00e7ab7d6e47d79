"""Where a shot of a video ends and the next begins."""

import numpy as np

from unrain.image import Array

# Mean difference of two frames, as a share of the full range, from which on they belong to two shots.
_CUT = 0.12
_ROWS = 36
_LONGEST = 250


def distance(one: Array, other: Array) -> float:
    """Return the root of the mean squared difference of two frames, in steps of their type."""
    return float(np.sqrt(np.square(np.subtract(one, other, dtype=np.float32)).mean(dtype=np.float64)))


class Shot:
    """Tells whether a frame starts a shot, from a few thousand pixels of it.

    After 250 frames the next counts as a new one: rain may have come, gone or changed.
    """

    def __init__(self) -> None:
        self._before: Array | None = None
        self._frames = 0

    def starts(self, frame: Array) -> bool:
        """Compare a frame with the one before.

        Args:
            frame: H x W x 3, uint8 or uint16, the frames in turn.

        Returns:
            Whether the scene is another; True for the first frame.
        """
        step = max(1, frame.shape[0] // _ROWS)
        small = frame[step // 2 :: step, step // 2 :: step].astype(np.float32) / np.iinfo(frame.dtype).max
        before, self._before = self._before, small
        cut = before is None or before.shape != small.shape or float(np.abs(small - before).mean()) > _CUT
        if not cut and self._frames < _LONGEST:
            self._frames += 1
            return False
        self._frames = 1
        return True
