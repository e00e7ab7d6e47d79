"""When rain begins and when it ends."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

# A score is smoothed over about so many seconds, and has to pass the threshold by so much.
_SECONDS, MARGIN = 5.0, 8.0


class RainEvents:
    """Writes a JSON line when rain begins or ends: the smoothed score with a hysteresis.

    Attributes:
        raining: Whether it does; None until the first score has settled.
    """

    def __init__(
        self,
        threshold: float,
        stream: TextIO | None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Start without knowing.

        Args:
            threshold: The score between rain and none.
            stream: Where the lines go, each at once; None for nowhere.
            clock: Tells the time that is written.
        """
        self.raining: bool | None = None
        self._threshold = threshold
        self._stream = stream
        self._clock = clock
        self._smooth = 0.0
        self._before: float | None = None
        self._begun: float | None = None

    def see(self, score: float, at: float) -> str | None:
        """Take a score.

        Args:
            score: 0 to 100.
            at: When, in seconds on any clock.

        Returns:
            `begins` or `ends` if that is what it told; also for what it is like at first.
        """
        if self._before is None:
            self._smooth, self._begun = score, at
        else:
            share = min(1.0, (at - self._before) / _SECONDS)
            self._smooth += share * (score - self._smooth)
        self._before = at
        assert self._begun is not None
        raining = self.raining
        if self._smooth >= self._threshold + (MARGIN if raining is False else 0):
            raining = True
        elif self._smooth <= self._threshold - (MARGIN if raining else 0):
            raining = False
        if raining is self.raining or (self.raining is None and at - self._begun < _SECONDS):
            return None
        self.raining = raining
        word = "begins" if raining else "ends"
        if self._stream is not None:
            when = self._clock().isoformat(timespec="milliseconds")
            line = {"time": when, "rain": word, "score": round(self._smooth, 1)}
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
        return word
