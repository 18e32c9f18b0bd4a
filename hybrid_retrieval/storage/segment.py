"""`Segment`: the mapped files of one segment, checked for size and shape when opened."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hybrid_retrieval.storage.layout as layout
from hybrid_retrieval.errors import IndexDamagedError
from hybrid_retrieval.ragged import Ragged, expand_spans, falls
from hybrid_retrieval.storage.files import map_array
from hybrid_retrieval.storage.layout import SEGMENTS, ArrayFile
from hybrid_retrieval.storage.manifest import unpack_deleted
from hybrid_retrieval.types import Passage


@dataclass(frozen=True, slots=True)
class MappedRagged:
    """Rows of a data file by an offsets file. Opening checks only the ends of the offsets; reading checks its
    row."""

    data: NDArray[Any]
    offsets: NDArray[np.int64]
    source: Path

    def __getitem__(self, row: int) -> NDArray[Any]:
        start, stop = int(self.offsets[row]), int(self.offsets[row + 1])
        if not 0 <= start <= stop <= len(self.data):
            raise IndexDamagedError(f"{self.source}: row {row} spans {start} to {stop} of {len(self.data)}")
        return self.data[start:stop]

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        """The given rows, copied."""
        starts, lengths = np.asarray(self.offsets[rows]), self.offsets[rows + 1] - self.offsets[rows]
        if np.any(lengths < 0) or np.any(starts < 0) or np.any(starts + lengths > len(self.data)):
            raise IndexDamagedError(f"{self.source}: offsets do not fit the data")
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return Ragged(self.data[expand_spans(starts, lengths)], offsets)


@dataclass(frozen=True, slots=True)
class Segment:
    """One immutable segment. Rows and windows count from 0 in the segment; row_base and window_base place
    them in the index. deleted: bool [N]."""

    codes: NDArray[np.uint32]
    residuals: NDArray[np.uint8]
    token_offsets: NDArray[np.int64]
    window_offsets: NDArray[np.int64]
    lists: NDArray[np.uint32]
    list_offsets: NDArray[np.int64]
    ids: MappedRagged
    titles: MappedRagged
    texts: MappedRagged
    metadata: MappedRagged
    reranker: MappedRagged | None
    deleted: NDArray[np.bool_]
    row_base: int
    window_base: int

    @classmethod
    def open(
        cls,
        path: Path,
        entry: dict[str, Any],
        codec: dict[str, Any],
        *,
        row_base: int = 0,
        window_base: int = 0,
    ) -> Segment:
        """Map the segment that a manifest's entry describes. Raises `IndexDamagedError`."""
        folder = path / SEGMENTS / entry["id"]
        passages, windows, tokens = entry["passages"], entry["windows"], entry["tokens"]
        width = codec["dimensions"] * codec["nbits"] // 8

        def ragged(data: ArrayFile, offsets: ArrayFile) -> MappedRagged:
            return MappedRagged(
                map_array(folder, data),
                _offsets(folder, offsets, passages, data, check_order=False),
                folder / offsets.name,
            )

        segment = cls(
            codes=map_array(folder, layout.CODES),
            residuals=map_array(folder, layout.RESIDUALS, width=width),
            token_offsets=_offsets(folder, layout.TOKEN_OFFSETS, windows, layout.CODES),
            window_offsets=_offsets(folder, layout.WINDOW_OFFSETS, passages, None, end=windows),
            lists=map_array(folder, layout.LISTS),
            list_offsets=_offsets(folder, layout.LIST_OFFSETS, codec["num_centroids"], layout.LISTS),
            ids=ragged(layout.IDS, layout.IDS_OFFSETS),
            titles=ragged(layout.TITLES, layout.TITLES_OFFSETS),
            texts=ragged(layout.TEXTS, layout.TEXTS_OFFSETS),
            metadata=ragged(layout.METADATA, layout.METADATA_OFFSETS),
            reranker=(
                ragged(layout.RERANKER, layout.RERANKER_OFFSETS) if layout.RERANKER.name in entry["files"] else None
            ),
            deleted=unpack_deleted(entry["deleted"], passages),
            row_base=row_base,
            window_base=window_base,
        )
        if not len(segment.codes) == len(segment.residuals) == tokens:
            raise IndexDamagedError(
                f"{folder}: {tokens} tokens expected, {len(segment.codes)} codes and "
                f"{len(segment.residuals)} residuals found"
            )
        return segment

    @property
    def num_passages(self) -> int:
        """Rows, deleted ones included."""
        return len(self.deleted)

    @property
    def num_windows(self) -> int:
        """Windows, those of deleted passages included."""
        return len(self.token_offsets) - 1

    def windows_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All windows of rows, and where among them each row's begin."""
        starts = self.window_offsets[rows]
        lengths = self.window_offsets[rows + 1] - starts
        return expand_spans(starts, lengths), np.cumsum(lengths) - lengths

    def passage_id(self, row: int) -> str:
        """The id of a row."""
        return _text(self.ids, row)

    def passage(self, row: int) -> Passage:
        """The passage of a row."""
        metadata = _text(self.metadata, row)
        try:
            values = json.loads(metadata) if metadata else {}
        except (ValueError, RecursionError):
            raise IndexDamagedError(f"{self.metadata.source}: the metadata of row {row} is damaged") from None
        return Passage(self.passage_id(row), _text(self.texts, row), _text(self.titles, row), values)


def _text(rows: MappedRagged, row: int) -> str:
    try:
        return rows[row].tobytes().decode("utf-8")
    except UnicodeDecodeError:
        raise IndexDamagedError(f"{rows.source}: row {row} is not UTF-8: the index is damaged") from None


def _offsets(
    folder: Path,
    file: ArrayFile,
    rows: int,
    data: ArrayFile | None,
    *,
    end: int | None = None,
    check_order: bool = True,
) -> NDArray[np.int64]:
    offsets = map_array(folder, file)
    if end is None:
        assert data is not None
        try:
            end = (folder / data.name).stat().st_size // data.dtype.itemsize
        except OSError as error:
            raise IndexDamagedError(f"{folder / data.name}: cannot be read ({error.strerror})") from None
    if len(offsets) != rows + 1 or offsets[0] != 0 or offsets[-1] != end:
        raise IndexDamagedError(
            f"{folder / file.name}: expected {rows + 1} offsets from 0 to {end}, found {len(offsets)}"
            + (f" from {offsets[0]} to {offsets[-1]}" if len(offsets) else "")
        )
    if check_order and falls(offsets):
        raise IndexDamagedError(f"{folder / file.name}: the offsets fall")
    return offsets
