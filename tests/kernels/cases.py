"""Inputs for the native kernels, and what NumPy makes of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.kernels.reference import PackedTokens, bucket_table, packed_maxsim, weight_table

HIDDEN, HEADS, SIZE, INNER = 64, 2, 32, 48


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


class Tokens:
    """Random packed tokens in ragged windows."""

    def __init__(self, seed: int, lengths: list[int], *, dimensions: int, nbits: int, centroids: int) -> None:
        random = np.random.default_rng(seed)
        total = sum(lengths)
        self.centroids = unit(random.standard_normal((centroids, dimensions)))
        self.weights = np.sort(random.standard_normal(2**nbits) * 0.5 / math.sqrt(dimensions)).astype(np.float32)
        self.codes = random.integers(0, centroids, total).astype(np.uint32)
        self.residuals = random.integers(0, 256, (total, dimensions * nbits // 8)).astype(np.uint8)
        self.lengths = np.array(lengths, np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.nbits = nbits

    def codec(self, variant: str) -> Any:
        return dispatch.module().Codec(variant, self.centroids, self.weights, bucket_table(self.nbits))

    def native(self, variant: str, query: np.ndarray) -> np.ndarray:
        codec = self.codec(variant)
        scores, _, _ = codec.centroid_scores(query)
        return codec.maxsim(query, scores, self.codes, self.residuals, self.no_norms(), self.starts, self.lengths)

    def no_norms(self) -> np.ndarray:
        return np.zeros(len(self.codes), np.float32)

    def reference(self, query: np.ndarray) -> np.ndarray:
        packed = PackedTokens(self.codes, self.residuals, self.centroids, weight_table(self.weights))
        return packed_maxsim(query, packed, self.starts, self.lengths)


def quantised_product(x: np.ndarray, weight: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """What `dense` computes: rows of x on 256 levels between their least and largest, exact sums."""
    least = x.min(axis=1, keepdims=True, initial=np.inf)
    spread = x.max(axis=1, keepdims=True, initial=-np.inf) - least
    factor = np.divide(np.float32(255), spread, out=np.zeros_like(spread), where=spread > 0)
    sums = np.rint((x - least) * factor).astype(np.int64) @ weight.astype(np.int64)
    columns = weight.sum(axis=0, dtype=np.int64).astype(np.float32) * scale
    return sums.astype(np.float32) * (spread / np.float32(255) * scale) + (least * columns + bias)


def layer_arrays(random: np.random.Generator) -> list[np.ndarray]:
    def dense(k: int, n: int) -> list[np.ndarray]:
        scale = np.full(n, 1 / (73 * math.sqrt(k)), np.float32)
        return [random.integers(-127, 128, (k, n)).astype(np.int8), scale, random.normal(0, 0.1, n).astype(np.float32)]

    def norm() -> list[np.ndarray]:
        return [random.normal(1, 0.1, HIDDEN).astype(np.float32), random.normal(0, 0.1, HIDDEN).astype(np.float32)]

    width = HEADS * SIZE
    return [
        *dense(HIDDEN, 3 * width), *dense(width, HIDDEN), *norm(), *dense(HIDDEN, INNER), *dense(INNER, HIDDEN), *norm()
    ]  # fmt: skip


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-12) * weight + bias


def reference_layer(x: np.ndarray, arrays: list[np.ndarray], heads: int = HEADS) -> np.ndarray:
    """One BERT layer over one sequence [L, H], post-LayerNorm, exact GELU, with the quantised products."""
    qkv = quantised_product(x, *arrays[0:3])
    q, k, v = (part.reshape(len(x), heads, -1).transpose(1, 0, 2) for part in np.split(qkv, 3, axis=1))
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[2])
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    attended = (shares @ v).transpose(1, 0, 2).reshape(len(x), HEADS * SIZE).astype(np.float32)
    x = layer_norm(x + quantised_product(attended, *arrays[3:6]), *arrays[6:8]).astype(np.float32)
    inner = quantised_product(x, *arrays[8:11])
    erf = np.vectorize(math.erf)
    inner = (0.5 * inner * (1 + erf(inner / math.sqrt(2)))).astype(np.float32)
    return layer_norm(x + quantised_product(inner, *arrays[11:14]), *arrays[14:16]).astype(np.float32)
