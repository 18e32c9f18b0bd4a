"""How two scores make one order: standardisation, the weighted sum, and the tail that was not rescored."""

from __future__ import annotations

import numpy as np
import pytest

from hybrid_retrieval.config import FusionConfig
from hybrid_retrieval.fusion import Fusion, fuse, standardise


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_reranker_only_orders_by_the_raw_logit() -> None:
    scores, order = fuse(None, f32(-1, 3, 0), f32(9, 8, 7))
    assert order.tolist() == [1, 2, 0]
    assert scores.tolist() == [-1, 3, 0]


def test_ties_keep_the_order_of_stage_one_or_of_the_rows_that_are_given() -> None:
    logits, maxsim = f32(1, 2, 1, 2), f32(9, 8, 7, 6)
    assert fuse(None, logits, maxsim)[1].tolist() == [1, 3, 0, 2]
    assert fuse(None, logits, maxsim, np.array([7, 5, 3, 9]))[1].tolist() == [1, 3, 2, 0]
    assert fuse(None, logits[:3], maxsim, np.array([7, 9, 3, 5]))[1].tolist() == [1, 2, 0, 3]
    assert fuse(None, logits[:3], f32(9, 8, 7, 7), np.array([7, 9, 3, 5]))[1].tolist() == [1, 2, 0, 3], "not rescored"
    assert fuse(None, logits[:2], f32(9, 8, 8, 8), np.array([7, 5, 9, 3]))[1].tolist() == [1, 0, 3, 2], "the tail too"


def test_a_tail_whose_scores_are_rounded_to_one_keeps_stage_ones_order() -> None:
    maxsim = f32(5, 4, np.nextafter(np.float32(4), np.float32(0)), 3)
    scores, order = fuse(None, f32(-11), maxsim, np.array([3, 9, 2, 1]))
    assert scores[1] == scores[2] and order.tolist() == [0, 1, 2, 3]


def test_a_weight_sums_standardised_scores() -> None:
    logits, maxsim = f32(0, 1, 2), f32(30, 10, 9)
    summed, _ = fuse(0.25, logits, maxsim)
    np.testing.assert_allclose(summed, 0.25 * standardise(logits) + 0.75 * standardise(maxsim), rtol=1e-6)
    np.testing.assert_allclose(fuse(1.0, logits, maxsim)[0], standardise(logits), rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "recommended", "weight"),
    [
        (FusionConfig(method="auto"), None, None),
        (FusionConfig(method="auto"), 0.25, 0.25),
        (FusionConfig(method="reranker"), 0.25, None),
        (FusionConfig(method="weighted", weight=0.0), 0.25, 0.0),
    ],
)
def test_the_configuration_decides_the_weight(
    config: FusionConfig, recommended: float | None, weight: float | None
) -> None:
    fusion = Fusion.of(config, encoder=("e", "1"), reranker=("r", "2"), recommended_weight=recommended)
    assert fusion == Fusion(weight)
    assert fusion.rerank and fusion.notes(3) == ()
    assert fusion.probabilities(f32(1, 2), f32(1, 2), f32(2, 1)) is None


@pytest.mark.parametrize("weight", [None, 0.5])
def test_a_tail_that_was_not_rescored_follows_in_stage_ones_order(weight: float | None) -> None:
    maxsim = f32(30, 29, 28, 20, 20, 11)
    scores, order = fuse(weight, f32(-5, 7, -9), maxsim)
    assert order[3:].tolist() == [3, 4, 5]
    assert np.all(np.diff(scores[order]) <= 0)
    assert scores[order[2]] > scores[3] == scores[4] > scores[5]


def test_standardise_gives_zero_mean_and_unit_deviation() -> None:
    result = standardise(f32(1, 2, 3, 10))
    assert abs(result.mean()) < 1e-6
    assert abs(result.std() - 1) < 1e-6


@pytest.mark.parametrize("values", [(), (5.0,), (2.5, 2.5, 2.5)])
def test_standardise_of_equal_scores_is_zero_not_nan(values: tuple[float, ...]) -> None:
    assert standardise(f32(*values)).tolist() == [0.0] * len(values)


def test_a_single_candidate_is_ranked() -> None:
    scores, order = fuse(0.5, f32(-3), f32(12))
    assert order.tolist() == [0]
    assert np.isfinite(scores).all()


def test_no_candidates_give_an_empty_order() -> None:
    scores, order = fuse(0.5, f32(), f32())
    assert len(scores) == len(order) == 0
