"""An index of another engine becomes one of ours: same codes, same residuals, same codec, so the same scores of the
same query vectors."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.builder.from_vectors import check_ids
from hybrid_retrieval.config import EncoderConfig, IndexConfig, PipelineConfig, RerankerConfig
from hybrid_retrieval.corpus.lines import read_lines
from hybrid_retrieval.errors import CorpusError, InputError, ModelError
from hybrid_retrieval.interchange.sources import Chunk, SourceIndex, StoredArray, open_source, read_encoder, read_ids
from hybrid_retrieval.model_files import local_folder, read_json
from hybrid_retrieval.storage import IndexWriter, SegmentWriter
from hybrid_retrieval.storage.layout import PASSAGE_FILES, VECTOR_FILES

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

BLOCK_TOKENS = 1 << 18
BLOCK_PASSAGES = 1 << 12
# Where the hub's cache keeps a model; colbert-ai records that path in place of the model's name.
_HUB_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/?$")


def import_colbert(
    folder: str | Path,
    path: str | Path,
    *,
    collection: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Make an index at `path` of a colbert-ai (0.2) or fast-plaid index in `folder`.

    Nothing is decoded or quantised anew; inverted lists are rebuilt. A passage's id is its number there ("0",
    "1", ...), or what `export_colbert` left beside it. collection: the passages' texts (see `read_collection`);
    without it texts are empty. The index takes the encoder that `export_colbert` noted, else any of its dimensions. Its
    configuration names the checkpoint that colbert-ai built it with, where that is known; where the index was made for
    queries encoded otherwise than that checkpoint says, a warning tells it. progress: called with (step, done, total).

    Raises `IndexNotFoundError` and `InputError` for what is wrong in `folder`, `CorpusError` for the collection,
    and what `IndexWriter` raises; none of them leaves anything at `path` that was not there before.
    """
    source = open_source(Path(folder))
    ids = _ids(source)
    built_with = read_encoder(source.folder, source.codec.dimensions)
    encoder = _encoder(source.checkpoint)
    if source.checkpoint is not None:
        _compare_query_settings(source, encoder)
    index = IndexConfig(nbits=source.codec.nbits, centroids=source.codec.num_centroids)
    config = PipelineConfig(encoder=encoder, index=index, reranker=RerankerConfig(model="none"))
    with IndexWriter.create(path, overwrite=overwrite) as writer:
        try:
            with SegmentWriter(writer.building / "segment", (*PASSAGE_FILES, *VECTOR_FILES)) as segment:
                _copy(source, segment, _passages(ids, collection), progress or _silent)
                segment.checkpoint()
            writer.commit(source.codec, corpus=None, encoder=built_with, reranker=None, config=config.to_dict())
        except BaseException:
            writer.discard()  # there is nothing to resume: copying is quick
            raise


def _encoder(checkpoint: str | None) -> EncoderConfig:
    """The configuration of an encoder by colbert-ai's name for it."""
    if checkpoint is None:
        return EncoderConfig()
    named = _HUB_CACHE.search(checkpoint)
    if named is None:
        return EncoderConfig(model=checkpoint)
    return EncoderConfig(model=f"{named[1]}/{named[2]}", revision=named[3])


def _compare_query_settings(source: SourceIndex, encoder: EncoderConfig) -> None:
    """Warn where the checkpoint, if it is here, says otherwise than the index how queries are encoded."""
    try:
        folder = local_folder(encoder.model, encoder.revision)
        own = {} if folder is None else read_json(folder / "artifact.metadata")
    except (OSError, ModelError):  # no checkpoint of colbert-ai that could be read: nothing to compare with
        return
    for key, value in source.query_settings.items():
        if key in own and own[key] != value:
            logger.warning(
                "%s was made for queries with %s %r, its checkpoint says %r: they are encoded as the checkpoint says",
                source.folder,
                key,
                value,
                own[key],
            )


