"""`Reranker`: a cross-encoder over pairs, over a plain list, or over passage tokens read from an index."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.cache import CacheInfo, digest
from hybrid_retrieval.config import RerankerConfig
from hybrid_retrieval.corpus.records import to_passage
from hybrid_retrieval.errors import InputError
from hybrid_retrieval.model_files import lasting_name, reader, resolve
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.rerankers.backend import RerankerBackend
from hybrid_retrieval.rerankers.loading import load_parts
from hybrid_retrieval.rerankers.pairs import Ids, LongPassages, PairConvention, Pairs, Truncation, cut, window_spans
from hybrid_retrieval.rerankers.scoring import PairScorer
from hybrid_retrieval.types import (
    Hit,
    Passage,
    Ranking,
    best_first,
    check_count,
    check_many,
    check_path,
    check_query,
    is_blank,
    is_unicode,
)

# Texts whose encodings are held at once.
TOKENIZED_TOGETHER = 1024


class Reranker:
    """A cross-encoder. Safe to share between threads.

    name: what the model calls itself. tokenizer_identity: SHA-256 (hex) of its tokenizer; passage tokens stored
    under the same identity can be scored directly. identity: the same over weights, tokenizer and convention.
    max_tokens: of a pair, where it is cut or split; longest_tokens: the most that the model could read.
    fusion_weight: the weight that the model's files recommend for fusion with MaxSim, or None. scorer: what scores the
    pairs that `pair` makes.
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
        long_passages: LongPassages = "max",
        window_overlap: int = 32,
        max_passage_tokens: int = 0,
        batch_tokens: int = 4096,
        cached_pairs: int = 32768,
    ) -> None:
        self.source: str | None = None
        self.name, self.identity, self.tokenizer_identity = name, identity, tokenizer_identity
        self.max_tokens, self.max_query_tokens, self.fusion_weight = max_tokens, max_query_tokens, fusion_weight
        self.longest_tokens = longest_tokens
        self._convention, self._tokenizer = convention, tokenizer
        self._read = reader(tokenizer)
        self._truncation, self._long_passages = truncation, long_passages
        self._window_overlap, self._max_passage_tokens = window_overlap, max_passage_tokens
        self._key = digest(identity)
        self.scorer = PairScorer(
            name,
            convention,
            backend,
            mean=long_passages == "mean",
            batch_tokens=batch_tokens,
            cached_pairs=cached_pairs,
        )

    def __copy__(self) -> Reranker:
        return self  # nothing of it changes

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Reranker is not copied to another process: load it there (Reranker.load)")

    @classmethod
    def load(
        cls,
        model: str | Path = "embedded",
        *,
        revision: str | None = None,
        backend: Literal["auto", "native", "onnx", "torch"] = "auto",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        dtype: Literal["auto", "float32", "float16", "bfloat16", "float8", "int8"] = "auto",
        threads: int = 0,
        truncation: Truncation = "only_second",
        max_tokens: int = 0,
        long_passages: LongPassages = "max",
        window_overlap: int = 32,
        max_passage_tokens: int = 0,
        batch_tokens: int = 4096,
        cached_pairs: int = 32768,
    ) -> Reranker:
        """Load `embedded`, a folder (a sequence classifier or an ONNX export) or a hub id.

        dtype: `auto` is float16 on CUDA and float32 on a CPU; `float8` (products of XLM-R's and BERT's layers; the rest
        in bfloat16) is for Ada and Hopper cards and newer ones; an ONNX folder keeps its own. device: `cuda` is every
        device that this process may see, each with a batch of its own. max_tokens: of a pair; 0
        takes FlagReranker's 512, or the export's own. long_passages: a passage that does not fit is read in windows
        that share `window_overlap` tokens, and scored by their `max` or `mean`; `cut` reads its start alone, as
        FlagReranker does. max_passage_tokens: with windows, tokens of a passage that are read at all, 0 all of them.
        truncation: how a pair is cut, and how much of the room a long query leaves to the windows. cached_pairs: scores
        that are remembered, 0 none. Raises `ModelNotFoundError`, `ModelError`, `ConfigError` for an impossible option,
        or `OptionalDependencyError` where the model needs torch.
        """
        check_path("a model", model)
        model = os.fspath(model)  # './name' is a folder where 'name' may be another's
        RerankerConfig(  # refuses what is impossible
            model=model,
            revision=revision,
            backend=backend,
            device=device,
            dtype=dtype,
            threads=threads,
            truncation=truncation,
            max_tokens=max_tokens,
            long_passages=long_passages,
            window_overlap=window_overlap,
            max_passage_tokens=max_passage_tokens,
            batch_tokens=batch_tokens,
            cached_pairs=cached_pairs,
        )
        parts = load_parts(
            resolve(model, revision),
            backend=backend,
            device=device,
            dtype=dtype,
            threads=threads,
            max_tokens=max_tokens,
        )
        reranker = cls(
            **parts,
            truncation=truncation,
            long_passages=long_passages,
            window_overlap=window_overlap,
            max_passage_tokens=max_passage_tokens,
            batch_tokens=batch_tokens,
            cached_pairs=cached_pairs,
        )
        reranker.source = lasting_name(model)
        return reranker

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """Raw logits float32 [N] of (query, passage) pairs, in input order. Raises `InputError` and `QueryError`."""
        pairs = check_many("score", "(query, passage) pairs", pairs)
        by_query: dict[str, list[int]] = {}
        for position, pair in enumerate(pairs):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise InputError(f"pair {position} must be (query, passage), got {pair!r:.80}")
            check_query(pair[0])
            by_query.setdefault(pair[0], []).append(position)
        passages = self.tokenize([passage for _, passage in pairs])

        def name(positions: list[int]) -> Callable[[int], str]:
            return lambda i: f"pair {positions[i]} of {len(pairs)}"

        groups = [self.pair(query, passages.take(chosen), name(chosen)) for query, chosen in by_query.items()]
        logits = np.empty(len(pairs), np.float32)
        for chosen, found in zip(by_query.values(), self.scorer.score_pairs(groups), strict=True):
            logits[chosen] = found
        return logits

    def rank(self, query: str, passages: Iterable[str | Passage | Hit | Mapping[str, Any]], k: int = 10) -> Ranking:
        """Order a plain list by logit: no index needed.

        passages: strings (known by their position, "0", "1", ...), `Passage` objects, hits of another ranking, or
        records as in a corpus (`corpus.records.to_passage`), of which an id is not asked for. Returns the k best, ties
        in input order. Raises `InputError`, `CorpusError` for a record, and `QueryError`.
        """
        k = check_count("k", k, 1)
        if hasattr(passages, "columns"):  # a table, which iterates over the names of its columns
            raise InputError(f"rank takes a sequence of passages; got {type(passages).__name__}")
        many = check_many("rank", "passages", passages)
        given = [_as_passage(passage, position) for position, passage in enumerate(many)]
        positions: dict[str, int] = {}
        for position, passage in enumerate(given):
            if positions.setdefault(passage.passage_id, position) != position:
                first = positions[passage.passage_id]
                raise InputError(f"passage {position} has the id '{passage.passage_id}' of passage {first}")
        start = time.perf_counter()
        tokens = self.tokenize([passage.content() for passage in given])
        pairs = self.pair(query, tokens, lambda i: f"passage '{given[i].passage_id}'")
        (logits,) = self.scorer.score_pairs([pairs])
        elapsed = (time.perf_counter() - start) * 1e3
        order = best_first(logits, k)
        return Ranking(
            ids=tuple(given[i].passage_id for i in order),
            scores=logits[order],
            reranker_scores=logits[order],
            passages=tuple(given[i] for i in order),
            rescored=len(given),
            timings_ms={"rerank": elapsed},
            notes=self.notes(pairs),
        )

    def tokenize(self, texts: Sequence[str]) -> Ragged:
        """Passage token ids, one row a text, over int32 [T]: no special tokens, nothing cut but white space
        at the end where it would be a token that transformers does not have (`model_files.reader`)."""
        texts = check_many("tokenize", "texts", texts)
        for position, text in enumerate(texts):
            if not isinstance(text, str) or is_blank(text):
                raise InputError(f"passage {position} of {len(texts)} has no text")
            if not is_unicode(text):
                raise InputError(f"passage {position} of {len(texts)} is not valid Unicode")
        rows: list[NDArray[np.int32]] = []
        for start in range(0, len(texts), TOKENIZED_TOGETHER):  # encodings hold many times what their ids take
            part = [self._read(text) for text in texts[start : start + TOKENIZED_TOGETHER]]
            encodings = self._tokenizer.encode_batch(part, add_special_tokens=False)
            rows += [np.array(encoding.ids, np.int32) for encoding in encodings]
        return Ragged.from_rows(rows, dtype=np.int32)

    def pair(self, query: str, passages: Ragged, name: Callable[[int], str] = "passage {}".format) -> Pairs:
        """One query, tokenised here, with N passages given as token ids; cut or split as the options say.

        name: what messages call passage i. A passage without tokens (text that the tokenizer drops) is paired as such:
        what the model says of nothing is its score.
        """
        check_query(query)
        # int32 even where the tokenizer drops all of the query
        query_ids = np.array(self._tokenizer.encode(self._read(query), add_special_tokens=False).ids, np.int32)
        query_ids = self._convention.as_text(query_ids)
        passages = Ragged(self._convention.as_text(passages.data), passages.offsets)
        room, longest = (n - self._convention.num_specials for n in (self.max_tokens, self.longest_tokens))
        rows: list[NDArray[np.int32]] = []
        starts: list[int] = []
        counts, query_cut, passage_cut, too_long = [], [], [], []
        for passage in passages:
            read: Ids = passage[: self._max_passage_tokens] if self._max_passage_tokens else passage
            asked, first, _ = cut(query_ids, read, room, self.max_query_tokens, self._truncation)
            spans = [(0, len(first))]
            if self._long_passages != "cut":
                spans = window_spans(len(read), room - len(asked), self._window_overlap)
            rows.extend(self._convention.join(asked, read[start:stop]) for start, stop in spans)
            starts += [self._convention.passage_start(len(asked))] * len(spans)
            counts.append(len(spans))
            query_cut.append(len(asked) < len(query_ids))
            passage_cut.append(spans[-1][1] < len(passage))
            too_long.append(len(asked) + len(read) > longest)
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        keys = tuple(
            self._key(row.tobytes() + start.to_bytes(4, "little")) for row, start in zip(rows, starts, strict=True)
        )
        return Pairs(
            query,
            tuple(rows),
            tuple(starts),
            keys,
            offsets,
            np.array(query_cut, bool),
            np.array(passage_cut, bool),
            np.array(too_long, bool),
            name,
        )

    def cache_info(self) -> CacheInfo:
        """The cache of pair scores: hits, misses, entries, capacity. A passage in windows counts once for each."""
        return self.scorer.cache_info()

    def notes(self, pairs: Pairs) -> tuple[str, ...]:
        """What a reader of these pairs' scores should know: what was cut, what was split."""
        cut_passages, cut_queries = int(pairs.passage_cut.sum()), int(pairs.query_cut.sum())
        notes = []
        if self._long_passages == "cut":
            count = int((pairs.query_cut | pairs.passage_cut).sum())
            if count:
                notes.append(f"{count} of {len(pairs)} pairs were cut at {self.max_tokens} tokens")
            return tuple(notes)
        if count := int(pairs.too_long.sum()):
            which = "best" if self._long_passages == "max" else "mean"
            notes.append(
                f"{count} of {len(pairs)} passages did not fit a pair of {self.longest_tokens} tokens: read in "
                f"windows, scored by their {which}"
            )
        if cut_passages:
            notes.append(f"{cut_passages} of {len(pairs)} passages were cut at {self._max_passage_tokens} tokens")
        if cut_queries:
            notes.append(f"the query was cut in {cut_queries} of {len(pairs)} pairs, to leave the passage room")
        return tuple(notes)


def _as_passage(value: str | Passage | Hit | Mapping[str, Any], position: int) -> Passage:
    if isinstance(value, Passage):
        return value
    if isinstance(value, Hit):
        return Passage(value.passage_id, value.text, value.title, value.metadata)
    if isinstance(value, str):
        return Passage(str(position), value)
    if isinstance(value, Mapping):
        return to_passage(value, f"passage {position}", position)
    raise InputError(f"passage {position} must be a string, a Passage, a Hit or a mapping, got {value!r:.80}")
