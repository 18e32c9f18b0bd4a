"""Stage 2 in rounds: which candidates are scored next, and when to end. No tensors here.

A plan says how many more candidates of a query the next round takes. The rounds of all queries are batched together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.rerankers.pairs import Pairs
from hybrid_retrieval.time_limits import OutOfTime

# What standardised logits are worked out from stays far from float32's limit.
_MOST_LOGIT = 1e30


class ScoresPairs(Protocol):
    """What is asked of a reranker."""

    @property
    def lanes(self) -> int: ...
    def score_pairs(self, groups: Sequence[Pairs], ends: float = ...) -> list[NDArray[np.float32]]: ...
    def predict_seconds(self, pairs: Pairs) -> float | None: ...


class Work:
    """Stage 2's work on one query. pairs: the candidates, in stage 1's order. logits: float32, of those scored so far.
    seconds: its share, by tokens, of the time that its rounds took. ended_by: the plan that left candidates out."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.logits: NDArray[np.float32] = np.empty(0, np.float32)
        self.seconds = 0.0
        self.ended_by: Plan | None = None

    @property
    def scored(self) -> int:
        """How many candidates have a score."""
        return len(self.logits)

    @property
    def remaining(self) -> int:
        """How many have none."""
        return len(self.pairs) - self.scored

    def next(self, count: int) -> Pairs:
        """The next candidates without a score."""
        return self.pairs.part(self.scored, self.scored + count)


class Plan(Protocol):
    """How many more candidates the next round takes: at most `work.remaining`, and 0 ends the work."""

    def __call__(self, work: Work) -> int: ...


def may_enter(
    logits: NDArray[np.float32],
    retrieval_scores: NDArray[np.float32],
    k: int,
    bound: float,
    fuse: Callable[[NDArray[np.float32], NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.int64]]],
) -> bool:
    """Whether the next candidate would enter the top k with the highest logit that is expected of it.

    logits: float32 [M], so far. retrieval_scores: float32 [N], all candidates', best first, N > M. bound: how many
    standard deviations above their mean the next logit is expected to lie at most. fuse: both stages' scores to final
    ones and their order, as the pipeline fuses them. A candidate further down has a lower MaxSim, so none of them
    enters where the next one does not.
    """
    most = logits.mean(dtype=np.float64) + bound * logits.std(dtype=np.float64)
    most = np.clip(most, -_MOST_LOGIT, _MOST_LOGIT)  # any bound is a bound
    _, order = fuse(np.append(logits, np.float32(most)), retrieval_scores[: len(logits) + 1])
    return len(logits) in order[:k]


class EarlyStop:
    """Ends when the next candidate, which leads those that remain, is not expected to enter the top k: as many places
    as are to be settled, be it fewer than are returned.

    may_enter: says whether it may (see above), from the logits so far. Between two looks, a quarter of as many as have
    been scored goes through, and no fewer than ROUND: looks cost rounds, and late rounds decide less.
    """

    ROUND = 2

    def __init__(self, k: int, may_enter: Callable[[NDArray[np.float32]], bool]) -> None:
        self._k, self._may_enter = k, may_enter

    def __call__(self, work: Work) -> int:
        if work.scored < self._k:
            return min(self._k - work.scored, work.remaining)
        if not work.remaining or not self._may_enter(work.logits):
            return 0
        return min(max(self.ROUND, work.scored // 4), work.remaining)


class Deadline:
    """Takes what is predicted to be done in a quarter of the time left, so that a round is rarely stopped for a wrong
    prediction, and costs little where it is; then the smallest round that keeps the reranker busy, or one candidate. A
    round that is not predicted to fit is not begun, but the smallest is where nothing is known.

    ends: on `clock`, in seconds.
    """

    def __init__(self, reranker: ScoresPairs, ends: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._reranker, self.ends, self._clock = reranker, ends, clock

    def __call__(self, work: Work) -> int:
        left = self.ends - self._clock()
        if left <= 0 or not work.remaining:
            return 0
        smallest = min(self._reranker.lanes, work.remaining)
        if self._predicted(work, smallest) is None:
            return smallest
        low, high = 0, work.remaining
        while low < high:  # the most that fits in a quarter of the time left
            middle = (low + high + 1) // 2
            if self._fits(work, middle, left / 4):
                low = middle
            else:
                high = middle - 1
        if low >= smallest:
            return low
        return next((count for count in (smallest, 1) if self._fits(work, count, left)), 0)

    def _fits(self, work: Work, count: int, seconds: float) -> bool:
        predicted = self._predicted(work, count)
        return predicted is not None and predicted <= seconds

    def _predicted(self, work: Work, count: int) -> float | None:
        return self._reranker.predict_seconds(work.next(count))


def rescore(
    reranker: ScoresPairs, works: Sequence[tuple[Work, Sequence[Plan]]], deadline: Deadline | None = None
) -> None:
    """Run rounds until each work's plans, or the deadline of all, have ended it. A round takes the fewest that any of
    them says; without plans, one round takes all. One that is stopped at the deadline is lost."""
    ends = math.inf if deadline is None else deadline.ends
    common: list[Plan] = [] if deadline is None else [deadline]
    while True:
        steps = [(work, count) for work, plans in works if (count := _step(work, [*common, *plans]))]
        if not steps:
            return
        parts = [work.next(count) for work, count in steps]
        began = time.perf_counter()
        try:
            found = reranker.score_pairs(parts, ends)
        except OutOfTime:
            found = [np.empty(0, np.float32) for _ in parts]
            for work, _ in steps:
                work.ended_by = deadline
        seconds = time.perf_counter() - began
        tokens = [sum(map(len, part.rows)) for part in parts]
        for (work, _), logits, share in zip(steps, found, tokens, strict=True):
            work.logits = np.concatenate([work.logits, logits])
            work.seconds += seconds * share / sum(tokens)


def _step(work: Work, plans: Sequence[Plan]) -> int:
    count = work.remaining
    for plan in plans:
        if count and work.ended_by is None:
            count = min(count, plan(work))
            if not count:
                work.ended_by = plan
    return count if work.ended_by is None else 0
