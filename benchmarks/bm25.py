"""The baseline that stage 1 is held against: BM25 (`hybrid_retrieval.evaluation.bm25`) over whole collections.

    python benchmarks/bm25.py --set scifact=DATA/scifact:test --set squad-dev=DATA/squad-dev:test \\
        --no-title squad-dev --out benchmarks/results/bm25.json

A set is NAME=FOLDER:SPLIT, a folder in BEIR's layout. Titles are read but where ``--no-title`` names the set, as by
``hybrid-retrieval build --no-title``; ``--sample N`` asks the questions of ``hybrid-retrieval evaluate --sample N``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from hybrid_retrieval.corpus.dataset import Dataset
from hybrid_retrieval.corpus.readers import read_corpus
from hybrid_retrieval.evaluation.bm25 import BM25
from hybrid_retrieval.evaluation.measures import evaluate, parse_measures
from hybrid_retrieval.evaluation.runner import sampled

MEASURES = "nDCG@10 R@100"


def measured(dataset: Dataset, sample: int | None, include_title: bool) -> dict[str, Any]:
    passages = list(read_corpus(dataset.folder))
    index = BM25(passage.content(include_title) for passage in passages)
    queries = sampled(dataset.queries, sample)
    start = time.perf_counter()
    run = {}
    for query in queries:
        rows, scores = index.search(query.text, 100)
        run[query.query_id] = {passages[row].passage_id: float(score) for row, score in zip(rows, scores, strict=True)}
    milliseconds = (time.perf_counter() - start) * 1e3 / len(queries)
    judged = {query.query_id: dataset.qrels[query.query_id] for query in queries}
    found = evaluate(run, judged, parse_measures(MEASURES))
    facts = {"passages": len(passages), "questions": len(queries), "titles": include_title}
    return facts | {str(name): float(value) for name, value in found.items()} | {"ms a question": milliseconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", required=True, metavar="NAME=FOLDER:SPLIT", dest="sets")
    parser.add_argument("--no-title", nargs="*", default=[], metavar="NAME", help="sets whose titles are not read")
    parser.add_argument("--sample", type=int, help="questions of each set; all of them by default")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    report: dict[str, Any] = {"command": " ".join(sys.argv), "sets": {}}
    print(f"{'set':16} {'passages':>9} {'questions':>9} {'nDCG@10':>8} {'R@100':>7}")
    for item in arguments.sets:
        name, _, place = item.partition("=")
        folder, _, split = place.rpartition(":")
        row = measured(Dataset.open(folder, split), arguments.sample, name not in arguments.no_title)
        report["sets"][name] = row
        print(f"{name:16} {row['passages']:9,} {row['questions']:9,} {row['nDCG@10']:8.4f} {row['R@100']:7.4f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
