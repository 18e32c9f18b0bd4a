"""Passages of a training file, ranked for its questions by an exported encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.training import data
from hybrid_retrieval.training.exported import ExportedEncoder


class Pool:
    """Passages, encoded once. texts: token ids; limit: tokens of a passage with its markers."""

    def __init__(self, encoder: ExportedEncoder, texts: Sequence[list[int]], limit: int) -> None:
        self._vectors = encoder.vectors(data.PASSAGE_PREFIX, texts, limit)
        self._means = np.stack([vectors.mean(axis=0) for vectors in self._vectors])

    def ranked(self, query: NDArray[np.float32], shortlist: int, *, own: int) -> list[tuple[int, float]]:
        """(number, mean MaxSim) of passage ``own`` and of the ``shortlist`` that are nearest to the query's vectors
        float32 [L, D] by mean vectors; best first, then by number."""
        near = np.argsort(-(self._means @ query.mean(axis=0)), kind="stable")[:shortlist]
        numbers = np.unique([own, *near])
        chosen = [self._vectors[j] for j in numbers]
        starts = np.cumsum([0, *map(len, chosen)])[:-1]
        scores = np.maximum.reduceat(query @ np.concatenate(chosen).T, starts, axis=1).mean(axis=0)
        return [(int(numbers[i]), float(scores[i])) for i in np.argsort(-scores, kind="stable")]
