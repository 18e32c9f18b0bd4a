"""What runs a cross-encoder graph: token ids in, one logit a pair out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.onnx_files import OnnxGraph


class RerankerBackend(ABC):
    """Safe to share between threads. lanes: rows worked on side by side, each by a thread of its own; 1 where all cores
    share each row. devices: batches worked on side by side. stops: whether a batch ends when its time is up."""

    lanes = 1
    devices = 1
    stops = True

    @abstractmethod
    def forward(
        self,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        types: NDArray[np.int64] | None,
        ends: float = math.inf,
    ) -> NDArray[np.float32]:
        """ids, mask, types: int64 [B, L]. Returns float32 [B] logits. ends: on `time.perf_counter`; where the backend
        `stops`, `OutOfTime` is raised soon after."""


class OnnxRerankerBackend(RerankerBackend):
    """onnxruntime; needs no torch."""

    def __init__(self, graph: Path, *, threads: int, device: str) -> None:
        self._graph = OnnxGraph(graph, threads=threads, device=device)
        self.stops = device != "cuda"

    def forward(
        self,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        types: NDArray[np.int64] | None,
        ends: float = math.inf,
    ) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._graph.run(ids, mask, types, ends).reshape(len(ids))
        return logits
