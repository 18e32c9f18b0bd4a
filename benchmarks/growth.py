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


def measure(path: Path, queries: int, k: int, exact_tokens: int, device: str, batch: int) -> dict[str, Any]:
    snapshot = Snapshot.open(path)
    searcher, random = Searcher(snapshot, device), np.random.default_rng(1)
    clock = time.thread_time if device == "cpu" else time.perf_counter
    milliseconds: dict[str, list[float]] = {"pruned": [], "exact": []}
    overlaps = []

    def noisy() -> NDArray[np.float32]:
        (vectors,) = snapshot.token_vectors(int(random.integers(snapshot.num_passages)))
        return unit(vectors[random.integers(0, len(vectors), 32)] + 0.08 * random.standard_normal((32, DIMENSIONS)))

    for turn in range(queries + 1):  # the first pays for what later ones find ready
        asked = [noisy() for _ in range(batch)]
        found = {}
        for mode in ("pruned", "exact") if snapshot.num_tokens <= exact_tokens else ("pruned",):
            start = clock()
            found[mode] = searcher.search_batch(asked, k=k, exact=mode == "exact", threads=1)
            if turn:
                milliseconds[mode].append((clock() - start) * 1e3 / batch)
        if "exact" in found:
            pairs = zip(found["pruned"], found["exact"], strict=True)
            overlaps += [len(np.intersect1d(pruned.rows, exact.rows)) / k for pruned, exact in pairs]
    return {
        "tokens": snapshot.num_tokens,
        "centroids": snapshot.codec.num_centroids,
        "lists": device != "cpu" or snapshot.num_tokens > TOKENS_WITHOUT_LISTS,
        "pruned_ms": float(np.median(milliseconds["pruned"])),
        "exact_ms": float(np.median(milliseconds["exact"])) if milliseconds["exact"] else None,
        "overlap": float(np.mean(overlaps)) if overlaps else None,
    }


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
    rows: list[dict[str, Any]] = []
    print(" passages      tokens centroids lists pruned ms growth  exact ms overlap")
    for passages in arguments.passages:
        with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
            make_index(Path(folder) / "index", passages, arguments.tokens, seed=passages)
            index = Path(folder) / "index"
            row = measure(index, arguments.queries, arguments.k, exact_tokens, arguments.device, batch)
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
            flush=True,
        )
        report = {"device": device_name(arguments.device), "batch": batch, "command": " ".join(sys.argv), "sizes": rows}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
