"""The nearest centroid of each vector: the same answer on any number of threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.kernels import dispatch

# Vectors in one product. Threads share out whole blocks, and a block is always computed by one thread alone:
# where BLAS itself splits a product over threads, the last bit of a similarity, and with it a near tie,
# depends on how many.
BLOCK_VECTORS = 4096


class Nearest(Protocol):
    """The number of each vector's centroid, int64 [T], for vectors float32 [T, D]."""

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]: ...


class MakeNearest(Protocol):
    """Where nearest centroids are found: `NearestCentroids` on a CPU, `kernels.device.DeviceCentroids` elsewhere.
    centroids: float32 [K, D]."""

    def __call__(self, centroids: NDArray[np.float32], *, by: Literal["product", "distance"] = ...) -> Nearest: ...


class NearestCentroids:
    """Finds each vector's centroid of the largest product, or least distance: by the native kernels of AVX-512 VNNI
    and AMX (which weighs products to about 1e-5), where the first of those that tie is taken, elsewhere by faiss. Safe
    to share between threads."""

    def __init__(self, centroids: NDArray[np.float32], *, by: Literal["product", "distance"] = "product") -> None:
        """centroids: float32 [K, D]."""
        self._centroids, self._by = np.ascontiguousarray(centroids), by
        variant = dispatch.variant()
        native = dispatch.takes(centroids.shape[1]) and dispatch.finds_nearest(variant)
        self._native = dispatch.module().Assigner(variant, self._centroids, by == "distance") if native else None

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        """int64 [T], for vectors [T, D]."""
        assign = self._by_faiss if self._native is None else self._by_kernels
        blocks = [vectors[start : start + BLOCK_VECTORS] for start in range(0, len(vectors), BLOCK_VECTORS)]
        if not blocks:
            return np.empty(0, np.int64)
        with ThreadPoolExecutor(min(available_threads(), len(blocks))) as pool:
            return np.concatenate(list(pool.map(assign, blocks)))

    def _by_kernels(self, block: NDArray[np.float32]) -> NDArray[np.int64]:
        assert self._native is not None
        found: NDArray[np.uint32] = self._native.nearest(np.ascontiguousarray(block, np.float32))
        return found.astype(np.int64)

    def _by_faiss(self, block: NDArray[np.float32]) -> NDArray[np.int64]:
        import faiss

        faiss.omp_set_num_threads(1)  # holds for the calling thread only
        metric = faiss.METRIC_INNER_PRODUCT if self._by == "product" else faiss.METRIC_L2
        block = np.ascontiguousarray(block, np.float32)
        found: NDArray[np.int64] = faiss.knn(block, self._centroids, 1, metric=metric)[1][:, 0]
        return found


def available_threads() -> int:
    """OMP_NUM_THREADS where it is set, else the processors that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
