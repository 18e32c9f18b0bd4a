"""The NumPy truth: MaxSim, residual packing, and MaxSim straight from packed residuals.

Packing follows colbert-ai (`colbert/indexing/codecs/residual.py`, 0.2.22): each dimension's bucket number
emits its bits least-significant first, dimensions in order, and `numpy.packbits` fills every byte from its
high bit. Axes: Lq query tokens, T passage tokens, W windows, D dimensions, K centroids.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import ArrayError
from hybrid_retrieval.ragged import Ragged, expand_spans

Float32 = NDArray[np.float32]

NBITS = (1, 2, 4, 8)

# Passage tokens decoded and scored in one step: the working set stays in the cache.
BLOCK_TOKENS = 1024

# OpenBLAS computes a product of up to this many multiply-adds on the calling thread alone.
BLAS_ALONE = 65_536 * 4
QUERY_ROWS = 64
# A power of two: OpenBLAS rounds columns that are left over otherwise than the rest, and so do its Haswell kernels with
# some of 32.
PASSAGE_ROWS = 16

# A shorter sum of centroid and residual counts as the zero vector: they cancel, and what is left has no direction but
# rounding's. (Those of trained encoders are .89 and longer at 2 bits.)
SHORTEST = np.float32(0.1)


def products(query: Float32, vectors: NDArray[Any]) -> Float32:
    """float32 [Lq, T]: the product of every query token [Lq, D] with every vector [T, D].

    One product of a small query is cut into many that BLAS computes on the calling thread. Left whole, BLAS
    would share it among threads that wait for each other busily: on a machine with anything else to do that
    took a thousand times as long. Small products of one shape also make a similarity independent of the
    vectors around it, so that identical passages tie and pruned search gives the very scores of exact search.
    """
    num_query, dimensions = query.shape
    if num_query > QUERY_ROWS:
        parts = [products(query[i : i + QUERY_ROWS], vectors) for i in range(0, num_query, QUERY_ROWS)]
        return np.concatenate(parts)
    if num_query == 1:  # a matrix times a vector has a lower limit of its own
        return products(np.repeat(query, 2, axis=0), vectors)[:1]
    num_vectors, rows = len(vectors), PASSAGE_ROWS
    while rows > 2 and rows * num_query * dimensions > BLAS_ALONE:
        rows //= 2
    stacks = -(-num_vectors // rows)
    if stacks * rows != num_vectors or vectors.dtype != np.float32:
        filled = np.zeros((stacks * rows, dimensions), np.float32)
        filled[:num_vectors] = vectors
        vectors = filled
    # [stacks, Lq, rows], then the stacks side by side
    small = np.matmul(query, vectors.reshape(stacks, rows, dimensions).transpose(0, 2, 1))
    side_by_side: Float32 = small.transpose(1, 0, 2).reshape(num_query, stacks * rows)
    return side_by_side[:, :num_vectors]


def maxsim(query: Float32, passages: Ragged) -> Float32:
    """The late-interaction score of each passage: for every query token its best similarity, summed.

    query: float32 [Lq, D]. passages: N rows over float data [T, D]. Returns float32 [N]; a passage without
    tokens has nothing to match and gets -inf. Negative similarities count as they are.
    """
    if query.ndim != 2 or passages.data.ndim != 2 or query.shape[1] != passages.data.shape[1]:
        raise ArrayError(
            f"query and passage vectors must be [Lq, D] and [T, D] of one D, "
            f"got {query.shape} and {passages.data.shape}"
        )
    best = np.full((len(query), len(passages)), -np.inf, np.float32)
    for start in range(0, len(passages.data), BLOCK_TOKENS):
        vectors = passages.data[start : start + BLOCK_TOKENS]
        _raise_maxima(best, products(query, vectors), passages.offsets, start)
    total: Float32 = best.sum(axis=0, dtype=np.float32)
    return total


def pack_buckets(buckets: NDArray[np.uint8], nbits: int) -> NDArray[np.uint8]:
    """Bucket numbers [T, D] (each < 2^nbits) to bytes [T, D * nbits / 8], in colbert-ai's bit order."""
    if nbits not in NBITS or buckets.ndim != 2 or buckets.shape[1] * nbits % 8:
        raise ArrayError(f"cannot pack buckets of shape {buckets.shape} with nbits={nbits} into whole bytes")
    numbers = np.arange(2**nbits, dtype=np.uint8)
    bits = (numbers[:, None] >> np.arange(nbits, dtype=np.uint8)) & np.uint8(1)
    # A number's bits the other way round, at the high end of a byte
    high = np.packbits(bits, axis=1)[:, 0]
    parts = high[buckets].reshape(len(buckets), -1, 8 // nbits)
    packed = parts[:, :, 0].copy()
    for i in range(1, 8 // nbits):
        packed |= parts[:, :, i] >> np.uint8(nbits * i)
    return packed


def bucket_table(nbits: int) -> NDArray[np.uint8]:
    """uint8 [256, 8 / nbits]: the bucket numbers that each packed byte holds."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).reshape(256, 8 // nbits, nbits)
    table: NDArray[np.uint8] = (bits << np.arange(nbits, dtype=np.uint8)).sum(axis=2).astype(np.uint8)
    return table


def unpack_buckets(packed: NDArray[np.uint8], nbits: int) -> NDArray[np.uint8]:
    """The inverse of `pack_buckets`: bytes [T, D * nbits / 8] to bucket numbers [T, D]."""
    return bucket_table(nbits)[packed].reshape(len(packed), packed.shape[1] * 8 // nbits)


def weight_table(weights: Float32) -> Float32:
    """float32 [256, 8 / nbits]: the residual values that each packed byte stands for. weights: float32
    [2^nbits]."""
    return weights[bucket_table(len(weights).bit_length() - 1)]


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """Compressed token vectors, and what it takes to read them.

    codes: uint32 [T], below K. residuals: uint8 [T, D * nbits / 8]. centroids: float32 [K, D]. table:
    `weight_table`. A token's vector is its centroid plus its residual, normalised.
    """

    codes: NDArray[np.uint32]
    residuals: NDArray[np.uint8]
    centroids: Float32
    table: Float32

    def raw(self, tokens: Any) -> Float32:
        """Centroid plus residual, before normalisation: float32 [t, D]. tokens: a slice or an index array."""
        packed = self.residuals[tokens]
        vectors: Float32 = np.take(self.table, packed, axis=0).reshape(len(packed), self.centroids.shape[1])
        vectors += np.take(self.centroids, self.codes[tokens], axis=0)
        return vectors

    def decode(self, tokens: Any) -> Float32:
        """Unit vectors, or zeros where centroid and residual cancel (`SHORTEST`): float32 [t, D]."""
        vectors = self.raw(tokens)
        unit: Float32 = vectors / _norms(vectors)[:, None]
        return unit


def packed_maxsim(
    query: Float32,
    packed: PackedTokens,
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    *,
    threads: int = 1,
) -> Float32:
    """MaxSim of W windows from packed residuals, without holding more than a block of decoded vectors a
    thread.

    query: float32 [Lq, D]. Window w is tokens starts[w] to starts[w] + lengths[w]. Returns float32 [W]; -inf
    for a window without tokens. The result does not depend on `threads`.
    """
    offsets = np.zeros(len(starts) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    tokens = expand_spans(starts, lengths)
    best = np.full((len(query), len(starts)), -np.inf, np.float32)

    def similarities(start: int) -> Float32:
        vectors = packed.raw(tokens[start : start + BLOCK_TOKENS])
        # The division comes after the product: it touches Lq numbers a token instead of D.
        scaled: Float32 = products(query, vectors) / _norms(vectors)
        return scaled

    blocks = range(0, len(tokens), BLOCK_TOKENS)
    if threads <= 1 or len(blocks) <= 1:
        for start in blocks:
            _raise_maxima(best, similarities(start), offsets, start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for start, block in zip(blocks, pool.map(similarities, blocks), strict=True):
                _raise_maxima(best, block, offsets, start)
    total: Float32 = best.sum(axis=0, dtype=np.float32)
    return total


def _norms(vectors: Float32) -> Float32:
    """What vectors [t, D] are divided by to be of unit length: infinity for those that count as zero."""
    norms = np.sqrt(np.einsum("td,td->t", vectors, vectors))
    divisors: Float32 = np.where(norms < SHORTEST, np.float32(np.inf), norms)
    return divisors


def _raise_maxima(best: Float32, similarities: Float32, offsets: NDArray[np.int64], start: int) -> None:
    """Raise best [Lq, N] by the similarities [Lq, t] of tokens start to start + t, which belong to rows by
    offsets."""
    stop = start + similarities.shape[1]
    first = int(np.searchsorted(offsets, start, side="right")) - 1
    last = int(np.searchsorted(offsets, stop, side="left"))
    rows = first + np.flatnonzero(np.diff(offsets[first : last + 1]))  # reduceat misreads an empty row
    segments = np.maximum(offsets[rows], start) - start
    best[:, rows] = np.maximum(best[:, rows], np.maximum.reduceat(similarities, segments, axis=1))
