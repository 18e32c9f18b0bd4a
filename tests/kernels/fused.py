"""Run by `test_fused`: late-interaction-kernels' Triton kernels, interpreted on the CPU, against `kernels.reference`.

The interpreter must be chosen before triton is imported, hence a process of its own.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from late_interaction_kernels import plaid
from triton.runtime.autotuner import Autotuner

from hybrid_retrieval.builder import build_from_vectors
from hybrid_retrieval.kernels import device as kernels
from hybrid_retrieval.kernels.reference import PackedTokens, packed_maxsim, weight_table
from hybrid_retrieval.search import Searcher
from hybrid_retrieval.search.device import DeviceSearcher
from hybrid_retrieval.storage import Snapshot
from tests.support import clustered, unit

# Its timings need a device: any configuration gives the same answer.
Autotuner._bench = lambda self, *arguments, config, **options: [0.0, 0.0, 0.0]

LENGTHS = np.array([3, 1, 7, 20, 130])
STARTS = np.cumsum(LENGTHS) - LENGTHS


def check_operations(nbits: int, dimensions: int, centroids: int = 20) -> None:
    random = np.random.default_rng(nbits)
    tokens = int(LENGTHS.sum())
    table = unit(random.standard_normal((centroids, dimensions)))
    weights = np.sort(random.standard_normal(2**nbits).astype(np.float32)) * np.float32(0.1)
    codes = random.integers(0, centroids, tokens).astype(np.uint32)
    residuals = random.integers(0, 256, (tokens, dimensions * nbits // 8)).astype(np.uint8)
    queries = np.zeros((2, 6, dimensions), np.float32)
    queries[0, :4], queries[1] = (
        unit(random.standard_normal((4, dimensions))),
        unit(random.standard_normal((6, dimensions))),
    )
    codec = dataclasses.replace(kernels.DeviceCodec.place(table, weights, torch.device("cpu")), fused=plaid)
    arguments = (torch.from_numpy(queries), torch.from_numpy(codes.view(np.int32)),
                 codec.reordered(torch.from_numpy(residuals)), torch.from_numpy(LENGTHS))  # fmt: skip
    found = kernels.fused_maxsim(codec, *arguments).numpy()
    packed = PackedTokens(codes, residuals, table, weight_table(weights))
    expected = [packed_maxsim(query, packed, STARTS, LENGTHS) for query in (queries[0, :4], queries[1])]
    np.testing.assert_allclose(found, expected, atol=6e-3)
    scores = table @ queries[1].T
    found = kernels.approximate(
        codec, torch.from_numpy(scores), arguments[1], torch.from_numpy(STARTS), torch.from_numpy(LENGTHS)
    ).numpy()
    expected = [scores[codes[a : a + n]].max(axis=0).sum() for a, n in zip(STARTS, LENGTHS, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def check_search(folder: Path) -> None:
    passages = clustered([int(n) for n in np.random.default_rng(3).integers(1, 20, 60)], 64, topics=20)
    build_from_vectors(folder, [f"p{i}" for i in range(60)], passages.data, passages.offsets)
    snapshot = Snapshot.open(folder)
    expected = Searcher(snapshot)
    searcher = Searcher(snapshot)
    device = DeviceSearcher(snapshot, searcher._all_rows, "cpu")
    device.codec = dataclasses.replace(device.codec, fused=plaid)
    searcher._device = device
    query = unit(passages[7][:4] + 0.05 * np.random.default_rng(0).standard_normal(passages[7][:4].shape))
    for options in ({"exact": True}, {"num_candidates": 30}):
        found, wanted = (one.search(query, k=5, **options) for one in (searcher, expected))
        assert found.rows.tolist() == wanted.rows.tolist(), options
        np.testing.assert_allclose(found.scores, wanted.scores, atol=2.5e-4)


if __name__ == "__main__":
    for nbits, dimensions in ((2, 64), (4, 128), (8, 64), (2, 256), (4, 96)):
        check_operations(nbits, dimensions)
    check_search(Path(sys.argv[1]))
    print("the fused kernels agree with the reference")
