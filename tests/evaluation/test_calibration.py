"""The logistic fit finds the parameters that made the data; tables count every candidate once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_retrieval.evaluation.calibration import brier, calibration_error, fit_calibration, reliability


def drawn(intercept: float, of_score: float, of_evidence: float, count: int = 20_000) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    scores, evidence = random.normal(0, 1, count), random.normal(2, 3, count)
    chance = 1 / (1 + np.exp(-(intercept + of_score * scores + of_evidence * evidence)))
    return scores, evidence, random.random(count) < chance


def test_the_fit_finds_the_parameters_behind_the_data() -> None:
    found = fit_calibration(*drawn(-1.0, 2.0, 0.5))
    assert found.intercept == pytest.approx(-1.0, abs=0.08)
    assert found.score == pytest.approx(2.0, abs=0.08)
    assert found.evidence == pytest.approx(0.5, abs=0.03)


def test_no_coefficient_is_negative() -> None:
    scores, evidence, relevant = drawn(-1.0, 2.0, -0.5)
    found = fit_calibration(scores, evidence, relevant)
    assert found.evidence == 0
    assert found.score > 1
    upside_down = fit_calibration(-scores, -evidence, relevant)
    assert upside_down.score == 0
    assert upside_down.evidence > 0


def test_scores_that_separate_and_scores_that_say_nothing_stay_finite() -> None:
    separated = fit_calibration(np.array([0.0, 1, 2, 3]), np.zeros(4), np.array([False, False, True, True]))
    assert np.isfinite([separated.intercept, separated.score, separated.evidence]).all()
    assert separated.score > 1
    flat = fit_calibration(np.zeros(8), np.zeros(8), np.arange(8) < 2)
    probability = flat.probabilities(np.zeros(1, np.float32), 0.0)[0]
    assert probability == pytest.approx(0.25, abs=0.01)


def test_a_calibrated_score_is_reliable_and_a_boasting_one_is_not() -> None:
    scores, evidence, relevant = drawn(-1.0, 2.0, 0.5)
    found = fit_calibration(scores, evidence, relevant)
    x = found.intercept + found.score * scores + found.evidence * evidence
    honest, boasting = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(-3 * x))
    assert calibration_error(reliability(honest, relevant)) < 0.02
    assert calibration_error(reliability(boasting, relevant)) > 0.05
    assert brier(honest, relevant) < brier(boasting, relevant)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60))
def test_bins_hold_every_candidate_once(rows: list[tuple[float, bool]]) -> None:
    probabilities = np.array([p for p, _ in rows], np.float32)
    relevant = np.array([r for _, r in rows])
    table = reliability(probabilities, relevant)
    assert sum(row.candidates for row in table) == len(rows)
    assert sum(row.candidates * row.found for row in table) == pytest.approx(relevant.sum())
    assert all(row.low - 1e-6 <= row.promised <= row.high + 1e-6 for row in table)
    assert 0 <= calibration_error(table) <= 1
