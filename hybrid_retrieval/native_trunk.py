"""BERT layers of int8 models run by the native kernels: no padding, and no row depends on the rows beside it.

An ONNX folder whose description has a `trunk` section can be run this way; onnxruntime runs it where there are no
native kernels. Both read the same weights file (safetensors, int8 codes stored as uint8 with zero point 128).
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import ModelError, ModelSettingsError
from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.model_files import Kind
from hybrid_retrieval.onnx_files import available_cores
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.time_limits import OutOfTime, seconds_left

Float32 = NDArray[np.float32]

DENSE = ("qkv", "ao", "fi", "fo")
NORM_AFTER = {"ao": "aln", "fo": "oln"}
EMBEDDING_BLOCK = 32


@dataclass(frozen=True, slots=True)
class TrunkFacts:
    """The `trunk` section of a description. weights, embeddings: file names. shared: the file of the weights that this
    model has in common with another, or None. embedding_bits: 4 (in blocks) or 16. epsilon: of every LayerNorm."""

    weights: str
    embeddings: str
    shared: str | None
    embedding_bits: int
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    head_size: int
    epsilon: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> TrunkFacts:
        """Raises `ModelError` for a missing key."""
        try:
            facts = cls(
                weights=str(values["weights"]),
                embeddings=str(values["embeddings"]),
                shared=str(values["shared"]) if "shared" in values else None,
                embedding_bits=int(values.get("embedding_bits", 4)),
                vocabulary=int(values["vocabulary"]),
                hidden=int(values["hidden"]),
                layers=int(values["layers"]),
                heads=int(values["heads"]),
                head_size=int(values["head_size"]),
                epsilon=float(values["epsilon"]),
            )
            if facts.embedding_bits not in (4, 16):
                raise ValueError(f"embedding_bits {facts.embedding_bits}")
            return facts
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{source}: the trunk section is incomplete ({error!r})") from None


@dataclass(frozen=True, slots=True)
class NativeChoice:
    """What to run natively, and with which variant of the kernels."""

    facts: TrunkFacts
    variant: str


def native_trunk(
    folder: Path, description: Mapping[str, Any], kind: Kind, *, backend: str, device: str
) -> NativeChoice | None:
    """How the native kernels run an ONNX folder, or None where onnxruntime is to run it.

    `auto` takes them for an int8 model on a CPU where they were compiled. Raises `ModelError` where `backend` is
    `native` and they cannot.
    """
    if backend == "onnx" or device == "cuda" or (backend == "auto" and "trunk" not in description):
        if backend == "native":
            raise ModelSettingsError("backend 'native' runs on the CPU only: use device 'cpu' or backend 'onnx'")
        return None
    source = str(folder / f"{kind}.json")
    if "trunk" not in description:
        raise ModelSettingsError(
            f"{source} has no trunk section, so the native kernels cannot run it: use backend 'onnx'"
        )
    variant = dispatch.variant()
    if variant == dispatch.NUMPY:
        if backend == "native":
            raise ModelSettingsError(
                "backend 'native' needs the compiled kernels, which are not in use here: install with a C++ compiler "
                f"at hand and leave {dispatch.VARIABLE} unset, or use backend 'onnx'"
            )
        return None
    return NativeChoice(TrunkFacts.from_dict(description["trunk"], source), variant)


@dataclass(frozen=True, slots=True)
class Projection:
    """A matrix as the kernels read it. width: D."""

    kernel: Any
    width: int


class NativeTrunk:
    """Token ids to final states. Safe to share between threads. threads: rows run side by side, one a thread."""

    def __init__(self, folder: Path, facts: TrunkFacts, *, variant: str, threads: int = 0) -> None:
        """threads: 0 takes every core. Raises `ModelError` where the files do not hold what `facts` says."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        self.facts, self._variant = facts, variant
        path = folder / facts.weights
        try:
            self.tensors: dict[str, Any] = load_file(path)
            if facts.shared is not None:
                self.tensors = load_file(folder / facts.shared) | self.tensors
            self._words = WordTable(folder / facts.embeddings, facts)
            self._trunk = dispatch.module().Trunk(variant, facts.hidden, facts.heads, facts.head_size, facts.epsilon)
            for i in range(facts.layers):
                self._trunk.add_layer(*layer_arrays(self.tensors, f"layers.{i}"))
            self._positions, self._types = self.tensors["pos"], self.tensors.get("types")
            self._norm = self.tensors["ln.weight"], self.tensors["ln.bias"]
            for array in (self._positions, *self._norm, *([] if self._types is None else [self._types])):
                if array.shape[-1] != facts.hidden:
                    raise ValueError(f"an array of the embeddings is {list(array.shape)}, not {facts.hidden} wide")
        except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
            raise ModelError(f"{path}: the weights are not those that the description names ({error})") from None
        self.threads = threads or available_cores()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_process = 0

    def projection(self, weight: Float32) -> Projection:
        """A matrix [D, H] for `run` to project by, laid out for the kernels once."""
        return Projection(dispatch.module().Projection(self._variant, weight), len(weight))

    def run(
        self,
        rows: Sequence[NDArray[np.int64]],
        projection: Projection | None = None,
        types: Sequence[NDArray[np.int64]] | None = None,
        ends: float = math.inf,
    ) -> Ragged:
        """Final states float32 [T, H], a row for each of the rows of token ids; or, with a projection to D dimensions,
        unit vectors [T, D]. types: of each token, 0 or 1, for a model that knows them (None: all 0). ends: on
        `time.perf_counter`; raises `OutOfTime` between two layers once it has passed."""
        lengths = [len(row) for row in rows]
        longest = max(lengths, default=0)
        if longest > len(self._positions):
            raise ModelError(f"the model reads at most {len(self._positions)} tokens, got {longest}")
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        parts = _shares(offsets, self.threads)

        def run(part: tuple[int, int]) -> Float32:
            own = slice(*part)
            return self._run(rows[own], projection, None if types is None else types[own], ends)

        states = list(map(run, parts)) if len(parts) == 1 else self._side_by_side(run, parts, ends)
        width = self.facts.hidden if projection is None else projection.width
        return Ragged(np.concatenate(states) if states else np.empty((0, width), np.float32), offsets)

    def _side_by_side(
        self, run: Callable[[tuple[int, int]], Float32], parts: list[tuple[int, int]], ends: float
    ) -> list[Float32]:
        futures = [self._threads().submit(run, part) for part in parts]
        try:
            done = wait(futures, seconds_left(ends), FIRST_EXCEPTION).done
            for future in done:
                future.result()  # its own error comes before that of time
            if len(done) < len(futures):
                raise OutOfTime  # in the queue behind other threads' parts
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def _threads(self) -> ThreadPoolExecutor:
        """The pool of this process: a fork copies an executor, not its threads, and would wait for them for good."""
        process = os.getpid()
        if self._pool is None or self._pool_process != process:
            self._pool, self._pool_process = ThreadPoolExecutor(self.threads), process
        return self._pool

    def _run(
        self,
        rows: Sequence[NDArray[np.int64]],
        projection: Projection | None,
        types: Sequence[NDArray[np.int64]] | None,
        ends: float,
    ) -> Float32:
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        states: Float32 | None = self._trunk.run(self._embed(rows, types), offsets, ends - time.perf_counter())
        if states is None:
            raise OutOfTime
        if projection is not None:
            states = projection.kernel.run(states)
        return states

    def _embed(self, rows: Sequence[NDArray[np.int64]], types: Sequence[NDArray[np.int64]] | None) -> Float32:
        x = self._words.rows(np.concatenate(rows))
        x += np.concatenate([self._positions[: len(row)] for row in rows])
        if self._types is not None:
            x += self._types[0 if types is None else np.concatenate(types)]
        mean = x.mean(axis=1, keepdims=True)
        x -= mean
        variance = np.square(x).mean(axis=1, keepdims=True)
        x /= np.sqrt(variance + np.float32(self.facts.epsilon))
        weight, bias = self._norm
        result: Float32 = (x * weight + bias).astype(np.float32, copy=False)
        return result


