"""The values that travel between floors: passages in, rankings out."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import InputError, QueryError

MAX_QUERY_CHARACTERS = 10_000
# Unicode categories of separators, controls and format marks.
_UNSEEN = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})


@dataclass(frozen=True, slots=True)
class Passage:
    """One unit of retrieval. `passage_id` is unique in an index; `metadata` is a JSON object."""

    passage_id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def content(self, include_title: bool = True) -> str:
        """What the models read: title, a space and the text (BEIR's convention), or the text alone."""
        parts = (self.title, self.text) if include_title else (self.text,)
        return " ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Query:
    """A question with the identifier that qrels and runs know it by."""

    query_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """One row of a `Ranking`: a view for reading.

    score is what the ranking is ordered by; retrieval_score is MaxSim (the sum over query tokens) and
    retrieval_rank its rank from 1; reranker_score is the raw logit. A stage that did not run gives None.
    probability: of being relevant, where a fitted fusion calibrates scores, else None.
    """

    passage_id: str
    rank: int
    score: float
    retrieval_score: float | None = None
    retrieval_rank: int | None = None
    reranker_score: float | None = None
    probability: float | None = None
    text: str = ""
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, eq=False)
class Ranking(Sequence[Hit]):
    """Hits, best first, as parallel arrays; ties stand in insertion order (the lower row first).

    ids: N passage identifiers. scores: float32 [N]. The optional arrays are float32 [N] (retrieval_ranks: int64 [N]),
    None where their stage did not run; a NaN among reranker_scores marks a passage that was not rescored.
    probabilities: of being relevant, where a fitted fusion calibrates scores; NaN for a passage beyond those it
    compares. `passages` holds the passages behind the ids (their text is empty in an index made from vectors).
    rescored: how many candidates stage 2 scored, None where it was not asked to. recall_bound: a sure lower bound, 0 to
    1, on the share of these hits that exhaustive search over the same index returns too; None where it was not asked
    for. timings_ms: milliseconds by stage. notes: what a reader of the scores should know (e.g. pairs cut at the
    reranker's limit).
    """

    ids: tuple[str, ...]
    scores: NDArray[np.float32]
    retrieval_scores: NDArray[np.float32] | None = None
    retrieval_ranks: NDArray[np.int64] | None = None
    reranker_scores: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float32] | None = None
    passages: tuple[Passage, ...] | None = None
    rescored: int | None = None
    recall_bound: float | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | Sequence[Hit]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"hit {index} of {len(self)}")
        i = index % len(self)
        passage = self.passages[i] if self.passages is not None else None
        reranked = None if self.reranker_scores is None else self.reranker_scores[i]
        probability = None if self.probabilities is None else self.probabilities[i]
        return Hit(
            passage_id=self.ids[i],
            rank=i + 1,
            score=float(self.scores[i]),
            retrieval_score=None if self.retrieval_scores is None else float(self.retrieval_scores[i]),
            retrieval_rank=None if self.retrieval_ranks is None else int(self.retrieval_ranks[i]),
            reranker_score=None if reranked is None or np.isnan(reranked) else float(reranked),
            probability=None if probability is None or np.isnan(probability) else float(probability),
            text=passage.text if passage else "",
            title=passage.title if passage else "",
            metadata=passage.metadata if passage else {},
        )

    def __iter__(self) -> Iterator[Hit]:
        for i in range(len(self)):
            yield self[i]

    def at_least(self, probability: float) -> Ranking:
        """The hits that are relevant with at least this probability. Raises `QueryError` where none was computed."""
        check_probability(probability)
        if self.probabilities is None:
            raise QueryError(
                "no probabilities: they come with a fusion that 'hybrid-retrieval fit-fusion' fitted (fusion.method "
                "'fitted' and its file, with the stages that it was fitted for)"
            )
        kept = np.flatnonzero(self.probabilities >= probability)
        unknown = int(np.isnan(self.probabilities).sum())
        notes = self.notes
        if unknown:
            notes += (f"{unknown} of {len(self)} hits were not rescored: they have no probability, and are left out",)
        if not len(kept) and unknown < len(self):
            best = float(np.nanmax(self.probabilities))
            notes += (f"no passage is relevant with a probability of {probability:g}: the best has {best:.3f}",)
        return dataclasses.replace(
            self,
            notes=notes,
            ids=tuple(self.ids[i] for i in kept),
            scores=self.scores[kept],
            retrieval_scores=None if self.retrieval_scores is None else self.retrieval_scores[kept],
            retrieval_ranks=None if self.retrieval_ranks is None else self.retrieval_ranks[kept],
            reranker_scores=None if self.reranker_scores is None else self.reranker_scores[kept],
            probabilities=self.probabilities[kept],
            passages=None if self.passages is None else tuple(self.passages[i] for i in kept),
        )


