"""The four steps of stage 1 on the native kernels; where they differ from `steps`, each says how."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.codec import ResidualCodec
from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.kernels.reference import Float32, bucket_table
from hybrid_retrieval.storage import Segment

Int64 = NDArray[np.int64]

# Below this a part of the work is not worth a thread: tokens that are approximated, and tokens that are scored.
APPROXIMATED_A_THREAD, SCORED_A_THREAD = 2_000_000, 16_384
# Of so many centroids, and of more than so many for each token that is scored in any case, most have no token that is
# scored: only those that have one get scores in float32.
MANY_CENTROIDS, CENTROIDS_A_TOKEN = 16_384, 2


class CentroidScores(NamedTuple):
    """values: float32 [K, S], S is the query's tokens rounded up to 32. least, most: over centroids and tokens.
    known: uint8 [K], which rows of values are there so far, or None for all; then table is `NativeCodec.table`."""

    values: Float32
    least: float
    most: float
    known: NDArray[np.uint8] | None = None
    table: NDArray[np.uint8] | None = None

    def of_levels(self, levels: NDArray[np.int32], tokens: int) -> Float32:
        """The scores that sums of `NativeCodec.table`'s levels over `tokens` query tokens stand for."""
        step = (self.most - self.least) / 255
        scores: Float32 = (levels * step + tokens * self.least).astype(np.float32)
        return scores


class NativeCodec:
    """A codec as the native kernels read it. Safe to share between threads."""

    def __init__(self, codec: ResidualCodec, variant: str) -> None:
        buckets = bucket_table(codec.nbits)
        self._num_centroids, self._nbits = codec.num_centroids, codec.nbits
        self._codec: Any = dispatch.module().Codec(
            variant, np.ascontiguousarray(codec.centroids), np.ascontiguousarray(codec.weights), buckets
        )

    def centroid_scores(self, query: Float32, scored: float) -> CentroidScores:
        """Step 1: every centroid with every query token [Lq, D]. scored: passage tokens that will be scored in any
        case; where these are few for the centroids, levels come from scores to about .002."""
        least = max(MANY_CENTROIDS, CENTROIDS_A_TOKEN * scored)
        if self._codec.rough_levels and self._num_centroids >= least:
            table, low, high = self._codec.level_table(query)
            return CentroidScores(np.empty(table.shape, np.float32), low, high, np.zeros(len(table), np.uint8), table)
        return CentroidScores(*self._codec.centroid_scores(query))

    def table(self, scores: CentroidScores, tokens: int) -> NDArray[np.uint8]:
        """uint8 [K, S]: the scores on 256 levels, one scale for all query tokens so that levels can be added; padding
        is 0."""
        if scores.table is not None:
            return scores.table
        table: NDArray[np.uint8] = self._codec.levels(scores.values, tokens, scores.least, scores.most)
        return table

    def candidate_windows(
        self,
        table: NDArray[np.uint8],
        tokens: int,
        nprobe: int,
        segment: Segment,
        allowed: NDArray[np.bool_] | None,
        most: int,
    ) -> tuple[Int64, int]:
        """Step 2. Of the windows in the lists of each query token's `nprobe` best centroids the `most` of which the
        lists promise most (by how many levels the best probed centroids lie above the last probed ones), rising, ties
        by window; and how many windows the lists name. allowed: bool [W], or None for all."""
        windows, _, named = self._codec.candidates(
            table,
            tokens,
            nprobe,
            segment.lists,
            segment.list_offsets,
            segment.num_windows,
            most,
            None if allowed is None else allowed.view(np.uint8),
        )
        return windows.astype(np.int64), named

    def approximate_scores(
        self, table: NDArray[np.uint8], segment: Segment, windows: Int64, threads: int
    ) -> NDArray[np.int32]:
        """Step 3. int32: levels of MaxSim with each passage token replaced by its centroid (nothing is imputed: every
        token of the window counts); -1 for a window without tokens."""
        starts = segment.token_offsets[windows]
        lengths = segment.token_offsets[windows + 1] - starts
        result: NDArray[np.int32] = _shared(
            lambda part: self._codec.approximate(table, segment.codes, starts[part], lengths[part]),
            lengths,
            threads,
            APPROXIMATED_A_THREAD,
        )
        return result

    @property
    def estimates(self) -> bool:
        """Whether `scores` can be estimated, and that is cheaper: of one bit the tables are as quick."""
        return bool(self._codec.estimates) and self._nbits > 1

    def scores(
        self,
        query: Float32,
        centroid: CentroidScores,
        segment: Segment,
        inverse_norms: Float32,
        windows: Int64,
        threads: int,
        roughly: bool,
    ) -> Float32:
        """Step 4. float32 [2, W]: MaxSim of windows from their packed residuals, each similarity to 2e-4 of those of
        `steps.exact_scores`, and zeros; or, roughly, estimates of that, mostly to .005, and what each is wrong by at
        most, which is sure. A window without tokens has -inf and 0.

        inverse_norms: float32 [T] of the segment, zeros at first: filled in for the tokens that are scored, and read
        the next time.
        """
        starts = segment.token_offsets[windows]
        lengths = segment.token_offsets[windows + 1] - starts
        if centroid.known is not None:
            self._codec.fill_scores(query, centroid.values, centroid.known, segment.codes, starts, lengths)
        kernel = self._codec.estimate if roughly else self._codec.maxsim

        def part(chosen: slice) -> Float32:
            tokens = segment.codes, segment.residuals, inverse_norms
            found: Float32 = kernel(query, centroid.values, *tokens, starts[chosen], lengths[chosen])
            return found if roughly else np.stack([found, np.zeros_like(found)])

        result: Float32 = _shared(part, lengths, threads, SCORED_A_THREAD)
        return result


def _shared(work: Callable[[slice], Any], lengths: Int64, threads: int, worth: int) -> Any:
    """`work` over slices of the windows with about equally many tokens, at least `worth`, one a thread; its arrays,
    joined by windows, their last axis."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    parts = max(1, min(threads, total // worth))
    if parts == 1:
        return work(slice(0, len(lengths)))
    cuts = np.searchsorted(ends, np.linspace(0, total, parts + 1)[1:-1]).tolist()
    slices = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, len(lengths)], strict=True)]
    with ThreadPoolExecutor(parts) as pool:
        return np.concatenate(list(pool.map(work, slices)), axis=-1)
