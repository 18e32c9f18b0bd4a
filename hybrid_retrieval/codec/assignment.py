"""The nearest centroid of each vector: the same answer on any number of threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Vectors in one product. Threads share out whole blocks, and a block is always computed by one thread alone:
# where BLAS itself splits a product over threads, the last bit of a similarity, and with it a near tie,
# depends on how many.
BLOCK_VECTORS = 4096


def nearest_centroids(
    vectors: NDArray[np.float32],
    centroids: NDArray[np.float32],
    *,
    by: Literal["product", "distance"] = "product",
) -> NDArray[np.int64]:
    """int64 [T]: for each of the vectors [T, D] the centroid [K, D] of the largest product, or least
    distance."""
    import faiss

    metric = faiss.METRIC_INNER_PRODUCT if by == "product" else faiss.METRIC_L2

    def assign(start: int) -> NDArray[np.int64]:
        faiss.omp_set_num_threads(1)  # holds for the calling thread only
        block = np.ascontiguousarray(vectors[start : start + BLOCK_VECTORS], np.float32)
        found: NDArray[np.int64] = faiss.knn(block, centroids, 1, metric=metric)[1][:, 0]
        return found

    blocks = range(0, len(vectors), BLOCK_VECTORS)
    if not blocks:
        return np.empty(0, np.int64)
    with ThreadPoolExecutor(min(available_threads(), len(blocks))) as pool:
        return np.concatenate(list(pool.map(assign, blocks)))


def available_threads() -> int:
    """OMP_NUM_THREADS where it is set, else the processors that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
