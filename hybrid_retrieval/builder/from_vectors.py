"""Building an index from token vectors that were made elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.builder.models import UNIT_TOLERANCE
from hybrid_retrieval.builder.placing import nearest_on
from hybrid_retrieval.builder.pooling import pool_windows
from hybrid_retrieval.codec import MOST_SAMPLE_VECTORS, train_codec
from hybrid_retrieval.config import Device, IndexConfig, PipelineConfig, RerankerConfig
from hybrid_retrieval.errors import ArrayError, CorpusError
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.storage import IndexWriter, SegmentWriter
from hybrid_retrieval.storage.layout import PASSAGE_FILES, VECTOR_FILES
from hybrid_retrieval.storage.passages import encode_id
from hybrid_retrieval.types import check_flag, check_path

BLOCK_VECTORS = 65_536
POOLED_PASSAGES = 256


def build_from_vectors(
    path: str | Path,
    ids: Sequence[str],
    data: NDArray[Any],
    offsets: NDArray[np.int64],
    *,
    nbits: int = 2,
    centroids: int = 0,
    pool_factor: int = 1,
    seed: int = 0,
    device: Device = "cpu",
    overwrite: bool = False,
) -> None:
    """Build an index of N passages from their token vectors; each passage is one window and has no text.

    ids: N unique strings. data: float16 or float32 [T, D], unit rows (to 1e-2), D a multiple of 8; it may be
    a mapped array. offsets: int64 [N + 1]. A passage without vectors is stored and never found. Everything is
    checked before anything is written. pool_factor: vectors pooled to one, on average (`builder.pooling`); those
    lie in a file until the build is complete. device: as `IndexConfig` has it. Raises
    `ArrayError`, `CorpusError` (ids), `ConfigError` (nbits, centroids, pool_factor, seed,
    device), and as `builder.placing.nearest_on` where CUDA was asked for in vain.
    """
    config = PipelineConfig(
        index=IndexConfig(nbits=nbits, centroids=centroids, pool_factor=pool_factor, seed=seed, device=device),
        reranker=RerankerConfig(model="none"),
    )
    path, overwrite = check_path("an index", path), check_flag("overwrite", overwrite)
    encoded_ids = check_ids(ids)
    rows = check_unit_vectors(data, offsets)
    if len(rows) != len(encoded_ids):
        raise ArrayError(f"offsets describe {len(rows)} passages, but there are {len(encoded_ids)} ids")
    make_nearest = nearest_on(device)
    with IndexWriter.create(path, overwrite=overwrite) as writer:
        try:
            if pool_factor > 1:
                rows = _pooled(rows, pool_factor, writer.building / "pooled")
                data = rows.data
            chosen = np.arange(len(data))
            if len(data) > MOST_SAMPLE_VECTORS:
                chosen = np.sort(np.random.default_rng(seed).choice(len(data), MOST_SAMPLE_VECTORS, replace=False))
            codec = train_codec(
                np.asarray(data[chosen], np.float32),
                nbits=nbits,
                num_centroids=centroids,
                seed=seed,
                num_tokens=len(data),
                make_nearest=make_nearest,
            )
            with SegmentWriter(writer.building / "segment", (*PASSAGE_FILES, *VECTOR_FILES)) as segment:
                segment.append_passages((passage_id, b"", b"", b"") for passage_id in encoded_ids)
                none = np.empty(0, np.int64)
                for start in range(0, len(data), BLOCK_VECTORS):
                    segment.append_vectors(*codec.encode(data[start : start + BLOCK_VECTORS]), none, none)
                no_tokens = codec.encode(np.empty((0, codec.dimensions), np.float32))
                segment.append_vectors(*no_tokens, rows.lengths, np.ones(len(rows), np.int64))
                segment.checkpoint()
            writer.commit(codec, corpus=None, encoder=None, reranker=None, config=config.to_dict())
        except BaseException:
            writer.discard()  # there is nothing to resume: the vectors are all there
            raise


def _pooled(rows: Ragged, factor: int, path: Path) -> Ragged:
    """`pool_windows` by way of a file, a block of passages at a time."""
    lengths = []
    with open(path, "wb") as file:
        for start in range(0, len(rows), POOLED_PASSAGES):
            stop = min(start + POOLED_PASSAGES, len(rows))
            block = rows.data[rows.offsets[start] : rows.offsets[stop]]
            pooled = pool_windows(Ragged(block, rows.offsets[start : stop + 1] - rows.offsets[start]), factor)
            file.write(pooled.data.tobytes())
            lengths.append(pooled.lengths)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    return Ragged(np.memmap(path, np.float32, "r", shape=(int(offsets[-1]), rows.data.shape[1])), offsets)


def check_ids(ids: Sequence[str]) -> list[bytes]:
    """UTF-8 of unique ids. Raises `CorpusError`."""
    if isinstance(ids, (str, bytes, set, frozenset, Mapping)) or not isinstance(ids, Iterable):
        raise CorpusError(f"ids must be a sequence of strings, in the vectors' order, got a {type(ids).__name__}")
    first: dict[str, int] = {}
    encoded = []
    for row, passage_id in enumerate(ids):
        encoded.append(encode_id(passage_id, f"passage {row}"))
        if first.setdefault(passage_id, row) != row:
            raise CorpusError(f"passage {row}: the id '{passage_id}' is that of passage {first[passage_id]} already")
    if not encoded:
        raise CorpusError("there are no ids: an index needs at least one passage")
    return encoded


def check_unit_vectors(data: NDArray[Any], offsets: NDArray[np.int64]) -> Ragged:
    """The rows of unit vectors. Raises `ArrayError` that says what was expected and what came."""
    if not isinstance(data, np.ndarray) or isinstance(data, np.ma.MaskedArray):
        raise ArrayError(f"vectors must be a NumPy array, float16 or float32 [T, D], got {type(data).__name__}")
    if data.ndim != 2 or data.dtype not in (np.float16, np.float32):
        raise ArrayError(f"vectors must be float16 or float32 [T, D], got {data.dtype} of shape {data.shape}")
    if data.shape[1] == 0 or data.shape[1] % 8:
        raise ArrayError(f"vectors must have dimensions in multiples of 8, got {data.shape[1]}")
    rows = Ragged(data, offsets)
    if len(data) == 0:
        raise ArrayError("vectors must have at least one row, got none")
    for start in range(0, len(data), BLOCK_VECTORS):
        block = data[start : start + BLOCK_VECTORS].astype(np.float32)
        norms = np.sqrt(np.einsum("td,td->t", block, block))
        bad = np.flatnonzero(~(np.abs(norms - 1) <= UNIT_TOLERANCE))
        if len(bad):
            row, norm = start + int(bad[0]), float(norms[bad[0]])
            if not np.isfinite(norm):
                raise ArrayError(f"vectors must be finite: row {row} has a NaN or an infinity")
            raise ArrayError(f"vectors must be unit rows (to {UNIT_TOLERANCE}): row {row} has norm {norm:.4f}")
    return rows
