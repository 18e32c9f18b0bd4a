"""The four steps of stage 1 through torch, batched over queries: on CUDA, or on a CPU in the tests.

What scores in half precision only chooses: everything within its rounding error of the best k is scored once more in
float32, and that is the score that is returned.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid_retrieval.errors import IndexDamagedError
from hybrid_retrieval.kernels import device as kernels
from hybrid_retrieval.kernels.device import BLOCK_TOKENS, DeviceCodec, memory_told, spans
from hybrid_retrieval.storage import Segment, Snapshot

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

# Of a passage that no probed list names: it fills up what candidates leave of the width.
UNLISTED = -1e30
# Bytes of scores of one group of queries: centroids' and windows'.
GROUP_BYTES = 1 << 30
# What a sum over query tokens of half precision products may be off by, for each query token.
HALF_ERROR = 2e-3
# Share of the device's free memory that residuals may take; a larger index streams them from the host.
MEMORY_SHARE = 0.7
SEARCH_ELSEWHERE = "search on the CPU (search.device: cpu)"


class Scored(NamedTuple):
    """One query's best. rows: int64 [n], rising, at least the k best with all that tie. scores: float32 [n].
    kept: for each segment the rows that were scored exactly, rising; None for all of them."""

    rows: Int64
    scores: Float32
    kept: list[Int64] | None


@dataclass(frozen=True)
class _Placed:
    """A segment on the device. residuals: there, in its own order, or as they are mapped on the host. starts, lengths,
    owners: int64 [W], the tokens of the windows that can be found, and their local rows. position: int64, of each
    window of the segment among them, or -1."""

    segment: Segment
    codes: Tensor
    residuals: Tensor | NDArray[np.uint8]
    starts: Tensor
    lengths: Tensor
    owners: Tensor
    position: Tensor
    lists: Tensor
    list_offsets: Tensor

    @property
    def rows(self) -> int:
        """Local rows, those that cannot be found included."""
        return self.segment.num_passages


class DeviceSearcher:
    """Searches one snapshot on a torch device. Not to be shared between threads without a lock."""

    def __init__(self, snapshot: Snapshot, rows: Sequence[Int64], device: str, *, resident: bool | None = None) -> None:
        """rows: of each segment, those that can be found. resident: keep the residuals on the device; None decides by
        its free memory."""
        self._device = torch.device(device)
        with memory_told(self._device, "placing the codec", SEARCH_ELSEWHERE):
            self.codec = DeviceCodec.place(snapshot.codec.centroids, snapshot.codec.weights, self._device)
        if resident is None:
            large = [array for part in snapshot.segments for array in (part.residuals, part.codes, part.lists)]
            resident = self._device.type == "cpu" or (
                sum(array.nbytes for array in large) < MEMORY_SHARE * torch.cuda.mem_get_info()[0]
            )
        with memory_told(self._device, "placing the index", SEARCH_ELSEWHERE):
            self._segments = [
                self._place(segment, local, resident) for segment, local in zip(snapshot.segments, rows, strict=True)
            ]

    def search(self, queries: Sequence[Float32], *, k: int, width: int, nprobe: int, exact: bool) -> Iterator[Scored]:
        """Float32 queries [Lq, D], one `Scored` each. width: passages that are scored exactly in pruned search."""
        tokens = max(len(query) for query in queries)
        columns = max(tokens * len(self.codec.centroids), 2 * sum(part.rows for part in self._segments))
        together = max(1, GROUP_BYTES // (4 * columns))
        for first in range(0, len(queries), together):
            group = queries[first : first + together]
            filled = np.zeros((len(group), tokens, group[0].shape[1]), np.float32)
            for i, query in enumerate(group):
                filled[i, : len(query)] = query
            lengths = [len(query) for query in group]
            with memory_told(self._device, "searching", SEARCH_ELSEWHERE):
                yield from self._group(torch.from_numpy(filled).to(self._device), lengths, k, width, nprobe, exact)

    def _group(
        self, queries: Tensor, lengths: list[int], k: int, width: int, nprobe: int, exact: bool
    ) -> Iterator[Scored]:
        """queries: float32 [B, L, D], each one's tokens before its filling."""
        if exact:
            # To the scale of unit tokens: half precision ends at 65,504, and its error grows with the scale.
            scales = queries.norm(dim=2).amax(dim=1).clamp_min(1e-12)
            scaled = queries if bool((scales - 1).abs().max() < 1e-3) else queries / scales[:, None, None]
            by_row = torch.cat([self._all(part, scaled) for part in self._segments], dim=1)
            for query, length, scores in zip(queries, lengths, by_row, strict=True):
                yield self._settle(query[:length], scores, k, None)
            return
        centroid = queries @ self.codec.exact.T
        for query, length, scores in zip(queries, lengths, centroid, strict=True):
            yield self._pruned(query[:length], scores[:length], k, width, nprobe)

    def _pruned(self, query: Tensor, centroid: Tensor, k: int, width: int, nprobe: int) -> Scored:
        """centroid: float32 [L, K]."""
        by_centroid = centroid.T.contiguous()
        probed = centroid.topk(min(nprobe, centroid.shape[1]), dim=1).indices
        approximate = []
        for part in self._segments:
            by_row = torch.full((part.rows,), -torch.inf, device=self._device)
            by_row[part.owners] = UNLISTED
            windows = self._candidates(part, probed)
            for chosen in _runs(windows, part.lengths, BLOCK_TOKENS * 8):
                found = kernels.approximate(
                    self.codec, by_centroid, part.codes, part.starts[chosen], part.lengths[chosen]
                )
                by_row.scatter_reduce_(0, part.owners[chosen], found, "amax")
            approximate.append(by_row)
        joined = torch.cat(approximate)
        width = min(width, int(joined.isfinite().sum()))
        threshold = joined.topk(width).values[-1]
        above = (joined > threshold).nonzero()[:, 0]
        tied = (joined == threshold).nonzero()[:, 0][: width - len(above)]
        kept = torch.cat([above, tied]).sort().values
        scores = torch.full_like(joined, -torch.inf)
        bounds = self._bounds()
        local = []
        for part, start, stop in zip(self._segments, bounds, bounds[1:], strict=False):
            rows = kept[(kept >= start) & (kept < stop)] - start
            local.append(rows.cpu().numpy())
            scores[start + rows] = self._exact(part, query, rows)
        return self._settle(query, scores, k, local)

    def _candidates(self, part: _Placed, probed: Tensor) -> Tensor:
        """Windows, rising, in the lists of the probed centroids [L, nprobe]."""
        chosen = torch.unique(probed)
        entries = spans(part.list_offsets[chosen], part.list_offsets[chosen + 1] - part.list_offsets[chosen])
        listed = torch.zeros(len(part.position), dtype=torch.bool, device=self._device)
        listed[part.lists[entries].long()] = True
        positions = part.position[listed]
        return positions[positions >= 0]

    def _all(self, part: _Placed, queries: Tensor) -> Tensor:
        """float32 [B, rows]: every passage of a segment; -inf for those that cannot be found."""
        scores = torch.full((len(queries), part.rows), -torch.inf, device=self._device)
        # Unfused, every token gets a similarity with every query token.
        most = max(1, min(BLOCK_TOKENS, GROUP_BYTES // (4 * queries.shape[0] * queries.shape[1])))
        score = kernels.maxsim
        if kernels.is_fused(self.codec, queries):
            score = kernels.fused_maxsim
            most = kernels.FUSED_BYTES // part.segment.residuals.shape[1]
        for windows in _runs(torch.arange(len(part.starts), device=self._device), part.lengths, most):
            lengths = part.lengths[windows]
            codes, residuals = self._tokens(part, windows)
            found = score(self.codec, queries, codes, residuals, lengths)
            scores.scatter_reduce_(1, part.owners[windows].expand(len(queries), -1), found, "amax")
        return scores

    def _exact(self, part: _Placed, query: Tensor, rows: Tensor) -> Tensor:
        """float32 [n]: the true score of some rows that can be found."""
        wanted = torch.zeros(part.rows, dtype=torch.bool, device=self._device)
        wanted[rows] = True
        windows = wanted[part.owners].nonzero()[:, 0]
        scores = torch.full((part.rows,), -torch.inf, device=self._device)
        for chosen in _runs(windows, part.lengths, BLOCK_TOKENS):
            codes, residuals = self._tokens(part, chosen)
            found = kernels.exact_maxsim(self.codec, query, codes, residuals, part.lengths[chosen])
            scores.scatter_reduce_(0, part.owners[chosen], found, "amax")
        return scores[rows]

    def _settle(self, query: Tensor, scores: Tensor, k: int, kept: list[Int64] | None) -> Scored:
        """The best k and their ties of scores [all rows]; with `kept` they are true already."""
        count = min(k, int(scores.isfinite().sum()))
        if count == 0:
            return Scored(np.empty(0, np.int64), np.empty(0, np.float32), kept)
        threshold = scores.topk(count).values[-1]
        if kept is None and self.codec.centroids.dtype == torch.float16:
            threshold = threshold - 2 * HALF_ERROR * len(query)  # its own error and the other's
        rows = _at_least(scores, threshold)
        if kept is None:
            bounds = self._bounds()
            true = [
                self._exact(part, query, rows[(rows >= start) & (rows < stop)] - start)
                for part, start, stop in zip(self._segments, bounds, bounds[1:], strict=False)
            ]
            return Scored(rows.cpu().numpy(), torch.cat(true).cpu().numpy(), None)
        return Scored(rows.cpu().numpy(), scores[rows].cpu().numpy(), kept)

    def _bounds(self) -> list[int]:
        return [0, *itertools.accumulate(part.rows for part in self._segments)]

    def _tokens(self, part: _Placed, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and residuals, in the device's order, of windows' tokens."""
        tokens = spans(part.starts[windows], part.lengths[windows])
        if isinstance(part.residuals, Tensor):
            return part.codes[tokens], part.residuals[tokens]
        host = torch.from_numpy(np.take(part.residuals, tokens.cpu().numpy(), axis=0))
        return part.codes[tokens], self.codec.reordered(host.to(self._device))

    def _place(self, segment: Segment, rows: Int64, resident: bool) -> _Placed:
        windows, first = segment.windows_of(rows)
        owners = np.repeat(rows, np.diff(np.append(first, len(windows))))
        starts = segment.token_offsets[windows]
        lengths = segment.token_offsets[windows + 1] - starts
        filled = lengths > 0
        for name, array, end in (
            ("code", segment.codes, len(self.codec.centroids)),
            ("list entry", segment.lists, segment.num_windows),
        ):
            if len(array) and int(array.max()) >= end:  # on a GPU it would end the process's use of it
                raise IndexDamagedError(f"a {name} is not below {end}: run verify on the index, and build it anew")
        position = np.full(segment.num_windows, -1, np.int64)
        position[windows[filled]] = np.arange(int(filled.sum()))
        residuals: Tensor | NDArray[np.uint8] = segment.residuals
        if resident:
            residuals = torch.empty(segment.residuals.shape, dtype=torch.uint8, device=self._device)
            for start in range(0, len(residuals), BLOCK_TOKENS):
                block = torch.from_numpy(np.array(segment.residuals[start : start + BLOCK_TOKENS]))
                residuals[start : start + len(block)] = self.codec.reordered(block.to(self._device))
        return _Placed(
            segment,
            self._placed(segment.codes.view(np.int32)),
            residuals,
            self._placed(starts[filled]),
            self._placed(lengths[filled]),
            self._placed(owners[filled]),
            self._placed(position),
            self._placed(segment.lists.view(np.int32)),
            self._placed(segment.list_offsets),
        )

    def _placed(self, array: NDArray[np.int64] | NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self._device)


def _at_least(scores: Tensor, threshold: Tensor) -> Tensor:
    """int64: positions of the scores that reach a threshold, rising."""
    return (scores >= threshold).nonzero()[:, 0]


def _runs(windows: Tensor, lengths: Tensor, most: int) -> Iterator[Tensor]:
    """Windows in runs of at most `most` tokens; one that has more goes alone."""
    ends = lengths[windows].cumsum(0).cpu().numpy()
    start = 0
    while start < len(ends):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + most, side="right")))
        yield windows[start:stop]
        start = stop
