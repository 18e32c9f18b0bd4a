"""What a query costs against the size of the index: on one thread of the processor, or on a GPU in batches.

    python benchmarks/growth.py --passages 2000 8000 32000 128000 --out benchmarks/results/growth.json
    python benchmarks/growth.py --device cuda -k 100 --passages 100000 1000000 --out benchmarks/results/growth-cuda.json

Indexes are made up, not encoded: random unit centroids (as many as a build would choose), passages whose tokens'
centroids come half from a topic of their own and half from all, random residuals; queries are noisy tokens of a
passage. That is good for speed, and says nothing of quality on real text. For each size: milliseconds a query at the
median (the processor's; on a GPU those that pass, a batch's divided by its queries), pruned and (for indexes of up to
--exact-tokens) exact, the overlap of both top k, and the exponent of the growth since the size before: 1 is linear, 0.5
the square root.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.codec import ResidualCodec
from hybrid_retrieval.codec.training import default_num_centroids
from hybrid_retrieval.config import PipelineConfig
from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.search import Searcher
from hybrid_retrieval.search.searcher import TOKENS_WITHOUT_LISTS
from hybrid_retrieval.storage import IndexWriter, SegmentWriter, Snapshot
from hybrid_retrieval.storage.layout import PASSAGE_FILES, VECTOR_FILES

DIMENSIONS, NBITS, TOPIC = 128, 2, 48
BLOCK_PASSAGES = 4096


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_index(path: Path, passages: int, tokens: int, seed: int) -> None:
    """An index of passages with `tokens` tokens each."""
    random = np.random.default_rng(seed)
    centroids = default_num_centroids(passages * tokens)
    weights = (np.array([-1.15, -0.32, 0.32, 1.15]) * 0.5 / math.sqrt(DIMENSIONS)).astype(np.float32)
    codec = ResidualCodec(
        unit(random.standard_normal((centroids, DIMENSIONS))), (weights[1:] + weights[:-1]) / np.float32(2), weights
    )
    with IndexWriter.create(path, overwrite=True) as writer:
        with SegmentWriter(writer.building / "segment", (*PASSAGE_FILES, *VECTOR_FILES)) as segment:
            segment.append_passages((b"p%d" % row, b"", b"", b"") for row in range(passages))
            for start in range(0, passages, BLOCK_PASSAGES):
                rows = min(BLOCK_PASSAGES, passages - start)
                topics = random.integers(0, centroids, (rows, 1))
                own = (topics + random.integers(0, TOPIC, (rows, tokens))) % centroids
                codes = np.where(
                    random.random((rows, tokens)) < 0.5, own, random.integers(0, centroids, (rows, tokens))
                )
                residuals = random.integers(0, 256, (rows * tokens, codec.residual_bytes), np.uint8)
                segment.append_vectors(
                    codes.ravel().astype(np.uint32), residuals, np.full(rows, tokens), np.ones(rows, np.int64)
                )
            segment.checkpoint()
        writer.commit(codec, corpus=None, encoder=None, reranker=None, config=PipelineConfig().to_dict())


class Size:
    """An index of one size, and what its queries took."""

    def __init__(self, path: Path, device: str, exact_tokens: int) -> None:
        self.snapshot = Snapshot.open(path)
        self._searcher, self._random = Searcher(self.snapshot, device), np.random.default_rng(1)
        self._modes = ("pruned", "exact") if self.snapshot.num_tokens <= exact_tokens else ("pruned",)
        self._clock = time.thread_time if device == "cpu" else time.perf_counter
        self._milliseconds: dict[str, list[float]] = {"pruned": [], "exact": []}
        self._overlaps: list[float] = []
        self._lists = device != "cpu" or self.snapshot.num_tokens > TOKENS_WITHOUT_LISTS

    def ask(self, batch: int, k: int, *, counts: bool) -> None:
        """counts: whether this turn does; the first pays for what later ones find ready."""
        asked = [self._noisy() for _ in range(batch)]
        found = {}
        for mode in self._modes:
            start = self._clock()
            found[mode] = self._searcher.search_batch(asked, k=k, exact=mode == "exact", threads=1)
            if counts:
                self._milliseconds[mode].append((self._clock() - start) * 1e3 / batch)
        if "exact" in found:
            pairs = zip(found["pruned"], found["exact"], strict=True)
            self._overlaps += [len(np.intersect1d(pruned.rows, exact.rows)) / k for pruned, exact in pairs]

    def row(self) -> dict[str, Any]:
        times = self._milliseconds
        return {
            "tokens": self.snapshot.num_tokens,
            "centroids": self.snapshot.codec.num_centroids,
            "lists": self._lists,
            "pruned_ms": float(np.median(times["pruned"])),
            "exact_ms": float(np.median(times["exact"])) if times["exact"] else None,
            "overlap": float(np.mean(self._overlaps)) if self._overlaps else None,
        }

    def _noisy(self) -> NDArray[np.float32]:
        (vectors,) = self.snapshot.token_vectors(int(self._random.integers(self.snapshot.num_passages)))
        tokens = vectors[self._random.integers(0, len(vectors), 32)]
        return unit(tokens + 0.08 * self._random.standard_normal((32, DIMENSIONS)))


def device_name(device: str) -> str:
    if device == "cpu":
        return f"cpu ({dispatch.variant()})"
    import torch

    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, nargs="+", default=[2000, 8000, 32_000, 128_000])
    parser.add_argument("--tokens", type=int, default=100, help="tokens of a passage")
    parser.add_argument("--queries", type=int, default=30)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--exact-tokens", type=int, help="4,000,000 on a processor, no limit on a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="queries asked together: 1 on a processor, 32 on a GPU")
    parser.add_argument("--work", type=Path, help="where the indexes lie while they are measured")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    exact_tokens = arguments.exact_tokens or (2**62 if on_gpu else 4_000_000)
    batch = arguments.batch or (32 if on_gpu else 1)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        sizes = []
        for passages in arguments.passages:
            make_index(Path(folder) / str(passages), passages, arguments.tokens, seed=passages)
            sizes.append(Size(Path(folder) / str(passages), arguments.device, exact_tokens))
        # In turns, so that a machine that slows down or speeds up does so for all of them.
        for turn in range(arguments.queries + 1):
            for size in sizes:
                size.ask(batch, arguments.k, counts=turn > 0)
    rows: list[dict[str, Any]] = []
    print(" passages      tokens centroids lists pruned ms growth  exact ms overlap")
    for passages, size in zip(arguments.passages, sizes, strict=True):
        row = size.row()
        row["growth"] = None
        if rows:
            row["growth"] = math.log(row["pruned_ms"] / rows[-1]["pruned_ms"]) / math.log(
                row["tokens"] / rows[-1]["tokens"]
            )
        rows.append(row)
        shown = {name: "-" if row[name] is None else f"{row[name]:.2f}" for name in ("growth", "exact_ms", "overlap")}
        print(
            f"{passages:9,} {row['tokens']:11,} {row['centroids']:9,} {'yes' if row['lists'] else 'no':>5} "
            f"{row['pruned_ms']:9.2f} {shown['growth']:>6} {shown['exact_ms']:>9} {shown['overlap']:>7}",
        )
    report = {"device": device_name(arguments.device), "batch": batch, "command": " ".join(sys.argv), "sizes": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
