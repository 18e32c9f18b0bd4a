"""The weight of a fusion, whether it pays, and its calibration, learnt from scored questions by cross-validation.

The questions are dealt into folds. Each fold's questions are ordered with the weight that the others choose, so the
figures of a fit are of questions that had no part in it. Pure NumPy: no model runs here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import InputError
from hybrid_retrieval.evaluation.calibration import Bin, brier, calibration_error, fit_calibration, reliability
from hybrid_retrieval.evaluation.paired import bootstrap_interval, randomisation_p_value
from hybrid_retrieval.evaluation.scored_queries import ScoredQuery
from hybrid_retrieval.fusion import Calibration, CrossValidation, evidence, fuse, standardise

WEIGHTS: NDArray[np.float64] = np.round(np.linspace(0, 1, 21), 2)
CUTOFF = 10
MIN_QUERIES = 10


@dataclass(frozen=True, slots=True)
class Fit:
    """rerank: whether fusion beat stage 1 on questions that it was not fitted on. weight, calibration: fitted on all of
    them; without re-ranking the calibration is of stage 1's scores. by_weight: mean nDCG@10 at each of `WEIGHTS`.
    table: reliability of the out-of-fold probabilities."""

    rerank: bool
    weight: float
    calibration: Calibration
    cross_validation: CrossValidation
    by_weight: tuple[float, ...]
    table: tuple[Bin, ...]


def fit_fusion(
    queries: Sequence[ScoredQuery],
    *,
    folds: int = 5,
    seed: int = 0,
    min_gain: float = 0.0,
    significance: float = 0.05,
) -> Fit:
    """Fit on judged questions.

    rerank comes out True where fusion gains at least `min_gain` nDCG@10 over stage 1 (and more than 0), with a p-value
    of the paired randomisation test below `significance`. Raises `InputError` as `check_fit` does, and for candidates
    none of which is relevant.
    """
    check_fit(len(queries), folds=folds, seed=seed, min_gain=min_gain, significance=significance)
    if not any(query.gains.any() for query in queries):
        raise InputError(f"none of the candidates of {len(queries)} questions is judged relevant: nothing to fit by")
    values = ndcg_by_weight(queries)
    fold = deal(len(queries), folds, seed)
    chosen = [best_weight(values[fold != i]) for i in range(folds)]
    fused = np.array([values[q, chosen[fold[q]]] for q in range(len(queries))])
    gains = fused - values[:, 0]
    difference, p_value = float(gains.mean()), randomisation_p_value(gains, seed=seed)
    low, high = bootstrap_interval(gains, seed=seed)
    rerank = difference > 0 and difference >= min_gain and p_value < significance
    scored = [_candidates(q, float(WEIGHTS[chosen[fold[i]]]) if rerank else None) for i, q in enumerate(queries)]
    probabilities, relevant = _out_of_fold(scored, fold)
    table = reliability(probabilities, relevant)
    return Fit(
        rerank,
        float(WEIGHTS[best_weight(values)]),
        _calibrate(scored),
        CrossValidation(
            folds=folds,
            stage_1=float(values[:, 0].mean()),
            fused=float(fused.mean()),
            reranker_alone=float(values[:, -1].mean()),
            difference=difference,
            low=low,
            high=high,
            p_value=p_value,
            weight_lowest=float(WEIGHTS[min(chosen)]),
            weight_highest=float(WEIGHTS[max(chosen)]),
            brier=brier(probabilities, relevant),
            calibration_error=calibration_error(table),
        ),
        tuple(values.mean(axis=0).tolist()),
        tuple(table),
    )


def check_fit(questions: int, *, folds: int, seed: int, min_gain: float, significance: float) -> None:
    """Raise `InputError` for what `fit_fusion` could not fit with: it can be asked before the questions are scored."""
    if questions < MIN_QUERIES:
        raise InputError(f"a fusion needs at least {MIN_QUERIES} judged questions, got {questions}")
    if not 2 <= folds <= questions:
        raise InputError(f"folds must lie between 2 and the number of questions ({questions}), got {folds}")
    if seed < 0:
        raise InputError(f"seed must be 0 or more, got {seed}")
    if not math.isfinite(min_gain):
        raise InputError(f"min_gain must be a finite number, got {min_gain}")
    if not 0 < significance <= 1:
        raise InputError(f"significance is a p-value: it must lie above 0 and not above 1, got {significance}")


def ndcg(ranked_gains: NDArray[np.float64], ideal: NDArray[np.float64]) -> float:
    """nDCG@10 with linear gains, as trec_eval computes it (Järvelin and Kekäläinen 2002). 0 without a relevant passage.

    ranked_gains: [N], of the passages in the order to judge. ideal: [R], all positive gains, best first.
    """
    discounts = 1 / np.log2(np.arange(2, CUTOFF + 2))
    best = float(ideal[:CUTOFF] @ discounts[: len(ideal)])
    return float(ranked_gains[:CUTOFF] @ discounts[: len(ranked_gains)]) / best if best else 0.0


def ndcg_by_weight(queries: Sequence[ScoredQuery]) -> NDArray[np.float64]:
    """[Q, 21]: each question's nDCG@10 at each of `WEIGHTS`; the first is stage 1's order, the last the reranker's."""
    return np.array(
        [
            [ndcg(q.gains[fuse(float(weight), q.logits, q.retrieval_scores)[1]], q.ideal) for weight in WEIGHTS]
            for q in queries
        ]
    )


