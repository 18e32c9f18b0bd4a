"""Quality of the embedded pair: exact MaxSim over float and 2-bit vectors, and re-ranking of the first candidates.

    python benchmarks/quality.py --set squad-dev=DATA/squad-dev --queries 200 --out quality.jsonl --candidates
    found.jsonl
    python benchmarks/quality.py --cross DATA/xquad zh en --out quality.jsonl --candidates found.jsonl
    python benchmarks/quality.py --rerank --depth 20 --queries 100 --out reranked.jsonl --candidates found.jsonl

A collection is a folder in BEIR's layout. ``--queries`` draws that many judged queries with a fixed seed (0:
all). ``--titles``
names the sets whose titles are read with the text. Every line of the output is one set. No index is involved:
this measures the
models and the codec, not the search.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hybrid_retrieval.codec.training import train_codec
from hybrid_retrieval.corpus.queries import read_qrels, read_queries
from hybrid_retrieval.encoders.encoder import Encoder
from hybrid_retrieval.evaluation import fusion_fit
from hybrid_retrieval.fusion import fuse
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.rerankers.reranker import Reranker

Task = tuple[str, list[str], list[str], list[tuple[str, str]], dict[str, dict[str, int]]]
"""name, passage ids, passage texts, (query id, text), qrels."""
WEIGHTS = [round(0.05 * i, 2) for i in range(21)]


def read_task(name: str, corpus: Path, queries: Path, qrels_file: Path, titles: bool, passages: int) -> Task:
    """``passages`` > 0 keeps the judged passages and that many others, drawn with a fixed seed."""
    qrels = read_qrels(qrels_file)
    ids, texts = [], []
    for line in corpus.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        title = row.get("title", "") if titles else ""
        ids.append(row["_id"])
        texts.append(f"{title} {row['text']}" if title else row["text"])
    if passages:
        judged = {p for found in qrels.values() for p in found}
        others = [i for i, p in enumerate(ids) if p not in judged]
        drawn = set(random.Random(0).sample(others, min(passages, len(others))))
        kept = [i for i, p in enumerate(ids) if p in judged or i in drawn]
        ids, texts = [ids[i] for i in kept], [texts[i] for i in kept]
        name = f"{name}[{len(ids)}]"
    found = [(q.query_id, q.text) for q in read_queries(queries) if max(qrels.get(q.query_id, {"": 0}).values()) > 0]
    return name, ids, texts, found, qrels


def maxsim(query: np.ndarray, windows: Ragged, offsets: np.ndarray) -> np.ndarray:
    """float32 [N]: query [Lq, D] against N passages of one or more windows."""
    best = np.maximum.reduceat(windows.data @ query.T, windows.offsets[:-1], axis=0).sum(axis=1)
    return np.maximum.reduceat(best, offsets[:-1])


def ndcg(ids: Sequence[str], relevant: dict[str, int]) -> float:
    """nDCG@10 of passages in their order."""
    gains = np.array([max(relevant.get(passage_id, 0), 0) for passage_id in ids], np.float64)
    ideal = np.array(sorted((grade for grade in relevant.values() if grade > 0), reverse=True), np.float64)
    return fusion_fit.ndcg(gains, ideal)


def recall(ids: Sequence[str], relevant: dict[str, int], k: int = 100) -> float:
    wanted = {p for p, v in relevant.items() if v > 0}
    return len(wanted & set(ids[:k])) / len(wanted)


def retrieve(
    task: Task, encoder: Encoder, *, sample: int, depth: int, seed: int
) -> tuple[dict[str, object], dict[str, object]]:
    """Stage 1: the figures of one set, and its candidates (2-bit) for `rerank`."""
    name, ids, texts, queries, qrels = task
    if sample and sample < len(queries):
        queries = random.Random(seed).sample(queries, sample)
    began = time.perf_counter()
    rows, windows = [], []
    for start in range(0, len(texts), 256):
        part, offsets = encoder.encode_windows(texts[start : start + 256])
        rows += [part[i] for i in range(len(part))]
        windows += np.diff(offsets).tolist()
    seconds = time.perf_counter() - began
    vectors = Ragged.from_rows(rows)
    offsets = np.concatenate([[0], np.cumsum(windows)])
    rng = np.random.default_rng(seed)
    picked = rng.choice(len(vectors.data), min(len(vectors.data), 120_000), replace=False)
    codec = train_codec(vectors.data[np.sort(picked)], nbits=2, num_centroids=min(2048, len(picked) // 24))
    decoded = Ragged(codec.decode(*codec.encode(vectors.data)), vectors.offsets)
    figures: dict[str, list[float]] = {}
    candidates = []
    for query_id, text in queries:
        query = encoder.encode_query(text)
        for kind, stored in (("float", vectors), ("2bit", decoded)):
            scores = maxsim(query, stored, offsets)
            order = np.argsort(-scores, kind="stable")[:100]
            ranked = [ids[i] for i in order]
            figures.setdefault(f"ndcg10 {kind}", []).append(ndcg(ranked, qrels[query_id]))
            figures.setdefault(f"recall100 {kind}", []).append(recall(ranked, qrels[query_id]))
        top = order[:depth]
        candidates.append(
            {
                "query": text,
                "relevant": qrels[query_id],
                "ids": [ids[i] for i in top],
                "texts": [texts[i] for i in top],
                "scores": scores[top].tolist(),
            }
        )
    result: dict[str, object] = {"set": name, "passages": len(ids), "queries": len(queries)}
    result |= {key: round(float(np.mean(values)), 4) for key, values in figures.items()}
    result["passages/s"] = round(len(texts) / seconds, 1)
    result["tokens a passage"] = round(len(vectors.data) / len(ids), 1)
    return result, {"set": name, "queries": candidates}


def rerank(found: dict, reranker: Reranker, *, sample: int, depth: int) -> dict[str, object]:
    """Stage 2 on the first ``sample`` queries of a line of the candidates' file: nDCG@10 for each weight of
    the reranker."""
    fused: dict[float, list[float]] = {w: [] for w in WEIGHTS}
    seconds = []
    for query in found["queries"][: sample or None]:
        began = time.perf_counter()
        logits = reranker.score([(query["query"], text) for text in query["texts"][:depth]])
        seconds.append(time.perf_counter() - began)
        for w in WEIGHTS:
            _, order = fuse(w, logits, np.array(query["scores"][:depth], np.float32))
            fused[w].append(ndcg([query["ids"][i] for i in order], query["relevant"]))
    return {
        "set": found["set"],
        "reranked queries": len(seconds),
        "rerank p50 s": round(float(np.median(seconds)), 3),
        "ndcg10 by weight": {str(w): round(float(np.mean(values)), 4) for w, values in fused.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--cross", action="append", default=[], nargs=3, metavar=("FOLDER", "QUERIES", "PASSAGES"))
    parser.add_argument("--split", default="test")
    parser.add_argument("--titles", nargs="*", default=["scifact"])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument(
        "--passages", type=int, default=0, help="keep the judged passages and this many others (0: all)"
    )
    parser.add_argument("--depth", type=int, default=20, help="candidates given to the reranker")
    parser.add_argument("--candidates", type=Path, required=True, help="written by stage 1, read by --rerank")
    parser.add_argument("--rerank", action="store_true", help="stage 2 on the candidates' file instead of stage 1")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    def report(result: dict[str, object]) -> None:
        with arguments.out.open("a", encoding="utf-8") as out:
            out.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)

    if arguments.rerank:
        reranker = Reranker.load(arguments.model, threads=arguments.threads)
        for line in arguments.candidates.read_text(encoding="utf-8").splitlines():
            report(rerank(json.loads(line), reranker, sample=arguments.queries, depth=arguments.depth))
        return
    encoder = Encoder.load(arguments.model, threads=arguments.threads)
    tasks: list[tuple[str, Path, Path, Path]] = []
    for text in arguments.set:
        name, _, folder = text.partition("=")
        root = Path(folder)
        tasks.append((name, root / "corpus.jsonl", root / "queries.jsonl", root / "qrels" / f"{arguments.split}.tsv"))
    for folder, source, target in arguments.cross:
        root = Path(folder)
        tasks.append(
            (
                f"xquad {source}->{target}",
                root / f"corpus.{target}.jsonl",
                root / f"queries.{source}.jsonl",
                root / "qrels.tsv",
            )
        )
    for name, corpus, queries, qrels in tasks:
        task = read_task(name, corpus, queries, qrels, name in arguments.titles, arguments.passages)
        result, found = retrieve(task, encoder, sample=arguments.queries, depth=arguments.depth, seed=arguments.seed)
        with arguments.candidates.open("a", encoding="utf-8") as out:
            out.write(json.dumps(found) + "\n")
        report({**result, "split": arguments.split})


if __name__ == "__main__":
    main()
