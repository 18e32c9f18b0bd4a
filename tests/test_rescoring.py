"""Rounds of stage 2: what they take, when they end. A reranker without a model, and a clock that it moves."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hybrid_retrieval.fusion import fuse
from hybrid_retrieval.rerankers.pairs import Pairs
from hybrid_retrieval.rescoring import Deadline, EarlyStop, Plan, Work, may_enter, rescore
from hybrid_retrieval.time_limits import OutOfTime


def pairs_of(lengths: Sequence[int], query: str = "q") -> Pairs:
    """Pairs of so many tokens each; a pair's tokens are its number."""
    rows = tuple(np.full(length, i, np.int32) for i, length in enumerate(lengths))
    none = np.zeros(len(rows), bool)
    return Pairs(query, rows, (0,) * len(rows), (b"",) * len(rows), np.arange(len(rows) + 1), none, none, none, str)


class Slow:
    """Scores a pair with its number. Takes `pace` seconds a token, `drag` times as long as it says. stops: at the time
    it is given, as if at once."""

    lanes = 2

    def __init__(self, pace: float = 0.001, drag: float = 1.0, known: bool = True, stops: bool = True) -> None:
        self.pace, self.drag, self.known, self.stops = pace, drag, known, stops
        self.now = 0.0
        self.rounds: list[list[int]] = []

    def clock(self) -> float:
        return self.now

    def score_pairs(self, groups: Sequence[Pairs], ends: float = math.inf) -> list[NDArray[np.float32]]:
        self.rounds.append([len(group) for group in groups])
        self.known = True
        self.now += self.drag * self.pace * sum(len(row) for group in groups for row in group.rows)
        if self.stops and self.now > ends:
            self.now = ends
            raise OutOfTime
        return [np.array([row[0] for row in group.rows], np.float32) for group in groups]

    def predict_seconds(self, pairs: Pairs) -> float | None:
        return self.pace * sum(map(len, pairs.rows)) if self.known else None


def ran(reranker: Slow, lengths: Sequence[int], ends: float, *plans: Plan) -> tuple[Work, Deadline]:
    work, deadline = Work(pairs_of(lengths)), Deadline(reranker, ends, reranker.clock)
    rescore(reranker, [(work, plans)], deadline)
    return work, deadline


def test_without_plans_one_round_takes_all_queries() -> None:
    reranker = Slow()
    works = [Work(pairs_of([9] * 5)), Work(pairs_of([])), Work(pairs_of([9] * 3))]
    rescore(reranker, [(work, []) for work in works])
    assert reranker.rounds == [[5, 3]]
    assert [work.logits.tolist() for work in works] == [[0, 1, 2, 3, 4], [], [0, 1, 2]]
    assert all(work.ended_by is None and work.remaining == 0 for work in works)


def test_a_rounds_time_is_shared_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = Slow()
    monkeypatch.setattr("time.perf_counter", reranker.clock)
    works = [Work(pairs_of([100, 200])), Work(pairs_of([100]))]
    rescore(reranker, [(work, []) for work in works])
    assert [work.seconds for work in works] == pytest.approx([0.3, 0.1])


@given(
    lengths=st.lists(st.integers(1, 500), max_size=60),
    left=st.floats(0.001, 20),
    drag=st.floats(0.2, 5.0),
    known=st.booleans(),
    stops=st.booleans(),
)
def test_a_deadline_is_kept_and_used(lengths: list[int], left: float, drag: float, known: bool, stops: bool) -> None:
    """Where rounds can be stopped, or last no longer than predicted."""
    reranker = Slow(drag=drag if stops else min(drag, 1.0), known=known or not stops, stops=stops)
    work, deadline = ran(reranker, lengths, left)
    assert reranker.now <= left * (1 + 1e-9)
    assert work.logits.tolist() == list(range(work.scored)), "in stage 1's order"
    if work.remaining:
        assert work.ended_by is deadline
        unused = left - reranker.now
        assert 0.001 * lengths[work.scored] >= unused * (1 - 1e-9), "the next pair would have fitted"
    else:
        assert work.ended_by is None


