"""Which rows go through a model together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_retrieval.batching import pad, plan_batches


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 3000))
def test_every_row_once_longest_first_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    flat = [position for batch in batches for position in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert flat == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(st.lists(st.integers(1, 600), min_size=2, max_size=60), st.integers(1, 3000))
def test_no_batch_could_have_taken_the_next_row(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > budget


@pytest.mark.parametrize("rows", [[[5, 6, 7], [8]], [np.array([5, 6, 7]), np.array([8])]])
def test_padding_is_masked(rows: list[list[int]]) -> None:
    ids, mask = pad(rows, 1)
    assert ids.dtype == mask.dtype == np.int64
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_no_rows_give_empty_arrays() -> None:
    ids, mask = pad([], 1)
    assert ids.shape == mask.shape == (0, 0)
