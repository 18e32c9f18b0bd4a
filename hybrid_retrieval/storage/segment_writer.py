"""`SegmentWriter`: an append-only, resumable segment."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

import hybrid_retrieval.storage.layout as layout
from hybrid_retrieval.errors import IndexDamagedError
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.storage.files import hash_start, sync_folder
from hybrid_retrieval.storage.layout import ArrayFile

_PASSAGE_PAIRS = (
    (layout.IDS, layout.IDS_OFFSETS),
    (layout.TITLES, layout.TITLES_OFFSETS),
    (layout.TEXTS, layout.TEXTS_OFFSETS),
    (layout.METADATA, layout.METADATA_OFFSETS),
)
_OFFSET_FILES = (
    *(offsets for _, offsets in _PASSAGE_PAIRS),
    *(layout.TOKEN_OFFSETS, layout.WINDOW_OFFSETS, layout.RERANKER_OFFSETS),
)


class SegmentWriter:
    """Appends passages and their vectors to the files of one folder. Memory: what one call is given. Use as a
    context manager: leaving closes the files.

    kept: what the last checkpoint said of these files, and maybe of others; whatever was written after it is cut off.
    Raises `IndexDamagedError` where that is not there any more.
    """

    def __init__(
        self, folder: Path, files: Iterable[ArrayFile], kept: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._digests: dict[str, Any] = {}
        self._ends: dict[str, int] = {}
        with ExitStack() as opened:
            for file in files:
                handle = opened.enter_context(open(folder / file.name, "ab"))
                self._files[file.name] = handle
                self._cut_off(file, handle, (kept or {}).get(file.name))
            self._opened = opened.pop_all()

    def _cut_off(self, file: ArrayFile, handle: BinaryIO, facts: Mapping[str, Any] | None) -> None:
        """Bring a file back to its state at the last checkpoint, and note where its last row ends."""
        path, size = self.folder / file.name, facts["bytes"] if facts else 0
        self._digests[file.name] = hash_start(path, size)
        if facts and self._digests[file.name].hexdigest() != facts["sha256"]:
            raise IndexDamagedError(
                f"{path}: its first {size} bytes are not those of its last checkpoint; the interrupted build cannot be "
                "resumed: build again with overwrite"
            )
        handle.truncate(size)
        handle.seek(0, os.SEEK_END)
        if file in _OFFSET_FILES:
            if handle.tell() == 0:
                self._append(file, np.zeros(1, file.dtype))
                handle.flush()
            with open(path, "rb") as reader:
                reader.seek(-file.dtype.itemsize, os.SEEK_END)
                self._ends[file.name] = int(np.frombuffer(reader.read(), file.dtype)[0])

    def append_passages(self, encoded: Iterable[tuple[bytes, bytes, bytes, bytes]]) -> None:
        """Append (id, title, text, metadata) rows."""
        columns = list(zip(*encoded, strict=True))
        for (data, offsets), column in zip(_PASSAGE_PAIRS, columns, strict=False):
            self._write(data, b"".join(column))
            self._append_offsets(offsets, np.array([len(value) for value in column], np.int64))

    def append_vectors(
        self,
        codes: NDArray[np.uint32],
        residuals: NDArray[np.uint8],
        tokens_per_window: NDArray[np.int64],
        windows_per_passage: NDArray[np.int64],
    ) -> None:
        """Append the tokens of the next passages: codes [t], residuals [t, bytes], lengths [w] and [n]."""
        self._append(layout.CODES, codes)
        self._append(layout.RESIDUALS, residuals)
        self._append_offsets(layout.TOKEN_OFFSETS, tokens_per_window)
        self._append_offsets(layout.WINDOW_OFFSETS, windows_per_passage)

    def append_reranker_tokens(self, tokens: Ragged) -> None:
        """Append the reranker's tokens of the next passages: int32, one row a passage."""
        self._append(layout.RERANKER, tokens.data)
        self._append_offsets(layout.RERANKER_OFFSETS, tokens.lengths)

    def checkpoint(self) -> dict[str, dict[str, Any]]:
        """Bring everything to the disk; {file name: {bytes, sha256}} to hand to a later writer. The caller makes that
        durable."""
        for handle in self._files.values():
            handle.flush()
            os.fsync(handle.fileno())
        sync_folder(self.folder)  # the journal must not outlive the names that it counts on
        return {
            name: {"bytes": handle.tell(), "sha256": self._digests[name].hexdigest()}
            for name, handle in self._files.items()
        }

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files. What follows the last checkpoint is not promised to be there."""
        self._opened.close()

    def _append(self, file: ArrayFile, array: NDArray[np.generic]) -> None:
        self._write(file, np.ascontiguousarray(array, file.dtype).tobytes())

    def _write(self, file: ArrayFile, data: bytes) -> None:
        self._files[file.name].write(data)
        self._digests[file.name].update(data)

    def _append_offsets(self, file: ArrayFile, lengths: NDArray[np.int64]) -> None:
        offsets = self._ends[file.name] + np.cumsum(lengths, dtype=np.int64)
        self._append(file, offsets)
        if len(offsets):
            self._ends[file.name] = int(offsets[-1])
