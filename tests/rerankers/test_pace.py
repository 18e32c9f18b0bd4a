"""Prediction of a batch's time from those before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_retrieval.rerankers.pace import CAUTION, FEW, REMEMBERED, STALE, Pace


def learned(*seen: tuple[int, float]) -> Pace:
    pace = Pace()
    for tokens, seconds in seen:
        pace.observe(tokens, seconds)
    return pace


def test_nothing_is_predicted_from_nothing() -> None:
    assert Pace().predict(100) is None


def test_a_line_is_learned_and_taken_higher_while_little_is_known() -> None:
    line = [(tokens, 0.002 + 1e-5 * tokens) for tokens in range(100, 100 * (FEW + 1), 100)]
    assert learned(*line).predict(4000) == pytest.approx(0.042, rel=1e-6)
    assert learned(*line[:2]).predict(4000) == pytest.approx(0.042 * CAUTION, rel=1e-6)


def test_one_size_scales_through_the_origin() -> None:
    assert learned(*[(200, 0.04)] * 10).predict(400) == pytest.approx(0.08)


def test_noise_that_would_make_more_tokens_faster_does_not() -> None:
    pace = learned(*[(100, 0.02), (110, 0.01)] * 5)
    assert pace.predict(2000) > pace.predict(200) > pace.predict(100) >= 0.02  # type: ignore[operator]


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.floats(1e-5, 10)), min_size=1, max_size=60),
    st.integers(1, 5000),
    st.integers(1, 5000),
)
def test_what_was_seen_stays_within_what_is_predicted_and_more_tokens_never_take_less(
    seen: list[tuple[int, float]], one: int, other: int
) -> None:
    pace = learned(*seen)
    for tokens, seconds in seen[-REMEMBERED:]:
        found = pace.predict(tokens)
        assert found is not None and found >= seconds * (1 - 1e-6)
    small, large = pace.predict(min(one, other)), pace.predict(max(one, other))
    assert small is not None and large is not None and small <= large * (1 + 1e-9)


def test_a_slow_time_is_forgotten() -> None:
    pace = learned((100, 5.0), *[(100, 0.01)] * REMEMBERED)
    assert pace.predict(100) == pytest.approx(0.01)


def test_what_was_seen_long_ago_can_be_dropped() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    pace.observe(100, 5.0)
    now[0] = STALE
    pace.forget_stale()
    assert pace.predict(100) == pytest.approx(5.0 * CAUTION)
    pace.observe(100, 0.01)
    now[0] = STALE + 1
    pace.forget_stale()
    assert pace.predict(100) == pytest.approx(0.01 * CAUTION)
