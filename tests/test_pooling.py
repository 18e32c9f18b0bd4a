"""Token pooling: Ward's clusters, their means, and indexes built of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_retrieval import Index
from hybrid_retrieval.builder.pooling import pool_vectors, pool_windows, ward_labels
from hybrid_retrieval.config import PipelineConfig
from hybrid_retrieval.errors import ConfigError, QueryError
from hybrid_retrieval.pipeline import Pipeline
from tests.support import HashEncoder, clustered, make_passages, random_unit, unit


def spread(vectors: np.ndarray, labels: np.ndarray) -> float:
    """The sum of squared distances from the cluster means."""
    return sum(float(np.square(part - part.mean(axis=0)).sum()) for part in (vectors[labels == c] for c in set(labels)))


def naive_ward(vectors: np.ndarray, clusters: int) -> np.ndarray:
    """By the definition: every merge is the one that raises the spread least."""
    vectors = vectors.astype(np.float64)
    labels = np.arange(len(vectors))
    while len(set(labels)) > clusters:
        names = sorted(set(labels))
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        kept, merged = min(pairs, key=lambda pair: spread(vectors, np.where(labels == pair[1], pair[0], labels)))
        labels = np.where(labels == merged, kept, labels)
    return np.unique(labels, return_inverse=True)[1]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 12), clusters=st.integers(1, 12))
def test_clusters_are_ward_s(seed: int, count: int, clusters: int) -> None:
    vectors = random_unit(count, 16, seed)
    np.testing.assert_array_equal(ward_labels(vectors, clusters), naive_ward(vectors, clusters))


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 30), max_size=5), factor=st.integers(2, 40), seed=st.integers(0, 99))
def test_windows_shrink_by_the_factor_to_unit_vectors_and_stand_alone(
    lengths: list[int], factor: int, seed: int
) -> None:
    windows = clustered(lengths, 16, seed)
    pooled = pool_windows(windows, factor)
    assert pooled.lengths.tolist() == [max(n // factor, 1) if n else 0 for n in lengths]
    np.testing.assert_allclose(np.linalg.norm(pooled.data, axis=1), 1, atol=1e-5)
    for window, row in zip(windows, pooled, strict=True):
        np.testing.assert_array_equal(row, pool_vectors(window, factor))


def test_vectors_that_lie_together_become_their_mean_in_reading_order() -> None:
    a, b, c = random_unit(3, 32, 1)
    near = [unit(v + 0.01 * random_unit(1, 32, i)[0]) for i, v in enumerate((b, a, c, a, b, c))]
    pooled = pool_vectors(np.stack(near), 2)
    expected = unit(np.stack([near[0] + near[4], near[1] + near[3], near[2] + near[5]]))
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_vectors_that_cancel_out_leave_the_first() -> None:
    vector = random_unit(1, 16)
    np.testing.assert_array_equal(pool_vectors(np.concatenate([vector, -vector]), 2), vector)


def test_an_index_of_vectors_holds_what_pooling_leaves(tmp_path: Path) -> None:
    rows = clustered([9, 0, 1, 30] + [12] * 300, 64)
    ids = [f"p{i}" for i in range(len(rows))]
    index = Index.from_vectors(tmp_path / "pooled", ids, rows.data, rows.offsets, pool_factor=2, nbits=8)
    pooled = pool_windows(rows, 2)
    assert index.pool_factor == 2 and index.tokens == len(pooled.data)
    assert not (tmp_path / "pooled" / "building").exists()
    for row in (0, 1, 2, 3, 200):
        (held,) = index.token_vectors(row)
        np.testing.assert_allclose(held, pooled[row], atol=0.05)
    by_hand = Index.from_vectors(tmp_path / "hand", ids, pooled.data, pooled.offsets, nbits=8)
    found, expected = (i.search(rows[3], k=20) for i in (index, by_hand))
    assert found.ids == expected.ids
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_a_built_index_is_pooled_window_by_window_and_says_why_it_cannot_explain(tmp_path: Path) -> None:
    encoder = HashEncoder()
    settings = PipelineConfig.from_dict({"index": {"pool_factor": 3}, "reranker": {"model": "none"}})
    passages = make_passages(50)
    index = Index.build(passages, tmp_path / "x", encoder=encoder, reranker=None, config=settings)
    windows, offsets = encoder.encode_windows([p.content() for p in passages], settings.index.window_overlap)
    assert index.tokens == sum(max(n // 3, 1) for n in windows.lengths)
    assert len(index.token_vectors(7)) == offsets[8] - offsets[7]
    with pytest.raises(QueryError, match=r"pool_factor is 3.*without pooling"):
        Pipeline(index, encoder).explain("word1", "p1")  # type: ignore[arg-type]


def test_a_factor_below_one_is_refused(tmp_path: Path) -> None:
    rows = clustered([3], 64)
    with pytest.raises(ConfigError, match=r"pool_factor must be 1 \(none\) or more, got 0"):
        Index.from_vectors(tmp_path / "x", ["a"], rows.data, rows.offsets, pool_factor=0)
    assert not (tmp_path / "x").exists()
