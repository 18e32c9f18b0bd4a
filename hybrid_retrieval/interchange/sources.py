"""Indexes of other engines, opened for reading: colbert-ai's folders and the .npy folders of fast-plaid, next-plaid.

Both hold the same: a scalar residual codec, and chunks of passages with a centroid's number and packed residuals for
every token. What is derived from it (inverted lists, average residuals, second copies) is not read.
"""

from __future__ import annotations

import json
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.codec import ResidualCodec
from hybrid_retrieval.errors import ArrayError, IndexNotFoundError, InputError
from hybrid_retrieval.interchange.torch_files import open_tensor, open_tensors
from hybrid_retrieval.kernels.reference import NBITS

# What `export_colbert` leaves beside colbert-ai's files.
PASSAGE_IDS = "passage_ids.json"
ENCODER = "encoder_identity.json"
COLLECTION = "collection.tsv"
QUERY_SETTINGS = ("query_maxlen", "attend_to_mask_tokens", "query_token_id")


class StoredArray(Protocol):
    """An array in a file, of which only the head was read."""

    @property
    def path(self) -> Path: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self) -> NDArray[Any]: ...
    def blocks(self, rows: int) -> Iterator[NDArray[Any]]: ...


@dataclass(frozen=True, slots=True)
class NpyArray:
    """A .npy file, memory-mapped."""

    path: Path
    array: NDArray[Any]

    @classmethod
    def open(cls, path: Path) -> NpyArray:
        """Raises `InputError` for a file that is missing, truncated, or holds Python objects."""
        try:
            return cls(path, np.load(path, mmap_mode="r", allow_pickle=False))
        except FileNotFoundError:
            raise InputError(f"{path}: missing; is the index complete?") from None
        except (OSError, ValueError, EOFError, OverflowError, SyntaxError, TypeError, tokenize.TokenError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path}: expected a .npy file of numbers, got one that cannot be read ({reason})"
            ) from None

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self) -> NDArray[Any]:
        """The whole array, in memory."""
        return np.array(self.array)

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """The array in blocks of up to `rows` along its first axis."""
        for start in range(0, self.shape[0], rows):
            yield np.asarray(self.array[start : start + rows])


@dataclass(frozen=True, slots=True)
class Chunk:
    """Passages that follow each other. lengths: int64 [n] tokens. codes: int [t]. residuals: uint8 [t, bytes]."""

    lengths: NDArray[np.int64]
    codes: StoredArray
    residuals: StoredArray


@dataclass(frozen=True, slots=True)
class SourceIndex:
    """An opened index. checkpoint: the encoder's name as its maker knew it, or None. query_settings: those of
    `QUERY_SETTINGS` that colbert-ai kept with it, and would encode queries with."""

    folder: Path
    codec: ResidualCodec
    chunks: tuple[Chunk, ...]
    checkpoint: str | None
    query_settings: dict[str, Any]

    @property
    def num_passages(self) -> int:
        """Passages, those without tokens included."""
        return sum(len(chunk.lengths) for chunk in self.chunks)

    @property
    def num_tokens(self) -> int:
        """Token vectors."""
        return sum(chunk.codes.shape[0] for chunk in self.chunks)


def open_source(folder: Path) -> SourceIndex:
    """Open a folder and check the head of every file against the others.

    Raises `IndexNotFoundError` where there is no such index, `InputError` that names a file that is wrong.
    """
    if not folder.is_dir():
        raise IndexNotFoundError(f"{folder}: {'a file' if folder.exists() else 'no such folder'}; give an index folder")
    torch_layout = (folder / "centroids.pt").exists()
    if not torch_layout and not (folder / "centroids.npy").exists():
        raise IndexNotFoundError(
            f"{folder}: neither a colbert-ai nor a fast-plaid index (no centroids.pt or centroids.npy in it); give the "
            "folder that holds metadata.json and the chunks"
        )
    metadata = _read_json(folder / "metadata.json", dict)
    config = metadata.get("config") if torch_layout else metadata
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'metadata.json'}: expected a 'config', got none; is this colbert-ai's file?")
    codec = _codec(folder, torch_layout)
    for key, value in (("nbits", codec.nbits), ("dim", codec.dimensions)):
        if key in config and config[key] != value:
            raise InputError(
                f"{folder / 'metadata.json'}: expected {key} {value} as in the codec's files, got {config[key]!r}; "
                "are the files of one index?"
            )
    # The counts of embeddings are not compared: colbert-ai's IndexUpdater leaves wrong ones behind.
    num_chunks = metadata.get("num_chunks")
    if type(num_chunks) is not int or num_chunks < 1:
        raise InputError(f"{folder / 'metadata.json'}: expected num_chunks of at least 1, got {num_chunks!r}")
    chunks = tuple(_chunk(folder, number, torch_layout, codec) for number in range(num_chunks))
    checkpoint = config.get("checkpoint")
    name = checkpoint if isinstance(checkpoint, str) and checkpoint else None
    settings = {key: config[key] for key in QUERY_SETTINGS if key in config}
    source = SourceIndex(folder, codec, chunks, name, settings)
    if source.num_tokens == 0:
        raise InputError(f"{folder}: expected at least one token vector, got none: there is nothing to import")
    return source