@pytest.mark.parametrize("drag", [1.5, 2.0, 3.0])
def test_rounds_that_take_longer_than_predicted_are_kept_but_the_last(drag: float) -> None:
    """A quarter of the time left at a time: a wrong prediction loses little."""
    work, deadline = ran(reranker := Slow(drag=drag), [10] * 400, 1.0)
    assert reranker.now == 1.0 and work.ended_by is deadline
    assert work.scored >= 100 / drag - 10


def test_what_cannot_be_stopped_runs_over_in_its_last_round_alone() -> None:
    work, _ = ran(reranker := Slow(drag=3.0, stops=False), [10] * 400, 1.0)
    assert 1.0 < reranker.now <= 1.0 + 3 * 0.02
    assert work.scored == sum(count for counts in reranker.rounds for count in counts)


def test_an_unknown_pace_is_learned_from_the_smallest_round() -> None:
    work, _ = ran(reranker := Slow(known=False), [100] * 10, 0.61)
    assert reranker.rounds[0] == [2] and work.scored == 6


def test_a_round_that_is_stopped_is_lost_with_its_time() -> None:
    work, deadline = ran(reranker := Slow(known=False), [900] * 3, 0.5)
    assert reranker.rounds == [[2]] and work.scored == 0 and work.ended_by is deadline
    assert reranker.now == 0.5


@pytest.mark.parametrize("known", [True, False])
def test_no_time_means_no_round(known: bool) -> None:
    reranker = Slow(known=known)
    reranker.now = 2.0
    work, deadline = ran(reranker, [100], 1.0)
    assert reranker.rounds == [] and work.ended_by is deadline and work.scored == 0


def test_a_pace_that_lets_nothing_fit_begins_nothing() -> None:
    work, _ = ran(reranker := Slow(), [900] * 3, 0.5)
    assert (reranker.rounds, work.scored, reranker.now) == ([], 0, 0.0)


def test_early_stop_scores_k_before_it_looks_and_then_a_few_at_a_time() -> None:
    looks: list[int] = []

    def may_enter(logits: NDArray[np.float32]) -> bool:
        looks.append(len(logits))
        return len(logits) < 50

    reranker = Slow()
    work = Work(pairs_of([5] * 90))
    plan = EarlyStop(10, may_enter)
    rescore(reranker, [(work, [plan])])
    assert looks == [10, 12, 15, 18, 22, 27, 33, 41, 51]
    assert work.scored == 51 and work.ended_by is plan


@pytest.mark.parametrize("weight", [None, 0.5, 1.0])
def test_any_bound_of_an_early_stop_is_a_bound(weight: float | None) -> None:
    """The wider, the more goes through: the widest that a configuration takes let everything through."""
    logits, maxsim = np.arange(10, 0, -1, dtype=np.float32), np.arange(20, 0, -1, dtype=np.float32)
    bounds = (-1e300, -1e39, -3.0, -0.5, 0.0, 3.0, 1e38, 1e39, 1e300)
    may = [may_enter(logits, maxsim, 5, bound, functools.partial(fuse, weight)) for bound in bounds]
    assert may == sorted(may) and not may[0] and may[-1]


def test_each_query_ends_by_itself_and_the_others_go_on_together() -> None:
    reranker = Slow()
    works = [Work(pairs_of([5] * 30)), Work(pairs_of([5] * 30)), Work(pairs_of([5] * 12))]
    ends = [10, 18, 99]
    plans = [EarlyStop(10, lambda logits, end=end: len(logits) < end) for end in ends]
    rescore(reranker, [(work, [plan]) for work, plan in zip(works, plans, strict=True)])
    assert reranker.rounds == [[10, 10, 10], [2, 2], [3], [3]]
    assert [work.scored for work in works] == [10, 18, 12]
    assert [work.ended_by for work in works] == [plans[0], plans[1], None]


def test_the_smaller_of_deadline_and_plan_decides() -> None:
    work, deadline = ran(reranker := Slow(), [100] * 40, 1.65, EarlyStop(10, lambda logits: True))
    assert work.ended_by is deadline
    assert reranker.rounds[0] == [4] and work.scored == 16
    plan = EarlyStop(10, lambda logits: False)
    work, _ = ran(reranker := Slow(), [1] * 400, 1.65, plan)
    assert reranker.rounds == [[10]] and work.ended_by is plan
