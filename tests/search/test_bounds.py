"""The sure bound on recall: what was not scored never beats it, and it says something where clusters are tight."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_retrieval import Index
from hybrid_retrieval.search.bounds import centroid_spreads, row_bounds, similarity_bounds
from hybrid_retrieval.storage import Snapshot
from tests.support import random_unit, unit


def collection(seed: int, passages: int, topics: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Passages of up to 6 tokens around a topic of their own."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 7, passages)
    lengths[0] = 3
    centres = random_unit(topics, 64, seed)[random.integers(0, topics, passages)]
    data = unit(np.repeat(centres, lengths, axis=0) + noise * random.standard_normal((int(lengths.sum()), 64)) / 8)
    return data, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    noise=st.sampled_from([0.0, 0.02, 0.3, 1.5]),
    query_tokens=st.integers(1, 40),
    nbits=st.sampled_from([1, 2, 4, 8]),
    length=st.sampled_from([0.01, 1.0, 30.0]),
)
def test_no_passage_beats_its_bound_and_no_recall_falls_below(
    seed: int, noise: float, query_tokens: int, nbits: int, length: float
) -> None:
    data, offsets = collection(seed, 60, 12, noise)
    query = (random_unit(query_tokens, 64, seed + 1) * length).astype(np.float32)
    query[0] = data[0] * length
    ids = [f"p{i}" for i in range(60)]
    with TemporaryDirectory() as folder:
        index = Index.from_vectors(Path(folder) / "x", ids, data, offsets, nbits=nbits, centroids=10)
        everything = index.search(query, k=60, exact=True, bound=True)
        assert everything.recall_bound == 1
        snapshot = Snapshot.open(Path(folder) / "x")
        (segment,), codec = snapshot.segments, snapshot.codec
        spreads = centroid_spreads(codec.packed(segment.codes, segment.residuals))
        rows = np.array([ids.index(name) for name in everything.ids])
        most = row_bounds(similarity_bounds(query, codec.centroids, spreads), segment, rows)
        assert np.all(everything.scores <= most + 1e-4 * length * query_tokens)
        for k in (1, 4, 20):
            found = index.search(query, k=k, num_candidates=k, bound=True)
            returned = set(found.ids) & set(everything.ids[:k])
            assert found.recall_bound is not None
            assert len(returned) / len(found) >= found.recall_bound - 1e-9


def test_tight_clusters_give_a_bound_that_vouches_for_hits(tmp_path: Path) -> None:
    data, offsets = collection(3, 400, 8, 0.05)
    index = Index.from_vectors(tmp_path / "x", [f"p{i}" for i in range(400)], data, offsets, nbits=4, centroids=8)
    query = data[:1]
    wide = index.search(query, k=10, num_candidates=100, bound=True)
    narrow = index.search(query, k=100, num_candidates=100, bound=True)
    assert wide.recall_bound == 1
    assert narrow.recall_bound is not None and 0 < narrow.recall_bound < 1
    assert index.search(query, k=10).recall_bound is None
