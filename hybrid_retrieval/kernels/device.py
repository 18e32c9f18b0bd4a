"""Stage 1's arithmetic on torch tensors, wherever they lie: from packed codes, never with the whole index unpacked.

Each operation is written in torch; on CUDA, late-interaction-kernels' fused Triton kernels do two of them where that
package is installed. Both are tested against `kernels.reference`. Axes: B queries of L tokens (shorter ones filled up
with zeros, which add nothing to a score), W windows of t tokens together, D dimensions, K centroids.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid_retrieval.errors import DeviceMemoryError
from hybrid_retrieval.kernels.reference import SHORTEST, bucket_table

# Tokens decoded at a time, and tokens approximated at a time.
BLOCK_TOKENS = 1 << 17
# Packed bytes that the fused kernels read at a time; they place bytes by 32-bit numbers.
FUSED_BYTES = 1 << 26
# Above this many queries one decoding for all of them, followed by a matrix product, is less work than one for each.
FUSED_QUERIES = 4
# Products of vectors with centroids that are held at a time, 4 bytes each.
PRODUCTS_A_BLOCK = 1 << 26
ASSIGN_ELSEWHERE = "find nearest centroids on the CPU (index.device: cpu)"


@contextmanager
def memory_told(device: torch.device, doing: str, instead: str) -> Iterator[None]:
    """One clear error in place of torch's where the device's memory is full. instead: what else a user can do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"{device} ran out of memory {doing} ({str(error).splitlines()[0]}): free some, or {instead}"
        ) from None


