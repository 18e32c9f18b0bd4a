"""Ragged arrays: rows of different lengths in one block, never padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hybrid_retrieval.errors import ArrayError


@dataclass(frozen=True, slots=True)
class Ragged:
    """N rows over one array: row i is `data[offsets[i]:offsets[i + 1]]`.

    data: [T, ...] any dtype. offsets: int64 [N + 1], from 0 to T, never falling.
    """

    data: NDArray[Any]
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        offsets = self.offsets
        if not isinstance(offsets, np.ndarray) or offsets.ndim != 1 or offsets.dtype != np.int64:
            array = isinstance(offsets, np.ndarray)
            given = f"{offsets.dtype} of shape {offsets.shape}" if array else type(offsets).__name__
            raise ArrayError(f"offsets must be an int64 array [N + 1], got {given}")
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(self.data):
            ends = "none" if len(offsets) == 0 else f"{offsets[0]} to {offsets[-1]}"
            raise ArrayError(f"offsets must run from 0 to the number of rows of data ({len(self.data)}), got {ends}")
        if falls(offsets):
            raise ArrayError("offsets must never fall")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[Any]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        return self.data[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for row in range(len(self)):
            yield self[row]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [N]: the length of each row."""
        return np.diff(self.offsets)

    @classmethod
    def from_rows(
        cls, rows: Sequence[NDArray[Any] | Sequence[Any]], *, dtype: DTypeLike | None = None, tail: tuple[int, ...] = ()
    ) -> Ragged:
        """Concatenate rows; `dtype` and `tail` (the shape after the first axis) say what no rows look like."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        offsets = np.zeros(len(arrays) + 1, np.int64)
        np.cumsum([len(row) for row in arrays], out=offsets[1:])
        data = np.concatenate(arrays) if arrays else np.empty((0, *tail), dtype)
        return cls(data, offsets)

    def take(self, rows: NDArray[np.integer[Any]] | Sequence[int]) -> Ragged:
        """The given rows, in the given order, copied."""
        rows = np.asarray(rows, np.int64)
        lengths = self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return Ragged(self.data[expand_spans(self.offsets[rows], lengths)], offsets)


def falls(offsets: NDArray[np.int64]) -> bool:
    """Whether an offset is smaller than the one before. (A difference of 64 bits could wrap around.)"""
    return bool(np.any(offsets[1:] < offsets[:-1]))


def expand_spans(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of all spans, one after the other: [3, 9] with lengths [2, 1] gives [3, 4, 9]."""
    total = int(lengths.sum())
    ends = np.cumsum(lengths)
    positions: NDArray[np.int64] = np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    return positions
