"""Token states kept on disk: what the lower layers make of each text, and what the whole base does.

Training only the upper layers then costs nothing below them. The lower layers run on the native kernels, so the
upper ones learn from the very numbers they will be given.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.native_trunk import NativeTrunk, layer_arrays
from hybrid_retrieval.training.exported import BLOCK, trunk_facts


@dataclass(frozen=True)
class States:
    """lower, final: float16 [T, H], states after the last frozen layer, and unit final states of the untrained base.
    offsets: int64 [N + 1]."""

    lower: NDArray[np.float16]
    final: NDArray[np.float16]
    offsets: NDArray[np.int64]

    def lower_of(self, text: int) -> NDArray[np.float16]:
        return self.lower[self.offsets[text] : self.offsets[text + 1]]

    def final_of(self, text: int) -> NDArray[np.float16]:
        return self.final[self.offsets[text] : self.offsets[text + 1]]


def keep_states(encoder: Path, rows: Sequence[Sequence[int]], frozen: int, work: Path, *, threads: int) -> States:
    """Run rows of token ids through an exported encoder's ``frozen`` first layers, and on to the end.

    Written under ``work`` and taken from there where the same rows were run through the same layers before.
    """
    work.mkdir(parents=True, exist_ok=True)
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    flat = np.concatenate([np.asarray(row, np.int64) for row in rows])
    layers = np.frombuffer(hashlib.sha256((encoder / "encoder.safetensors").read_bytes()).digest(), np.uint8)
    told = {"ids": flat, "offsets": offsets, "frozen": np.array(frozen), "layers": layers}
    if (work / "states.npz").exists():
        known = np.load(work / "states.npz")
        if all(name in known and np.array_equal(known[name], value) for name, value in told.items()):
            return States(np.load(work / "lower.npy", "r"), np.load(work / "final.npy", "r"), offsets)
    facts = trunk_facts(encoder)
    below = NativeTrunk(encoder, dataclasses.replace(facts, layers=frozen), variant=dispatch.variant(), threads=threads)
    above = dispatch.module().Trunk(dispatch.variant(), facts.hidden, facts.heads, facts.head_size, facts.epsilon)
    for i in range(frozen, facts.layers):
        above.add_layer(*layer_arrays(below.tensors, f"layers.{i}"))
    (work / "states.npz").unlink(missing_ok=True)  # it vouches for the two files that are about to change
    tokens = int(offsets[-1])
    lower, last = (
        np.lib.format.open_memmap(work / f"{name}.npy", "w+", np.float16, (tokens, facts.hidden))
        for name in ("lower", "final")
    )
    for start in range(0, len(rows), BLOCK):
        found = below.run([np.asarray(row, np.int64) for row in rows[start : start + BLOCK]])
        here = slice(int(offsets[start]), int(offsets[start]) + len(found.data))
        lower[here] = found.data
        unscaled = above.run(np.ascontiguousarray(found.data), found.offsets)
        last[here] = unscaled / np.linalg.norm(unscaled, axis=1, keepdims=True)
        if start // BLOCK % 20 == 0:
            print(f"states: {start} of {len(rows)} texts", flush=True)
    with open(work / "unfinished.npz", "wb") as file:
        np.savez(file, ids=flat, offsets=offsets, frozen=told["frozen"], layers=layers)
    os.replace(work / "unfinished.npz", work / "states.npz")
    return States(lower, last, offsets)
