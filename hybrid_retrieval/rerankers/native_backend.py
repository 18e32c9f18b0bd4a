"""int8 cross-encoders on the native kernels: the embedded one, and exports of XLM-R and BERT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import ModelError
from hybrid_retrieval.native_trunk import NativeTrunk, TrunkFacts
from hybrid_retrieval.rerankers.backend import RerankerBackend
from hybrid_retrieval.rerankers.pairs import PairConvention

MAXSIM = ("projection", "gate.weight", "gate.bias")
HEAD = ("dense.weight", "dense.bias", "out.weight", "out.bias")


class NativeRerankerBackend(RerankerBackend):
    """Needs neither onnxruntime nor torch; spends nothing on padding. A logit does not depend on its batch."""

    def __init__(
        self, folder: Path, facts: TrunkFacts, convention: PairConvention, *, variant: str, threads: int
    ) -> None:
        self._trunk = NativeTrunk(folder, facts, variant=variant, threads=threads)
        # The embedded model has a MaxSim in its head; a plain classifier has none.
        self._scale = self._trunk.tensors.get("scale")
        needed = HEAD if self._scale is None else (*HEAD, *MAXSIM)
        missing = [name for name in needed if name not in self._trunk.tensors]
        if missing:
            raise ModelError(f"{folder / facts.weights}: the head is incomplete ({', '.join(missing)})")
        self._dense, self._dense_bias, self._out, self._out_bias = (self._trunk.tensors[name] for name in HEAD)
        if self._scale is not None:
            if not convention.middle_ids or convention.middle_ids[:1] != convention.suffix_ids[:1]:
                raise ModelError(
                    f"{folder}: the head tells query and passage apart by the token that ends both, and middle_ids "
                    f"{list(convention.middle_ids)} and suffix_ids {list(convention.suffix_ids)} begin with no such one"
                )
            projection, self._gate, self._gate_bias = (self._trunk.tensors[name] for name in MAXSIM)
            if self._gate.shape != (1, len(projection)):
                raise ModelError(
                    f"{folder / facts.weights}: gate.weight must be [1, {len(projection)}], as wide as the projection, "
                    f"got {list(self._gate.shape)}: export the model anew"
                )
            self._projection = self._trunk.projection(projection)
        self._convention = convention
        self.lanes = self._trunk.threads

    def forward(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], types: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        """As `RerankerBackend.forward`."""
        lengths = mask.sum(axis=1)
        rows = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        kinds = None if types is None else [row[:length] for row, length in zip(types, lengths, strict=True)]
        states = self._trunk.run(rows, types=kinds)
        logits = np.array([self._classified(state[0]) for state in states], np.float32)
        if self._scale is not None:
            vectors = self._trunk.project(states, self._projection)
            logits += self._scale * np.array([self._maxsim(*pair) for pair in zip(rows, vectors, strict=True)])
        return logits

    def _classified(self, first: NDArray[np.float32]) -> np.float32:
        """What the first token's state says."""
        pooled = np.tanh(self._dense @ first + self._dense_bias)
        logit: np.float32 = (self._out @ pooled)[0] + self._out_bias[0]
        return logit

    def _maxsim(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> np.float32:
        """Weighted mean MaxSim of all before the first separator with all between it and the next."""
        end, after = np.flatnonzero(ids == self._convention.middle_ids[0])[:2]
        query, passage = vectors[:end], vectors[end + 1 : after]
        gate = query @ self._gate[0] + self._gate_bias[0]
        weights = np.exp(-np.logaddexp(np.float32(0), -gate) / 2)  # the root of the sigmoid, without overflow
        best = (query @ passage.T).max(axis=1, initial=-1)
        mean: np.float32 = best @ weights / weights.sum()
        return mean
