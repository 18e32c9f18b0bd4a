"""From scores to probabilities of relevance: a logistic fit of three parameters, and how reliable its answers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.fusion import Calibration

Floats = NDArray[np.floating[Any]]
# So weak that it moves no estimate of a hundred candidates, and keeps those of separable ones finite.
RIDGE = 1e-2
MAX_STEPS = 100


def fit_calibration(scores: Floats, evidence: Floats, relevant: NDArray[np.bool_]) -> Calibration:
    """Maximum likelihood, lightly regularised. scores, evidence, relevant: [N], one a candidate.

    No coefficient is negative: neither a better score nor more evidence may make relevance less likely.
    """
    features = np.stack([scores, evidence], axis=1).astype(np.float64)
    # The constrained optimum is an unconstrained one with some coefficients left out.
    fits = [_logistic(features, relevant, list(used)) for used in ((), (0,), (1,), (0, 1))]
    _, (intercept, of_score, of_evidence) = min((fit for fit in fits if min(fit[1][1:]) >= 0), key=lambda fit: fit[0])
    return Calibration(float(intercept), float(of_score), float(of_evidence))


def _logistic(
    features: NDArray[np.float64], relevant: NDArray[np.bool_], used: list[int]
) -> tuple[float, NDArray[np.float64]]:
    """Loss, and [intercept, coefficients ...] with 0 for the features not used.

    Newton's method with halved steps, on features brought to unit deviation.
    """
    chosen = features[:, used]
    mean, deviation = chosen.mean(axis=0), chosen.std(axis=0)
    deviation = np.where(deviation > 1e-9, deviation, 1.0)
    x = np.concatenate([np.ones((len(chosen), 1)), (chosen - mean) / deviation], axis=1)
    y = relevant.astype(np.float64)
    beta = np.zeros(x.shape[1])

    def loss(beta: NDArray[np.float64]) -> float:
        z = x @ beta
        return float((np.logaddexp(0, z) - y * z).sum() + 0.5 * RIDGE * (beta @ beta))

    for _ in range(MAX_STEPS):
        p = 0.5 * (1 + np.tanh(0.5 * (x @ beta)))
        gradient = x.T @ (p - y) + RIDGE * beta
        hessian = (x * (p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(len(beta))
        step = np.linalg.solve(hessian, gradient)
        before, size = loss(beta), 1.0
        while loss(beta - size * step) > before and size > 1e-6:
            size /= 2
        beta = beta - size * step
        if np.abs(step).max() < 1e-9:
            break
    result = np.zeros(features.shape[1] + 1)
    result[[1 + i for i in used]] = beta[1:] / deviation
    result[0] = beta[0] - float(beta[1:] / deviation @ mean)
    return loss(beta), result


@dataclass(frozen=True, slots=True)
class Bin:
    """Candidates whose probability lies in [low, high): how many, the mean promised, the share found relevant."""

    low: float
    high: float
    candidates: int
    promised: float
    found: float


def reliability(probabilities: Floats, relevant: NDArray[np.bool_], bins: int = 10) -> list[Bin]:
    """Bins of equal width that hold any candidate; the last includes 1. probabilities, relevant: [N]."""
    place = np.minimum((np.asarray(probabilities, np.float64) * bins).astype(np.int64), bins - 1)
    found = []
    for i in np.unique(place):
        inside = place == i
        found.append(
            Bin(
                float(i / bins),
                float((i + 1) / bins),
                int(inside.sum()),
                float(probabilities[inside].mean(dtype=np.float64)),
                float(relevant[inside].mean()),
            )
        )
    return found


def calibration_error(table: list[Bin]) -> float:
    """Expected calibration error: mean of |promised - found| over the candidates (Naeini et al., AAAI 2015)."""
    total = sum(row.candidates for row in table)
    return sum(row.candidates * abs(row.promised - row.found) for row in table) / total


def brier(probabilities: Floats, relevant: NDArray[np.bool_]) -> float:
    """Mean squared error of the probabilities (Brier 1950)."""
    return float(np.mean(np.square(np.asarray(probabilities, np.float64) - relevant)))
