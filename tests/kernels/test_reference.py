"""MaxSim and packing against the plainest possible loops, on ragged, empty, negative and tied cases."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hybrid_retrieval.errors import ArrayError
from hybrid_retrieval.kernels.reference import (
    BLOCK_TOKENS,
    NBITS,
    PackedTokens,
    maxsim,
    pack_buckets,
    packed_maxsim,
    products,
    unpack_buckets,
    weight_table,
)
from hybrid_retrieval.ragged import Ragged
from tests.support import clustered, random_unit


def by_loops(query: NDArray[np.float32], passages: Ragged) -> list[float]:
    return [float(sum((row @ q).max() for q in query)) if len(row) else -np.inf for row in passages]


def packed_sample(num_tokens: int, dimensions: int = 64, nbits: int = 2, seed: int = 0) -> PackedTokens:
    random = np.random.default_rng(seed)
    weights = np.sort(random.standard_normal(2**nbits).astype(np.float32) * 0.1)
    return PackedTokens(
        random.integers(0, 16, num_tokens).astype(np.uint32),
        random.integers(0, 256, (num_tokens, dimensions * nbits // 8)).astype(np.uint8),
        random_unit(16, dimensions, seed),
        weight_table(weights),
    )


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), max_size=12), num_query=st.integers(1, 5), seed=st.integers(0, 99))
def test_maxsim_equals_plain_loops_on_any_ragged_rows(lengths: list[int], num_query: int, seed: int) -> None:
    passages, query = clustered(lengths, 16, seed), random_unit(num_query, 16, seed + 1)
    np.testing.assert_allclose(maxsim(query, passages), by_loops(query, passages), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "lengths",
    [[BLOCK_TOKENS], [BLOCK_TOKENS + 1], [BLOCK_TOKENS - 1, 0, 0, 2], [1] * (BLOCK_TOKENS + 3), [0, 3000, 0]],
)
def test_rows_that_cross_blocks_keep_their_maximum(lengths: list[int]) -> None:
    passages, query = clustered(lengths, 16), random_unit(3, 16, 7)
    np.testing.assert_allclose(maxsim(query, passages), by_loops(query, passages), rtol=1e-5, atol=1e-5)


def test_negative_similarities_are_not_raised_to_zero() -> None:
    query = random_unit(2, 16)
    passages = Ragged.from_rows([-query[:1], -query])
    assert np.all(maxsim(query, passages) < 0)


def test_a_passage_without_tokens_has_nothing_to_match() -> None:
    scores = maxsim(random_unit(2, 16), clustered([0, 2, 0], 16))
    assert np.isneginf(scores).tolist() == [True, False, True]


def test_vectors_of_another_dimension_are_refused() -> None:
    with pytest.raises(ArrayError, match="of one D"):
        maxsim(random_unit(2, 16), clustered([3], 24))


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("dimensions", [8, 64, 96, 1024])
def test_unpacking_gives_back_what_was_packed(nbits: int, dimensions: int) -> None:
    buckets = np.random.default_rng(0).integers(0, 2**nbits, (7, dimensions)).astype(np.uint8)
    packed = pack_buckets(buckets, nbits)
    assert packed.shape == (7, dimensions * nbits // 8)
    np.testing.assert_array_equal(unpack_buckets(packed, nbits), buckets)


def test_the_bit_order_is_colbert_ais() -> None:
    # Two bits a dimension, least significant first, the first dimension in the high bits of the byte:
    # 1, 2, 3, 0 -> 10 01 11 00.
    assert pack_buckets(np.array([[1, 2, 3, 0]], np.uint8), 2).tolist() == [[0b10011100]]
    assert pack_buckets(np.array([[1, 8]], np.uint8), 4).tolist() == [[0b10000001]]
    assert pack_buckets(np.array([[1, 0, 0, 0, 0, 0, 0, 0]], np.uint8), 1).tolist() == [[0b10000000]]


def test_buckets_that_fill_no_whole_bytes_are_refused() -> None:
    with pytest.raises(ArrayError, match="whole bytes"):
        pack_buckets(np.zeros((2, 3), np.uint8), 2)


@pytest.mark.parametrize("nbits", NBITS)
def test_a_token_is_its_centroid_plus_its_residual_normalised(nbits: int) -> None:
    packed = packed_sample(20, nbits=nbits)
    weights = np.unique(packed.table)
    buckets = unpack_buckets(packed.residuals, nbits)
    # The weights of the sample rise, so that the bucket number is the rank of the value.
    expected = packed.centroids[packed.codes] + weights[buckets]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(packed.decode(slice(None)), expected, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("lengths", [[5, 1, 0, 9], [0], [BLOCK_TOKENS * 2 + 5, 3], [100] * 50])
def test_packed_maxsim_equals_maxsim_of_the_decoded_vectors(lengths: list[int], threads: int) -> None:
    packed, query = packed_sample(sum(lengths)), random_unit(4, 64, 3)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    found = packed_maxsim(query, packed, offsets[:-1], np.diff(offsets), threads=threads)
    expected = maxsim(query, Ragged(packed.decode(slice(None)), offsets))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_score_does_not_depend_on_the_windows_beside_it() -> None:
    packed, query = packed_sample(3000), random_unit(5, 64, 3)
    starts, lengths = np.arange(0, 3000, 30), np.full(100, 30)
    together = packed_maxsim(query, packed, starts, lengths)
    alone = [float(packed_maxsim(query, packed, starts[i : i + 1], lengths[:1])[0]) for i in range(100)]
    assert together.tolist() == alone


@pytest.mark.parametrize("num_query", [1, 8, 13, 32, 64, 100])
def test_identical_windows_tie_exactly(num_query: int) -> None:
    one = packed_sample(37)
    many = PackedTokens(np.tile(one.codes, 200), np.tile(one.residuals, (200, 1)), one.centroids, one.table)
    scores = packed_maxsim(random_unit(num_query, 64, 2), many, np.arange(200) * 37, np.full(200, 37))
    assert len(set(scores.tolist())) == 1


@pytest.mark.parametrize("core", ["Prescott", "Sandybridge", "Haswell"])
def test_identical_vectors_have_one_similarity_on_other_processors(core: str) -> None:
    """OpenBLAS takes the kernels of a processor that it is told of (where it has them: a wheel for ARM has not)."""
    script = (
        "import numpy as np; from hybrid_retrieval.kernels.reference import products; r = np.random.default_rng(0)\n"
        "for lq in (2, 12, 13, 32, 64):\n"
        "  for d in (64, 128, 768):\n"
        "    one = np.repeat(r.standard_normal((1, d), np.float32), 99, axis=0)\n"
        "    found = products(r.standard_normal((lq, d), np.float32), one)\n"
        "    assert (found == found[:, :1]).all(), (lq, d)\n"
    )
    environment = {**os.environ, "OPENBLAS_CORETYPE": core}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("num_query", [1, 2, 40, 63, 64, 65, 200])
@pytest.mark.parametrize("num_vectors", [0, 1, 31, 32, 33, 1000])
@pytest.mark.parametrize("dimensions", [8, 128, 1024])
def test_products_in_small_pieces_are_the_product(num_query: int, num_vectors: int, dimensions: int) -> None:
    query, vectors = random_unit(num_query, dimensions), random_unit(num_vectors, dimensions, 1)
    found = products(query, vectors)
    assert found.shape == (num_query, num_vectors)
    np.testing.assert_allclose(found, query @ vectors.T, atol=1e-6)
