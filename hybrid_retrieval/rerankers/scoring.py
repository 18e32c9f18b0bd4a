"""Pairs of token ids to logits: batched across queries, remembered, and timed."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.batching import Batches, pad, plan_batches
from hybrid_retrieval.cache import Cache, CacheInfo
from hybrid_retrieval.errors import ModelError
from hybrid_retrieval.rerankers.backend import RerankerBackend
from hybrid_retrieval.rerankers.pace import Pace
from hybrid_retrieval.rerankers.pairs import PairConvention, Pairs


class PairScorer:
    """Safe to share between threads. backend: runs the graph. lanes: rows that it works on side by side."""

    def __init__(
        self,
        name: str,
        convention: PairConvention,
        backend: RerankerBackend,
        *,
        mean: bool,
        batch_tokens: int,
        cached_pairs: int,
    ) -> None:
        """name: of the model, for messages. mean: a passage in windows gets their mean logit, else the highest."""
        self.lanes = backend.lanes
        self._name, self._convention, self.backend = name, convention, backend
        self._mean = mean
        self._batches, self._pace = Batches(batch_tokens, name), Pace(backend.devices)
        self._cache: Cache[float] = Cache(cached_pairs)

    def score_pairs(self, groups: Sequence[Pairs], ends: float = math.inf) -> list[NDArray[np.float32]]:
        """Logits float32 [N] of each group, the pairs of all groups batched together, longest with longest.

        ends: on `time.perf_counter`. Raises `OutOfTime` soon after it, where the backend can stop, and `ModelError`
        that names the pair for a logit that is NaN or infinite.
        """
        rows = [row for group in groups for row in group.rows]
        starts = [start for group in groups for start in group.passage_starts]
        keys = [key for group in groups for key in group.keys]
        logits = np.empty(len(rows), np.float32)
        waiting = []
        for i, key in enumerate(keys):
            known = self._cache.get(key)
            if known is None:
                waiting.append(i)
            else:
                logits[i] = known

        def forward(batch: list[int]) -> None:
            chosen = [waiting[position] for position in batch]
            found = self._forward([rows[i] for i in chosen], [starts[i] for i in chosen], ends)
            for i, logit in zip(chosen, found.tolist(), strict=True):
                if not np.isfinite(logit):
                    raise ModelError(f"{self._name} gave the logit {logit} for {_describe(groups, i)}")
                self._cache.put(keys[i], logit)
            logits[chosen] = found

        self._batches.run([len(rows[i]) for i in waiting], forward, self.backend.devices)
        bounds = np.cumsum([0, *(len(group.rows) for group in groups)]).tolist()
        return [
            self._pool(logits[bound : bound + len(group.rows)], group.offsets)
            for bound, group in zip(bounds, groups, strict=False)
        ]

    def predict_seconds(self, pairs: Pairs) -> float | None:
        """How long `score_pairs` will take, as far as the last batches tell; at most, where it cannot be stopped. None
        where nothing is known. Scores that are remembered cost nothing.
        """
        lengths = [len(row) for row, key in zip(pairs.rows, pairs.keys, strict=True) if key not in self._cache]
        ends = [0.0] * self.backend.devices
        for batch in plan_batches(lengths, self._batches.tokens):
            tokens = self._cost_tokens([lengths[i] for i in batch])
            seconds = self._pace.predict(tokens, at_most=not self.backend.stops)
            if seconds is None:
                return None
            heapq.heapreplace(ends, ends[0] + seconds)  # on the device that is free first
        return max(ends)

    def cache_info(self) -> CacheInfo:
        """Hits, misses, entries, capacity. A passage in windows counts once for each."""
        return self._cache.info()

    def _forward(self, rows: Sequence[NDArray[np.int32]], starts: Sequence[int], ends: float) -> NDArray[np.float32]:
        """Logits [B] of one batch; how long it took is learned."""
        ids, mask = pad(rows, self._convention.pad_id)
        types = None
        if self._convention.token_types:
            types = (np.arange(ids.shape[1]) >= np.array(starts)[:, None]).astype(np.int64) * mask
        with self._pace.timing(self._cost_tokens([len(row) for row in rows])):
            return self.backend.forward(ids, mask, types, ends)

    def _cost_tokens(self, lengths: Sequence[int]) -> int:
        """Tokens of a batch as it is paid for: every row as the longest, and every lane busy to the end."""
        return max(lengths) * -(-len(lengths) // self.lanes) * self.lanes

    def _pool(self, logits: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        """One logit a passage from those of its windows."""
        if len(logits) == len(offsets) - 1:
            return logits
        if self._mean:
            sums = np.add.reduceat(logits.astype(np.float64), offsets[:-1])
            return (sums / np.diff(offsets)).astype(np.float32)
        best: NDArray[np.float32] = np.maximum.reduceat(logits, offsets[:-1])
        return best


def _describe(groups: Sequence[Pairs], row: int) -> str:
    """The pair that row `row` of all groups belongs to."""
    for group in groups:
        if row < len(group.rows):
            return f"{group.name_of_row(row)} with the query '{group.query:.80}'"
        row -= len(group.rows)
    raise IndexError(f"no row {row}")
