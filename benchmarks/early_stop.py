"""What ending stage 2 early saves and what it loses, simulated over scores that were computed once.

    python benchmarks/early_stop.py score --set NAME=INDEX=FOLDER --split dev --depth 30 --out SCORES
    python benchmarks/early_stop.py simulate SCORES/*.npz --k 10 --depths 14 30

``score`` asks each judged query of a BEIR folder, rescores ``depth`` candidates in full and keeps both stages' scores.
``simulate`` replays the pipeline's own rule on them: candidates in stage 1's order, in rounds, until the next one is not
expected to enter the top k. Reported for each set and bound: the share of pairs that were scored, and nDCG@10 less
that of scoring them all.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np


def score(name: str, index: Path, folder: Path, split: str, depth: int, queries: int, out: Path) -> None:
    """Both stages' scores of ``depth`` candidates of each query, in stage 1's order; NaN beyond the collection."""
    from hybrid_retrieval import Pipeline
    from hybrid_retrieval.corpus.dataset import Dataset
    from hybrid_retrieval.evaluation.runner import sampled

    pipeline = Pipeline.from_config(index=index)
    dataset = Dataset.open(folder, split=split)
    asked = sampled(dataset.queries, queries or None)
    shape = (len(asked), depth)
    maxsim, logits = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    gains, ideal = np.zeros(shape, np.float32), np.zeros(len(asked), np.float32)
    start = time.perf_counter()
    for i, query in enumerate(asked):
        ranking = pipeline.query(query.text, k=depth, num_candidates=depth)
        assert ranking.retrieval_ranks is not None
        assert ranking.retrieval_scores is not None and ranking.reranker_scores is not None
        order = np.argsort(ranking.retrieval_ranks)
        maxsim[i, : len(order)] = ranking.retrieval_scores[order]
        logits[i, : len(order)] = ranking.reranker_scores[order]
        relevant = dataset.qrels[query.query_id]
        gains[i, : len(order)] = [relevant.get(ranking.ids[j], 0) for j in order]
        best = np.sort(list(relevant.values()))[::-1][:10]
        ideal[i] = float((best / np.log2(np.arange(2, len(best) + 2))).sum())
        print(f"\r{name}: {i + 1} of {len(asked)} queries", end="", file=sys.stderr)
    weight = pipeline.reranker.fusion_weight if pipeline.reranker else None
    np.savez(
        out / f"{name}.npz", maxsim=maxsim, logits=logits, gains=gains, ideal=ideal, weight=weight if weight else 0.0
    )
    print(f"\r{name}: {len(asked)} queries in {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    scoring = commands.add_parser("score")
    scoring.add_argument("--set", action="append", required=True, metavar="NAME=INDEX=FOLDER")
    scoring.add_argument("--split", default="train")
    scoring.add_argument("--depth", type=int, default=30)
    scoring.add_argument("--queries", type=int, default=0)
    scoring.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    for text in arguments.set:
        name, index, folder = text.split("=")
        score(name, Path(index), Path(folder), arguments.split, arguments.depth, arguments.queries, arguments.out)
