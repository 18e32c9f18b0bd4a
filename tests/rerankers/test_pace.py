"""Prediction of a batch's time from those before it."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_retrieval.rerankers.pace import REMEMBERED, STALE, Pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def ran(pace: Pace, clock: Clock, tokens: int, seconds: float) -> None:
    with pace.timing(tokens):
        clock.now += seconds


def learned(*seen: tuple[int, float], together: int = 1) -> tuple[Pace, Clock]:
    clock = Clock()
    pace = Pace(together, clock)
    ran(pace, clock, 1, 3.0)  # it warms up
    for tokens, seconds in seen:
        ran(pace, clock, tokens, seconds)
    return pace, clock


def test_nothing_is_predicted_from_nothing_nor_from_what_warmed_up() -> None:
    assert Pace().predict(100) is None
    assert learned()[0].predict(100) is None


def test_a_line_is_learned() -> None:
    pace, _ = learned(*((tokens, 0.002 + 1e-5 * tokens) for tokens in range(100, 900, 100)))
    assert pace.predict(4000) == pytest.approx(0.042, rel=1e-6)


def test_one_size_scales_through_the_origin() -> None:
    assert learned(*[(200, 0.04)] * 10)[0].predict(400) == pytest.approx(0.08)


def test_noise_that_would_make_more_tokens_faster_does_not() -> None:
    pace, _ = learned(*[(100, 0.02), (110, 0.01)] * 5)
    assert pace.predict(2000) > pace.predict(200) > pace.predict(100) > 0.01  # type: ignore[operator]


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.floats(1e-5, STALE)), min_size=1, max_size=60),
    st.integers(1, 5000),
    st.integers(1, 5000),
)
def test_what_was_seen_stays_within_what_is_predicted_at_most_and_more_tokens_never_take_less(
    seen: list[tuple[int, float]], one: int, other: int
) -> None:
    pace, _ = learned(*seen)
    for tokens, seconds in seen[-REMEMBERED:]:
        found = pace.predict(tokens, at_most=True)
        assert found is not None and found >= seconds * (1 - 1e-6)
        assert (pace.predict(tokens) or 0) <= found
    small, large = pace.predict(min(one, other)), pace.predict(max(one, other))
    assert small is not None and large is not None and small <= large * (1 + 1e-9)


def test_a_slow_time_is_forgotten() -> None:
    pace, _ = learned((100, 5.0), *[(100, 0.01)] * REMEMBERED)
    assert pace.predict(100) == pytest.approx(0.01)


def test_an_old_pace_says_nothing() -> None:
    """One slow batch must not keep all that follow from being tried, and so from being observed."""
    pace, clock = learned((100, 5.0))
    clock.now += STALE
    assert pace.predict(100) == pytest.approx(5.0)
    clock.now += 0.1
    assert pace.predict(100) is None


@pytest.mark.parametrize(("together", "alone"), [(1, 0.02), (2, 0.03)])
def test_batches_beside_each_other_count_for_what_they_would_take_alone(together: int, alone: float) -> None:
    """Of 30 ms each, 20 are side by side; where there is room for two, neither slows the other."""
    clock = Clock()
    pace = Pace(together, clock)
    ran(pace, clock, 1, 1.0)
    first, second = pace.timing(100), pace.timing(100)
    first.__enter__()
    clock.now += 0.01
    second.__enter__()
    clock.now += 0.02
    assert pace.predict(100) is None
    first.__exit__(None, None, None)
    clock.now += 0.01
    second.__exit__(None, None, None)
    assert pace.predict(100) == pytest.approx(alone)
    with pace.timing(100):
        assert pace.predict(100) == pytest.approx(alone * 2 / together)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_batches_of_the_process_that_was_forked_do_not_run_in_the_fork() -> None:
    pace, _ = learned((100, 0.01))
    with pace.timing(100), pace._lock:  # held by a thread that the fork has not
        child = os.fork()
        if child == 0:
            os._exit(0 if pace.predict(100) == pytest.approx(0.01) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_batch_that_was_stopped_took_so_long_at_least() -> None:
    pace, clock = learned((100, 0.01))
    with pytest.raises(ValueError), pace.timing(100):
        clock.now += 0.5
        raise ValueError
    assert pace.predict(100) == pytest.approx(0.255)
