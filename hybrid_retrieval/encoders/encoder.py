"""`Encoder`: queries and passages to token vectors, as the checkpoint's convention says."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.batching import Batches, pad
from hybrid_retrieval.cache import Cache, CacheInfo, digest
from hybrid_retrieval.config import EncoderConfig
from hybrid_retrieval.corpus.chunker import split_windows
from hybrid_retrieval.encoders.backend import EncoderBackend
from hybrid_retrieval.encoders.convention import EncodingConvention, Side
from hybrid_retrieval.encoders.loading import load_parts
from hybrid_retrieval.errors import InputError, ModelError
from hybrid_retrieval.model_files import lasting_name, reader, resolve
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.types import check_many, check_path, check_query, is_blank, is_unicode

logger = logging.getLogger(__name__)

Float32 = NDArray[np.float32]


class Encoder:
    """A ColBERT encoder. Safe to share between threads.

    name: what the model calls itself. dimensions: D. identity: SHA-256 (hex) over what determines the vectors (weights,
    tokenizer, convention), not over the backend or device. convention: markers, limits, skipped tokens. source: what
    `load` was given (a folder by its absolute path), or None.
    """

    def __init__(
        self,
        *,
        name: str,
        identity: str,
        dimensions: int,
        convention: EncodingConvention,
        tokenizer: Any,
        backend: EncoderBackend,
        batch_tokens: int = 4096,
        cached_queries: int = 1024,
    ) -> None:
        self.source: str | None = None
        self.name, self.identity, self.dimensions, self.convention = name, identity, dimensions, convention
        self._tokenizer, self._backend, self._batches = tokenizer, backend, Batches(batch_tokens, name)
        self._read = reader(tokenizer)
        self._cache: Cache[tuple[Float32, tuple[str, ...]]] = Cache(cached_queries)
        self._key = digest(identity)
        self._warned = False

    def __copy__(self) -> Encoder:
        return self  # nothing of it changes

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Encoder is not copied to another process: load it there (Encoder.load)")

    @classmethod
    def load(
        cls,
        model: str | Path = "embedded",
        *,
        revision: str | None = None,
        backend: Literal["auto", "native", "onnx", "torch"] = "auto",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "auto",
        threads: int = 0,
        batch_tokens: int = 4096,
        cached_queries: int = 1024,
    ) -> Encoder:
        """Load `embedded`, a folder (Stanford, PyLate, sentence-transformers or an ONNX export) or a hub id.

        dtype: `auto` is float16 on CUDA and float32 on a CPU; an ONNX folder keeps its own. threads: on a CPU, 0
        takes every core. batch_tokens: padded tokens in one forward pass. cached_queries: queries whose vectors
        `encode_query` remembers, 0 none. Raises `ModelNotFoundError`, `ModelError`, `ConfigError` for an impossible
        option, or `OptionalDependencyError` where the model needs torch.
        """
        check_path("a model", model)
        model = os.fspath(model)  # './name' is a folder where 'name' may be another's
        EncoderConfig(  # refuses what is impossible
            model=model,
            revision=revision,
            backend=backend,
            device=device,
            dtype=dtype,
            threads=threads,
            batch_tokens=batch_tokens,
            cached_queries=cached_queries,
        )
        parts = load_parts(resolve(model, revision), backend=backend, device=device, dtype=dtype, threads=threads)
        encoder = cls(**parts, batch_tokens=batch_tokens, cached_queries=cached_queries)
        encoder.source = lasting_name(model)
        return encoder

    @property
    def max_passage_tokens(self) -> int:
        """Tokens of one window of a passage, markers included."""
        return self.convention.passage.max_tokens

    def encode_query(self, text: str) -> Float32:
        """One query: float32 [Lq, D], read-only. The last queries' vectors are remembered."""
        return self.read_query(text)[0]

    def read_query(self, text: str) -> tuple[Float32, tuple[str, ...]]:
        """As `encode_query`, with what is to be known of how the query was read: that it was cut, if it was."""
        check_query(text)
        key = self._key(text.encode())
        found = self._cache.get(key)
        if found is None:
            rows, (notes,) = self._encode_queries([text])
            rows.data.flags.writeable = False
            found = rows.data, notes
            self._cache.put(key, found)
        return found

    def cache_info(self) -> CacheInfo:
        """The cache of query vectors: hits, misses, entries, capacity."""
        return self._cache.info()

    def encode_queries(self, texts: Sequence[str]) -> Ragged:
        """One row a query, over float32 vectors [T, D]: of unit length, or as long as their tokens' weights where the
        model has weights (their mean over a query is 1), so that MaxSim is a weighted sum.

        A query over the checkpoint's limit is cut there, as the convention says, with a warning for the first one; a
        `Ranking` of a pipeline notes each. Raises `QueryError` for an empty query, or one of over 10,000 characters.
        """
        return self._encode_queries(check_many("encode_queries", "texts", texts))[0]

    def _encode_queries(self, texts: Sequence[str]) -> tuple[Ragged, list[tuple[str, ...]]]:
        """The rows of `encode_queries`, and each query's notes."""
        rows, masks, notes = [], [], []
        for text in texts:
            check_query(text)
            ids, noted = self._query_ids(text)
            notes.append(noted)
            attended = len(ids)
            expansion = self.convention.query.expansion
            if expansion is not None:
                ids = ids + [expansion.token_id] * (expansion.length - len(ids))
                attended = len(ids) if expansion.attend else attended
            rows.append(ids)
            masks.append(attended)
        found = self._encode(rows, masks, self.convention.query, "query", range(len(rows)), len(rows))
        weights = self.convention.query.weights
        if weights is not None:
            for start, end in itertools.pairwise(found.offsets.tolist()):
                found.data[start:end] = weights.scaled(found.data[start:end])
        return found, notes

    def encode_passages(self, texts: Sequence[str]) -> Ragged:
        """One row a passage, over unit float32 vectors [T, D]; a long passage's row holds all of its windows."""
        windows, offsets = self.encode_windows(texts)
        return Ragged(windows.data, windows.offsets[offsets])

    def encode_windows(self, texts: Sequence[str], overlap_tokens: int = 32) -> tuple[Ragged, NDArray[np.int64]]:
        """One row a window, and int64 [N + 1]: the windows of passage i are rows offsets[i] to offsets[i + 1].

        A passage within the limit is one window; a longer one is split on sentence or word bounds, neighbours sharing
        up to `overlap_tokens`. Raises `InputError` for a passage without text.
        """
        texts = check_many("encode_windows", "texts", texts)
        side = self.convention.passage
        rows: list[list[int]] = []
        counts = []
        for position, text in enumerate(texts):
            if not isinstance(text, str) or is_blank(text):
                raise InputError(f"passage {position} of {len(texts)} has no text")
            if not is_unicode(text):
                raise InputError(f"passage {position} of {len(texts)} is not valid Unicode")
            windows = self._windows(text, overlap_tokens)
            rows.extend(side.wrap(window) for window in windows)
            counts.append(len(windows))
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        owners = np.repeat(np.arange(len(counts)), counts)
        return self._encode(rows, [len(row) for row in rows], side, "passage", owners, len(counts)), offsets

    def tokens(self, text: str, side: Literal["query", "passage"]) -> list[str]:
        """The pieces that a text's vectors stand for, aligned with `encode_query` or a row of `encode_passages`."""
        if side == "passage":
            return [piece for window in self.window_tokens(text) for piece in window]
        check_query(text)
        ids, _ = self._query_ids(text)
        expansion = self.convention.query.expansion
        if expansion is not None:
            ids = ids + [expansion.token_id] * (expansion.length - len(ids))
        return self._pieces(ids, self.convention.query)

    def window_tokens(self, text: str, overlap_tokens: int = 32) -> list[list[str]]:
        """The pieces of a passage that its vectors stand for, one list a window, aligned with `encode_windows`."""
        side = self.convention.passage
        return [self._pieces(side.wrap(window), side) for window in self._windows(text, overlap_tokens)]

    def _pieces(self, ids: list[int], side: Side) -> list[str]:
        skipped = set(side.skip_ids)
        return [self._tokenizer.id_to_token(token) for token in ids if token not in skipped]

    def _query_ids(self, text: str) -> tuple[list[int], tuple[str, ...]]:
        """A query's ids, cut to what fits, and a note where something was cut off."""
        side = self.convention.query
        ids: list[int] = self._tokenizer.encode(self._read(text), add_special_tokens=False).ids
        if len(ids) <= side.room:
            return side.wrap(ids), ()
        note = f"the query of {len(ids)} tokens was cut to the {side.room} that {self.name} reads"
        if not self._warned:
            self._warned = True
            logger.warning("%s; further ones are not reported here", note)
        return side.wrap(ids[: side.room]), (note,)

    def _windows(self, text: str, overlap_tokens: int) -> list[list[int]]:
        encoding = self._tokenizer.encode(self._read(text), add_special_tokens=False)
        spans = split_windows(text, encoding.offsets, self.convention.passage.room, overlap_tokens)
        return [encoding.ids[start:end] for start, end in spans]

    def _encode(
        self,
        rows: list[list[int]],
        attended: list[int],
        side: Side,
        what: str,
        owners: Sequence[int] | NDArray[np.int64],
        count: int,
    ) -> Ragged:
        """Token vectors of rows of ids, of which the first `attended[i]` are seen by attention.

        what, owners, count: row i belongs to text `owners[i]` of `count`, for messages.
        """
        skip = np.array(side.skip_ids, np.int64)
        kept = [~np.isin(row, skip) for row in rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([keep.sum() for keep in kept], out=offsets[1:])
        data = np.empty((int(offsets[-1]), self.dimensions), np.float32)

        def forward(batch: list[int]) -> None:
            ids, mask = pad([rows[i] for i in batch], self.convention.pad_id)
            for line, i in enumerate(batch):
                mask[line, attended[i] :] = 0
            vectors = self._backend.forward(ids, mask)
            for line, i in enumerate(batch):
                chosen = vectors[line, : len(rows[i])][kept[i]]
                if not np.isfinite(chosen).all():
                    raise ModelError(f"{self.name} gave a NaN or infinite vector for {what} {owners[i]} of {count}")
                data[offsets[i] : offsets[i + 1]] = chosen

        self._batches.run([len(row) for row in rows], forward, self._backend.devices)
        return Ragged(data, offsets)
