"""A collection's queries through a pipeline: the run, its measures, and how long each stage took."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hybrid_retrieval.corpus.dataset import Dataset
from hybrid_retrieval.corpus.queries import Qrels
from hybrid_retrieval.corpus.runs import Run
from hybrid_retrieval.errors import ConfigError, CorpusError, QueryError
from hybrid_retrieval.evaluation.kept_lines import KeptLines, are_ids, are_scores
from hybrid_retrieval.evaluation.measures import evaluate, parse_measures
from hybrid_retrieval.index import Index
from hybrid_retrieval.types import Query, Ranking, check_query

Progress = Callable[[str, int, int], None]
Latency = dict[str, dict[str, float]]
# Deep enough for the usual cut-offs of recall, whatever measures are asked for.
MIN_DEPTH = 100
_KEYS = frozenset({"query_id", "query", "ids", "scores", "timings_ms"})
_EXPECTED = "its passages' ids, as many finite scores, and milliseconds by stage"


class AnswersQueries(Protocol):
    """What is measured: `hybrid_retrieval.pipeline.Pipeline`, or anything that answers like it."""

    def query_batch(
        self, queries: Sequence[str], k: int = 10, *, num_candidates: int | None = None, rerank: bool = True
    ) -> list[Ranking]: ...


@dataclass(frozen=True, slots=True)
class Evaluation:
    """run: query id -> passage id -> score, best first. measures: name -> mean. queries: how many were asked.
    latency_ms: stage -> {"p50", "p95"} over the queries, and their sum as "total"."""

    run: Run
    measures: dict[str, float]
    queries: int
    latency_ms: Latency


def run_dataset(
    pipeline: AnswersQueries,
    dataset: Dataset,
    measures: str | Sequence[Any],
    *,
    k: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    num_candidates: int | None = None,
    rerank: bool = True,
    identity: Mapping[str, Any] | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask every query of the dataset, or `sample` of them drawn with `seed`, and measure the rankings.

    k: how deep each ranking goes; by default the deepest cut-off of the measures, and at least 100. A measure without a
    cut-off sees k passages, by default 100, whatever else is measured. The reranker scores `num_candidates` of them,
    the pipeline's own number by default; stage 1's order follows below those. store: a file to keep answers in and to
    take them from (`kept_lines`); identity: what the answers depend on (models, index, settings), for that file.
    progress: called with ("queries", done, total).
    """
    wanted = parse_measures(measures) if isinstance(measures, str) else list(measures)
    queries = sampled(dataset.queries, sample, seed)
    check_queries(queries)
    depth = depth_of(wanted) if k is None else k
    if num_candidates is None:
        num_candidates = own_candidates(pipeline)
    header = {"format": 1, "depth": depth, "num_candidates": num_candidates, "rerank": rerank, **(identity or {})}
    kept = None if store is None else KeptLines(Path(store), header, "answers", _KEYS, _is_sound, _EXPECTED)
    known = {} if kept is None else kept.read()
    rankings: list[Ranking] = []
    for query in queries:  # one at a time: a share of a batch's time is not what a query waits
        line = known.get(query.query_id, {})
        if line.get("query") != query.text:
            (found,) = pipeline.query_batch([query.text], depth, num_candidates=num_candidates, rerank=rerank)
            line = _line(query, found)
            if kept is not None:
                kept.add([line])
        scores = np.array(line["scores"], np.float32)
        rankings.append(Ranking(tuple(line["ids"]), scores, timings_ms=line["timings_ms"]))
        if progress is not None:
            progress("queries", len(rankings), len(queries))
    run = run_of(queries, rankings)
    judged: Qrels = {query.query_id: dataset.qrels[query.query_id] for query in queries}
    return Evaluation(run, _measured_to(run, judged, wanted, k), len(queries), latency_of(rankings))


def _line(query: Query, ranking: Ranking) -> dict[str, Any]:
    """What is kept of an answer."""
    return {
        "query_id": query.query_id,
        "query": query.text,
        "ids": list(ranking.ids),
        "scores": [float(score) for score in ranking.scores],
        "timings_ms": dict(ranking.timings_ms),
    }


def _is_sound(line: Mapping[str, Any]) -> bool:
    ids, scores, timings = line["ids"], line["scores"], line["timings_ms"]
    timed = isinstance(timings, dict) and are_scores(list(timings.values()))
    return timed and are_ids(ids) and are_scores(scores) and len(scores) == len(ids)