def deal(count: int, folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each of `count` questions: folds of equal size (give or take one), drawn with `seed`."""
    return np.random.default_rng(seed).permutation(np.arange(count) % folds)


def best_weight(values: NDArray[np.float64]) -> int:
    """Position of the weight that gains most over the first (stage 1 alone), over the rows of [Q, W].

    A gain counts less its standard error: a few lucky questions choose no weight, and many make the error small. The
    first where none gains so; of several equally good ones, the one in their middle.
    """
    gains = values - values[:, :1]
    error = np.sqrt(np.square(gains - gains.mean(axis=0)).sum(axis=0) / max(len(gains) - 1, 1) / len(gains))
    credible = gains.mean(axis=0) - error
    if credible.max() <= 1e-9:
        return 0
    best = np.flatnonzero(credible >= credible.max() - 1e-9)
    return int(best[(len(best) - 1) // 2])


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """What a calibration sees of one question's compared candidates: scores [M], one evidence, relevant [M]."""

    scores: NDArray[np.float32]
    evidence: float
    relevant: NDArray[np.bool_]


def _candidates(query: ScoredQuery, weight: float | None) -> _Scored:
    """weight None: stage 1 alone."""
    compared = len(query.logits)
    head, relevant = query.retrieval_scores[:compared], query.gains[:compared] > 0
    if weight is None:
        return _Scored(standardise(head), evidence(None, head), relevant)
    return _Scored(fuse(weight, query.logits, head)[0], evidence(query.logits, head), relevant)


def _calibrate(scored: Sequence[_Scored]) -> Calibration:
    scores = np.concatenate([query.scores for query in scored])
    speaking = np.concatenate([np.full(len(query.scores), query.evidence) for query in scored])
    return fit_calibration(scores, speaking, np.concatenate([query.relevant for query in scored]))


def _out_of_fold(scored: Sequence[_Scored], fold: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Every candidate's probability by a calibration of the other folds, and whether it is relevant."""
    probabilities, relevant = [], []
    for i in range(int(fold.max()) + 1):
        calibration = _calibrate([query for query, own in zip(scored, fold, strict=True) if own != i])
        for query, own in zip(scored, fold, strict=True):
            if own == i:
                probabilities.append(calibration.probabilities(query.scores, query.evidence))
                relevant.append(query.relevant)
    return np.concatenate(probabilities), np.concatenate(relevant)
