"""Token vectors of an exported encoder, from token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.native_trunk import NativeTrunk, TrunkFacts
from hybrid_retrieval.training import data

BLOCK = 256
"""Texts run at a time."""


def trunk_facts(folder: Path) -> TrunkFacts:
    """The numbers of an exported encoder's trunk."""
    description = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))["trunk"]
    return TrunkFacts.from_dict(description, str(folder))


class ExportedEncoder:
    """The encoder of a folder that ``export.write_encoder`` wrote, on the native kernels."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        self._trunk = NativeTrunk(folder, trunk_facts(folder), variant=dispatch.variant(), threads=threads)
        self._projection = self._trunk.projection(self._trunk.tensors["projection"])

    def vectors(self, prefix: Sequence[int], texts: Sequence[list[int]], limit: int) -> list[NDArray[np.float32]]:
        """Unit vectors float32 [L, D] of each text within its markers, at most ``limit`` tokens in all."""
        rows = [np.array(data.wrap(prefix, text, limit), np.int64) for text in texts]
        starts = range(0, len(rows), BLOCK)
        return [v for start in starts for v in self._trunk.run(rows[start : start + BLOCK], self._projection)]
