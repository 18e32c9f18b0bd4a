"""The pipeline: encode the query, find candidates by MaxSim, rescore them with the cross-encoder, fuse, cut at k."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.cache import CacheInfo
from hybrid_retrieval.config import PipelineConfig
from hybrid_retrieval.encoders import Encoder
from hybrid_retrieval.errors import InputError, ModelError, QueryError
from hybrid_retrieval.fusion import Fusion, fuse
from hybrid_retrieval.index import Index, load_encoder, load_reranker
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.rerankers import Reranker
from hybrid_retrieval.rescoring import Deadline, EarlyStop, Plan, Work, may_enter, rescore
from hybrid_retrieval.types import Ranking, check_count, check_flag, is_blank, is_number

# Queries whose pairs are held and batched together: enough to fill batches, few enough to bound memory.
QUERIES_TOGETHER = 32


@dataclass(frozen=True, slots=True)
class TokenMatch:
    """One query token and the passage token that it matched best.

    similarity: what the match adds to the score, their cosine times `weight`. weight: how much the query token counts
    (1 but for an encoder that weighs them, whose weights have mean 1).
    """

    query_token: str
    passage_token: str
    passage_position: int
    similarity: float
    weight: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a passage scored what it did in stage 1: `retrieval_score` is the sum of the matches' similarities."""

    passage_id: str
    retrieval_score: float
    matches: tuple[TokenMatch, ...]


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Stage 1's result for one query, best first."""

    query: str
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    timings_ms: dict[str, float]
    notes: tuple[str, ...]