def _copy(
    source: SourceIndex,
    segment: SegmentWriter,
    passages: Iterator[tuple[bytes, bytes, bytes, bytes]],
    progress: Progress,
) -> None:
    done, total = 0, source.num_tokens
    none, no_codes = np.empty(0, np.int64), np.empty(0, np.uint32)
    no_residuals = np.empty((0, source.codec.residual_bytes), np.uint8)
    for chunk in source.chunks:
        for first in range(0, len(chunk.lengths), BLOCK_PASSAGES):
            segment.append_passages(islice(passages, min(BLOCK_PASSAGES, len(chunk.lengths) - first)))
        for codes, residuals in _tokens(chunk, source.codec.num_centroids):
            segment.append_vectors(codes, residuals, none, none)
            done += len(codes)
            progress("import", done, total)
        segment.append_vectors(no_codes, no_residuals, chunk.lengths, np.ones(len(chunk.lengths), np.int64))
    for _ in passages:  # a collection that goes on says so
        pass


def _tokens(chunk: Chunk, num_centroids: int) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.uint8]]]:
    """(codes, residuals) of a chunk, block by block. Raises `InputError` for codes that name no centroid."""
    for codes, residuals in zip(_blocks(chunk.codes), _blocks(chunk.residuals), strict=True):
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= num_centroids:
            raise InputError(
                f"{chunk.codes.path}: expected codes from 0 to {num_centroids - 1} (as many as there are centroids), "
                f"got {low if low < 0 else high}; are the files of one index?"
            )
        yield codes.astype(np.uint32), residuals


def _blocks(array: StoredArray) -> Iterator[NDArray[Any]]:
    return array.blocks(BLOCK_TOKENS)


def _ids(source: SourceIndex) -> list[bytes]:
    try:
        return check_ids(read_ids(source.folder, source.num_passages))
    except CorpusError as error:
        raise InputError(f"{source.folder}: {error}") from None


def _passages(ids: list[bytes], collection: str | Path | None) -> Iterator[tuple[bytes, bytes, bytes, bytes]]:
    """(id, title, text, metadata) rows as a segment stores them."""
    if collection is None:
        yield from ((passage_id, b"", b"", b"") for passage_id in ids)
        return
    count = 0
    for count, (title, text) in enumerate(read_collection(Path(collection)), 1):
        if count <= len(ids):
            yield ids[count - 1], title.encode("utf-8"), text.encode("utf-8"), b""
    if count != len(ids):
        raise CorpusError(
            f"{collection}: expected {len(ids)} passages, as the index has, got {count}; give the collection that the "
            "index was built from"
        )


def read_collection(path: Path) -> Iterator[tuple[str, str]]:
    """(title, text) of each passage of a colbert-ai collection: lines of `number<TAB>text[<TAB>title]`, from 0 on.

    The first line may be a header that begins with `id`; colbert-ai takes it for passage 0, and so does this. A
    file without tabs holds a passage a line. Raises `CorpusError` that names the line.
    """
    tabs: bool | None = None
    for number, line in read_lines(path):
        fields = line.strip("\n\r ").split("\t")
        tabs = len(fields) > 1 if tabs is None else tabs
        if tabs != (len(fields) > 1):
            raise CorpusError(
                f"{path}:{number}: expected {'number<TAB>text' if tabs else 'text without tabs'} as in the first line, "
                f"got {len(fields) - 1} tabs"
            )
        if not tabs:
            yield "", fields[0]
            continue
        if fields[0] != str(number - 1) and not (fields[0] == "id" and number == 1):
            raise CorpusError(
                f"{path}:{number}: expected passage number {number - 1}, got '{fields[0][:40]}'; "
                "colbert-ai numbers the lines of a collection from 0"
            )
        yield fields[2] if len(fields) > 2 else "", fields[1]


def _silent(step: str, done: int, total: int) -> None:
    """No progress wanted."""