def _codec(folder: Path, torch_layout: bool) -> ResidualCodec:
    if torch_layout:
        centroids: StoredArray = open_tensor(folder / "centroids.pt")
        buckets: list[Any] = list(open_tensors(folder / "buckets.pt"))
        if len(buckets) != 2:
            raise InputError(
                f"{folder / 'buckets.pt'}: expected two tensors (cut-offs and weights), got {len(buckets)}"
            )
        cutoffs, weights = buckets
    else:
        centroids = NpyArray.open(folder / "centroids.npy")
        cutoffs, weights = (NpyArray.open(folder / f"bucket_{name}.npy") for name in ("cutoffs", "weights"))
    for array, axes in ((centroids, 2), (cutoffs, 1), (weights, 1)):
        if len(array.shape) != axes or array.dtype.kind != "f":
            raise InputError(
                f"{array.path}: expected floating-point numbers on {'one axis' if axes == 1 else 'two axes'}, "
                f"got {array.dtype} of shape {list(array.shape)}"
            )
    if weights.shape[0] not in [2**nbits for nbits in NBITS] or cutoffs.shape[0] != weights.shape[0] - 1:
        raise InputError(
            f"{weights.path}: expected 2, 4, 16 or 256 weights and one cut-off fewer (1, 2, 4 or 8 bits), "
            f"got {weights.shape[0]} and {cutoffs.shape[0]}"
        )
    if centroids.shape[1] == 0 or centroids.shape[1] % 8 or centroids.shape[0] == 0:
        raise InputError(
            f"{centroids.path}: expected centroids [K, D] with D a multiple of 8, got {list(centroids.shape)}"
        )
    try:
        # float16 fits into float32 exactly, which is what colbert-ai computes with on a CPU.
        arrays = [array.read().astype(np.float32) for array in (centroids, cutoffs, weights)]
        return ResidualCodec(arrays[0], arrays[1], arrays[2])
    except ArrayError as error:
        raise InputError(f"{folder}: the centroids or buckets are damaged ({error}); copy the index anew") from None


def _chunk(folder: Path, number: int, torch_layout: bool, codec: ResidualCodec) -> Chunk:
    file = folder / f"doclens.{number}.json"
    lengths = np.array(_read_counts(file), np.int64)
    parts: list[StoredArray] = [
        open_tensor(folder / f"{number}.{name}.pt") if torch_layout else NpyArray.open(folder / f"{number}.{name}.npy")
        for name in ("codes", "residuals")
    ]
    codes, residuals = parts
    if codes.dtype.kind not in "iu" or len(codes.shape) != 1:
        raise InputError(
            f"{codes.path}: expected whole numbers [tokens], got {codes.dtype} of shape {list(codes.shape)}"
        )
    expected = (codes.shape[0], codec.residual_bytes)
    if residuals.dtype != np.uint8 or residuals.shape != expected:
        raise InputError(
            f"{residuals.path}: expected uint8 {list(expected)} (tokens of {codes.path.name}, bytes of "
            f"{codec.dimensions} dimensions at {codec.nbits} bits), got {residuals.dtype} {list(residuals.shape)}"
        )
    if int(lengths.sum()) != codes.shape[0]:
        raise InputError(
            f"{file}: expected lengths that sum to the {codes.shape[0]} tokens of {codes.path.name}, "
            f"got {int(lengths.sum())}; are the files of one index?"
        )
    return Chunk(lengths, codes, residuals)


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: missing; did the build of this index finish?") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, got something else ({error}); copy the index anew") from None
    if not isinstance(value, kind):
        wanted = "a JSON object" if kind is dict else "a JSON array"
        raise InputError(f"{path}: expected {wanted}, got {type(value).__name__}")
    return value


def _read_counts(path: Path) -> list[int]:
    counts: list[int] = _read_json(path, list)
    for row, count in enumerate(counts):
        if type(count) is not int or not 0 <= count < 1 << 31:
            raise InputError(f"{path}: expected a number of tokens for each passage, got {count!r} at {row}")
    return counts


def read_ids(folder: Path, count: int) -> list[str]:
    """The passages' ids: their numbers, as colbert-ai knows them, or what `export_colbert` left in `passage_ids.json`.

    Raises `InputError`.
    """
    path = folder / PASSAGE_IDS
    if not path.exists():
        return [str(pid) for pid in range(count)]
    ids: list[Any] = _read_json(path, list)
    if len(ids) != count:
        raise InputError(
            f"{path}: expected an id for each of {count} passages, got {len(ids)}; delete it to go by number"
        )
    return ids


def read_encoder(folder: Path, dimensions: int) -> dict[str, Any] | None:
    """The encoder that `export_colbert` noted, as a manifest has it: {name, identity, dimensions}; None where it noted
    none. Raises `InputError`."""
    path = folder / ENCODER
    if not path.exists():
        return None
    encoder: dict[str, Any] = _read_json(path, dict)
    kinds = {key: type(value) for key, value in encoder.items()}
    if kinds != {"name": str, "identity": str, "dimensions": int} or encoder["dimensions"] != dimensions:
        raise InputError(
            f"{path}: expected name, identity and dimensions ({dimensions}) of an encoder, got {encoder!r:.200}; "
            "delete it to take any encoder"
        )
    return encoder