@dataclass(frozen=True)
class DeviceCodec:
    """A codec on a device. centroids: float [K, D], float32 on a CPU and float16 elsewhere, with `exact` in float32.
    weights: float32 [2^nbits]. table: [256, 8 / nbits], the weights behind each byte as `reordered` writes it.
    order: uint8 [256], see `reordered`. fused: late-interaction-kernels' module, or None."""

    centroids: Tensor
    exact: Tensor
    weights: Tensor
    table: Tensor
    order: Tensor
    nbits: int
    fused: Any

    @classmethod
    def place(cls, centroids: Any, weights: Any, device: torch.device) -> DeviceCodec:
        """From the codec's arrays."""
        nbits = len(weights).bit_length() - 1
        buckets = bucket_table(nbits)
        # Little-endian order: the number of dimension i of a byte at its bits nbits * i. Its table is told by the
        # order alone, so that one order on the device serves both ways of reading.
        shifts = np.arange(8 // nbits, dtype=np.uint16) * nbits
        order = (buckets.astype(np.uint16) << shifts).sum(axis=1).astype(np.uint8)
        numbers = (np.arange(256)[:, None] >> shifts) & (2**nbits - 1)
        exact = torch.from_numpy(np.ascontiguousarray(centroids, np.float32)).to(device)
        half = torch.float32 if device.type == "cpu" else torch.float16
        return cls(
            exact.to(half),
            exact,
            torch.from_numpy(np.ascontiguousarray(weights)).to(device),
            torch.from_numpy(np.ascontiguousarray(weights)[numbers]).to(device),
            torch.from_numpy(order).to(device),
            nbits,
            _fused_kernels(device) if nbits > 1 else None,
        )

    def reordered(self, residuals: Tensor) -> Tensor:
        """uint8 [t, bytes] as they lie on disk (colbert-ai's bit order) to little-endian order."""
        return self.order[residuals.int()]

    def decode(self, codes: Tensor, residuals: Tensor) -> Tensor:
        """Unit vectors float32 [t, D] (or zeros: `reference.SHORTEST`) of codes int32 [t] and `reordered` residuals [t,
        bytes]."""
        rest = self.table[residuals.int()].view(len(codes), -1)
        vectors = self.exact[codes.long()] + rest
        norms = vectors.norm(dim=1, keepdim=True)
        return vectors / norms.where(norms >= float(SHORTEST), float("inf"))


class DeviceCentroids:
    """`codec.assignment.NearestCentroids` on a device: float32 products, the first of those that tie."""

    def __init__(
        self,
        centroids: NDArray[np.float32],
        *,
        device: torch.device,
        by: Literal["product", "distance"] = "product",
    ) -> None:
        """centroids: float32 [K, D]."""
        with memory_told(device, "placing the centroids", ASSIGN_ELSEWHERE):
            self._centroids = torch.from_numpy(np.ascontiguousarray(centroids)).to(device)
        # Of |v - c|^2 what depends on c, halved: |c|^2 / 2 - v.c.
        self._halves = self._centroids.square().sum(1) / 2 if by == "distance" else None
        self._block = max(1, PRODUCTS_A_BLOCK // len(centroids))

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        """int64 [T], for vectors float32 [T, D]."""
        found = np.empty(len(vectors), np.int64)
        for start in range(0, len(vectors), self._block):
            # A copy: torch warns of arrays that it may not write to, such as mapped ones.
            block = np.array(vectors[start : start + self._block], np.float32, order="C")
            with memory_told(self._centroids.device, "finding nearest centroids", ASSIGN_ELSEWHERE):
                scores = torch.from_numpy(block).to(self._centroids.device) @ self._centroids.T
                if self._halves is not None:
                    scores -= self._halves
                found[start : start + len(block)] = scores.max(dim=1).indices.cpu().numpy()
        return found


def _fused_kernels(device: torch.device) -> Any:
    if device.type != "cuda":
        return None
    try:
        from late_interaction_kernels import plaid
    except ImportError:
        return None
    return plaid


def spans(starts: Tensor, lengths: Tensor) -> Tensor:
    """int64: positions of all spans, one after the other (`ragged.expand_spans`)."""
    ends = lengths.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    shift = torch.repeat_interleave(starts - (ends - lengths), lengths, output_size=total)
    return shift + torch.arange(total, device=starts.device)


def maxsim(codec: DeviceCodec, queries: Tensor, codes: Tensor, residuals: Tensor, lengths: Tensor) -> Tensor:
    """float32 [B, W]: MaxSim of every query [B, L, D] with every window, all of them with tokens, in the precision of
    `codec.centroids`. codes: int32 [t]. residuals: uint8 [t, bytes], `reordered`. lengths: int64 [W]."""
    vectors = codec.decode(codes, residuals).to(codec.centroids.dtype)
    return _best_sums(vectors @ queries.flatten(0, 1).to(vectors.dtype).T, lengths, len(queries))


def is_fused(codec: DeviceCodec, queries: Tensor) -> bool:
    """Whether `fused_maxsim` does better than `maxsim`: it unpacks nothing to memory, and normalises what it is
    given, so it is for unit query tokens."""
    return codec.fused is not None and len(queries) <= FUSED_QUERIES and _unit(queries)


def exact_maxsim(codec: DeviceCodec, query: Tensor, codes: Tensor, residuals: Tensor, lengths: Tensor) -> Tensor:
    """float32 [W]: the same for one query [L, D], in float32."""
    return _best_sums(codec.decode(codes, residuals) @ query.T, lengths, 1)[0]


def fused_maxsim(codec: DeviceCodec, queries: Tensor, codes: Tensor, residuals: Tensor, lengths: Tensor) -> Tensor:
    """`maxsim` by late-interaction-kernels' `maxsim_residual_varlen`, for unit query tokens."""
    ends = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
    ends[1:] = lengths.cumsum(0)
    # Both lengths are compiled in: rounded up, they take few values.
    tokens = -(-queries.shape[1] // 32) * 32
    filled = torch.nn.functional.pad(queries, (0, 0, 0, tokens - queries.shape[1])).half()
    longest = _power_of_two(int(lengths.max()))
    scores: Tensor = codec.fused.maxsim_residual_varlen(
        filled, codes, residuals, ends, codec.centroids, codec.weights, codec.nbits, max_seqlen_d=longest
    )
    return scores


def approximate(codec: DeviceCodec, scores: Tensor, codes: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """float32 [W]: MaxSim with every token replaced by its centroid, for windows that all have tokens.

    scores: float [K, L], every centroid with one query's tokens. codes: int32, of the whole segment. starts, lengths:
    int64 [W], the windows' tokens.
    """
    # Padding may not outgrow what is padded.
    if codec.fused is not None and _power_of_two(int(lengths.max())) * len(lengths) <= 8 * int(lengths.sum()):
        return fused_approximate(codec, scores, codes, starts, lengths)
    best = _best_sums(scores[codes[spans(starts, lengths)].long()], lengths, 1)
    return best[0]


def fused_approximate(codec: DeviceCodec, scores: Tensor, codes: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """`approximate` by late-interaction-kernels' `plaid_approx_score`, which reads padded codes."""
    longest = _power_of_two(int(lengths.max()))
    filled = torch.nn.functional.pad(scores, (0, -scores.shape[1] % 32))
    places = starts[:, None] + torch.arange(longest, device=starts.device)
    padded = codes[places.clamp_max(len(codes) - 1)]
    result: Tensor = codec.fused.plaid_approx_score(filled, padded, lengths)
    return result


def _best_sums(similarities: Tensor, lengths: Tensor, queries: int) -> Tensor:
    """float32 [B, W] of similarities [t, B * L]: the best token of each window, summed over a query's tokens."""
    best = torch.segment_reduce(similarities.float(), "max", lengths=lengths, axis=0)
    return best.view(len(lengths), queries, -1).sum(dim=2).T.contiguous()


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _unit(queries: Tensor) -> bool:
    """Whether every token that is not filling has unit length: the fused kernels normalise what they are given."""
    norms = queries.norm(dim=2)
    return bool(((norms - 1).abs().lt(1e-3) | (norms == 0)).all())
