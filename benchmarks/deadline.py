"""How many queries keep their deadline: 99 in 100 should be back within 20 ms of it.

    python benchmarks/deadline.py --index INDEX --set DATA/squad-dev --queries 200 --deadlines 100 400 --out OUT.json

The pipeline is loaded and asked once to warm up; scores are not remembered between queries. For each deadline the
queries come one after the other (askers 1), then from several threads at once, which share the cores, then one after
the other again, right behind them. Reported: the share of queries that returned within the deadline and 20 ms, the time
that 99 in 100 stayed below, the mean, and how many of the candidates were rescored on average; and the time of the same
queries without a deadline.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from peers.process import machine_facts

from hybrid_retrieval import Pipeline
from hybrid_retrieval.config import PipelineConfig
from hybrid_retrieval.corpus.dataset import Dataset
from hybrid_retrieval.evaluation.runner import sampled

GRACE_MS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--set", type=Path, required=True, help="a BEIR folder, for its queries")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--deadlines", type=int, nargs="+", default=[50, 100, 200, 400], help="in milliseconds")
    parser.add_argument("--askers", type=int, default=4, help="threads that ask at once")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    default = PipelineConfig()
    config = dataclasses.replace(
        default,
        encoder=dataclasses.replace(default.encoder, cached_queries=0),
        reranker=dataclasses.replace(default.reranker, cached_pairs=0),
    )
    pipeline = Pipeline.from_config(config, index=arguments.index)
    queries = [query.text for query in sampled(Dataset.open(arguments.set).queries, arguments.queries)]
    pipeline.query(queries[0])

    def ask(query: str, deadline: float | None) -> tuple[float, int]:
        start = time.perf_counter()
        ranking = pipeline.query(query, deadline_ms=deadline)
        return (time.perf_counter() - start) * 1e3, ranking.rescored or 0

    rows = []
    for deadline in [None, *arguments.deadlines]:
        for askers in (1,) if deadline is None else (1, arguments.askers, 1):
            with ThreadPoolExecutor(askers) as pool:
                answers = np.array(list(pool.map(ask, queries, [deadline] * len(queries))))
            taken, rescored = answers.T
            rows.append(
                {
                    "deadline_ms": deadline,
                    "askers": askers,
                    "kept": None if deadline is None else float(np.mean(taken <= deadline + GRACE_MS)),
                    "p99_ms": float(np.percentile(taken, 99)),
                    "mean_ms": float(taken.mean()),
                    "rescored": float(rescored.mean()),
                    "candidates": config.search.num_candidates,
                }
            )
            print(rows[-1], flush=True)
    report = {**machine_facts(), "command": " ".join(sys.argv), "queries": len(queries), "deadlines": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
