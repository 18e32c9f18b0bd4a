"""What ending stage 2 early saves and what it loses, simulated over scores that were computed once.

    python benchmarks/early_stop.py score --set NAME=INDEX=FOLDER --split dev --depth 30 --out SCORES
    python benchmarks/early_stop.py simulate SCORES/*.npz --depth 14 --bounds -1 -0.5 0

``score`` asks each judged query of a BEIR folder, rescores ``depth`` candidates in full and keeps both stages' scores.
``simulate`` replays the pipeline's own rounds on them: candidates in stage 1's order until the next one is not expected
to enter the first ``top`` places. Reported for each set and bound: the share of pairs that were scored, and the change
of nDCG@10 against scoring them all (below 0: lost). ``top`` and the bound are by default the pipeline's own.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval import Pipeline
from hybrid_retrieval.config import SearchConfig
from hybrid_retrieval.corpus.dataset import Dataset
from hybrid_retrieval.evaluation.fusion_fit import CUTOFF, ndcg
from hybrid_retrieval.evaluation.runner import sampled
from hybrid_retrieval.fusion import fuse
from hybrid_retrieval.rerankers.pairs import Pairs
from hybrid_retrieval.rescoring import EarlyStop, Work, may_enter, rescore


def score(name: str, index: Path, folder: Path, split: str, depth: int, queries: int, out: Path) -> None:
    """Both stages' scores of ``depth`` candidates of each query, in stage 1's order; NaN beyond the collection."""
    out.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline.from_config(index=index)
    dataset = Dataset.open(folder, split=split)
    asked = sampled(dataset.queries, queries or None)
    shape = (len(asked), depth)
    maxsim, logits = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    gains, ideal = np.zeros(shape), np.zeros((len(asked), CUTOFF))
    start = time.perf_counter()
    for i, query in enumerate(asked):
        ranking = pipeline.query(query.text, k=depth, num_candidates=depth)
        assert ranking.retrieval_ranks is not None
        assert ranking.retrieval_scores is not None and ranking.reranker_scores is not None
        order = np.argsort(ranking.retrieval_ranks)
        maxsim[i, : len(order)] = ranking.retrieval_scores[order]
        logits[i, : len(order)] = ranking.reranker_scores[order]
        relevant = dataset.qrels[query.query_id]
        gains[i, : len(order)] = [max(relevant.get(ranking.ids[j], 0), 0) for j in order]
        best = sorted((grade for grade in relevant.values() if grade > 0), reverse=True)[:CUTOFF]
        ideal[i, : len(best)] = best
        print(f"\r{name}: {i + 1} of {len(asked)} queries", end="", file=sys.stderr)
    weight = pipeline.reranker.fusion_weight if pipeline.reranker else 0.0
    weight = -1.0 if weight is None else weight  # by the logit alone
    np.savez(out / f"{name}.npz", maxsim=maxsim, logits=logits, gains=gains, ideal=ideal, weight=weight)
    print(f"\r{name}: {len(asked)} queries in {time.perf_counter() - start:.0f} s", file=sys.stderr)


class Stored:
    """In a reranker's place: candidate i of a query has the logit that was computed once."""

    lanes = 1

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self._logits = logits

    def score_pairs(self, groups: Sequence[Pairs], ends: float = math.inf) -> list[NDArray[np.float32]]:
        return [self._logits[[int(row[0]) for row in group.rows]] for group in groups]

    def predict_seconds(self, pairs: Pairs) -> float | None:
        return 0.0


def ended(
    logits: NDArray[np.float32], maxsim: NDArray[np.float32], top: int, bound: float, weight: float | None
) -> Work:
    """One query's candidates through the pipeline's own rounds."""
    count = len(logits)
    none = np.zeros(count, bool)
    rows = tuple(np.array([i], np.int32) for i in range(count))
    work = Work(Pairs("", rows, (0,) * count, (b"",) * count, np.arange(count + 1), none, none, none, str))

    def enters(so_far: NDArray[np.float32]) -> bool:
        return may_enter(so_far, maxsim, top, bound, functools.partial(fuse, weight))

    rescore(Stored(logits), [(work, [EarlyStop(top, enters)])])
    return work


def simulate(path: Path, top: int, depth: int, bound: float, weight: float | None) -> tuple[float, float, float]:
    """Share of pairs scored, change of nDCG@10, nDCG@10 of scoring them all. weight: None orders by the logit alone."""
    stored = np.load(path)
    shares, changes, whole = [], [], []
    for logits, maxsim, gains, ideal in zip(
        stored["logits"], stored["maxsim"], stored["gains"], stored["ideal"], strict=True
    ):
        count = min(depth, int(np.isfinite(logits).sum()))
        logits, maxsim, gains = logits[:count], maxsim[:count], gains[:count]
        scored = ended(logits, maxsim, top, bound, weight).scored
        full = ndcg(gains[fuse(weight, logits, maxsim)[1]], ideal)
        shares.append(scored / count)
        changes.append(ndcg(gains[fuse(weight, logits[:scored], maxsim)[1]], ideal) - full)
        whole.append(full)
    return float(np.mean(shares)), float(np.mean(changes)), float(np.mean(whole))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    search = SearchConfig()
    scoring = commands.add_parser("score")
    scoring.add_argument("--set", action="append", required=True, metavar="NAME=INDEX=FOLDER")
    scoring.add_argument("--split", default="train")
    scoring.add_argument("--depth", type=int, default=30)
    scoring.add_argument("--queries", type=int, default=0, help="0: all that are judged")
    scoring.add_argument("--out", type=Path, required=True)
    replay = commands.add_parser("simulate")
    replay.add_argument("scores", type=Path, nargs="+")
    replay.add_argument("--top", type=int, default=search.early_stop_top, choices=range(1, 11), metavar="1-10")
    replay.add_argument("--depth", type=int, default=30)
    replay.add_argument("--bounds", type=float, nargs="+", default=[search.early_stop_bound])
    replay.add_argument("--weight", type=float, help="of the reranker, or -1 for the logit alone; by default its own")
    arguments = parser.parse_args()
    if arguments.command == "score":
        for text in arguments.set:
            name, index, folder = text.split("=")
            score(name, Path(index), Path(folder), arguments.split, arguments.depth, arguments.queries, arguments.out)
        return
    print("set", "nDCG@10", *(f"bound {bound:g}" for bound in arguments.bounds), sep="\t")
    totals = []
    for path in arguments.scores:
        weight = float(np.load(path)["weight"]) if arguments.weight is None else arguments.weight
        wanted = None if weight < 0 else weight
        found = [simulate(path, arguments.top, arguments.depth, bound, wanted) for bound in arguments.bounds]
        cells = (f"{share:.0%} {change:+.4f}" for share, change, _ in found)
        print(path.stem, f"{found[0][2]:.3f}", *cells, sep="\t")
        totals.append([(share, change) for share, change, _ in found])
    print("mean", "", *(f"{share:.0%} {change:+.4f}" for share, change in np.mean(totals, axis=0)), sep="\t")


if __name__ == "__main__":
    main()