class Pipeline:
    """Both stages over one index. Safe to share between threads."""

    def __init__(
        self, index: Index, encoder: Encoder, reranker: Reranker | None = None, config: PipelineConfig | None = None
    ) -> None:
        """Raises `ModelMismatchError` where the index was built with another encoder than `encoder`, or the fusion file
        fitted with other models."""
        if not isinstance(index, Index):
            raise InputError(f"a pipeline needs an Index, got {index!r:.80}: open one, or use Pipeline.from_config")
        index.check_encoder(encoder.identity, encoder.name)
        self.index, self.encoder, self.reranker = index, encoder, reranker
        self.config = config or PipelineConfig()
        self.fusion = Fusion.of(
            self.config.fusion,
            encoder=(encoder.name, encoder.identity),
            reranker=None if reranker is None else (reranker.name, reranker.identity),
            recommended_weight=None if reranker is None else reranker.fusion_weight,
        )

    @classmethod
    def from_config(
        cls, config: str | Path | Mapping[str, Any] | PipelineConfig | None = None, *, index: str | Path | Index
    ) -> Pipeline:
        """Open an index with the models that a configuration names.

        config: a YAML file, a mapping, a `PipelineConfig`, or None for the configuration the index was built with.
        Raises `ConfigError`, what `Index.open` raises, `ModelMismatchError` where the index was built with another
        encoder, and what loading the models raises.
        """
        if not isinstance(index, Index):
            index = Index.open(index)
        if config is None:
            config = index.own_config()
        elif isinstance(config, (str, Path)):
            config = PipelineConfig.load(config)
        elif not isinstance(config, PipelineConfig):
            config = PipelineConfig.from_dict(config)
        encoder, reranker = load_encoder(config), load_reranker(config)
        if config.search.device != "cpu":  # last: the index takes what memory the models leave
            index.check_encoder(encoder.identity, encoder.name)
            index = index.to(config.search.device)
        return cls(index, encoder, reranker, config)

    def query(
        self,
        text: str,
        k: int = 10,
        *,
        num_candidates: int | None = None,
        rerank: bool = True,
        deadline_ms: float | None = None,
    ) -> Ranking:
        """The k best passages for one query.

        num_candidates: passages that the reranker scores; by default the configuration's, and no fewer than k. Of fewer
        than k that are asked for here, the rest follow in stage 1's order with no reranker score.
        rerank: False stops after stage 1, where num_candidates and deadline_ms have nothing to act on.
        deadline_ms: milliseconds from now after which the best ranking so far is returned: stage 2 goes in rounds, and
        what has no score by then goes without (`Ranking.rescored` and a note say how far it got). Stage 1 is never cut
        short: a deadline that leaves no time for stage 2 gives its order. Raises as `query_batch` does.
        """
        return self.query_batch([text], k, num_candidates=num_candidates, rerank=rerank, deadline_ms=deadline_ms)[0]

    def query_batch(
        self,
        queries: Iterable[str],
        k: int = 10,
        *,
        num_candidates: int | None = None,
        rerank: bool = True,
        deadline_ms: float | None = None,
    ) -> list[Ranking]:
        """One ranking for each query, in order; each is the ranking that `query` gives.

        The pairs of all queries are rescored together, and each ranking's `rerank` time is its share of that. With
        deadline_ms the queries are answered one after the other, each in that time.

        Raises `QueryError` for k < 1, num_candidates < 1, deadline_ms <= 0, or an empty or oversized query;
        `ModelError` that names query and passage where the reranker gives a NaN or an infinity.
        """
        if isinstance(queries, str):
            raise QueryError("query_batch takes a sequence of queries; got one string (use query for a single one)")
        if not isinstance(queries, Iterable) or isinstance(queries, Mapping):
            raise QueryError(f"query_batch takes a sequence of queries; got {type(queries).__name__}")
        queries = list(queries)
        check_request(k, num_candidates, deadline_ms)
        rerank = check_flag("rerank", rerank)
        rescored = max(self.config.search.num_candidates, k) if num_candidates is None else num_candidates
        reranker = self.reranker if rerank and self.fusion.rerank else None
        advised = rerank and self.reranker is not None
        together = QUERIES_TOGETHER if deadline_ms is None else 1
        rankings: list[Ranking] = []
        for first in range(0, len(queries), together):
            texts = queries[first : first + together]
            if reranker is None:
                rankings += self._stage_1_rankings(texts, k, advised=advised)
            else:
                rankings += self._both_stages(reranker, texts, k, rescored, deadline_ms)
        return rankings

    def cache_info(self) -> dict[str, CacheInfo]:
        """The caches by name, `query_vectors` and `pair_scores`: hits, misses, entries, capacity.

        They belong to the models, so pipelines that share a model share its cache.
        """
        caches = {"query_vectors": self.encoder.cache_info()}
        return caches if self.reranker is None else caches | {"pair_scores": self.reranker.cache_info()}

    def explain(self, query: str, passage_id: str) -> Explanation:
        """Which query token matched which passage token, and by how much, in the passage's best window.

        Similarities are those of the compressed vectors that the index searches. Raises `QueryError` for an unknown
        passage, and for an index whose token vectors were pooled: they belong to no one token.
        """
        pool_factor = self.index.pool_factor
        if pool_factor > 1:
            raise QueryError(
                f"explain matches single tokens, but {self.index.path} holds pooled ones (index.pool_factor is "
                f"{pool_factor}): build it without pooling to see them"
            )
        row = self.index.row_of(passage_id)
        if row is None:
            raise QueryError(f"no passage '{passage_id}' in {self.index.path}")
        vectors = self.encoder.encode_query(query)
        windows = self.index.token_vectors(row)
        similarities = [vectors @ window.T for window in windows]
        sums = [float(matrix.max(axis=1).sum()) if matrix.shape[1] else -np.inf for matrix in similarities]
        best = int(np.argmax(sums))
        text = self.index.passage(row).content(self.index.include_title)
        query_tokens = self.encoder.tokens(query, "query")
        passage_tokens = self.encoder.window_tokens(text, self.index.window_overlap)[best]
        matrix = similarities[best]
        if matrix.shape != (len(query_tokens), len(passage_tokens)):
            raise ModelError(
                f"the encoder gives {len(query_tokens)} x {len(passage_tokens)} tokens where the index holds "
                f"{matrix.shape[0]} x {matrix.shape[1]}: the passage was indexed with other settings"
            )
        weights = np.linalg.norm(vectors, axis=1).tolist()
        matches = tuple(
            TokenMatch(token, passage_tokens[position], int(position), float(matrix[i, position]), weights[i])
            for i, (token, position) in enumerate(zip(query_tokens, matrix.argmax(axis=1), strict=True))
        )
        return Explanation(passage_id, sums[best], matches)

    def _retrieve(self, texts: Sequence[str], k: int) -> list[_Candidates]:
        """Stage 1. Queries are searched together; each one's time is its share."""
        timings: dict[str, float] = {}
        search = self.config.search
        with _timed(timings, "encode"):
            read = [self.encoder.read_query(text) for text in texts]
        with _timed(timings, "search"):
            found = self.index.searcher.search_batch(
                [vectors for vectors, _ in read], k=k, exact=search.exact, nprobe=search.nprobe, threads=search.threads
            )
        share = {name: spent / len(texts) for name, spent in timings.items()}
        return [
            _Candidates(text, one.rows, one.scores, dict(share), notes)
            for text, one, (_, notes) in zip(texts, found, read, strict=True)
        ]

    def _both_stages(
        self, reranker: Reranker, texts: Sequence[str], k: int, rescored: int, deadline_ms: float | None
    ) -> list[Ranking]:
        began = time.perf_counter()
        deadline = None if deadline_ms is None else Deadline(reranker.scorer, began + float(deadline_ms) / 1e3)
        found = self._retrieve(texts, max(k, rescored))
        works = [self._work(reranker, candidates, rescored) for candidates in found]
        plans = [self._early_stop(reranker, candidates, k) for candidates in found]
        rescore(reranker.scorer, list(zip(works, plans, strict=True)), deadline)
        return [
            self._fused_ranking(reranker, candidates, work, k, deadline_ms)
            for candidates, work in zip(found, works, strict=True)
        ]

    def _work(self, reranker: Reranker, candidates: _Candidates, rescored: int) -> Work:
        head = candidates.rows[:rescored]

        def name(i: int) -> str:
            return f"passage '{self.index.passage(int(head[i])).passage_id}'"

        with _timed(candidates.timings_ms, "rerank"):
            return Work(reranker.pair(candidates.query, self._reranker_tokens(reranker, head), name))

    def _early_stop(self, reranker: Reranker, candidates: _Candidates, k: int) -> list[Plan]:
        search = self.config.search
        if not search.early_stop:
            return []

        places = min(k, search.early_stop_top or k)
        fused = functools.partial(fuse, self.fusion.weight)

        def enters(logits: NDArray[np.float32]) -> bool:
            return may_enter(logits, candidates.scores, places, search.early_stop_bound, fused)

        return [EarlyStop(places, enters)]

    def _stage_1_rankings(self, texts: Sequence[str], k: int, *, advised: bool) -> list[Ranking]:
        """advised: where the fusion leaves stage 2 out, it is its file's advice, not the caller's wish."""
        notes = self.fusion.notes(0) if advised else ()
        rankings = []
        for candidates in self._retrieve(texts, self.fusion.candidates_of_stage_1(k)):
            scores = candidates.scores
            chosen = np.arange(min(k, len(scores)))
            probabilities = self.fusion.probabilities(None, scores, scores)
            rankings.append(self._ranking(candidates, chosen, scores[chosen], None, probabilities, notes=notes))
        return rankings

    def _fused_ranking(
        self, reranker: Reranker, candidates: _Candidates, work: Work, k: int, deadline_ms: float | None
    ) -> Ranking:
        candidates.timings_ms["rerank"] += work.seconds * 1e3
        if not work.scored:
            chosen = np.arange(min(k, len(candidates.rows)))
            notes = _ending(work, deadline_ms)
            scores = candidates.scores
            unknown = self.fusion.probabilities(work.logits, scores, scores)
            return self._ranking(candidates, chosen, scores[chosen], None, unknown, rescored=0, notes=notes)
        scores, order = fuse(self.fusion.weight, work.logits, candidates.scores, candidates.rows)
        probabilities = self.fusion.probabilities(work.logits, scores, candidates.scores)
        logits = np.full(len(candidates.rows), np.nan, np.float32)
        logits[: work.scored] = work.logits
        notes = reranker.notes(work.pairs.part(0, work.scored)) + _ending(work, deadline_ms)
        notes += self.fusion.notes(work.scored)
        top = order[:k]
        return self._ranking(candidates, top, scores[top], logits, probabilities, rescored=work.scored, notes=notes)

    def _reranker_tokens(self, reranker: Reranker, rows: NDArray[np.int64]) -> Ragged:
        if self.index.reranker_tokenizer == reranker.tokenizer_identity:
            tokens = self.index.reranker_tokens(rows)
            if tokens is not None:
                return tokens
        include_title = self.index.include_title
        contents = [self.index.passage(int(row)).content(include_title) for row in rows]
        texts = [content for content in contents if not is_blank(content)]
        if not self.index.has_texts:
            raise QueryError(
                f"{self.index.path} holds no texts that the reranker could read: build it with them (import-colbert: "
                "--collection), or stop after stage 1 (rerank=False, --no-rerank)"
            )
        tokens = reranker.tokenize(texts)
        lengths = np.zeros(len(contents), np.int64)  # a passage without a text stays, with no tokens
        lengths[[not is_blank(content) for content in contents]] = tokens.lengths
        return Ragged(tokens.data, np.concatenate([[0], np.cumsum(lengths)]))

    def _ranking(
        self,
        candidates: _Candidates,
        chosen: NDArray[np.int64],
        scores: NDArray[np.float32],
        logits: NDArray[np.float32] | None,
        probabilities: NDArray[np.float32] | None,
        *,
        rescored: int | None = None,
        notes: tuple[str, ...] = (),
    ) -> Ranking:
        with _timed(candidates.timings_ms, "fetch"):
            passages = tuple(self.index.passage(int(row)) for row in candidates.rows[chosen])
        return Ranking(
            ids=tuple(passage.passage_id for passage in passages),
            scores=scores,
            retrieval_scores=candidates.scores[chosen],
            retrieval_ranks=chosen + 1,
            reranker_scores=None if logits is None else logits[chosen],
            probabilities=None if probabilities is None else probabilities[chosen],
            passages=passages,
            rescored=rescored,
            timings_ms=candidates.timings_ms,
            notes=candidates.notes + notes,
        )


