"""`Reranker`: a cross-encoder over pairs, over a plain list, or over passage tokens read from an index."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.batching import pad, plan_batches
from hybrid_retrieval.errors import InputError, ModelError, QueryError
from hybrid_retrieval.model_files import lasting_name, resolve
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.rerankers.backend import RerankerBackend
from hybrid_retrieval.rerankers.loading import load_parts
from hybrid_retrieval.rerankers.pairs import Ids, PairConvention, Truncation, cut
from hybrid_retrieval.types import Passage, Ranking, best_first, check_query, is_blank, is_unicode


@dataclass(frozen=True, slots=True)
class Scores:
    """logits: float32 [N], raw. truncated: how many of the N pairs were cut at the model's limit."""

    logits: NDArray[np.float32]
    truncated: int


class Reranker:
    """A cross-encoder. Safe to share between threads.

    name: what the model calls itself. tokenizer_identity: SHA-256 (hex) of its tokenizer; passage tokens stored
    under the same identity can be scored directly. identity: the same over weights, tokenizer and convention.
    max_tokens: of a pair, where it is cut; longest_tokens: the most that the model could read.
    fusion_weight: the weight that the model's files recommend for fusion with MaxSim, or None.
    """

    def __init__(
        self,
        *,
        name: str,
        identity: str,
        tokenizer_identity: str,
        convention: PairConvention,
        tokenizer: Any,
        backend: RerankerBackend,
        max_tokens: int,
        max_query_tokens: int,
        longest_tokens: int,
        fusion_weight: float | None = None,
        truncation: Truncation = "only_second",
        batch_tokens: int = 4096,
    ) -> None:
        self.source: str | None = None
        self.name, self.identity, self.tokenizer_identity = name, identity, tokenizer_identity
        self.max_tokens, self.max_query_tokens, self.fusion_weight = max_tokens, max_query_tokens, fusion_weight
        self.longest_tokens = longest_tokens
        self._convention, self._tokenizer, self._backend = convention, tokenizer, backend
        self._truncation, self._batch_tokens = truncation, batch_tokens

    @classmethod
    def load(
        cls,
        model: str = "embedded",
        *,
        revision: str | None = None,
        backend: Literal["auto", "native", "onnx", "torch"] = "auto",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "auto",
        threads: int = 0,
        truncation: Truncation = "only_second",
        max_tokens: int = 0,
        batch_tokens: int = 4096,
    ) -> Reranker:
        """Load `embedded`, a folder (a sequence classifier or an ONNX export) or a hub id.

        dtype: `auto` is float16 on CUDA and float32 on a CPU; an ONNX folder keeps its own. truncation and
        max_tokens: how and where pairs are cut; 0 takes FlagReranker's 512, or the export's own. Raises
        `ModelNotFoundError`, `ModelError`, or `OptionalDependencyError` where the model needs torch.
        """
        if truncation not in get_args(Truncation):
            raise InputError(f"truncation must be one of {', '.join(get_args(Truncation))}, got {truncation!r}")
        parts = load_parts(
            resolve(model, revision),
            backend=backend,
            device=device,
            dtype=dtype,
            threads=threads,
            max_tokens=max_tokens,
        )
        reranker = cls(**parts, truncation=truncation, batch_tokens=batch_tokens)
        reranker.source = lasting_name(model)
        return reranker

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """Raw logits float32 [N] of (query, passage) pairs, in input order."""
        pairs = list(pairs)
        for position, pair in enumerate(pairs):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise InputError(f"pair {position} must be (query, passage), got {pair!r:.80}")
        queries = {query: self._query_ids(query) for query, _ in pairs}
        passages = self.tokenize([passage for _, passage in pairs])
        return self._score([queries[query] for query, _ in pairs], list(passages))[0]

    def rank(self, query: str, passages: Sequence[str | Passage | Mapping[str, Any]], k: int = 10) -> Ranking:
        """Order a plain list by logit: no index needed.

        passages: strings (known by their position, "0", "1", ...), `Passage` objects, or mappings with `text` and
        perhaps `_id` (or `id`) and `title`. Returns the k best, ties in input order.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise QueryError(f"k must be a whole number of at least 1, got {k!r}")
        if isinstance(passages, str):
            raise InputError("rank takes a sequence of passages; got one string")
        if not isinstance(passages, Iterable):
            raise InputError(f"rank takes a sequence of passages; got {type(passages).__name__}")
        given = [_as_passage(passage, position) for position, passage in enumerate(passages)]
        start = time.perf_counter()
        result = self.score_tokens(query, self.tokenize([passage.content() for passage in given]))
        elapsed = (time.perf_counter() - start) * 1e3
        order = best_first(result.logits, int(k))
        note = f"{result.truncated} of {len(given)} pairs were cut at {self.max_tokens} tokens"
        return Ranking(
            ids=tuple(given[i].passage_id for i in order),
            scores=result.logits[order],
            reranker_scores=result.logits[order],
            passages=tuple(given[i] for i in order),
            timings_ms={"rerank": elapsed},
            notes=(note,) if result.truncated else (),
        )

    def tokenize(self, texts: Sequence[str]) -> Ragged:
        """Passage token ids, one row a text, over int32 [T]: no special tokens, nothing cut."""
        if isinstance(texts, str):
            raise InputError("tokenize takes a sequence of texts; got one string")
        for position, text in enumerate(texts):
            if not isinstance(text, str) or is_blank(text):
                raise InputError(f"passage {position} of {len(texts)} has no text")
            if not is_unicode(text):
                raise InputError(f"passage {position} of {len(texts)} is not valid Unicode")
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return Ragged.from_rows([encoding.ids for encoding in encodings], dtype=np.int32)

    def score_tokens(self, query: str, passages: Ragged) -> Scores:
        """Logits of one query against N passages given as token ids (as `tokenize` makes them)."""
        return self.score_token_groups([(query, passages)])[0]

    def score_token_groups(self, groups: Sequence[tuple[str, Ragged]]) -> list[Scores]:
        """The same for several queries at once, batched together."""
        queries: list[Ids] = []
        passages: list[Ids] = []
        bounds = [0]
        for query, rows in groups:
            queries.extend([self._query_ids(query)] * len(rows))
            passages.extend(rows)
            bounds.append(len(queries))
        logits, cuts = self._score(queries, passages)
        return [Scores(logits[start:stop], sum(cuts[start:stop])) for start, stop in itertools.pairwise(bounds)]

    def _query_ids(self, query: str) -> list[int]:
        check_query(query)
        ids: list[int] = self._tokenizer.encode(query, add_special_tokens=False).ids
        return ids

    def _cut(self, query: Ids, passage: Ids) -> tuple[Ids, Ids, bool]:
        room = self.max_tokens - self._convention.num_specials
        return cut(query, passage, room, self.max_query_tokens, self._truncation)

    def _score(self, queries: Sequence[Ids], passages: Sequence[Ids]) -> tuple[NDArray[np.float32], list[bool]]:
        """Logits [N], and which pairs were cut."""
        rows, starts, cuts = [], [], []
        for query, passage in zip(queries, passages, strict=True):
            query, passage, was_cut = self._cut(query, passage)
            rows.append(self._convention.join(query, passage))
            starts.append(self._convention.passage_start(len(query)))
            cuts.append(was_cut)
        logits = np.empty(len(rows), np.float32)
        for batch in plan_batches([len(row) for row in rows], self._batch_tokens):
            ids, mask = pad([rows[i] for i in batch], self._convention.pad_id)
            types = None
            if self._convention.token_types:
                types = (np.arange(ids.shape[1]) >= np.array([starts[i] for i in batch])[:, None]).astype(
                    np.int64
                ) * mask
            logits[batch] = self._backend.forward(ids, mask, types)
        if not np.isfinite(logits).all():
            position = int(np.argmin(np.isfinite(logits)))
            raise ModelError(f"{self.name} gave the logit {logits[position]} for pair {position} of {len(rows)}")
        return logits, cuts


def _as_passage(value: str | Passage | Mapping[str, Any], position: int) -> Passage:
    if isinstance(value, Passage):
        return value
    if isinstance(value, str):
        return Passage(str(position), value)
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        known = ("_id", "id", "text", "title")
        rest = {key: item for key, item in value.items() if key not in known}
        return Passage(
            str(value.get("_id", value.get("id", position))), value["text"], str(value.get("title") or ""), rest
        )
    raise InputError(
        f"passage {position} must be a string, a Passage or a mapping with a string 'text', got {value!r:.80}"
    )
