"""The kernels of stage 1 alone, on one thread: what this machine's variants do in turns in one process.

    python benchmarks/kernels.py --dimensions 128 256 --nbits 2 --out benchmarks/results/kernels.json

Made-up tokens (100 a window) against 32 query tokens. For each variant, at the median and at best: passage tokens a
second that exhaustive MaxSim scores, their norms known and not, or estimates; milliseconds for the scores of all
centroids; and, where the kernels do that, microseconds to find a vector's nearest centroid beside faiss.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from peers.process import machine_facts

from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.kernels.reference import bucket_table

QUERY_TOKENS, WINDOW = 32, 100
ASSIGNED = 4096


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def jobs(dimensions: int, nbits: int, tokens: int, centroids: int) -> dict[str, Callable[[], object]]:
    """Name of a figure and variant -> what is timed."""
    random, native = np.random.default_rng(0), dispatch.module()
    table = unit(random.standard_normal((centroids, dimensions)))
    weights = np.sort(random.standard_normal(2**nbits) * 0.5 / math.sqrt(dimensions)).astype(np.float32)
    codes = random.integers(0, centroids, tokens).astype(np.uint32)
    residuals = random.integers(0, 256, (tokens, dimensions * nbits // 8)).astype(np.uint8)
    starts = np.arange(0, tokens, WINDOW)
    lengths = np.full(len(starts), WINDOW)
    query, vectors = (unit(random.standard_normal((count, dimensions))) for count in (QUERY_TOKENS, ASSIGNED))
    made: dict[str, Callable[[], object]] = {}
    for variant in dispatch.variants():
        if variant == dispatch.NUMPY:
            continue
        codec = native.Codec(variant, table, weights, bucket_table(nbits))
        scores, _, _ = codec.centroid_scores(query)
        known = np.zeros(tokens, np.float32)

        def maxsim(
            norms: NDArray[np.float32] | None, codec: Any = codec, scores: NDArray[np.float32] = scores
        ) -> object:
            remembered = np.zeros(tokens, np.float32) if norms is None else norms
            return codec.maxsim(query, scores, codes, residuals, remembered, starts, lengths)

        made[f"{variant}: maxsim, norms known"] = lambda maxsim=maxsim, known=known: maxsim(known)
        made[f"{variant}: maxsim, norms unknown"] = lambda maxsim=maxsim: maxsim(None)
        made[f"{variant}: centroid scores"] = lambda codec=codec: codec.centroid_scores(query)
        if codec.estimates:

            def estimate(codec: Any = codec, scores: NDArray[np.float32] = scores, known: Any = known) -> object:
                return codec.estimate(query, scores, codes, residuals, known, starts, lengths)

            made[f"{variant}: maxsim, estimated"] = estimate
        if dispatch.finds_nearest(variant):
            assigner = native.Assigner(variant, table, False)
            made[f"{variant}: nearest centroid"] = lambda assigner=assigner: assigner.nearest(vectors)
            made["faiss: nearest centroid"] = lambda: faiss.knn(vectors, table, 1, metric=faiss.METRIC_INNER_PRODUCT)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--nbits", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--centroids", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    report: dict[str, Any] = {**machine_facts(), "command": " ".join(sys.argv), "dimensions": {}}
    for dimensions in arguments.dimensions:
        timed = jobs(dimensions, arguments.nbits, arguments.tokens, arguments.centroids)
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for turn in range(arguments.rounds + 1):
            for name, job in timed.items():
                start = time.perf_counter()
                job()
                if turn:  # the first pays for what later ones find ready
                    seconds[name].append(time.perf_counter() - start)
        rows = {}
        for name, taken in seconds.items():
            factor, label = 1e3, "ms"
            if "maxsim" in name:
                rows[name] = {"M tokens/s": arguments.tokens / float(np.median(taken)) / 1e6}
                rows[name]["best"] = arguments.tokens / min(taken) / 1e6
                continue
            if "nearest" in name:
                factor, label = 1e6 / ASSIGNED, "us a vector"
            rows[name] = {label: float(np.median(taken)) * factor, "best": min(taken) * factor}
        report["dimensions"][dimensions] = rows
        for name, row in rows.items():
            print(f"{dimensions} dimensions, {name:34}", {key: round(value, 2) for key, value in row.items()})
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
