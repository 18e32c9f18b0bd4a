"""The batching policy: everything once, within the budget, longest with longest, by lengths alone."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_retrieval.batching import Batches, is_out_of_memory, pad, plan_batches
from hybrid_retrieval.errors import ModelError


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


class OutOfMemoryError(RuntimeError):
    """Named as torch's is."""


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(600, 8000), st.integers(600, 8000))
def test_out_of_memory_leaves_no_row_out_and_scores_none_twice(
    lengths: list[int], batch_tokens: int, memory: int
) -> None:
    done: list[int] = []

    def forward(batch: list[int]) -> None:
        if len(batch) * max(lengths[position] for position in batch) > memory:
            raise OutOfMemoryError
        done.extend(batch)

    logging.disable(logging.WARNING)
    try:
        batches = Batches(batch_tokens, "tiny")
        batches.run(lengths, forward)
    finally:
        logging.disable(logging.NOTSET)
    assert sorted(done) == list(range(len(lengths)))
    assert batches.tokens <= batch_tokens


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 8000), st.integers(1, 5))
def test_workers_share_the_batches_out(lengths: list[int], memory: int, workers: int) -> None:
    done: list[int] = []

    def forward(batch: list[int]) -> None:
        if len(batch) > 1 and len(batch) * max(lengths[position] for position in batch) > memory:
            raise OutOfMemoryError
        done.extend(batch)

    logging.disable(logging.WARNING)
    try:
        Batches(4096, "tiny").run(lengths, forward, workers)
    finally:
        logging.disable(logging.NOTSET)
    assert sorted(done) == list(range(len(lengths)))


def test_as_many_batches_as_workers_are_under_way_and_an_error_ends_them() -> None:
    together = threading.Barrier(3, timeout=30)
    done: list[int] = []

    def forward(batch: list[int]) -> None:
        if len(done) < 3:
            together.wait()
        done.extend(batch)

    Batches(1, "tiny").run([1] * 3, forward, 3)
    assert sorted(done) == [0, 1, 2]

    def failing(batch: list[int]) -> None:
        done.extend(batch)
        raise ModelError("no")

    done.clear()
    with pytest.raises(ModelError, match="no"):
        Batches(1, "tiny").run([1] * 100, failing, 2)
    assert len(done) <= 2


def test_the_smaller_budget_is_kept_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    batches = Batches(1000, "tiny")
    tried: list[int] = []

    def forward(batch: list[int]) -> None:
        tried.append(len(batch))
        if len(batch) > 2:
            raise OutOfMemoryError

    batches.run([100] * 10, forward)
    assert tried == [10, 5, 2, 2, 2, 2, 2]
    batches.run([100] * 4, forward)
    assert tried[7:] == [2, 2] and batches.tokens == 250
    assert len(caplog.records) == 1
    assert "out of memory with a batch of 1000 tokens; going on with batches of 500" in caplog.text


def test_one_row_that_does_not_fit_is_an_error_and_others_pass_through() -> None:
    def full(batch: list[int]) -> None:
        raise OutOfMemoryError

    def broken(batch: list[int]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ModelError, match="tiny: not enough memory on the device for a single row of 9 tokens"):
        Batches(100, "tiny").run([9, 3], full)
    with pytest.raises(ZeroDivisionError):
        Batches(100, "tiny").run([9, 3], broken)


def test_torchs_error_is_known_by_its_name() -> None:
    torch = pytest.importorskip("torch")
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("CUDA error"))
