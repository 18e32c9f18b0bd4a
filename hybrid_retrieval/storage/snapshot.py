"""`Snapshot`: one version of an index, memory-mapped. It keeps that version whatever a writer does."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.codec import ResidualCodec
from hybrid_retrieval.errors import ArrayError, IndexDamagedError, IndexNotFoundError
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.storage.files import canonical_json, check_size
from hybrid_retrieval.storage.layout import CODEC, VERSIONS, manifest_name
from hybrid_retrieval.storage.manifest import Manifest, newest_version, require_version
from hybrid_retrieval.storage.segment import Segment
from hybrid_retrieval.types import Passage


class Snapshot:
    """Safe to share between threads. Rows number all passages, deleted ones included; the counts leave those
    out."""

    def __init__(self, path: Path, manifest: Manifest, codec: ResidualCodec, segments: tuple[Segment, ...]) -> None:
        self.path, self.manifest, self.codec, self.segments = path, manifest, codec, segments
        self._row_bases = np.array([segment.row_base for segment in segments], np.int64)
        self._num_rows = sum(segment.num_passages for segment in segments)
        self._rows_by_id: dict[str, int] | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Path) -> Snapshot:
        """The newest version. Raises `IndexNotFoundError`, `IndexVersionError` or `IndexDamagedError`.

        Reads the manifest, the codec and the sizes of files; `verify` reads everything.
        """
        path = Path(path)
        while True:
            version = require_version(path)
            try:
                return cls._open_version(path, version)
            except (IndexDamagedError, IndexNotFoundError):
                # A writer may have replaced the version between the two reads; then the newer one is the
                # answer.
                if newest_version(path) == version:
                    raise

    @classmethod
    def _open_version(cls, path: Path, version: int) -> Snapshot:
        manifest = read_manifest(path, version)
        try:
            for folder, files in manifest.folders(path):
                for name, facts in files.items():
                    check_size(folder / name, facts["bytes"])
            codec = ResidualCodec.load(path / CODEC / manifest.codec["folder"])
            described = (
                manifest.codec["num_centroids"],
                manifest.codec["dimensions"],
                manifest.codec["nbits"],
            )
            if (codec.num_centroids, codec.dimensions, codec.nbits) != described:
                raise IndexDamagedError(f"{path}: the codec is not the one that the manifest describes")
            segments: list[Segment] = []
            row_base = window_base = 0
            for entry in manifest.segments:
                segment = Segment.open(path, entry, manifest.codec, row_base=row_base, window_base=window_base)
                row_base += segment.num_passages
                window_base += segment.num_windows
                segments.append(segment)
        except (KeyError, TypeError, AttributeError) as error:
            raise IndexDamagedError(f"{path}: the manifest of version {version} lacks a part ({error})") from None
        return cls(path, manifest, codec, tuple(segments))

    @property
    def num_passages(self) -> int:
        """Passages that are not deleted."""
        return self._num_rows - sum(int(segment.deleted.sum()) for segment in self.segments)

    @property
    def num_windows(self) -> int:
        """Windows in the files."""
        return sum(segment.num_windows for segment in self.segments)

    @property
    def num_tokens(self) -> int:
        """Token vectors in the files."""
        return sum(len(segment.codes) for segment in self.segments)

    @property
    def dimensions(self) -> int:
        """D."""
        return self.codec.dimensions

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over the checksums of the files, the codec's and each segment's, and over what is deleted."""
        segments = [[entry["files"], entry["deleted"]] for entry in self.manifest.segments]
        return hashlib.sha256(canonical_json([self.manifest.codec["files"], segments])).hexdigest()

    @property
    def encoder(self) -> dict[str, Any] | None:
        """{name, identity} of the encoder, or None for an index made from vectors."""
        encoder: dict[str, Any] | None = self.manifest.body["encoder"]
        return encoder

    @property
    def reranker(self) -> dict[str, Any] | None:
        """{name, identity} of the reranker whose tokens are stored, or None."""
        reranker: dict[str, Any] | None = self.manifest.body["reranker"]
        return reranker

    def locate(self, row: int) -> tuple[Segment, int]:
        """The segment of a row, and the row in it. Raises IndexError."""
        if not 0 <= row < self._num_rows:
            raise IndexError(f"row {row} of {self._num_rows}")
        segment = self.segments[int(np.searchsorted(self._row_bases, row, side="right")) - 1]
        return segment, row - segment.row_base

    def passage(self, row: int) -> Passage:
        """The passage of a row."""
        segment, local = self.locate(row)
        return segment.passage(local)

    @property
    def has_texts(self) -> bool:
        """Whether any passage has a text or a title."""
        return any(len(segment.texts.data) or len(segment.titles.data) for segment in self.segments)

    def passage_id(self, row: int) -> str:
        """The id of a row."""
        segment, local = self.locate(row)
        return segment.passage_id(local)

    def row_of(self, passage_id: str) -> int | None:
        """The row of an id that is not deleted, or None. The first call reads every id."""
        with self._lock:
            if self._rows_by_id is None:
                self._rows_by_id = {
                    segment.passage_id(local): segment.row_base + local
                    for segment in self.segments
                    for local in np.flatnonzero(~segment.deleted).tolist()
                }
            return self._rows_by_id.get(passage_id)

    def token_vectors(self, row: int) -> list[NDArray[np.float32]]:
        """Decoded unit vectors of a row: one float32 [Ld, D] a window. Raises `IndexDamagedError`."""
        segment, local = self.locate(row)
        windows = range(int(segment.window_offsets[local]), int(segment.window_offsets[local + 1]))
        spans = [slice(int(segment.token_offsets[w]), int(segment.token_offsets[w + 1])) for w in windows]
        try:
            return [self.codec.decode(segment.codes[span], segment.residuals[span]) for span in spans]
        except ArrayError as error:
            raise IndexDamagedError(f"{self.path}: row {row} is damaged ({error})") from None

    def reranker_tokens(self, rows: NDArray[np.int64]) -> Ragged | None:
        """The reranker's tokens (int32) of rows, in their order; None where the index holds none."""
        rows = np.asarray(rows, np.int64)
        if len(self.segments) == 1 and self.segments[0].reranker is not None:
            return self.segments[0].reranker.take(rows)
        tokens = []
        for row in rows.tolist():
            segment, local = self.locate(row)
            if segment.reranker is None:
                return None
            tokens.append(segment.reranker[local])
        return Ragged.from_rows(tokens, dtype=np.int32) if self.reranker is not None else None


def read_manifest(path: Path, version: int) -> Manifest:
    """The manifest of a version, checked."""
    file = path / VERSIONS / manifest_name(version)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise IndexDamagedError(f"{file}: cannot be read ({error.strerror})") from None
    manifest = Manifest.parse(data, file)
    if manifest.version != version:
        raise IndexDamagedError(f"{file}: this is the manifest of version {manifest.version}")
    return manifest
