"""Rounds of stage 2: what they take, when they end. A reranker without a model, and a clock that it moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hybrid_retrieval.rerankers.pairs import Pairs
from hybrid_retrieval.rescoring import Deadline, EarlyStop, Work, rescore


def pairs_of(lengths: Sequence[int], query: str = "q") -> Pairs:
    """Pairs of so many tokens each; a pair's tokens are its number."""
    rows = tuple(np.full(length, i, np.int32) for i, length in enumerate(lengths))
    none = np.zeros(len(rows), bool)
    return Pairs(query, rows, (0,) * len(rows), (b"",) * len(rows), np.arange(len(rows) + 1), none, none, none, str)


class Slow:
    """Scores a pair with its number. Takes `pace` seconds a token, `drag` times as long as it says."""

    lanes = 2

    def __init__(self, pace: float = 0.001, drag: float = 1.0, known: bool = True) -> None:
        self.pace, self.drag, self.known = pace, drag, known
        self.now = 0.0
        self.rounds: list[list[int]] = []
        self.probes = 0

    def clock(self) -> float:
        return self.now

    def score_pairs(self, groups: Sequence[Pairs]) -> list[NDArray[np.float32]]:
        self.rounds.append([len(group) for group in groups])
        self.now += self.drag * self.pace * sum(len(row) for group in groups for row in group.rows)
        return [np.array([row[0] for row in group.rows], np.float32) for group in groups]

    def predict_seconds(self, pairs: Pairs) -> float | None:
        return self.pace * sum(map(len, pairs.rows)) if self.known else None

    def probe(self, seconds: float) -> None:
        self.probes += 1
        self.known = True
        self.now += 10 * self.pace


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
    drag=st.floats(0.2, 1.0),
)
def test_a_deadline_is_kept_where_predictions_hold(lengths: list[int], left: float, drag: float) -> None:
    reranker = Slow(drag=drag)
    work = Work(pairs_of(lengths))
    plan = Deadline(reranker, left, reranker.clock)
    rescore(reranker, [(work, [plan])])
    assert reranker.now <= left + 0.011, "and the probe, where nothing fits at first"
    assert work.logits.tolist() == list(range(work.scored)), "in stage 1's order"
    if work.remaining:
        assert work.ended_by is plan
        assert 0.001 * lengths[work.scored] > left - reranker.now, "the next pair would have fitted"
    else:
        assert work.ended_by is None


@pytest.mark.parametrize("drag", [1.5, 2.0, 3.0])
def test_rounds_that_take_longer_than_predicted_do_not_all_pile_up(drag: float) -> None:
    """Half of the time left at a time: of a wrong prediction, only the last round runs over."""
    reranker = Slow(drag=drag)
    work = Work(pairs_of([10] * 400))
    rescore(reranker, [(work, [Deadline(reranker, 1.0, reranker.clock)])])
    assert reranker.now <= 0.5 * drag + (1 if drag < 2 else 0)
    assert work.scored < 400 and len(reranker.rounds) < 20


def test_an_unknown_pace_is_probed_within_the_time() -> None:
    reranker = Slow(known=False)
    work = Work(pairs_of([100] * 10))
    rescore(reranker, [(work, [Deadline(reranker, 0.6, reranker.clock)])])
    assert reranker.probes == 1
    assert 0 < work.scored < 10 and reranker.now <= 0.6


def test_no_time_means_no_round_and_no_probe() -> None:
    reranker = Slow(known=False)
    reranker.now = 2.0
    work = Work(pairs_of([100]))
    plan = Deadline(reranker, 1.0, reranker.clock)
    rescore(reranker, [(work, [plan])])
    assert reranker.rounds == [] and reranker.probes == 0
    assert work.ended_by is plan and work.scored == 0


def test_a_pace_that_lets_nothing_fit_is_probed_once() -> None:
    reranker = Slow()
    work = Work(pairs_of([900] * 3))
    rescore(reranker, [(work, [Deadline(reranker, 0.5, reranker.clock)])])
    assert (reranker.probes, work.scored) == (1, 0)


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


def test_each_query_ends_by_itself_and_the_others_go_on_together() -> None:
    reranker = Slow()
    works = [Work(pairs_of([5] * 30)), Work(pairs_of([5] * 30)), Work(pairs_of([5] * 12))]
    ends = [10, 18, 99]
    plans = [EarlyStop(10, lambda logits, end=end: len(logits) < end) for end in ends]
    rescore(reranker, [(work, [plan]) for work, plan in zip(works, plans, strict=True)])
    assert reranker.rounds == [[10, 10, 10], [2, 2], [3], [3]]
    assert [work.scored for work in works] == [10, 18, 12]
    assert [work.ended_by for work in works] == [plans[0], plans[1], None]


def test_the_smaller_of_two_plans_decides() -> None:
    reranker = Slow()
    work = Work(pairs_of([100] * 40))
    deadline = Deadline(reranker, 1.65, reranker.clock)
    rescore(reranker, [(work, [deadline, EarlyStop(10, lambda logits: True)])])
    assert work.ended_by is deadline
    assert reranker.rounds[0] == [8] and work.scored == 16
