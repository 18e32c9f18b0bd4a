"""One search system behind a pipe: builds an index over given vectors, then answers one query a line.

    python worker.py SYSTEM VECTORS.npz FOLDER [THREADS]

SYSTEM: hybrid-retrieval, hybrid-retrieval-exact, hybrid-retrieval-4bits, hybrid-retrieval-avx512vnni (and -avx2: the
kernels of processors without tiles), colbert-ai, fast-plaid, xtr-warp-rs, maxsim-cpu or exact-torch.
VECTORS: `data` float16 [T, D], `offsets` [N + 1], `queries` float32 [Lq, D] side by side with `query_offsets`. The
first line on standard output reports the build: {"build_s", "bytes", "version"}. Then each line {"query", "k"} on
standard input is answered by {"ms", "ids", "rss_mb"}; a line without "query" asks all queries in one call, and "ids"
are the last one's. Query encoding is no part of it. Needs nothing of this project
but for its own system.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

THREADS = sys.argv[4] if len(sys.argv) > 4 else "1"
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[variable] = THREADS

import numpy as np  # noqa: E402  (threads are chosen before any library starts)

Search = Callable[[list[np.ndarray], int], list[list[int]]]
"""Queries and k to the ids found for each."""


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def hybrid_retrieval(
    data: np.ndarray, offsets: np.ndarray, folder: Path, *, exact: bool = False, nbits: int = 2, kernels: str = "auto"
) -> Search:
    os.environ["HYBRID_RETRIEVAL_KERNELS"] = kernels
    from hybrid_retrieval import Index

    ids = [str(i) for i in range(len(offsets) - 1)]
    index = Index.from_vectors(folder, ids, data, offsets, nbits=nbits)
    threads = int(THREADS)

    def run(queries: list[np.ndarray], k: int) -> list[list[int]]:
        found = index.searcher.search_batch(queries, k=k, exact=exact, threads=threads)
        return [[int(index.passage(row).passage_id) for row in one.rows.tolist()] for one in found]

    return run


def colbert_ai(data: np.ndarray, offsets: np.ndarray, folder: Path) -> Search:
    """PLAID, its encoder replaced by a lookup of the vectors; needs a checkpoint only for its settings."""
    import colbert.indexing.collection_encoder as collection_encoder
    import torch
    from colbert import Indexer, Searcher
    from colbert.infra import ColBERTConfig, Run, RunConfig

    torch.set_num_threads(int(THREADS))
    names = [f"passage {i}" for i in range(len(offsets) - 1)]

    def lookup(self: Any, passages: list[str]) -> Any:
        if not passages:
            return None, None
        rows = [int(name.split()[1]) for name in passages]
        vectors = np.concatenate([data[offsets[i] : offsets[i + 1]] for i in rows]).astype(np.float32)
        return torch.from_numpy(vectors), [int(offsets[i + 1] - offsets[i]) for i in rows]

    collection_encoder.CollectionEncoder.encode_passages = lookup
    checkpoint = os.environ["COLBERT_CHECKPOINT"]
    with Run().context(RunConfig(nranks=1, experiment="peer", root=str(folder), avoid_fork_if_possible=True)):
        config = ColBERTConfig(nbits=2, doc_maxlen=256, query_maxlen=32, dim=data.shape[1], checkpoint=checkpoint)
        Indexer(checkpoint=checkpoint, config=config, verbose=0).index(name="index", collection=names, overwrite=True)
        # dense_search keeps the settings of its first k: one searcher for each
        searchers = {k: Searcher(index="index", collection=names, verbose=0) for k in (10, 100, 1000)}
    return lambda queries, k: [searchers[k].dense_search(torch.from_numpy(query)[None], k)[0] for query in queries]


def fast_plaid(data: np.ndarray, offsets: np.ndarray, folder: Path) -> Search:
    import torch
    from fast_plaid import search

    torch.set_num_threads(int(THREADS))
    index = search.FastPlaid(index=str(folder), device="cpu")
    index.create(documents_embeddings=list(torch.split(torch.from_numpy(data), np.diff(offsets).tolist())), nbits=2)

    def run(queries: list[np.ndarray], k: int) -> list[list[int]]:
        found = index.search([torch.from_numpy(query) for query in queries], top_k=k, show_progress=False)
        return [[passage for passage, _ in one] for one in found]

    return run


def xtr_warp(data: np.ndarray, offsets: np.ndarray, folder: Path) -> Search:
    import torch
    from xtr_warp.search import XTRWarp

    torch.set_num_threads(int(THREADS))
    index = XTRWarp(index=str(folder))
    vectors = list(torch.split(torch.from_numpy(data).float(), np.diff(offsets).tolist()))
    index.create(embeddings_source=vectors, device="cpu", nbits=4, show_progress=False)
    index = XTRWarp(index=str(folder), device="cpu")
    index.load(device="cpu")

    def run(queries: list[np.ndarray], k: int) -> list[list[int]]:
        tensors = [torch.from_numpy(query).float() for query in queries]
        found = index.search(tensors, top_k=k, num_threads=int(THREADS), show_progress=False)
        return [[passage for passage, _ in one] for one in found]

    return run


def maxsim_cpu(data: np.ndarray, offsets: np.ndarray, folder: Path) -> Search:
    """Float32 vectors scored one and all; no index."""
    import maxsim_cpu

    vectors = data.astype(np.float32)
    passages = [vectors[offsets[i] : offsets[i + 1]] for i in range(len(offsets) - 1)]

    def run(queries: list[np.ndarray], k: int) -> list[list[int]]:
        return [one(query, k) for query in queries]

    def one(query: np.ndarray, k: int) -> list[int]:
        scores = np.asarray(maxsim_cpu.maxsim_scores_variable(query.astype(np.float32), passages))
        return np.argsort(-scores, kind="stable")[:k].tolist()

    return run


def exact_torch(data: np.ndarray, offsets: np.ndarray, folder: Path) -> Search:
    """Float32 vectors, passages of one length in one product: a strong baseline without an index."""
    import torch

    torch.set_num_threads(int(THREADS))
    lengths = np.diff(offsets)
    groups = []
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        vectors = np.concatenate([data[offsets[i] : offsets[i + 1]] for i in rows]).astype(np.float32)
        groups.append((torch.from_numpy(rows), int(length), torch.from_numpy(vectors)))

    def run(queries: list[np.ndarray], k: int) -> list[list[int]]:
        return [one(query, k) for query in queries]

    def one(query: np.ndarray, k: int) -> list[int]:
        scores, turned = torch.empty(len(lengths)), torch.from_numpy(query).T.contiguous()
        for rows, length, vectors in groups:
            scores[rows] = (vectors @ turned).view(-1, length, turned.shape[1]).amax(1).sum(-1)
        return scores.topk(min(k, len(lengths))).indices.tolist()

    return run


SYSTEMS: dict[str, tuple[Callable[..., Search], str]] = {
    "hybrid-retrieval": (hybrid_retrieval, "hybrid-retrieval"),
    "hybrid-retrieval-exact": (partial(hybrid_retrieval, exact=True), "hybrid-retrieval"),
    "hybrid-retrieval-4bits": (partial(hybrid_retrieval, nbits=4), "hybrid-retrieval"),
    "hybrid-retrieval-avx512vnni": (partial(hybrid_retrieval, kernels="avx512vnni"), "hybrid-retrieval"),
    "hybrid-retrieval-avx2": (partial(hybrid_retrieval, kernels="avx2"), "hybrid-retrieval"),
    "colbert-ai": (colbert_ai, "colbert-ai"),
    "fast-plaid": (fast_plaid, "fast-plaid"),
    "xtr-warp-rs": (xtr_warp, "xtr-warp-rs"),
    "maxsim-cpu": (maxsim_cpu, "maxsim-cpu"),
    "exact-torch": (exact_torch, "torch"),
}


def peak_megabytes() -> float:
    """Of this process's memory. (What getrusage says begins with the memory of the process that started this one.)"""
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    system, vectors, folder = sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3])
    # Libraries print as they please: answers go to the real standard output, all else to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    make, package = SYSTEMS[system]
    data, offsets = vectors["data"], vectors["offsets"]
    queries, bounds = vectors["queries"], vectors["query_offsets"]
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    search = make(data, offsets, folder)
    build = time.perf_counter() - start
    size = folder_bytes(folder) if folder.exists() else data.nbytes * 2
    facts = {"build_s": build, "bytes": size, "version": importlib.metadata.version(package)}
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        numbers = [asked["query"]] if "query" in asked else range(len(bounds) - 1)
        rows = [np.ascontiguousarray(queries[bounds[i] : bounds[i + 1]]) for i in numbers]
        start = time.perf_counter()
        ids = search(rows, asked["k"])[-1]
        elapsed = (time.perf_counter() - start) * 1e3
        rss = peak_megabytes()
        print(json.dumps({"ms": elapsed, "ids": [int(i) for i in ids], "rss_mb": rss}), file=answers, flush=True)


if __name__ == "__main__":
    main()