def _shares(offsets: NDArray[np.int64], threads: int) -> list[tuple[int, int]]:
    """Bounds of at most `threads` runs of rows with about equally many tokens."""
    rows = len(offsets) - 1
    cuts = np.searchsorted(offsets, np.linspace(0, offsets[-1], min(threads, max(rows, 1)) + 1)[1:-1])
    bounds = np.unique([0, *cuts.tolist(), rows]).tolist()
    return list(itertools.pairwise(bounds))


def layer_arrays(tensors: Mapping[str, Any], name: str) -> list[NDArray[Any]]:
    """What the kernels' `add_layer` takes of one layer of the weights file."""
    arrays = []
    for part in DENSE:
        codes = tensors[f"{name}.{part}.codes"]
        arrays += [(codes ^ np.uint8(128)).view(np.int8), tensors[f"{name}.{part}.scale"]]
        arrays.append(tensors[f"{name}.{part}.bias"])
        if part in NORM_AFTER:
            norm = f"{name}.{NORM_AFTER[part]}"
            arrays += [tensors[f"{norm}.weight"], tensors[f"{norm}.bias"]]
    return arrays


class WordTable:
    """The mapped word embeddings: float16 [V, H], or 4-bit codes uint8 [V, H / 2] and their scales float16 [V, H / 32],
    which start on a page."""

    def __init__(self, path: Path, facts: TrunkFacts) -> None:
        self._facts = facts
        if facts.embedding_bits == 16:
            self._halves = np.memmap(path, np.float16, "r", shape=(facts.vocabulary, facts.hidden))
            return
        self._codes = np.memmap(path, np.uint8, "r", shape=(facts.vocabulary, facts.hidden // 2))
        start = -(-self._codes.nbytes // 4096) * 4096
        shape = (facts.vocabulary, facts.hidden // EMBEDDING_BLOCK)
        self._scales = np.memmap(path, np.float16, "r", offset=start, shape=shape)

    def rows(self, ids: NDArray[np.int64]) -> Float32:
        """float32 [t, H], copied. Raises `ModelError` for an id that is no row."""
        facts = self._facts
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < facts.vocabulary:
            raise ModelError(f"token ids must be below {facts.vocabulary}, got {int(ids.min())} to {int(ids.max())}")
        if facts.embedding_bits == 16:
            return self._halves[ids].astype(np.float32)
        packed = self._codes[ids]
        # Signed 4-bit codes, the lower index in the low nibble: shifting left and back extends the sign.
        codes = np.stack([(packed << 4).view(np.int8) >> 4, packed.view(np.int8) >> 4], axis=-1)
        blocks = codes.reshape(len(ids), -1, EMBEDDING_BLOCK) * self._scales[ids].astype(np.float32)[..., None]
        found: Float32 = blocks.reshape(len(ids), facts.hidden)
        return found
