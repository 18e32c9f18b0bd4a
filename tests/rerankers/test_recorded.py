"""Small batches filled up to a recorded shape. A processor records nothing: there a stand-in computes anew from the
same inputs, which a graph would do; all else is what runs on CUDA."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_retrieval import Reranker
from tests.parity.checkpoints import make_bert_reranker, make_xlmr_reranker

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hybrid_retrieval.rerankers.recorded import SHAPES, Recordings, Rows, Shape  # noqa: E402

MAKERS = {"xlmr": make_xlmr_reranker, "bert": make_bert_reranker}
SMALL = (Shape(16, 4, 16), Shape(64, 8, 32))
CPU = torch.device("cpu")


def computed(model: Any, inputs: Any, longest: int) -> Callable[[], Any]:
    return lambda: model(*inputs, longest)


@pytest.fixture(scope="module", params=list(MAKERS))
def reranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    folder: Path = MAKERS[request.param](tmp_path_factory.mktemp("checkpoint"))
    return Reranker.load(str(folder), device="cpu", cached_pairs=0)


def recordings(reranker: Reranker, record: Any = computed) -> Recordings:
    backend: Any = reranker.scorer.backend
    types = reranker.scorer._convention.token_types
    return Recordings(backend.model, CPU, types=types, record=record, shapes=SMALL)


@given(
    shape=st.sampled_from([*SHAPES, *SMALL]),
    lengths=st.lists(st.integers(1, 600) | st.integers(1, 20), min_size=1, max_size=70),
)
def test_a_filled_batch_has_the_shape_and_its_own_rows_first(shape: Shape, lengths: list[int]) -> None:
    full = shape.filled(lengths)
    fits = sum(lengths) + shape.rows - len(lengths) <= shape.tokens and len(lengths) <= shape.rows
    if full is None:
        exact = len(lengths) == shape.rows and sum(lengths) == shape.tokens
        spread = -(-(shape.tokens - sum(lengths)) // max(1, shape.rows - len(lengths)))
        too_long = max(lengths) > shape.longest or spread > shape.longest
        assert too_long or not fits or (len(lengths) == shape.rows and not exact)
        return
    assert fits and full[: len(lengths)] == lengths
    assert (sum(full), len(full)) == (shape.tokens, shape.rows)
    assert min(full) >= 1 and max(full) <= shape.longest


def test_replayed_batches_give_the_logits_of_computed_ones(reranker: Reranker) -> None:
    backend: Any = reranker.scorer.backend
    recorded = recordings(reranker)
    assert len(recorded) == 2
    random, replayed = np.random.default_rng(0), 0
    batches = [[3], [16], [5, 2, 3], [1, 1, 1, 1], [30, 20], [4] * 8, [8] * 8, [33], [4] * 9, [61, 1]]
    for lengths in batches * 2:
        rows = [random.integers(5, 200, length) for length in lengths]
        ids, mask = (np.zeros((len(rows), max(lengths)), np.int64) for _ in range(2))
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        types = mask * (np.arange(ids.shape[1]) >= 2) if reranker.scorer._convention.token_types else None
        backend._recordings = {}
        expected = backend.forward(ids, mask, types)
        real = mask != 0
        arrays = ids[real], backend.model.positions(ids, mask)[real], None if types is None else types[real]
        with torch.inference_mode():
            alone = recorded.run(Rows(*arrays, lengths))
        replayed += alone is not None
        backend._recordings = {id(backend.model): recorded}
        found = backend.forward(ids, mask, types)
        for logits in (found, *([] if alone is None else [alone.numpy()])):
            np.testing.assert_allclose(logits, expected, atol=1e-5)
        assert np.isfinite(expected).all()
    backend._recordings = {}
    assert replayed == 2 * 6, "not 8 rows of 4 (no row is left to fill up), rows of 33 and 61, 9 rows"


def test_recordings_that_fail_or_are_wrong_are_not_used(reranker: Reranker, caplog: pytest.LogCaptureFixture) -> None:
    def fails(model: Any, inputs: Any, longest: int) -> Callable[[], Any]:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    def wrong(model: Any, inputs: Any, longest: int) -> Callable[[], Any]:
        return lambda: model(*inputs, longest) + 1

    def stale(model: Any, inputs: Any, longest: int) -> Callable[[], Any]:
        logits = model(*inputs, longest)
        return lambda: logits

    def of_other_rows(model: Any, inputs: Any, longest: int) -> Callable[[], Any]:
        starts = inputs[3].clone()
        return lambda: model(*inputs[:3], starts, longest)

    for record, why in (
        (fails, "not permitted when stream"),
        (wrong, "off by 1"),
        (stale, "off by"),
        (of_other_rows, "off by"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            recorded = recordings(reranker, record)
        assert len(recorded) == 0 and recorded.run(Rows(np.ones(3, np.int64), np.ones(3, np.int64), None, [3])) is None
        (line,) = caplog.messages
        assert why in line and "\n" not in line
