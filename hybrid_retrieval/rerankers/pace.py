"""How long a batch will take, learned from how long the last ones took."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

# Enough to span a change of load, few enough to forget one.
REMEMBERED = 32
# While little is known, and that from short rows alone, a prediction is taken this much higher.
FEW, CAUTION = 8, 1.5
# Seconds after which an observation no longer forbids to look again.
STALE = 10.0


class Pace:
    """Seconds as a line over tokens, plus the most that a remembered batch took beyond it. Safe between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float, float]] = deque(maxlen=REMEMBERED)
        self._lock = threading.Lock()

    def observe(self, tokens: int, seconds: float) -> None:
        """A batch of so many tokens (with what pads it) took so long."""
        with self._lock:
            self._seen.append((float(tokens), seconds, self._clock()))

    def forget_stale(self) -> None:
        """Drop what was observed over `STALE` seconds ago: one slow batch must not keep all that follow from being
        tried, and so from being observed."""
        with self._lock:
            while self._seen and self._clock() - self._seen[0][2] > STALE:
                self._seen.popleft()

    def predict(self, tokens: int) -> float | None:
        """Seconds that a batch of so many tokens will hardly exceed; None before the first observation."""
        with self._lock:
            seen = np.array([(tokens, seconds) for tokens, seconds, _ in self._seen])
        if not len(seen):
            return None
        x, y = seen[:, 0], seen[:, 1]
        spread = x - x.mean()
        variance = float(spread @ spread)
        slope = float(spread @ y) / variance if variance > 0 else 0.0
        start = float(y.mean()) - slope * float(x.mean())
        if slope <= 0 or start < 0:  # neither more tokens in less time nor any before the start: through the origin
            slope, start = float(y.sum() / x.sum()), 0.0
        seconds = start + slope * tokens + max(0.0, float((y - start - slope * x).max()))
        return seconds * CAUTION if len(seen) < FEW else seconds