def _measured_to(run: Run, judged: Qrels, wanted: Sequence[Any], k: int | None) -> dict[str, float]:
    """The measures, those without a cut-off of the first `k` or `MIN_DEPTH` passages."""
    depth = MIN_DEPTH if k is None else k
    cut = {query_id: dict(list(scores.items())[:depth]) for query_id, scores in run.items()}
    with_cutoff = [measure for measure in wanted if measure.params.get("cutoff")]
    without = [measure for measure in wanted if not measure.params.get("cutoff")]
    found = evaluate(run, judged, with_cutoff) if with_cutoff else {}
    found |= evaluate(cut, judged, without) if without else {}
    return {str(measure): found[str(measure)] for measure in wanted}


def check_queries(queries: Sequence[Query]) -> None:
    """Raise `QueryError` that names the first query that no pipeline could answer."""
    for query in queries:
        try:
            check_query(query.text)
        except QueryError as error:
            raise QueryError(f"query '{query.query_id}': {error}") from None


def check_collection(index: Index, dataset: Dataset) -> None:
    """Raise `CorpusError` where the index holds none of the passages that the dataset judges: it is of another
    collection, and every measure would be 0; so it would where no passage is relevant to anything."""
    judged = {passage_id for grades in dataset.qrels.values() for passage_id in grades}
    if not any(grade > 0 for grades in dataset.qrels.values() for grade in grades.values()):
        raise CorpusError(
            f"{dataset.folder}: no passage is judged relevant to any query of the split '{dataset.split}' (a score "
            "above 0): every measure would be 0"
        )
    if all(index.row_of(passage_id) is None for passage_id in judged):
        raise CorpusError(
            f"{dataset.folder}: none of the {len(judged):,} judged passages is in {index.path}, first "
            f"'{min(judged)}': the index is of another collection"
        )


def missing_passages(index: Index, dataset: Dataset, queries: Iterable[str]) -> int:
    """How many passages that are judged relevant to these queries (ids) are not in the index: they cannot be found."""
    judged = (dataset.qrels[query_id].items() for query_id in queries)
    relevant = {passage_id for grades in judged for passage_id, grade in grades if grade > 0}
    return sum(index.row_of(passage_id) is None for passage_id in relevant)


def own_candidates(pipeline: Any) -> int | None:
    """The number of candidates in the pipeline's configuration. A pipeline asked for a deep ranking would
    otherwise rerank all of it, and figures would not be those of its everyday use."""
    config = getattr(pipeline, "config", None)
    return None if config is None else int(config.search.num_candidates)


def sampled(queries: Sequence[Query], sample: int | None, seed: int = 0) -> list[Query]:
    """All queries, or so many drawn without replacement, in their own order. Raises `ConfigError` for sample
    < 1."""
    if sample is not None and sample < 1:
        raise ConfigError(f"sample must be at least 1, got {sample}")
    if sample is None or sample >= len(queries):
        return list(queries)
    chosen = np.random.default_rng(seed).choice(len(queries), sample, replace=False)
    return [queries[i] for i in np.sort(chosen)]


def depth_of(measures: Iterable[Any]) -> int:
    """The deepest cut-off among the measures, and at least 100."""
    return max([MIN_DEPTH, *(measure.params.get("cutoff") or 0 for measure in measures)])


def run_of(queries: Sequence[Query], rankings: Sequence[Ranking]) -> Run:
    """query id -> passage id -> score, best first."""
    return {
        query.query_id: dict(zip(ranking.ids, map(float, ranking.scores), strict=True))
        for query, ranking in zip(queries, rankings, strict=True)
    }


def latency_of(rankings: Sequence[Ranking]) -> Latency:
    """Median and 95th percentile of each stage's milliseconds, and of their sum for a query as "total"."""
    timings: list[Mapping[str, float]] = [ranking.timings_ms for ranking in rankings if ranking.timings_ms]
    stages = list(dict.fromkeys(stage for timing in timings for stage in timing))
    columns = {stage: [timing[stage] for timing in timings if stage in timing] for stage in stages}
    if timings:
        columns["total"] = [sum(timing.values()) for timing in timings]
    return {
        stage: {"p50": float(np.percentile(values, 50)), "p95": float(np.percentile(values, 95))}
        for stage, values in columns.items()
    }
