"""When work is to end, as a moment of `time.perf_counter`: infinity for work that is not."""

from __future__ import annotations

import math
import threading
import time


class OutOfTime(Exception):
    """A model was stopped at its deadline, and what it had begun is lost. Never reaches a caller of this library."""


def seconds_left(ends: float) -> float | None:
    """What a wait may take: never less than 0 or more than the system can wait, and None for no end."""
    return None if math.isinf(ends) else min(max(0.0, ends - time.perf_counter()), threading.TIMEOUT_MAX)
