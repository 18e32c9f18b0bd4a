"""How a cross-encoder's pair of token ids is made, and cut or split into windows where it is too long.

Source of `cut`: FlagEmbedding 1.4.2, `inference/reranker/encoder_only/base.py`: query and passage are tokenised apart
without special tokens, the query is cut to three quarters of max_length, the passage to what is left (`only_second`).
Windows scored by their maximum or mean: MaxP and its kin, Dai and Callan 2019 (arXiv 1905.09217).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import ModelError

Truncation = Literal["only_second", "longest_first"]
LongPassages = Literal["max", "mean", "cut"]
Ids = Sequence[int] | NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PairConvention:
    """prefix + query + middle + passage + suffix. token_types: 0 up to the passage, 1 from its first token (BERT).

    unknown_id: what a marker that is written inside a text is read as (a page's `<s>struck out</s>`), needed by
    a head that finds query and passage by their markers; None leaves it a marker, as FlagReranker does.
    """

    prefix_ids: tuple[int, ...]
    middle_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    pad_id: int
    token_types: bool
    unknown_id: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> PairConvention:
        """From a `reranker.json`. Raises `ModelError` for a missing key."""
        try:
            prefix, middle, suffix = (tuple(map(int, values[f"{part}_ids"])) for part in ("prefix", "middle", "suffix"))
            unknown = values.get("unknown_id")
            return cls(
                prefix,
                middle,
                suffix,
                pad_id=int(values["pad_id"]),
                token_types=bool(values.get("token_types", False)),
                unknown_id=None if unknown is None else int(unknown),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{source}: the pair convention is incomplete ({error!r})") from None

    @property
    def num_specials(self) -> int:
        """Tokens that the markers take."""
        return len(self.prefix_ids) + len(self.middle_ids) + len(self.suffix_ids)

    def as_text(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """A text's ids, markers in it replaced where `unknown_id` says so."""
        if self.unknown_id is None:
            return ids
        marks = [*self.prefix_ids, *self.middle_ids, *self.suffix_ids]
        return np.where(np.isin(ids, marks), np.int32(self.unknown_id), ids)

    def join(self, query: Ids, passage: Ids) -> NDArray[np.int32]:
        """The pair's ids; both parts must have been cut to fit."""
        return np.concatenate([self.prefix_ids, query, self.middle_ids, passage, self.suffix_ids], dtype=np.int32)

    def passage_start(self, num_query_tokens: int) -> int:
        """Position of the passage's first token, where token types turn from 0 to 1."""
        return len(self.prefix_ids) + num_query_tokens + len(self.middle_ids)


def convention_of(tokenizer: Any, pad_id: int, *, token_types: bool) -> PairConvention:
    """What a `tokenizers.Tokenizer` puts around a pair; token types only where it tells the parts apart by them. Raises
    `ModelError` where it has no pair template."""
    encoding = tokenizer.encode("a", "b", add_special_tokens=True)
    parts: list[list[int]] = [[], [], []]
    seen = 0
    for token, sequence in zip(encoding.ids, encoding.sequence_ids, strict=True):
        if sequence is None:
            parts[seen].append(token)
        else:
            seen = sequence + 1
    if seen != 2 or not parts[1]:
        raise ModelError("the tokenizer does not say how to join a pair: a cross-encoder's tokenizer.json is needed")
    prefix, middle, suffix = (tuple(part) for part in parts)
    return PairConvention(prefix, middle, suffix, pad_id, token_types and any(encoding.type_ids))


def cut(query: Ids, passage: Ids, room: int, max_query_tokens: int, truncation: Truncation) -> tuple[Ids, Ids, bool]:
    """Both parts within `room` tokens, and whether anything was cut.

    only_second: the query to max_query_tokens, then the passage to what is left (at least one token of it stays).
    longest_first: the longer part to what the other leaves; where both are over half of the room, both to half, the odd
    token to the part that was longer (the passage if they are equally long), as the tokenizers library does.
    """
    total = len(query) + len(passage)
    if truncation == "only_second":
        query = query[: min(max_query_tokens, room - 1)]
        passage = passage[: room - len(query)]
    elif total > room:
        half = room // 2
        if min(len(query), len(passage)) > half:
            query_half = room - half if len(query) > len(passage) else half
            query, passage = query[:query_half], passage[: room - query_half]
        elif len(query) > len(passage):
            query = query[: room - len(passage)]
        else:
            passage = passage[: room - len(query)]
    return query, passage, len(query) + len(passage) < total


def window_spans(tokens: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """Spans [start, end) of at most `room` tokens that cover all `tokens`, neighbours sharing `overlap`.

    All but the last are full; the last ends with the passage and shares more where that keeps it full, so that no
    window is a scrap without context. The overlap is never over half a window. A passage that fits is one window.
    """
    if tokens <= room:
        return [(0, tokens)]
    step = room - min(overlap, room // 2)
    starts = [*range(0, tokens - room, step), tokens - room]
    return [(start, start + room) for start in starts]


@dataclass(frozen=True, slots=True)
class Pairs:
    """One query with N passages as rows of token ids: one row a passage, or several where it is split into windows.

    rows: int32, one array a window. passage_starts: where each row's passage begins. keys: what each row is remembered
    by. offsets: int64 [N + 1], the rows of passage i are offsets[i] to offsets[i + 1]. query_cut, passage_cut: bool
    [N], whether tokens of either were left out. too_long: bool [N], whether only windows can hold the passage, however
    long the model reads. name: what messages call passage first + i.
    """

    query: str
    rows: tuple[NDArray[np.int32], ...]
    passage_starts: tuple[int, ...]
    keys: tuple[bytes, ...]
    offsets: NDArray[np.int64]
    query_cut: NDArray[np.bool_]
    passage_cut: NDArray[np.bool_]
    too_long: NDArray[np.bool_]
    name: Callable[[int], str]
    first: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def part(self, start: int, stop: int) -> Pairs:
        """The passages from `start` to `stop`."""
        begin, end = int(self.offsets[start]), int(self.offsets[stop])
        return Pairs(
            self.query,
            self.rows[begin:end],
            self.passage_starts[begin:end],
            self.keys[begin:end],
            self.offsets[start : stop + 1] - begin,
            self.query_cut[start:stop],
            self.passage_cut[start:stop],
            self.too_long[start:stop],
            self.name,
            self.first + start,
        )

    def name_of_row(self, row: int) -> str:
        """What messages call the passage that a row belongs to."""
        return self.name(self.first + int(np.searchsorted(self.offsets, row, side="right")) - 1)
