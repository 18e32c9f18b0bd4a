"""A pipeline that answers at once: word overlap for stage 1, the same doubled for stage 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hybrid_retrieval.evaluation.bm25 import BM25
from hybrid_retrieval.types import Passage, Ranking


class WordPipeline:
    """Stage 1 is BM25 (every passage, ties by row); stage 2 doubles the score."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = list(passages)
        self.bm25 = BM25(passage.text for passage in self.passages)
        self.calls: list[tuple[int, int, int | None, bool]] = []

    def query_batch(
        self, queries: Sequence[str], k: int = 10, *, num_candidates: int | None = None, rerank: bool = True
    ) -> list[Ranking]:
        self.calls.append((len(queries), k, num_candidates, rerank))
        return [self._answer(query, k, rerank) for query in queries]

    def _answer(self, query: str, k: int, rerank: bool) -> Ranking:
        scores = self.bm25.scores(query).astype(np.float32)
        rows = np.argsort(-scores, kind="stable")[:k]
        timings = {"encode": 1.0, "search": 2.0} | ({"rerank": 10.0} if rerank else {})
        passages = tuple(self.passages[row] for row in rows)
        return Ranking(
            ids=tuple(passage.passage_id for passage in passages),
            scores=scores[rows] * (2 if rerank else 1),
            retrieval_scores=scores[rows],
            retrieval_ranks=np.arange(1, len(rows) + 1),
            reranker_scores=scores[rows] * 2 if rerank else None,
            passages=passages,
            timings_ms=timings,
        )
