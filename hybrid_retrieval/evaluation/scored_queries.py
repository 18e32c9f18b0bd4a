"""Judged questions with both stages' scores of their candidates: what a fusion is fitted on. Kept in a file on request.

The file has a line for the models, the index and the depth, then a line a question. A run that was interrupted goes on
from it; one of other models, another index or another depth is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.corpus.dataset import Dataset
from hybrid_retrieval.errors import ConfigError, CorpusError
from hybrid_retrieval.evaluation.runner import AnswersQueries, Progress, check_queries
from hybrid_retrieval.types import Query, Ranking, is_number

# The fused order is judged by nDCG@10: fewer candidates would leave ranks empty.
MIN_DEPTH = 10
_CHUNK = 8
# Less than the largest float32; NaN is not less.
_MOST_SCORE = 1e38
_KEYS = {"query_id", "query", "ids", "retrieval_scores", "logits"}


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
    found = _read(Path(store), header) if store is not None else {}
    missing = [query for query in queries if found.get(query.query_id, {}).get("query") != query.text]
    done = len(queries) - len(missing)
    for start in range(0, len(missing), _CHUNK):
        chunk = missing[start : start + _CHUNK]
        depth = max(num_candidates, MIN_DEPTH)
        rankings = pipeline.query_batch([query.text for query in chunk], depth, num_candidates=num_candidates)
        rows = [_row(query, ranking) for query, ranking in zip(chunk, rankings, strict=True)]
        if store is not None:
            with Path(store).open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
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


def _read(path: Path, header: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """query id -> line. Makes the file where there is none; cuts a last line that an interruption left torn. A file of
    anything else is left as it is."""
    begin = json.dumps(header).encode() + b"\n"
    try:
        content = path.read_bytes() if path.exists() else b""
        if begin.startswith(content):
            path.write_bytes(begin)
            return {}
        whole = content[: content.rfind(b"\n") + 1]
        found = _rows(whole, path, header)
        if len(whole) < len(content):
            path.write_bytes(whole)
    except OSError as error:
        raise ConfigError(f"{path}: scores cannot be kept there ({error.strerror or error})") from None
    return found


def _rows(content: bytes, path: Path, header: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The lines behind the header, by query id. Raises `CorpusError` where `content` is not of this header."""
    try:
        lines = [json.loads(line) for line in content.split(b"\n")[:-1]]
    except ValueError as error:
        raise CorpusError(f"{path}: not a file of scores ({error})") from None
    if not lines or not all(isinstance(line, dict) for line in lines):
        raise CorpusError(f"{path}: not a file of scores (a line is no JSON object)")
    if lines[0] != header:
        differing = sorted(key for key in {*header, *lines[0]} if lines[0].get(key) != header.get(key))
        raise CorpusError(
            f"{path}: these scores come from another run (it differs in {', '.join(differing)}): name another file, or "
            "remove this one"
        )
    for number, row in enumerate(lines[1:], 2):
        if set(row) != _KEYS:
            raise CorpusError(f"{path}:{number}: expected the keys {', '.join(sorted(_KEYS))}")
        if not _is_sound(row):
            raise CorpusError(
                f"{path}:{number}: expected a question's id and text, its candidates' ids, as many retrieval_scores, "
                "and 1 to as many logits, all finite: remove the line, and it is scored anew"
            )
    return {row["query_id"]: row for row in lines[1:]}


def _is_sound(row: Mapping[str, Any]) -> bool:
    ids, scores, logits = row["ids"], row["retrieval_scores"], row["logits"]
    return (
        isinstance(row["query_id"], str)
        and isinstance(row["query"], str)
        and all(isinstance(values, list) for values in (ids, scores, logits))
        and all(isinstance(passage_id, str) for passage_id in ids)
        and all(is_number(value) and abs(value) < _MOST_SCORE for value in (*scores, *logits))
        and len(scores) == len(ids) == len(set(ids))
        and 0 < len(logits) <= len(ids)
    )
