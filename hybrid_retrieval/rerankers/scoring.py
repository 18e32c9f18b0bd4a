"""Pairs of token ids to logits: batched across queries, remembered, and timed."""

from __future__ import annotations

import heapq
import time
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
        word: list[int],
    ) -> None:
        """name: of the model, for messages. mean: a passage in windows gets the mean of their logits, else the highest.
        word: token ids of some word, to learn the pace with."""
        self.lanes = backend.lanes
        self._name, self._convention, self.backend = name, convention, backend
        self._mean, self._word = mean, word
        self._batches, self._pace = Batches(batch_tokens, name), Pace()
        self._cache: Cache[float] = Cache(cached_pairs)

    def score_pairs(self, groups: Sequence[Pairs]) -> list[NDArray[np.float32]]:
        """Logits float32 [N] of each group, the pairs of all groups batched together, longest with longest.

        Raises `ModelError` that names the pair for a logit that is NaN or infinite.
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
            found = self._forward([rows[i] for i in chosen], [starts[i] for i in chosen])
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
        """How long `score_pairs` will take at most, as far as batches so far tell; None before the first.

        Scores that are remembered cost nothing.
        """
        lengths = [len(row) for row, key in zip(pairs.rows, pairs.keys, strict=True) if key not in self._cache]
        ends = [0.0] * self.backend.devices
        for batch in plan_batches(lengths, self._batches.tokens):
            seconds = self._pace.predict(self._cost_tokens([lengths[i] for i in batch]))
            if seconds is None:
                return None
            heapq.heapreplace(ends, ends[0] + seconds)  # on the device that is free first
        return max(ends)

    def probe(self, seconds: float) -> None:
        """Learn the pace from two tiny batches, after one to warm up, whose time tells nothing unless it took all there
        was; none is begun that is known not to fit in `seconds`, by what was observed of late."""
        ends = time.perf_counter() + seconds
        for length, warms_up in ((4, True), (4, False), (16, False)):
            rows = [self._convention.join(self._word * length, self._word * length)] * self.lanes
            tokens = self._cost_tokens([len(row) for row in rows])
            if not self._fits(tokens, ends):
                self._pace.forget_stale()
                if not self._fits(tokens, ends):
                    return
            _, took = self._run(rows, [self._convention.passage_start(len(self._word) * length)] * self.lanes)
            if not warms_up or time.perf_counter() >= ends:  # else every query of no time would warm up anew
                self._pace.observe(tokens, took)

    def cache_info(self) -> CacheInfo:
        """Hits, misses, entries, capacity. A passage in windows counts once for each."""
        return self._cache.info()

    def _fits(self, tokens: int, ends: float) -> bool:
        """Whether a batch is not known to last beyond `ends`, on `time.perf_counter`."""
        left, predicted = ends - time.perf_counter(), self._pace.predict(tokens)
        return left > 0 and (predicted is None or predicted <= left)

    def _forward(self, rows: Sequence[NDArray[np.int32]], starts: Sequence[int]) -> NDArray[np.float32]:
        """Logits [B] of one batch; how long it took is learned."""
        logits, took = self._run(rows, starts)
        self._pace.observe(self._cost_tokens([len(row) for row in rows]), took)
        return logits

    def _run(self, rows: Sequence[NDArray[np.int32]], starts: Sequence[int]) -> tuple[NDArray[np.float32], float]:
        """Logits [B] of one batch, and the seconds that the backend took."""
        ids, mask = pad(rows, self._convention.pad_id)
        types = None
        if self._convention.token_types:
            types = (np.arange(ids.shape[1]) >= np.array(starts)[:, None]).astype(np.int64) * mask
        began = time.perf_counter()
        logits = self.backend.forward(ids, mask, types)
        return logits, time.perf_counter() - began

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
