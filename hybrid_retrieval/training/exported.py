"""Token vectors of an exported encoder, from token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from hybrid_retrieval.encoders.convention import TokenWeights
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
        self._weights = exported_weights(folder)

    def vectors(self, prefix: Sequence[int], texts: Sequence[list[int]], limit: int) -> list[NDArray[np.float32]]:
        """Unit vectors float32 [L, D] of each text within its markers, at most ``limit`` tokens in all."""
        rows = [np.array(data.wrap(prefix, text, limit), np.int64) for text in texts]
        starts = range(0, len(rows), BLOCK)
        return [v for start in starts for v in self._trunk.run(rows[start : start + BLOCK], self._projection)]

    def queries(self, texts: Sequence[list[int]], limit: int) -> list[NDArray[np.float32]]:
        """The same of queries, each vector as long as its token's weight where the encoder has weights."""
        found = self.vectors(data.QUERY_PREFIX, texts, limit)
        return [self._weights.scaled(vectors) for vectors in found]


def exported_weights(folder: Path) -> TokenWeights:
    """The weights of the query tokens of an exported encoder, even ones where it has none."""
    description = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    told = description["query"].get("weights") or {"direction": [0.0] * description["dimensions"], "bias": 0.0}
    return TokenWeights(tuple(told["direction"]), told["bias"])


def exported_state(folder: Path) -> dict[str, NDArray[np.float32]]:
    """The weights of an exported encoder as float32, named as in ``modules.Encoder``. What int8 rounded off is not in
    them; exported again, they give the same numbers."""
    facts = trunk_facts(folder)
    stored = load_file(folder / facts.weights)
    state = {}
    for name, value in stored.items():
        stem, _, part = name.rpartition(".")
        if part == "scale" and f"{stem}.codes" in stored:
            continue
        if part == "codes":
            name, value = f"{stem}.weight", ((value.astype(np.float32) - 128) * stored[f"{stem}.scale"]).T
        name = "projection.weight" if name == "projection" else f"trunk.{name}"
        state[name] = np.array(value, order="C")
    return state
