"""int8 cross-encoders on the native kernels: the embedded one, and exports of XLM-R and BERT."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import ModelError
from hybrid_retrieval.native_trunk import NativeTrunk, TrunkFacts
from hybrid_retrieval.rerankers.backend import RerankerBackend
from hybrid_retrieval.rerankers.pairs import PairConvention

GATE = ("gate.weight", "gate.bias")
HEAD = ("dense.weight", "dense.bias", "out.weight", "out.bias")


class NativeRerankerBackend(RerankerBackend):
    """Needs neither onnxruntime nor torch; spends nothing on padding. A logit does not depend on its batch.

    The head's products are the kernels' too: NumPy's would start threads of their own beside those of the trunk.
    """

    def __init__(
        self, folder: Path, facts: TrunkFacts, convention: PairConvention, *, variant: str, threads: int
    ) -> None:
        self._trunk = NativeTrunk(folder, facts, variant=variant, threads=threads)
        # The embedded model has a MaxSim in its head; a plain classifier has none.
        self._scale = self._trunk.tensors.get("scale")
        needed = HEAD if self._scale is None else (*HEAD, *GATE)
        missing = [name for name in needed if name not in self._trunk.tensors]
        if missing:
            raise ModelError(f"{folder / facts.weights}: the head is incomplete ({', '.join(missing)})")
        dense, self._dense_bias, self._out, self._out_bias = (self._trunk.tensors[name] for name in HEAD)
        self._dense = self._trunk.projection(dense)
        if self._scale is not None:
            if not convention.middle_ids:
                raise ModelError(
                    f"{folder}: the head tells query and passage apart by a separator, and middle_ids is empty"
                )
            self._gate, self._gate_bias = (self._trunk.tensors[name] for name in GATE)
            if self._gate.shape != (1, facts.hidden):
                raise ModelError(
                    f"{folder / facts.weights}: gate.weight must be [1, {facts.hidden}], as wide as the states, "
                    f"got {list(self._gate.shape)}: export the model anew with this release"
                )
        self._convention = convention
        self.lanes = self._trunk.threads

    def forward(
        self,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        types: NDArray[np.int64] | None,
        ends: float = math.inf,
    ) -> NDArray[np.float32]:
        """As `RerankerBackend.forward`."""
        lengths = mask.sum(axis=1)
        rows = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        kinds = None if types is None else [row[:length] for row, length in zip(types, lengths, strict=True)]
        states = self._trunk.run(rows, types=kinds, ends=ends)
        return np.array([self._logit(row, state) for row, state in zip(rows, states, strict=True)], np.float32)

    def _logit(self, ids: NDArray[np.int64], states: NDArray[np.float32]) -> np.float32:
        """What the first token's state says; for the embedded model, a scaled MaxSim of query and passage too."""
        pooled = np.tanh(self._dense.kernel.product(states[:1])[0] + self._dense_bias)
        logit: np.float32 = (self._out @ pooled)[0] + self._out_bias[0]
        return logit if self._scale is None else logit + self._scale * self._maxsim(ids, states)

    def _maxsim(self, ids: NDArray[np.int64], states: NDArray[np.float32]) -> np.float32:
        marks = self._convention
        first = len(marks.prefix_ids)
        end = first + int(np.argmax(ids[first:] == marks.middle_ids[0]))
        unit = states / np.linalg.norm(states, axis=1, keepdims=True)
        passage = unit[end + len(marks.middle_ids) : len(ids) - len(marks.suffix_ids)]
        if not len(passage):
            return np.float32(-1)
        gate = states[first:end] @ self._gate[0] + self._gate_bias[0]
        weights = np.exp(-np.logaddexp(np.float32(0), -gate))  # the sigmoid, without overflow
        similarities = self._trunk.projection(passage).kernel.product(unit[first:end])
        mean: np.float32 = similarities.max(axis=1) @ weights / weights.sum()
        return mean