def best_first(scores: NDArray[np.floating[Any]], k: int) -> NDArray[np.int64]:
    """Positions of the k best scores, best first, ties by position (the project's one tie rule). int64 [min(k, N)]."""
    scores = np.asarray(scores)
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = np.flatnonzero(scores >= threshold)
    else:
        kept = np.arange(len(scores))
    return kept[np.argsort(-scores[kept], kind="stable")][:k].astype(np.int64)


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or white space and marks without a glyph (zero-width spaces, direction
    marks, control characters)."""
    return all(unicodedata.category(character) in _UNSEEN for character in text)


def is_unicode(text: str) -> bool:
    """False for a string with half a surrogate pair, which bytes in another encoding become on a command line."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: object) -> bool:
    """Whether a value is a real number that a float can hold, Python's or NumPy's; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    return not isinstance(value, int) or abs(value) < 2**1023


def check_count(name: str, value: object, least: int, most: int = 2**64) -> int:
    """The value as Python's int, since NumPy's overflow. Raises `QueryError` unless it is a whole number of at least
    `least` and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise QueryError(f"{name} must be a whole number of at least {least}, got {value!r:.80}")
    if value > most:
        raise QueryError(f"{name} must be at most {most:,}, got {f'{int(value):,}'[:80]}")
    return int(value)


def check_flag(name: str, value: object) -> bool:
    """The truth value itself. Raises `InputError` for what only counts as one: 'no' does."""
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} must be True or False, got {value!r:.80}")
    return bool(value)


def check_many(call: str, what: str, values: object) -> list[Any]:
    """The values of any iterable but a string or a mapping, which iterate over something else than is meant. Raises
    `InputError`."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        found = "one string" if isinstance(values, str) else type(values).__name__
        raise InputError(f"{call} takes a sequence of {what}; got {found}")
    return list(values)


def check_path(what: str, value: object) -> Path:
    """A path. Raises `InputError` for an empty one, one that no file can have, and what is none."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(path := os.fspath(value), bytes):
        raise InputError(f"{what} must be a path, got {value!r:.80}")
    if not path:
        raise InputError(f"{what} must be a path, got an empty string")
    if "\0" in path:
        raise InputError(f"{what} must be a path, got one with a NUL character")
    return Path(path)


def check_probability(value: object) -> None:
    """Raise `QueryError` unless value is a number between 0 and 1."""
    if not is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
        raise QueryError(f"a probability must be a number between 0 and 1, got {value!r}")


def check_query(text: str) -> None:
    """Raise `QueryError` for a query that is empty, absurdly long or not Unicode."""
    if not isinstance(text, str):
        raise QueryError(f"a query must be a string, got {type(text).__name__}")
    if is_blank(text):
        raise QueryError("the query is empty: give at least one word")
    if len(text) > MAX_QUERY_CHARACTERS:
        raise QueryError(f"the query has {len(text):,} characters; at most {MAX_QUERY_CHARACTERS:,} are taken")
    if not is_unicode(text):
        raise QueryError("the query is not valid Unicode: give it in UTF-8")
