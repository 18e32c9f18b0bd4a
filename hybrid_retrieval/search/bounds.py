"""What a passage that was not scored can score at most: the ground of `Ranking.recall_bound`.

Let v be a token's unit vector, c its centroid, and theta the angle between them; let phi be the angle between a query
token q and c. Angles obey the triangle inequality, so q and v are at least phi - theta apart, and

    q.v <= |q| cos(max(0, phi - theta)).

With theta_c, the widest angle of all tokens of centroid c, in place of theta the right side can only grow (cos falls on
[0, pi]). It depends on c alone; so its maximum over a window's centroids is at least the maximum of q.v over the
window's tokens, the sum over query tokens at least the window's MaxSim, and the best window's sum at least the
passage's score. A zero centroid has no angle: there the bound is |q|.

Residuals of trained encoders stand far from their centroids, and sure bounds are as wide as that: on such vectors few
pruned searches can be vouched for, however good they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.kernels.reference import Float32, PackedTokens
from hybrid_retrieval.ragged import expand_spans
from hybrid_retrieval.search.steps import centroid_scores
from hybrid_retrieval.storage import Segment

Int64 = NDArray[np.int64]

BLOCK_TOKENS = 16_384
# Scores are sums of rounded numbers. This much a query token's length is many times what any kernel is off by.
ROUNDING = 1e-3


def centroid_spreads(packed: PackedTokens) -> Float32:
    """float32 [K]: theta_c in radians, 0 for a centroid without tokens. Decodes every token once."""
    cosines = np.ones(len(packed.centroids), np.float32)
    lengths = np.linalg.norm(packed.centroids, axis=1)
    for start in range(0, len(packed.codes), BLOCK_TOKENS):
        tokens = slice(start, start + BLOCK_TOKENS)
        codes = packed.codes[tokens]
        products = np.einsum("td,td->t", packed.decode(tokens), packed.centroids[codes])
        np.minimum.at(cosines, codes, products / np.maximum(lengths[codes], np.float32(1e-12)))
    spreads: Float32 = np.arccos(np.clip(cosines, -1, 1))
    return spreads


def similarity_bounds(query: Float32, centroids: Float32, spreads: Float32) -> Float32:
    """float32 [Lq, K]: what a query token's similarity with any token of a centroid is at most."""
    lengths = np.linalg.norm(query, axis=1)[:, None]
    norms = np.linalg.norm(centroids, axis=1)[None, :]
    scales = lengths * norms
    cosines = centroid_scores(query, centroids) / np.maximum(scales, np.float32(1e-12))
    apart = np.arccos(np.clip(cosines, -1, 1)) - spreads
    bounds: Float32 = lengths * np.where(scales > 0, np.cos(np.maximum(apart, 0)), 1).astype(np.float32)
    return bounds


def row_bounds(bounds: Float32, segment: Segment, rows: Int64) -> Float32:
    """float32 [n]: what each of the rows, all of them with tokens, can score at most. bounds: `similarity_bounds`."""
    result = np.empty(len(rows), np.float32)
    firsts = segment.token_offsets[segment.window_offsets[rows]]
    ends = np.cumsum(segment.token_offsets[segment.window_offsets[rows + 1]] - firsts)
    start = 0
    while start < len(rows):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + BLOCK_TOKENS, side="right")))
        windows, first = segment.windows_of(rows[start:stop])
        begins = segment.token_offsets[windows]
        lengths = segment.token_offsets[windows + 1] - begins
        filled = lengths > 0
        tokens = expand_spans(begins[filled], lengths[filled])
        best = np.maximum.reduceat(
            bounds[:, segment.codes[tokens]], np.cumsum(lengths[filled]) - lengths[filled], axis=1
        )
        sums = np.full(len(windows), -np.inf, np.float32)
        sums[filled] = best.sum(axis=0, dtype=np.float32)
        result[start:stop] = np.maximum.reduceat(sums, first)
        start = stop
    return result


def recall_bound(scores: Float32, query: Float32, most: float) -> float:
    """The share of hits that no passage left unscored can push out, given that none scores more than `most`.

    scores: float32 [n], the hits'. A hit above `most` is outscored by scored passages alone, and so by fewer than n of
    them: exhaustive search returns it too.
    """
    slack = ROUNDING * float(np.linalg.norm(query, axis=1).sum())
    return float(np.mean(scores > most + slack)) if len(scores) else 1.0
