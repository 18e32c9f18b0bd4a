"""Inverted lists: for each centroid the windows that hold one of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import hybrid_retrieval.storage.layout as layout
from hybrid_retrieval.storage.files import map_array

BLOCK_TOKENS = 1 << 20


def write_lists(folder: Path, num_centroids: int) -> None:
    """Write the lists of a segment whose tokens are complete.

    Two passes over the codes, a block of windows at a time: the first counts, the second places. Memory: one
    block, and two numbers a centroid.
    """
    codes = map_array(folder, layout.CODES)
    token_offsets = map_array(folder, layout.TOKEN_OFFSETS)
    counts = np.zeros(num_centroids, np.int64)
    for centroids, _ in postings(codes, token_offsets):
        counts += np.bincount(centroids, minlength=num_centroids)
    offsets = np.zeros(num_centroids + 1, layout.LIST_OFFSETS.dtype)
    np.cumsum(counts, out=offsets[1:])
    (folder / layout.LIST_OFFSETS.name).write_bytes(offsets.tobytes())

    total = int(offsets[-1])
    path = folder / layout.LISTS.name
    # Zeros that are written take their room on the disk; where they did not, a full disk would end the process.
    with open(path, "wb") as file:
        for start in range(0, total, BLOCK_TOKENS):
            file.write(np.zeros(min(BLOCK_TOKENS, total - start), layout.LISTS.dtype).tobytes())
    if total == 0:
        return
    lists = np.memmap(path, layout.LISTS.dtype, "r+", shape=(total,))
    ends = offsets[:-1].copy()
    for centroids, windows in postings(codes, token_offsets):
        in_block = np.bincount(centroids, minlength=num_centroids)
        rank = np.arange(len(centroids)) - np.repeat(np.cumsum(in_block) - in_block, in_block)
        lists[ends[centroids] + rank] = windows
        ends += in_block
    lists.flush()


def postings(
    codes: NDArray[np.uint32], token_offsets: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(centroids, windows) without repeats, by centroid and then window, for one block of whole windows after
    another."""
    first, num_windows = 0, len(token_offsets) - 1
    while first < num_windows:
        full = int(np.searchsorted(token_offsets, token_offsets[first] + BLOCK_TOKENS, side="right")) - 1
        last = min(max(full, first + 1), num_windows)
        block = codes[token_offsets[first] : token_offsets[last]].astype(np.uint64)
        windows = np.repeat(np.arange(first, last, dtype=np.uint64), np.diff(token_offsets[first : last + 1]))
        pairs = np.unique((block << np.uint64(32)) | windows)
        yield (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
        first = last
