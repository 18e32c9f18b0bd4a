"""Judged questions with both stages' scores of their candidates: what a fusion is fitted on. Kept in a file on request
(`kept_lines`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.corpus.dataset import Dataset
from hybrid_retrieval.errors import ConfigError
from hybrid_retrieval.evaluation.kept_lines import KeptLines, are_ids, are_scores
from hybrid_retrieval.evaluation.runner import AnswersQueries, Progress, check_queries
from hybrid_retrieval.types import Query, Ranking

# The fused order is judged by nDCG@10: fewer candidates would leave ranks empty.
MIN_DEPTH = 10
_CHUNK = 8
_KEYS = frozenset({"query_id", "query", "ids", "retrieval_scores", "logits"})


@dataclass(frozen=True, slots=True, eq=False)
class ScoredQuery:
    """Candidates of one question, best of stage 1 first.

    retrieval_scores: float32 [N], MaxSim. logits: float32 [M], of the first M <= N. gains: float64 [N], what the
    judgements say of each (0 for none). ideal: float64 [R], all positive judgements of the question, best first.
    """

    query_id: str
    retrieval_scores: NDArray[np.float32]
    logits: NDArray[np.float32]
    gains: NDArray[np.float64]
    ideal: NDArray[np.float64]


def score_queries(
    pipeline: AnswersQueries,
    dataset: Dataset,
    queries: Sequence[Query],
    *,
    num_candidates: int,
    identity: Mapping[str, Any],
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> list[ScoredQuery]:
    """Retrieve and rescore each of `queries`, in their order.

    pipeline: both stages, ordering by whatever it likes. identity: what the scores depend on (models, index), for the
    store. store: a file to keep scores in and to take them from. progress: called with ("questions", done, total).
    """
    check_queries(queries)
    header = {"format": 1, "num_candidates": num_candidates, **identity}
    kept = None if store is None else KeptLines(Path(store), header, "scores", _KEYS, _is_sound, _EXPECTED)
    found = {} if kept is None else kept.read()
    missing = [query for query in queries if found.get(query.query_id, {}).get("query") != query.text]
    done = len(queries) - len(missing)
    for start in range(0, len(missing), _CHUNK):
        chunk = missing[start : start + _CHUNK]
        depth = max(num_candidates, MIN_DEPTH)
        rankings = pipeline.query_batch([query.text for query in chunk], depth, num_candidates=num_candidates)
        rows = [_row(query, ranking) for query, ranking in zip(chunk, rankings, strict=True)]
        if kept is not None:
            kept.add(rows)
        found |= {row["query_id"]: row for row in rows}
        done += len(chunk)
        if progress is not None:
            progress("questions", done, len(queries))
    return [_judged(found[query.query_id], dataset) for query in queries]


def _row(query: Query, ranking: Ranking) -> dict[str, Any]:
    """A line of the store: stage 1's order, whatever the ranking's is."""
    ranks, retrieval, logits = ranking.retrieval_ranks, ranking.retrieval_scores, ranking.reranker_scores
    if ranks is None or retrieval is None or logits is None:
        raise ConfigError("fitting a fusion needs both stages: the configuration names no reranker")
    order = np.argsort(ranks)
    rescored = logits[order]
    return {
        "query_id": query.query_id,
        "query": query.text,
        "ids": [ranking.ids[i] for i in order],
        "retrieval_scores": [float(score) for score in retrieval[order]],
        "logits": [float(logit) for logit in rescored[~np.isnan(rescored)]],
    }


def _judged(row: Mapping[str, Any], dataset: Dataset) -> ScoredQuery:
    judged = dataset.qrels[row["query_id"]]
    return ScoredQuery(
        row["query_id"],
        np.array(row["retrieval_scores"], np.float32),
        np.array(row["logits"], np.float32),
        np.array([max(judged.get(passage_id, 0), 0) for passage_id in row["ids"]], np.float64),
        np.array(sorted((grade for grade in judged.values() if grade > 0), reverse=True), np.float64),
    )


_EXPECTED = "its candidates' ids, as many retrieval_scores, and 1 to as many logits, all finite"


def _is_sound(row: Mapping[str, Any]) -> bool:
    ids, scores, logits = row["ids"], row["retrieval_scores"], row["logits"]
    known = are_ids(ids) and are_scores(scores) and are_scores(logits)
    return known and len(scores) == len(ids) and 0 < len(logits) <= len(ids)
