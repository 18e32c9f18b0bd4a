"""What the demonstration shows, as plain values."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from hybrid_retrieval.corpus.queries import Qrels
from hybrid_retrieval.corpus.readers import read_corpus
from hybrid_retrieval.evaluation.bm25 import BM25
from hybrid_retrieval.evaluation.demo_data import LANGUAGES, demo_corpus, demo_qrels, demo_queries
from hybrid_retrieval.evaluation.measures import evaluate
from hybrid_retrieval.evaluation.runner import AnswersQueries, latency_of, own_candidates, run_of
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.types import Passage, Query, Ranking

Progress = Callable[[str, int, int], None]
MEASURES = "nDCG@10 R@100"
DEPTH = 100
SEED = 0

TOMATO_QUERY = "如何种植番茄?"
TOMATO_PASSAGES = (
    Passage(
        "english",
        "Tomatoes like warmth. Sow the seeds indoors in spring, plant the seedlings out in full sun once the "
        "nights are free of frost, water them at the root, and tie the growing stems to a stake.",
    ),
    Passage(
        "unrelated",
        "The central bank left its interest rate unchanged on Thursday, and said that inflation would return "
        "to its target by the end of next year.",
    ),
    Passage("chinese", "番茄喜温喜光。春季在室内播种育苗,霜冻过后移栽到阳光充足的地方,适量浇水,并搭架绑蔓。"),
)


class EncodesTexts(Protocol):
    """The part of `Encoder` used here."""

    def encode_queries(self, texts: Sequence[str]) -> Ragged: ...

    def encode_passages(self, texts: Sequence[str]) -> Ragged: ...


class RanksPassages(Protocol):
    """The part of `Reranker` used here."""

    def rank(self, query: str, passages: Sequence[Passage], k: int = 10) -> Ranking: ...


def drawn_ids(count: int, skip: int = 0) -> list[str]:
    """Ids of XQuAD questions drawn with a fixed seed; the same in every language."""
    ids = sorted(query.query_id for query in demo_queries("en"))
    order = np.random.default_rng(SEED).permutation(len(ids))
    return [ids[i] for i in order[skip : skip + count]]


def ask_examples(pipeline: AnswersQueries, k: int = 3) -> list[dict[str, Any]]:
    """One question a language, the first of the draw, with both stages' ranks and scores of the k best
    passages.

    Each: language, query_id, query, english (the same question), hits (`relevant`: written for this passage).
    """
    qrels = demo_qrels()
    english = {query.query_id: query.text for query in demo_queries("en")}
    examples: list[dict[str, Any]] = []
    for language, query_id in zip(LANGUAGES, drawn_ids(len(LANGUAGES)), strict=True):
        text = _texts(language)[query_id]
        (ranking,) = pipeline.query_batch([text], k)
        hits = [
            {
                "rank": hit.rank,
                "passage_id": hit.passage_id,
                "score": hit.score,
                "retrieval_rank": hit.retrieval_rank,
                "retrieval_score": hit.retrieval_score,
                "reranker_score": hit.reranker_score,
                "relevant": qrels[query_id].get(hit.passage_id, 0) > 0,
                "text": hit.text,
            }
            for hit in ranking
        ]
        examples.append(
            {
                "language": language,
                "query_id": query_id,
                "query": text,
                "english": english[query_id],
                "hits": hits,
                "timings_ms": dict(ranking.timings_ms),
            }
        )
    return examples


def measure_languages(
    pipeline: AnswersQueries, sample: int = 16, wide_sample: int = 100, progress: Progress | None = None
) -> dict[str, Any]:
    """nDCG@10 and R@100 by query language, the passages English, on the same questions in every language.

    sample: questions for BM25 (English alone: it matches words), stage 1 and both stages, all three on the
    same ones. wide_sample: questions for a second figure of BM25 and stage 1, which cost little; the sample
    is among them. Returns {"queries", "wide_queries", "seed", "num_candidates", "languages": {language:
    figures}}, where figures has `bm25`, `stage1`, `both`, `bm25_wide`, `stage1_wide` ({measure: mean} or
    None) and `latency_ms` (by stage).
    """
    # The first questions of the draw are those of the examples.
    wide_ids = drawn_ids(max(sample, wide_sample), skip=len(LANGUAGES))
    ids = wide_ids[:sample]
    qrels = demo_qrels()
    candidates = own_candidates(pipeline)
    languages: dict[str, dict[str, Any]] = {}
    for language in LANGUAGES:
        texts = _texts(language)
        queries = [Query(query_id, texts[query_id]) for query_id in wide_ids]
        # Both stages first: the encoder keeps the vectors of queries it has seen, and times would tell of
        # that.
        both: list[Ranking] = []
        for query in queries[:sample]:
            both += pipeline.query_batch([query.text], DEPTH, num_candidates=candidates)
            if progress is not None:
                progress(f"both stages, {LANGUAGES[language]} queries", len(both), sample)
        stage1 = pipeline.query_batch([query.text for query in queries], DEPTH, rerank=False)
        languages[language] = {
            "bm25": None,
            "stage1": _measured(queries[:sample], stage1[:sample], qrels),
            "both": _measured(queries[:sample], both, qrels),
            "bm25_wide": None,
            "stage1_wide": _measured(queries, stage1, qrels),
            "latency_ms": latency_of(both),
        }
    languages["en"] |= _measure_bm25(ids, wide_ids, qrels)
    return {
        "queries": len(ids),
        "wide_queries": len(wide_ids),
        "seed": SEED,
        "num_candidates": candidates,
        "languages": languages,
    }


def compare_tomato(encoder: EncodesTexts, reranker: RanksPassages) -> dict[str, Any]:
    """A Chinese question against an English, an unrelated and a Chinese passage, each stage alone, no index.

    Returns {"query", "passages": [{"passage_id", "text", "maxsim", "maxsim_rank", "reranker_score",
    "reranker_rank"}]}.
    """
    (query,) = encoder.encode_queries([TOMATO_QUERY])
    vectors = encoder.encode_passages([passage.text for passage in TOMATO_PASSAGES])
    maxsim = [float((query @ passage.T).max(axis=1).sum()) for passage in vectors]
    ranking = reranker.rank(TOMATO_QUERY, TOMATO_PASSAGES, k=len(TOMATO_PASSAGES))
    places = {hit.passage_id: hit for hit in ranking}
    return {
        "query": TOMATO_QUERY,
        "passages": [
            {
                "passage_id": passage.passage_id,
                "text": passage.text,
                "maxsim": score,
                "maxsim_rank": 1 + sum(other > score for other in maxsim),
                "reranker_score": places[passage.passage_id].score,
                "reranker_rank": places[passage.passage_id].rank,
            }
            for passage, score in zip(TOMATO_PASSAGES, maxsim, strict=True)
        ],
    }


def _texts(language: str) -> dict[str, str]:
    return {query.query_id: query.text for query in demo_queries(language)}


def _measured(queries: Sequence[Query], rankings: Sequence[Ranking], qrels: Qrels) -> dict[str, float]:
    judged = {query.query_id: qrels[query.query_id] for query in queries}
    return evaluate(run_of(queries, rankings), judged, MEASURES)


def _measure_bm25(ids: Sequence[str], wide_ids: Sequence[str], qrels: Qrels) -> dict[str, Any]:
    passages = list(read_corpus(demo_corpus()))
    index = BM25(passage.text for passage in passages)
    texts = _texts("en")
    run: dict[str, dict[str, float]] = {}
    start = time.perf_counter()
    for query_id in wide_ids:
        rows, scores = index.search(texts[query_id], DEPTH)
        found = zip(rows, scores, strict=True)
        run[query_id] = {passages[row].passage_id: float(score) for row, score in found}
    milliseconds = (time.perf_counter() - start) * 1e3 / len(wide_ids)
    return {
        "bm25": evaluate(run, {query_id: qrels[query_id] for query_id in ids}, MEASURES),
        "bm25_wide": evaluate(run, {query_id: qrels[query_id] for query_id in wide_ids}, MEASURES),
        "bm25_ms": milliseconds,
    }
