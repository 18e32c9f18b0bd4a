"""Which texts go through a model together. No tensors here: lengths in, groups of positions out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Groups of positions, longest first, whose padded size (rows x longest row) stays within `batch_tokens`.

    A row longer than the budget goes alone. The plan depends on the lengths only; rows of one length keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batches: list[list[int]] = []
    for position in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def pad(rows: Sequence[Sequence[int] | NDArray[np.integer[Any]]], pad_id: int) -> tuple[Int64, Int64]:
    """Token ids and attention mask, both int64 [B, L], L the longest row."""
    longest = max(map(len, rows), default=0)
    ids = np.full((len(rows), longest), pad_id, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask
