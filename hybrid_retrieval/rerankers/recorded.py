"""Small batches on CUDA, replayed from recordings (CUDA graphs): to launch a model's kernels one by one takes longer
than a few hundred tokens take to compute.

A recording is of one shape. Batches that are smaller are filled up with rows that nobody asked about, whose logits are
dropped: rows do not see each other.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid_retrieval.rerankers.unpadded import UnpaddedClassifier

logger = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()  # CUDA records one graph at a time in a process

TOKENS = (128, 256, 512, 768, 1024, 1536, 2048)
"""Of the shapes. With more, bge-reranker-v2-m3's arithmetic takes longer than its launches."""
TOKENS_A_ROW, LONGEST = 32, 512
CLOSE = 0.05
"""What a replayed logit may differ by from a computed one."""


class Shape(NamedTuple):
    """Of a recording: tokens, and the rows that they are in, none longer than `longest`."""

    tokens: int
    rows: int
    longest: int

    def filled(self, lengths: Sequence[int]) -> list[int] | None:
        """The lengths of a batch's rows and of those that fill it up to the shape, each of one token or more; None
        where it does not fit."""
        rows, tokens = self.rows - len(lengths), self.tokens - sum(lengths)
        if rows < 0 or tokens < rows or (rows == 0 and tokens > 0):
            return None
        each, over = divmod(tokens, rows) if rows else (0, 0)
        full = [*lengths, *([each + 1] * over), *([each] * (rows - over))]
        return full if max(full) <= self.longest else None


SHAPES = tuple(Shape(tokens, max(4, tokens // TOKENS_A_ROW), min(tokens, LONGEST)) for tokens in TOKENS)


class Rows(NamedTuple):
    """Of a batch: the rows' tokens one below the other, int64 [T], and how many each row has."""

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    types: NDArray[np.int64] | None
    lengths: Sequence[int]


Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor]
Record = Callable[[UnpaddedClassifier, Inputs, int], Callable[[], Tensor]]
"""(model, inputs, longest) -> what computes logits [rows] of whatever stands in the inputs when it is called."""


class Recording:
    """A model's forward pass of one shape."""

    def __init__(self, model: UnpaddedClassifier, device: Any, shape: Shape, types: bool, record: Record) -> None:
        self.shape, self._model = shape, model
        self._ids, self._positions = (torch.zeros(shape.tokens, dtype=torch.int64, device=device) for _ in range(2))
        self._types = torch.zeros_like(self._ids) if types else None
        self._starts = torch.zeros(shape.rows + 1, dtype=torch.int64, device=device)
        self._inputs = (self._ids, self._positions, self._types, self._starts)
        self._put_some(0)
        self._replay = record(model, self._inputs, shape.longest)

    def check(self) -> None:
        """Raises `RuntimeError` where replays do not give what the model does, for other rows than were recorded."""
        for seed in (1, 2):
            self._put_some(seed)
            found, expected = self._replay().clone(), self._model(*self._inputs, self.shape.longest)
            worst = float((found - expected).abs().max())
            if not worst <= CLOSE:
                raise RuntimeError(f"a replayed logit of {self.shape.tokens} tokens is off by {worst:.3g}")

    def _put_some(self, seed: int) -> None:
        """Rows of any tokens and of several lengths."""
        random, shape = np.random.default_rng(seed), self.shape
        words, places = (table.num_embeddings for table in self._model.tables)
        lengths = random.integers(1, shape.tokens // shape.rows, shape.rows // 2, endpoint=True).tolist()
        full = shape.filled(lengths)
        assert full is not None
        ids = random.integers(0, words, shape.tokens)
        positions = np.concatenate([np.arange(length) for length in full]) % places
        types = random.integers(0, 2, shape.tokens) if self._types is not None else None
        self._put(Rows(ids, positions, types, full), full)

    def run(self, rows: Rows, full: Sequence[int]) -> Tensor:
        """The logits [B] of a batch; full: `Shape.filled` of its lengths."""
        self._put(rows, full)
        return self._replay()[: len(rows.lengths)]

    def _put(self, rows: Rows, full: Sequence[int]) -> None:
        buffers = [(self._ids, rows.ids), (self._positions, rows.positions)]
        if self._types is not None:
            buffers.append((self._types, np.zeros_like(rows.ids) if rows.types is None else rows.types))
        for buffer, values in buffers:  # what stands behind them is of rows that nobody asked about
            buffer[: len(values)].copy_(torch.from_numpy(values))
        self._starts[1:].copy_(torch.from_numpy(np.cumsum(full, dtype=np.int64)))


class Recordings:
    """Those of one copy of a model, the smallest first; for one thread at a time."""

    def __init__(
        self,
        model: UnpaddedClassifier,
        device: Any,
        *,
        types: bool,
        record: Record | None = None,
        shapes: Sequence[Shape] = SHAPES,
    ) -> None:
        """types: whether rows have token types. record: other than by a CUDA graph. Where recording fails or replays
        differ, there is a warning and there are none."""
        self._recordings: list[Recording] = []
        try:
            record = record or _cuda_graphs(device)
            with _one_at_a_time, torch.inference_mode():
                # The largest first: the others find its memory ready.
                for shape in sorted(shapes, reverse=True):
                    recording = Recording(model, device, shape, types, record)
                    recording.check()
                    self._recordings.insert(0, recording)
        except RuntimeError as error:  # of torch, its out-of-memory error among them
            self._recordings.clear()
            logger.warning(
                "small batches are not replayed on %s, which only costs time (%s)",
                device,
                " ".join(str(error).split())[:200],
            )

    def __len__(self) -> int:
        return len(self._recordings)

    def run(self, rows: Rows) -> Tensor | None:
        """float32 [B] by the smallest recording that the batch fits, to be read before the next call; or None."""
        for recording in self._recordings:
            full = recording.shape.filled(rows.lengths)
            if full is not None:
                return recording.run(rows, full)
        return None


def _cuda_graphs(device: Any) -> Record:
    """Records CUDA graphs that share their memory, as only one of them runs at a time."""
    pool = torch.cuda.graph_pool_handle()
    # A stream of this device, as torch's own for recordings is of the one that was current when it was first needed.
    stream = torch.cuda.Stream(device)

    def record(model: UnpaddedClassifier, inputs: Inputs, longest: int) -> Callable[[], Tensor]:
        with torch.cuda.device(device):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # also takes the thread back from it where recording fails
                for _ in range(2):  # what libraries set up when they are first called cannot be recorded
                    model(*inputs, longest)
                graph = torch.cuda.CUDAGraph()
                # Other threads may use the device meanwhile.
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    logits = model(*inputs, longest)
            torch.cuda.current_stream().wait_stream(stream)

        def replay() -> Tensor:
            with torch.cuda.device(device):
                graph.replay()
            return logits

        return replay

    return record
