"""Where a shot of a video ends and the next begins."""

import numpy as np

from unrain.image import Array

# Mean difference of two frames, as a share of the full range, from which on they belong to two shots.
_CUT = 0.12
_ROWS = 36


class Shot:
    """Tells whether a frame starts a shot, from a few thousand pixels of it."""

    def __init__(self) -> None:
        self._before: Array | None = None

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
        if before is None or before.shape != small.shape:
            return True
        return float(np.abs(small - before).mean()) > _CUT
