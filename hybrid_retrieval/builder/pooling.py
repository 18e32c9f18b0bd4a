"""Token pooling: fewer vectors a window, each the mean of some that lie close together.

Clavié, Chaffin and Adams, "Reducing the Footprint of Multi-Vector Retrieval with Minimal Performance Loss via Token
Pooling" (2024): Ward's hierarchical clustering of a passage's token vectors, to its length over the factor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.kernels.reference import Float32, products
from hybrid_retrieval.ragged import Ragged


def pool_windows(windows: Ragged, factor: int) -> Ragged:
    """Each window's unit vectors pooled to max(length // factor, 1) unit vectors; an empty window stays empty.

    windows: float [T, D], unit rows. Pooled vectors, float32, stand in the order of their clusters' first tokens. A
    window's result depends on nothing beside it.
    """
    if factor == 1:
        return windows
    rows = [pool_vectors(np.asarray(row, np.float32), factor) for row in windows]
    return Ragged.from_rows(rows, dtype=np.float32, tail=windows.data.shape[1:])


def pool_vectors(vectors: Float32, factor: int) -> Float32:
    """`pool_windows` for one window [n, D]."""
    labels = ward_labels(vectors, max(len(vectors) // factor, 1))
    count = int(labels.max()) + 1 if len(labels) else 0
    sums = np.zeros((count, vectors.shape[1]), np.float32)
    np.add.at(sums, labels, vectors)
    norms = np.sqrt(np.einsum("cd,cd->c", sums, sums))
    # Vectors that cancel each other out have no direction in common: the first stands for them.
    lost = norms < 1e-6
    first = np.unique(labels, return_index=True)[1]
    sums[lost], norms[lost] = vectors[first[lost]], 1
    pooled: Float32 = sums / norms[:, None]
    return pooled


def ward_labels(vectors: Float32, clusters: int) -> NDArray[np.int64]:
    """int64 [n]: the cluster of each vector by Ward's criterion, numbered by their first members.

    Starts from single vectors and merges, again and again, the two clusters whose union adds least to the sum of
    squared distances from the cluster means; the earlier pair among equals. Lance and Williams's recurrence keeps
    the costs.
    """
    n = len(vectors)
    labels = np.arange(n)
    if n <= clusters:
        return labels
    squares = np.einsum("td,td->t", vectors, vectors)
    costs = (squares[:, None] + squares[None, :] - 2 * products(vectors, vectors)).astype(np.float64)
    costs = np.maximum(np.minimum(costs, costs.T), 0)
    np.fill_diagonal(costs, np.inf)
    sizes = np.ones(n)
    for _ in range(n - clusters):
        kept, merged = divmod(int(np.argmin(costs)), n)  # the first of a symmetric matrix's minima: kept < merged
        total = sizes + sizes[kept] + sizes[merged]
        row = (
            (sizes + sizes[kept]) * costs[kept] + (sizes + sizes[merged]) * costs[merged] - sizes * costs[kept, merged]
        ) / total
        row[kept] = row[merged] = np.inf
        costs[kept], costs[:, kept] = row, row
        costs[merged], costs[:, merged] = np.inf, np.inf
        sizes[kept] += sizes[merged]
        labels[labels == merged] = kept
    return np.unique(labels, return_inverse=True)[1].reshape(-1)
