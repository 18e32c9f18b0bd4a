"""How a ColBERT checkpoint turns text into token ids, and which positions' vectors count.

Sources: colbert-ai 0.2.22 (`modeling/tokenization/`, `modeling/checkpoint.py`) and its `artifact.metadata` file.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import ModelError


@dataclass(frozen=True, slots=True)
class Expansion:
    """Queries shorter than `length` are filled up with `token_id`; attend: whether other tokens see the filling."""

    token_id: int
    length: int
    attend: bool


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """How much a token counts in MaxSim: g(v) = sqrt(2 sigmoid(direction . v + bias)) of its unit vector v, over the
    mean g of its text, so that a text's weights have mean 1. direction: D numbers."""

    direction: tuple[float, ...]
    bias: float

    def __post_init__(self) -> None:
        if not np.isfinite([*self.direction, self.bias]).all():
            raise ModelError("the weights of query tokens must be finite numbers")

    def scaled(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Token vectors of one text, float32 [L, D], each as long as its weight."""
        # A sum a row, in float64: a matrix product may round a row by how many there are.
        logits = (vectors * np.array(self.direction)).sum(axis=1) + self.bias
        weights = np.sqrt(2 / (1 + np.exp(-logits)))
        scaled: NDArray[np.float32] = vectors * (weights / weights.mean()).astype(np.float32)[:, None]
        return scaled


@dataclass(frozen=True, slots=True)
class Side:
    """One side, query or passage: prefix + ids of the text + suffix, at most `max_tokens` in all.

    Vectors at positions whose id is in `skip_ids` are dropped. weights: of a query's tokens (None: all 1).
    """

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    max_tokens: int
    skip_ids: tuple[int, ...] = ()
    expansion: Expansion | None = None
    weights: TokenWeights | None = None

    def __post_init__(self) -> None:
        if self.room < 1:
            raise ModelError(
                f"max_tokens {self.max_tokens} leaves no room for text beside {len(self.prefix_ids)} + "
                f"{len(self.suffix_ids)} marker tokens"
            )

    @property
    def room(self) -> int:
        """Tokens of text that fit."""
        return self.max_tokens - len(self.prefix_ids) - len(self.suffix_ids)

    def wrap(self, ids: Sequence[int]) -> list[int]:
        """Markers around ids of text, which must fit."""
        return [*self.prefix_ids, *ids, *self.suffix_ids]


@dataclass(frozen=True, slots=True)
class EncodingConvention:
    """Both sides of a checkpoint."""

    query: Side
    passage: Side
    pad_id: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> EncodingConvention:
        """From an `encoder.json`. Raises `ModelError` for a missing key."""
        try:
            found = cls(_side(values["query"]), _side(values["passage"]), int(values["pad_id"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{source}: the encoding convention is incomplete ({error!r})") from None
        if found.passage.weights is not None:
            raise ModelError(f"{source}: passage.weights must be absent, since only the tokens of a query have weights")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The keys of an `encoder.json`."""
        values = asdict(self)
        del values["passage"]["weights"]
        if self.query.weights is None:  # most models have none, and their identity is made of these keys
            del values["query"]["weights"]
        return values


def _side(values: Mapping[str, Any]) -> Side:
    expansion, weights = values.get("expansion"), values.get("weights")
    return Side(
        prefix_ids=tuple(map(int, values["prefix_ids"])),
        suffix_ids=tuple(map(int, values["suffix_ids"])),
        max_tokens=int(values["max_tokens"]),
        skip_ids=tuple(map(int, values.get("skip_ids") or ())),
        expansion=Expansion(**expansion) if expansion else None,
        weights=TokenWeights(tuple(map(float, weights["direction"])), float(weights["bias"])) if weights else None,
    )


def stanford_convention(
    metadata: Mapping[str, Any], to_id: Callable[[str], int | None], encode: Callable[[str], list[int]], source: str
) -> EncodingConvention:
    """The convention of a Stanford checkpoint.

    metadata: its `artifact.metadata` ({} where there is none: colbert-ai's defaults hold). to_id: token -> id.
    encode: text -> ids without specials. Queries are [CLS] [Q] text [SEP] filled with [MASK] to query_maxlen; passages
    [CLS] [D] text [SEP], where the vectors of punctuation are dropped if mask_punctuation is set.
    """

    def known(*tokens: str) -> int:
        for token in tokens:
            found = to_id(token)
            if found is not None:
                return found
        raise ModelError(f"{source}: the tokenizer has no token {' or '.join(tokens)}")

    def length(key: str, default: int) -> int:
        found = metadata.get(key, default)
        if not isinstance(found, int) or isinstance(found, bool):
            raise ModelError(f"{source}: artifact.metadata: {key} must be a whole number, got {found!r:.80}")
        return found

    def flag(key: str, default: bool) -> bool:
        found = metadata.get(key, default)
        if not isinstance(found, bool):
            raise ModelError(f"{source}: artifact.metadata: {key} must be true or false, got {found!r:.80}")
        return found

    first, last = known("[CLS]", "<s>"), known("[SEP]", "</s>")
    mask = known("[MASK]", "<mask>")
    query_maxlen = length("query_maxlen", 32)
    # colbert-ai skips what `encode(symbol)[0]` gives for each of the 32 symbols.
    symbols = string.punctuation if flag("mask_punctuation", True) else ""
    skip = sorted({encode(symbol)[0] for symbol in symbols if encode(symbol)})
    attend = flag("attend_to_mask_tokens", False)
    return EncodingConvention(
        query=Side(
            prefix_ids=(first, known(str(metadata.get("query_token_id", "[unused0]")))),
            suffix_ids=(last,),
            max_tokens=query_maxlen,
            expansion=Expansion(mask, query_maxlen, attend),
        ),
        passage=Side(
            prefix_ids=(first, known(str(metadata.get("doc_token_id", "[unused1]")))),
            suffix_ids=(last,),
            max_tokens=length("doc_maxlen", 220),
            skip_ids=tuple(skip),
        ),
        pad_id=known("[PAD]", "<pad>"),
    )
