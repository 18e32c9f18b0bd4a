"""`ResidualCodec`: a vector as the number of its nearest centroid and a few bits a dimension of what is
left."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.codec.assignment import MakeNearest, Nearest, NearestCentroids
from hybrid_retrieval.errors import ArrayError, IndexDamagedError
from hybrid_retrieval.kernels.reference import NBITS, PackedTokens, pack_buckets, weight_table

ENCODE_BLOCK = 16_384
# Of numbers in a codec, whose vectors are of about unit length: products of larger ones would overflow somewhere.
LARGEST = 1e3
FILES = ("centroids.npy", "cutoffs.npy", "weights.npy")


@dataclass(frozen=True)
class ResidualCodec:
    """centroids: float32 [K, D], unit length. cutoffs: float32 [2^nbits - 1], never falling. weights: float32
    [2^nbits].

    make_nearest: where `encode` finds nearest centroids. D must be a multiple of 8. One scalar codec serves all
    dimensions, as in colbert-ai.
    """

    centroids: NDArray[np.float32]
    cutoffs: NDArray[np.float32]
    weights: NDArray[np.float32]
    make_nearest: MakeNearest = field(default=NearestCentroids, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("centroids", "cutoffs", "weights"):
            array = getattr(self, name)
            if array.dtype != np.float32 or array.ndim != (2 if name == "centroids" else 1):
                raise ArrayError(f"{name} of a codec must be float32, got {array.dtype} of shape {array.shape}")
            if not (np.abs(array) <= LARGEST).all():  # a NaN is not
                raise ArrayError(f"{name} of a codec must be finite and at most {LARGEST:g} in size")
        if len(self.weights) not in [2**nbits for nbits in NBITS] or len(self.cutoffs) != len(self.weights) - 1:
            raise ArrayError(
                f"a codec needs 2^nbits weights and one cut-off fewer, got {len(self.weights)} and {len(self.cutoffs)}"
            )
        if len(self.centroids) == 0 or self.dimensions == 0 or self.dimensions % 8:
            raise ArrayError(
                f"a codec needs at least one centroid and dimensions in multiples of 8, got {self.centroids.shape}"
            )
        if np.any(np.diff(self.cutoffs) < 0):
            raise ArrayError("cut-offs of a codec must never fall")

    @property
    def nbits(self) -> int:
        """Bits a dimension."""
        return len(self.weights).bit_length() - 1

    @property
    def dimensions(self) -> int:
        """D."""
        return int(self.centroids.shape[1])

    @property
    def num_centroids(self) -> int:
        """K."""
        return len(self.centroids)

    @property
    def residual_bytes(self) -> int:
        """Bytes of one packed residual: D * nbits / 8."""
        return self.dimensions * self.nbits // 8

    @cached_property
    def table(self) -> NDArray[np.float32]:
        """The residual values behind each packed byte (`kernels.reference.weight_table`)."""
        return weight_table(self.weights)

    @cached_property
    def _nearest(self) -> Nearest:
        return self.make_nearest(self.centroids)

    @cached_property
    def codec_id(self) -> str:
        """SHA-256 (hex) of the contents."""
        digest = hashlib.sha256(f"{self.centroids.shape} {len(self.weights)}".encode())
        for array in (self.centroids, self.cutoffs, self.weights):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def encode(self, vectors: NDArray[Any]) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Vectors float [T, D] to (codes uint32 [T], residuals uint8 [T, D * nbits / 8]).

        Raises `ArrayError` for another D, another dtype, or values that are not finite.
        """
        check_vectors(vectors, "vectors", dimensions=self.dimensions)
        codes = np.empty(len(vectors), np.uint32)
        residuals = np.empty((len(vectors), self.residual_bytes), np.uint8)
        for start in range(0, len(vectors), ENCODE_BLOCK):
            block = np.asarray(vectors[start : start + ENCODE_BLOCK], np.float32)
            nearest = self._nearest(block)
            rest = block - self.centroids[nearest]
            buckets = _buckets(rest, self.cutoffs)
            codes[start : start + len(block)] = nearest
            residuals[start : start + len(block)] = pack_buckets(buckets, self.nbits)
        return codes, residuals

    def packed(self, codes: NDArray[np.uint32], residuals: NDArray[np.uint8]) -> PackedTokens:
        """The tokens as the kernels read them. codes: uint32 [T]. residuals: uint8 [T, D * nbits / 8]."""
        if residuals.shape != (len(codes), self.residual_bytes) or residuals.dtype != np.uint8:
            raise ArrayError(
                f"residuals must be uint8 [{len(codes)}, {self.residual_bytes}], "
                f"got {residuals.dtype} {residuals.shape}"
            )
        return PackedTokens(codes, residuals, self.centroids, self.table)

    def decode(self, codes: NDArray[np.uint32], residuals: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors float32 [T, D]: centroid plus residual, normalised as colbert-ai does."""
        if len(codes) and int(codes.max()) >= self.num_centroids:
            raise ArrayError(f"codes must be below {self.num_centroids}, got {int(codes.max())}")
        return self.packed(codes, residuals).decode(slice(None))

    def save(self, folder: Path) -> None:
        """Write three .npy files into an existing folder."""
        for name, array in zip(FILES, (self.centroids, self.cutoffs, self.weights), strict=True):
            np.save(folder / name, array, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> ResidualCodec:
        """Read what `save` wrote. Raises `IndexDamagedError` that names the file."""
        arrays = []
        for name in FILES:
            try:
                arrays.append(np.load(folder / name, allow_pickle=False))
            except Exception as error:  # a damaged header fails in whatever way Python's own parser does
                raise IndexDamagedError(f"{folder / name}: not a readable codec file ({error!r:.200})") from None
        try:
            return cls(*arrays)
        except (ArrayError, AttributeError) as error:
            raise IndexDamagedError(f"{folder}: the codec is damaged ({error})") from None


def _buckets(values: NDArray[np.float32], cutoffs: NDArray[np.float32]) -> NDArray[np.uint8]:
    """uint8, shaped as values: how many cut-offs each lies above. One equal to a cut-off belongs below it, as with
    torch.bucketize, which colbert-ai uses."""
    if len(cutoffs) > 15:
        found: NDArray[np.uint8] = np.searchsorted(cutoffs, values, side="left").astype(np.uint8)
        return found
    # A few plain comparisons take a fraction of the time of a search for each value.
    buckets: NDArray[np.uint8] = (values > cutoffs[0]).view(np.uint8)
    for cutoff in cutoffs[1:]:
        buckets += (values > cutoff).view(np.uint8)
    return buckets


def check_vectors(vectors: NDArray[Any], name: str, *, dimensions: int | None = None) -> None:
    """Raise `ArrayError` unless vectors are a finite floating [T, D] array, of the given D."""
    wanted = "D" if dimensions is None else str(dimensions)
    if not isinstance(vectors, np.ndarray):
        raise ArrayError(f"{name} must be a float array [T, {wanted}], got {type(vectors).__name__}")
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or dimensions not in (None, vectors.shape[1]):
        raise ArrayError(f"{name} must be a float array [T, {wanted}], got {vectors.dtype} of shape {vectors.shape}")
    if not vectors.shape[1] or vectors.shape[1] % 8:
        raise ArrayError(f"{name} must have dimensions in multiples of 8, got {vectors.shape[1]}")
    for start in range(0, len(vectors), ENCODE_BLOCK):
        finite = np.isfinite(vectors[start : start + ENCODE_BLOCK]).all(axis=1)
        if not finite.all():
            raise ArrayError(f"{name} must be finite: row {start + int(np.argmin(finite))} has a NaN or an infinity")
