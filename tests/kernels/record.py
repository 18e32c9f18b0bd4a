"""Write inputs of the kernels and the NumPy reference's results to a file, for a program without Python to check
(variants.cpp).

    python -m tests.kernels.record FILE

The file is a row of arrays, each as int64 bytes an element, int64 elements, and the elements, all little-endian. The
first array of a case is int64: which kernel, then sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from hybrid_retrieval.kernels.reference import bucket_table
from tests.kernels.cases import (
    HEADS,
    HIDDEN,
    INNER,
    SIZE,
    Tokens,
    layer_arrays,
    quantised_product,
    reference_layer,
    unit,
)

END, MAXSIM, APPROXIMATE, DENSE, TRUNK, PROJECT = range(6)
Arrays = Iterator[np.ndarray]


def header(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def tolerances(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def maxsim_case(query_tokens: int, dimensions: int, nbits: int, lengths: list[int]) -> Arrays:
    """What `Codec` of the compiled module makes of a codec and a query, and the scores."""
    tokens = Tokens(dimensions + nbits, lengths, dimensions=dimensions, nbits=nbits, centroids=7)
    query = unit(np.random.default_rng(query_tokens).standard_normal((query_tokens, dimensions)))
    most = np.float32(np.floor(np.sqrt(2147483647 / dimensions)))
    weight_scale = np.abs(tokens.weights).max() / most
    centroid_scales = np.abs(tokens.centroids).max(axis=1) / most
    query_scales = np.abs(query).max(axis=1) / most
    yield header(MAXSIM, query_tokens, dimensions, nbits, len(tokens.centroids))
    yield tolerances(5e-5 * query_tokens)
    yield from (tokens.centroids, tokens.weights, bucket_table(nbits), query)
    yield from (tokens.codes, tokens.residuals, tokens.starts, tokens.lengths)
    yield np.rint(tokens.weights[bucket_table(nbits)] / weight_scale).astype(np.int16)
    yield np.rint(tokens.centroids / centroid_scales[:, None]).astype(np.int16)
    yield np.square(tokens.centroids, dtype=np.float64).sum(axis=1).astype(np.float32)
    yield 2 * centroid_scales * weight_scale
    yield tolerances(weight_scale**2)
    padded = -(-query_tokens // 8) * 8
    levels = np.zeros((padded, dimensions), np.int16)
    levels[:query_tokens] = np.rint(query / query_scales[:, None])
    groups = [levels[i : i + 32].reshape(-1, 8, dimensions // 2, 2) for i in range(0, padded, 32)]
    yield np.concatenate([group.transpose(2, 0, 1, 3).ravel() for group in groups])
    yield np.pad(query_scales * weight_scale, (0, padded - query_tokens))
    yield tokens.reference(query)


def approximate_case(query_tokens: int, lengths: list[int]) -> Arrays:
    tokens = Tokens(query_tokens, lengths, dimensions=8, nbits=2, centroids=6)
    stride = -(-query_tokens // 32) * 32
    table = np.zeros((6, stride), np.uint8)
    table[:, :query_tokens] = np.random.default_rng(query_tokens).integers(0, 256, (6, query_tokens))
    windows = [tokens.codes[i : i + n] for i, n in zip(tokens.starts, tokens.lengths, strict=True)]
    yield header(APPROXIMATE, stride, 6)
    yield from (table, tokens.codes, tokens.starts, tokens.lengths)
    sums = [int(table[w].max(axis=0).astype(np.int64).sum()) if len(w) else -1 for w in windows]
    yield np.array(sums, np.int32)


def dense_case(m: int, k: int, n: int) -> Arrays:
    random = np.random.default_rng(m + k + n)
    x = random.standard_normal((m, k)).astype(np.float32)
    if m > 2:
        x[1] = 0
    weight = random.integers(-127, 128, (k, n)).astype(np.int8)
    scale, bias = random.random(n).astype(np.float32), random.standard_normal(n).astype(np.float32)
    expected = quantised_product(x, weight, scale, bias).astype(np.float32)
    yield header(DENSE, m, k, n)
    yield tolerances(4e-6 * np.abs(expected).max(initial=1))
    yield from (x, weight, scale, bias, expected)


def trunk_case(lengths: list[int], depth: int, *, weights: bool) -> Arrays:
    """Without weights a layer is its LayerNorms alone: no value stands between two levels, so that nothing but rounding
    may differ. With them a value may come out a level off, one part in 255 of a row's range; most do not."""
    random = np.random.default_rng(sum(lengths) + depth)
    layers = [layer_arrays(random) for _ in range(depth)]
    if not weights:
        layers = [[array * 0 if array.dtype == np.int8 else array for array in arrays] for arrays in layers]
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    x = random.standard_normal((int(offsets[-1]), HIDDEN)).astype(np.float32)
    expected = x.copy()
    for start, stop in pairwise(offsets):
        for arrays in layers if stop > start else []:
            expected[start:stop] = reference_layer(expected[start:stop], arrays)
    yield header(TRUNK, HIDDEN, HEADS, SIZE, INNER, depth)
    yield tolerances(6e-2, 3e-4 if depth == 1 else 8e-3) if weights else tolerances(2e-6, 5e-7)
    yield from (x, offsets)
    for arrays in layers:
        yield from arrays
    yield expected


def project_case(m: int, k: int, n: int) -> Arrays:
    random = np.random.default_rng(m + k + n)
    x, weight = random.standard_normal((m, k)).astype(np.float32), random.standard_normal((n, k)).astype(np.float32)
    yield header(PROJECT, m, k, n)
    yield tolerances(1e-6)
    yield from (x, weight, unit(x @ weight.T))


def cases() -> Iterator[Arrays]:
    for dimensions in (64, 72, 384, 1024):
        for query_tokens in (4, 31, 32, 33, 70, 512):
            for nbits in (1, 2, 4, 8):
                yield maxsim_case(query_tokens, dimensions, nbits, [130, 0, 1, 40, 7])
    for nbits in (1, 2, 4, 8):
        yield maxsim_case(1, 8, nbits, [5, 0, 0, 300])
    for query_tokens in (1, 32, 45, 512):
        yield approximate_case(query_tokens, [1, 0, 30, 7, 200])
    for m in (1, 3, 4, 11, 130):
        for k in (2, 30, 384, 514, 1536, 8192):
            for n in (1, 16, 70):
                yield dense_case(m, k, n)
    for lengths in ([1, 37, 0, 5, 200, 2], [4], [161, 160, 3]):
        yield trunk_case(lengths, 1, weights=False)
        yield trunk_case(lengths, 1, weights=True)
        yield trunk_case(lengths, 2, weights=True)
    for m, n in ((1, 8), (9, 100), (6, 128), (4, 32)):
        yield project_case(m, 64, n)


def main(path: Path) -> None:
    with path.open("wb") as file:
        for case in cases():
            for array in case:
                values = np.ascontiguousarray(array)
                file.write(header(values.itemsize, values.size).tobytes() + values.tobytes())
        file.write(header(8, 1, END).tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
