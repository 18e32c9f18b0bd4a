"""Fitting a fusion: the weight that the data call for, on questions that had no part in it, or no re-ranking."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_retrieval.errors import InputError
from hybrid_retrieval.evaluation.fusion_fit import WEIGHTS, best_weight, deal, fit_fusion, ndcg, ndcg_by_weight
from hybrid_retrieval.evaluation.measures import per_query
from hybrid_retrieval.evaluation.scored_queries import ScoredQuery


def questions(count: int, maxsim_signal: float, logit_signal: float, *, seed: int = 0, tail: int = 0):  # type: ignore[no-untyped-def]
    """Questions with one relevant candidate of 12, which each stage lifts by its signal above unit noise."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(count):
        relevant = np.arange(12) == random.integers(0, 12)
        maxsim = random.normal(0, 1, 12) + maxsim_signal * relevant + 20
        order = np.argsort(-maxsim)
        logits = (random.normal(0, 1, 12) + logit_signal * relevant)[order]
        gains = relevant[order].astype(float)
        found.append(
            ScoredQuery(
                f"q{i}",
                maxsim[order].astype(np.float32),
                logits[: 12 - tail].astype(np.float32),
                gains,
                np.ones(1),
            )
        )
    return found


def test_a_strong_reranker_gets_weight_and_a_useless_one_none() -> None:
    strong = fit_fusion(questions(120, 1.0, 4.0))
    assert strong.rerank
    assert strong.weight >= 0.6
    assert strong.cross_validation.fused > strong.cross_validation.stage_1 + 0.1
    useless = fit_fusion(questions(120, 2.0, 0.0))
    assert not useless.rerank
    assert useless.weight <= 0.2
    assert useless.cross_validation.reranker_alone < useless.cross_validation.stage_1


def test_two_stages_that_know_different_things_are_mixed_and_beat_each_alone() -> None:
    fit = fit_fusion(questions(300, 2.0, 2.0))
    found = fit.cross_validation
    assert fit.rerank
    assert 0.2 <= fit.weight <= 0.8
    assert found.fused > max(found.stage_1, found.reranker_alone)
    assert found.difference == pytest.approx(found.fused - found.stage_1)
    assert 0 < found.low < found.difference < found.high
    assert found.p_value < 0.001
    assert found.weight_lowest <= fit.weight <= found.weight_highest


def test_noise_is_not_taken_for_a_gain() -> None:
    """A weight chosen on the very questions that are measured seems to gain; on others it does not."""
    fits = [fit_fusion(questions(40, 1.5, 0.0, seed=seed), seed=seed) for seed in range(30)]
    seeming = [max(fit.by_weight) - fit.by_weight[0] for fit in fits]
    assert np.mean(seeming) > 0.005
    assert np.mean([fit.cross_validation.difference for fit in fits]) < 0.005
    assert sum(fit.rerank for fit in fits) <= 3


def test_a_gain_must_be_worth_its_cost() -> None:
    queries = questions(300, 2.0, 2.0)
    gain = fit_fusion(queries).cross_validation.difference
    assert not fit_fusion(queries, min_gain=gain + 0.01).rerank
    assert not fit_fusion(queries, significance=1e-9).rerank


def test_out_of_fold_probabilities_are_reliable() -> None:
    for signals in ((2.0, 2.0), (3.0, 0.0)):
        fit = fit_fusion(questions(400, *signals))
        assert fit.cross_validation.calibration_error < 0.03
        assert fit.cross_validation.brier < 1 / 12 * 11 / 12, "better than the base rate"
        assert sum(row.candidates for row in fit.table) == 400 * 12


def test_questions_without_an_answer_teach_the_evidence() -> None:
    answered = questions(150, 1.0, 5.0)
    random = np.random.default_rng(1)
    hopeless = [
        ScoredQuery(
            f"n{i}",
            np.sort(random.normal(20, 1, 12))[::-1].astype(np.float32),
            random.normal(0, 1, 12).astype(np.float32),
            np.zeros(12),
            np.empty(0),
        )
        for i in range(150)
    ]
    fit = fit_fusion([*answered, *hopeless])
    assert fit.calibration.evidence > 0.3
    assert fit_fusion(answered).calibration.evidence < fit.calibration.evidence


def test_the_fit_is_the_same_every_time_and_takes_a_tail_that_was_not_rescored() -> None:
    queries = questions(60, 1.0, 2.0, tail=4)
    assert fit_fusion(queries, seed=3) == fit_fusion(queries, seed=3)
    assert sum(row.candidates for row in fit_fusion(queries).table) == 60 * 8


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=25), st.lists(st.integers(1, 3), max_size=12))
def test_ndcg_is_that_of_the_named_measure(ranked: list[int], missed: list[int]) -> None:
    judged = {f"p{i}": grade for i, grade in enumerate(ranked)} | {f"m{i}": grade for i, grade in enumerate(missed)}
    run = {"q": {f"p{i}": float(-i) for i in range(len(ranked))}}
    ideal = np.array(sorted((g for g in judged.values() if g), reverse=True), float)
    expected = per_query(run, {"q": judged}, "nDCG@10")["nDCG@10"]["q"]
    assert ndcg(np.array(ranked, float), ideal) == pytest.approx(expected, abs=1e-9)


def test_the_ends_of_the_weights_are_the_stages_alone() -> None:
    queries = questions(20, 1.0, 1.0)
    values = ndcg_by_weight(queries)
    assert WEIGHTS[0] == 0 and WEIGHTS[-1] == 1
    for row, query in zip(values, queries, strict=True):
        assert row[0] == pytest.approx(1 / math.log2(2 + int(np.argmax(query.gains))) * (np.argmax(query.gains) < 10))
        assert row[-1] == pytest.approx(ndcg(query.gains[np.argsort(-query.logits, kind="stable")], query.ideal))


def test_of_equally_good_weights_the_middle_one_is_taken_and_stage_1_where_none_gains() -> None:
    assert best_weight(np.array([[0.1, 0.5, 0.5, 0.5, 0.2]])) == 2
    assert best_weight(np.array([[0.9, 0.5, 0.5]])) == 0
    assert best_weight(np.array([[0.5, 0.5, 0.5]])) == 0


def test_one_lucky_question_chooses_no_weight_and_many_do() -> None:
    lucky = np.zeros((20, 3))
    lucky[3, 2] = 1.0
    assert best_weight(lucky) == 0
    steady = np.zeros((20, 3))
    steady[:, 1], steady[::4, 2] = 0.1, 0.5
    assert best_weight(steady) == 1, "a smaller gain that every question shows"


@given(st.integers(2, 9), st.integers(0, 40), st.integers(0, 5))
def test_folds_have_equal_sizes(folds: int, extra: int, seed: int) -> None:
    sizes = np.bincount(deal(folds + extra, folds, seed), minlength=folds)
    assert sizes.sum() == folds + extra
    assert sizes.max() - sizes.min() <= 1


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(InputError, match="at least 10 judged questions, got 9"):
        fit_fusion(questions(9, 1, 1))
    with pytest.raises(InputError, match=r"folds must lie between 2 and the number of questions \(12\), got 13"):
        fit_fusion(questions(12, 1, 1), folds=13)
    nothing = [ScoredQuery(q.query_id, q.retrieval_scores, q.logits, q.gains * 0, q.ideal) for q in questions(12, 1, 1)]
    with pytest.raises(InputError, match="nothing to fit by"):
        fit_fusion(nothing)
