"""The batching policy: everything once, within the budget, longest with longest, by lengths alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hybrid_retrieval.batching import pad, plan_batches


@given(st.lists(st.integers(1, 600), max_size=200), st.integers(1, 4096))
def test_every_row_goes_once_and_the_budget_holds(lengths: list[int], batch_tokens: int) -> None:
    batches = plan_batches(lengths, batch_tokens)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[position] for position in batch)
        assert padded <= batch_tokens or len(batch) == 1


@given(st.lists(st.integers(1, 600), max_size=200))
def test_rows_run_from_longest_to_shortest_and_equal_ones_keep_their_order(lengths: list[int]) -> None:
    flat = [position for batch in plan_batches(lengths, 1000) for position in batch]
    assert flat == sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))


def test_no_rows_make_no_batch() -> None:
    assert plan_batches([], 100) == []


def test_padding_marks_real_tokens() -> None:
    ids, mask = pad([[5, 6, 7], [8], []], 1)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1], [1, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64
