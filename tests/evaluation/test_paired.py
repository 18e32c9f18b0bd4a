"""Paired tests: exact where the exact answer is known, and honest where nothing differs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_retrieval.evaluation.paired import bootstrap_interval, randomisation_p_value


def test_the_randomisation_test_finds_the_exact_p_value() -> None:
    # Of the 2^6 exchanges only those that leave all signs alike reach the observed sum.
    assert randomisation_p_value(np.full(6, 0.1)) == pytest.approx(2 / 64, abs=0.006)
    # |±1 ±2 ±3| >= 4 for 4 of 8.
    assert randomisation_p_value(np.array([1.0, 2.0, -3.0]) * -1 + np.array([0, 0, -0.0])) == 1.0
    assert randomisation_p_value(np.array([-1.0, 2.0, 3.0])) == pytest.approx(4 / 8, abs=0.02)


def test_queries_that_do_not_differ_change_nothing() -> None:
    differences = np.array([0.3, 0.1, 0.2, 0.25])
    padded = np.concatenate([differences, np.zeros(100)])
    assert randomisation_p_value(padded) == randomisation_p_value(differences)
    assert randomisation_p_value(np.zeros(20)) == 1.0
    assert bootstrap_interval(np.zeros(20)) == (0.0, 0.0)


def test_the_bootstrap_interval_is_that_of_the_mean() -> None:
    differences = np.random.default_rng(0).normal(0.1, 1.0, 400)
    low, high = bootstrap_interval(differences)
    error = differences.std() / 20
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.15 * error)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40), st.integers(0, 3))
def test_seeded_symmetric_and_within_bounds(values: list[float], seed: int) -> None:
    differences = np.array(values)
    p_value = randomisation_p_value(differences, seed=seed)
    assert 0 < p_value <= 1
    assert p_value == randomisation_p_value(differences, seed=seed) == randomisation_p_value(-differences, seed=seed)
    low, high = bootstrap_interval(differences, seed=seed)
    assert differences.min() - 1e-9 <= low <= high <= differences.max() + 1e-9
