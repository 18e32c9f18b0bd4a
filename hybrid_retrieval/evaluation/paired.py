"""Is one system better than another on the same queries? Paired tests over differences of a measure, query by query.

Sources: paired bootstrap (Efron and Tibshirani 1993, percentile interval); randomisation test (Fisher 1935; for
retrieval Smucker, Allan and Carterette, CIKM 2007).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
DRAWS = 10_000
# Draws made at once: a few megabytes for a thousand queries.
_BLOCK = 500


def bootstrap_interval(differences: Floats, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Interval of the mean difference under resampling of the queries. differences: [Q], Q >= 1."""
    differences = np.asarray(differences, np.float64)
    random = np.random.default_rng(seed)
    count = len(differences)
    means = [differences[random.integers(0, count, (_BLOCK, count))].mean(axis=1) for _ in range(DRAWS // _BLOCK)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def randomisation_p_value(differences: Floats, *, seed: int = 0) -> float:
    """Two-sided p-value of the mean difference when the two systems' names are exchanged at random within queries.

    differences: [Q], Q >= 1. At least 1 / (draws + 1), and 1 where no query differs.
    """
    differences = np.asarray(differences, np.float64)
    random = np.random.default_rng(seed)
    # Queries that do not differ change no sum; a hair's breadth forgives the rounding of sums in another order.
    moved = differences[differences != 0]
    observed = abs(float(moved.sum())) * (1 - 1e-12)
    at_least = 0
    for _ in range(DRAWS // _BLOCK):
        signs = random.integers(0, 2, (_BLOCK, len(moved))) * 2 - 1
        at_least += int((np.abs(signs @ moved) >= observed).sum())
    return (1 + at_least) / (1 + DRAWS // _BLOCK * _BLOCK)
