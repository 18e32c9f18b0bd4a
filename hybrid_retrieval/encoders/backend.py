"""What runs a ColBERT graph: token ids in, unit token vectors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.onnx_files import OnnxGraph


class EncoderBackend(ABC):
    """Safe to share between threads. devices: batches worked on side by side."""

    devices = 1

    @abstractmethod
    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """ids, mask: int64 [B, L]. Returns float32 [B, L, D], unit rows (what stands at padding means nothing)."""


class OnnxEncoderBackend(EncoderBackend):
    """onnxruntime; needs no torch."""

    def __init__(self, graph: Path, *, threads: int, device: str) -> None:
        self._graph = OnnxGraph(graph, threads=threads, device=device)

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self._graph.run(ids, mask)
        return vectors
