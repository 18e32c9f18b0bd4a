"""What a build asks of the models, and the check of what they give."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import InputError, ModelError
from hybrid_retrieval.ragged import Ragged

# How far from 1 the length of a vector may be.
UNIT_TOLERANCE = 1e-2


@runtime_checkable
class WindowEncoder(Protocol):
    """What a build asks of an encoder."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def dimensions(self) -> int: ...
    def encode_windows(self, texts: list[str], overlap_tokens: int = ...) -> tuple[Ragged, NDArray[np.int64]]: ...


@runtime_checkable
class PassageTokenizer(Protocol):
    """What a build asks of a reranker."""

    @property
    def name(self) -> str: ...
    @property
    def tokenizer_identity(self) -> str: ...
    def tokenize(self, texts: list[str]) -> Ragged: ...


def check_models(encoder: object, reranker: object) -> None:
    """Raise `InputError` for what cannot be asked what a build asks; a reranker may be None."""
    if not isinstance(encoder, WindowEncoder):
        raise InputError(
            "encoder must be a model's name, or have a name, an identity, dimensions and a method encode_windows, got "
            f"{encoder!r:.80}"
        )
    if reranker is not None and not isinstance(reranker, PassageTokenizer):
        raise InputError(
            "reranker must be a model's name, or have a name, a tokenizer_identity and a method tokenize, got "
            f"{reranker!r:.80}"
        )


def check_encoded(encoder: WindowEncoder, vectors: Ragged, offsets: NDArray[np.int64], passages: int) -> None:
    """Raise `ModelError` unless windows and offsets fit the passages and every vector is of unit length."""
    if not isinstance(vectors, Ragged) or vectors.data.dtype.kind != "f":
        given = vectors.data.dtype if isinstance(vectors, Ragged) else type(vectors).__name__
        raise ModelError(f"{encoder.name} gave vectors as {given}; a Ragged of floats was expected")
    shape = vectors.data.shape
    if len(shape) != 2 or shape[1] != encoder.dimensions:
        raise ModelError(f"{encoder.name} gave vectors of shape {shape}; [T, {encoder.dimensions}] was expected")
    if len(offsets) != passages + 1 or offsets[-1] != len(vectors) or np.any(offsets[1:] <= offsets[:-1]):
        raise ModelError(
            f"{encoder.name} gave {len(vectors)} windows for {passages} passages, not one or more for each"
        )
    if not np.isfinite(vectors.data).all():
        raise ModelError(f"{encoder.name} gave a NaN or an infinity")
    lengths = np.sqrt(np.einsum("td,td->t", vectors.data, vectors.data, dtype=np.float32))
    off = np.abs(lengths - 1) > UNIT_TOLERANCE
    if off.any():
        raise ModelError(f"{encoder.name} gave a vector of length {lengths[off][0]:.4f}; all must be of unit length")
