"""The four steps of stage 1, each a function of arrays.

Axes: Lq query tokens, K centroids, W windows of a segment, C candidate windows, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.kernels.reference import Float32, PackedTokens, packed_maxsim, products
from hybrid_retrieval.ragged import expand_spans

Int64 = NDArray[np.int64]


def centroid_scores(query: Float32, centroids: Float32) -> Float32:
    """Step 1. float32 [Lq, K]: the product of every query token [Lq, D] with every centroid [K, D]."""
    return products(query, centroids)


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the probed lists say, one entry for each (query token, probed centroid, window in its list).

    windows: the C windows that occur, rising. token, window, score: [E]; window counts within `windows`.
    floor: float32 [Lq], the score of each query token's last probed centroid.
    """

    windows: Int64
    token: Int64
    window: Int64
    score: Float32
    floor: Float32


def candidate_windows(
    scores: Float32,
    lists: NDArray[np.uint32],
    list_offsets: Int64,
    nprobe: int,
    allowed: NDArray[np.bool_] | None,
) -> Candidates:
    """Step 2. The windows in the lists of each query token's `nprobe` best centroids.

    scores: float32 [Lq, K]. allowed: bool [W], or None for all: others are dropped here, before anything is
    pruned, so that a filtered top k is a true top k.
    """
    num_centroids = scores.shape[1]
    nprobe = min(nprobe, num_centroids)
    probed = np.argpartition(scores, num_centroids - nprobe, axis=1)[:, num_centroids - nprobe :]
    probed_scores = np.take_along_axis(scores, probed, axis=1)
    centroids = probed.ravel()
    starts = list_offsets[centroids]
    lengths = list_offsets[centroids + 1] - starts
    found = lists[expand_spans(starts, lengths)].astype(np.int64)
    token = np.repeat(np.repeat(np.arange(len(scores)), nprobe), lengths)
    score = np.repeat(probed_scores.ravel(), lengths)
    if allowed is not None:
        kept = allowed[found]
        found, token, score = found[kept], token[kept], score[kept]
    windows, window = np.unique(found, return_inverse=True)
    return Candidates(windows, token, window.reshape(-1), score, probed_scores.min(axis=1))


def approximate_scores(candidates: Candidates) -> Float32:
    """Step 3. float32 [C]: MaxSim with each passage token replaced by its centroid.

    Where no token of a window lies in a query token's probed lists, its similarity is at most that of the
    last probed centroid, and is taken to be that (WARP's imputation).
    """
    best = np.repeat(candidates.floor[:, None], len(candidates.windows), axis=1)
    np.maximum.at(best, (candidates.token, candidates.window), candidates.score)
    total: Float32 = best.sum(axis=0, dtype=np.float32)
    return total


def exact_scores(
    query: Float32, packed: PackedTokens, token_offsets: Int64, windows: Int64, *, threads: int
) -> Float32:
    """Step 4. float32: MaxSim of the given windows from their packed residuals; -inf for a window without
    tokens."""
    starts = token_offsets[windows]
    return packed_maxsim(query, packed, starts, token_offsets[windows + 1] - starts, threads=threads)
