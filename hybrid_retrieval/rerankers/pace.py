"""How long a batch will take, learned from how long the last ones took."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

# Enough to span a change of load, few enough to forget one.
REMEMBERED = 32
# Seconds after which the last observation says nothing of the pace now.
STALE = 2.0


class Pace:
    """Seconds as a line over tokens. Safe between threads.

    Batches that run at once share the device, so what is learned is the time that each would have taken alone: a
    second beside another batch counts for half. together: as many as run at once at full speed.
    """

    def __init__(self, together: int = 1, clock: Callable[[], float] = time.perf_counter) -> None:
        self._together, self._clock = together, clock
        self._seen: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)
        self._lock = threading.Lock()
        self._running, self._alone, self._looked, self._observed = 0, 0.0, clock(), -STALE
        self._warm = False
        self._process = os.getpid()

    @contextmanager
    def timing(self, tokens: int) -> Iterator[None]:
        """Around a batch of so many tokens (with what pads it). One that fails counts too: it took so long at least.

        The first one of all warms up and tells nothing.
        """
        with self._own():
            began = self._advance()
            self._running += 1
        try:
            yield
        finally:
            with self._own():
                seconds = self._advance() - began
                self._running -= 1
                if self._warm:
                    self._seen.append((float(tokens), seconds))
                    self._observed = self._looked
                self._warm = True

    def predict(self, tokens: int, *, at_most: bool = False) -> float | None:
        """Seconds that a batch of so many tokens will take beside those that run now; None where nothing is known.

        at_most: plus the most that a remembered batch took beyond its prediction.
        """
        with self._own():
            seen = np.array(self._seen)
            shared = self._shared(self._running + 1)
            if not len(seen) or self._clock() - self._observed > STALE:
                return None
        x, y = seen[:, 0], seen[:, 1]
        spread = x - x.mean()
        variance = float(spread @ spread)
        slope = float(spread @ y) / variance if variance > 0 else 0.0
        start = float(y.mean()) - slope * float(x.mean())
        if slope <= 0 or start < 0:  # neither more tokens in less time nor any before the start: through the origin
            slope, start = float(y.sum() / x.sum()), 0.0
        excess = max(0.0, float((y - start - slope * x).max())) if at_most else 0.0
        return (start + slope * tokens + excess) * shared

    def _own(self) -> threading.Lock:
        """The lock of this process. In one that was forked, the batches that ran are the other's, and so is whoever
        held the lock."""
        if self._process != os.getpid():
            self._lock, self._running, self._process = threading.Lock(), 0, os.getpid()
        return self._lock

    def _advance(self) -> float:
        """Seconds that a batch which has run all the time would have needed alone."""
        now = self._clock()
        self._alone += (now - self._looked) / self._shared(self._running)
        self._looked = now
        return self._alone

    def _shared(self, running: int) -> float:
        return max(1.0, running / self._together)
