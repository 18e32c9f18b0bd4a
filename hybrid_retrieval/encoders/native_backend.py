"""The embedded encoder on the native kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.encoders.backend import EncoderBackend
from hybrid_retrieval.errors import ModelError
from hybrid_retrieval.native_trunk import NativeTrunk, TrunkFacts


class NativeEncoderBackend(EncoderBackend):
    """Needs neither onnxruntime nor torch; spends nothing on padding. A vector does not depend on its batch."""

    def __init__(self, folder: Path, facts: TrunkFacts, *, variant: str, threads: int) -> None:
        self._trunk = NativeTrunk(folder, facts, variant=variant, threads=threads)
        if "projection" not in self._trunk.tensors:
            raise ModelError(f"{folder / facts.weights}: the projection is missing")
        self._projection = self._trunk.projection(np.ascontiguousarray(self._trunk.tensors["projection"], np.float32))

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `EncoderBackend.forward`; the attended tokens of a row must come first, the rest gets zeros."""
        lengths = mask.sum(axis=1)
        rows = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        vectors = self._trunk.run(rows, self._projection).data
        padded = np.zeros((*ids.shape, self._projection.width), np.float32)
        padded[np.arange(ids.shape[1]) < lengths[:, None]] = vectors
        return padded