def check_request(k: int, num_candidates: int | None, deadline_ms: float | None) -> None:
    """Raise `QueryError` for numbers that no query can be answered with; needs neither index nor models."""
    check_count("k", k, 1)
    if num_candidates is not None:
        check_count("num_candidates", num_candidates, 1)
    if deadline_ms is not None and not (is_number(deadline_ms) and deadline_ms > 0):
        raise QueryError(
            f"deadline_ms must be a number of milliseconds above 0, got {deadline_ms!r}: leave it out for no "
            "deadline, or pass rerank=False to stop after stage 1"
        )


def _ending(work: Work, deadline_ms: float | None) -> tuple[str, ...]:
    """Why stage 2 left candidates out, if it did."""
    if work.ended_by is None or not work.remaining:
        return ()
    total = len(work.pairs)
    if isinstance(work.ended_by, EarlyStop):
        return (f"{work.scored} of {total} candidates were rescored: the rest were not expected to rise",)
    if not work.scored:
        return (f"the deadline of {deadline_ms:g} ms left no time for stage 2: this is stage 1's order",)
    return (f"the deadline of {deadline_ms:g} ms left time to rescore {work.scored} of {total} candidates",)


@contextmanager
def _timed(timings_ms: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        timings_ms[name] = (time.perf_counter() - start) * 1e3
