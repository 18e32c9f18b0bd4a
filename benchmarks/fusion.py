"""Is stage 2 worth its cost? Weight and calibration from training questions, then both stages once on test questions.

    python benchmarks/fusion.py --fit tydiqa-ko=DEV/tydiqa-ko:dev --fit squad_train=DEV/squad_train:dev \\
        --test squad-dev=DATA/squad-dev:test --no-title squad-dev --work WORK --out benchmarks/results/fusion.json

A set is NAME=FOLDER:SPLIT, a folder in BEIR's layout; ``--index NAME=FOLDER`` gives a ready index of it, others are
built in WORK. Indexes and scores in WORK are kept under the models' identities: run it again to go on after an
interruption, and with other models to measure those. Written: OUT (figures, value by value), WORK/fusion.json (the
fusion file fitted over all ``--fit`` sets), and with ``--plot FILE.svg`` the reliability of its probabilities.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_retrieval.config import FusionConfig, PipelineConfig
from hybrid_retrieval.corpus.dataset import Dataset
from hybrid_retrieval.encoders import Encoder
from hybrid_retrieval.evaluation.calibration import Bin, calibration_error, reliability
from hybrid_retrieval.evaluation.fusion_fit import WEIGHTS, Fit, fit_fusion, ndcg
from hybrid_retrieval.evaluation.fusion_runner import fit_to_file, score_dataset
from hybrid_retrieval.evaluation.paired import bootstrap_interval, randomisation_p_value
from hybrid_retrieval.evaluation.scored_queries import ScoredQuery
from hybrid_retrieval.fusion import FittedOn, Fusion, fuse
from hybrid_retrieval.index import Index
from hybrid_retrieval.optional import require
from hybrid_retrieval.pipeline import Pipeline
from hybrid_retrieval.rerankers import Reranker


class Bench:
    """The models, and the sets scored by them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.work = arguments, arguments.work
        self.config = PipelineConfig(fusion=FusionConfig("reranker"))
        self.encoder, self.reranker = Encoder.load(arguments.model), Reranker.load(arguments.model)
        self.ready = dict(item.split("=", 1) for item in arguments.index)
        for folder in ("indexes", "scores"):
            (self.work / folder).mkdir(parents=True, exist_ok=True)

    def pipeline(self, name: str, folder: str, split: str) -> Pipeline:
        titles = name not in self.arguments.no_title
        made_of = hashlib.sha256(repr((str(Path(folder).resolve()), titles)).encode()).hexdigest()
        own = f"{name}-{split}-{made_of[:8]}-{self.encoder.identity[:8]}"
        path = Path(self.ready.get(name, self.work / "indexes" / own))
        if not (path / "versions").exists():
            print(f"{name}: building an index", file=sys.stderr)
            section = dataclasses.replace(self.config.index, include_title=titles)
            config = dataclasses.replace(self.config, index=section)
            Index.build(folder, path, encoder=self.encoder, reranker=self.reranker, config=config, overwrite=True)
        return Pipeline(Index.open(path), self.encoder, self.reranker, self.config)

    def scored(self, item: str, questions: int) -> tuple[str, list[ScoredQuery]]:
        name, _, place = item.partition("=")
        folder, _, split = place.rpartition(":")
        models = f"{self.encoder.identity[:8]}-{self.reranker.identity[:8]}"

        def progress(step: str, done: int, total: int) -> None:
            print(f"\r{name} {split}: {done} of {total} {step}", end="", file=sys.stderr)

        queries = score_dataset(
            self.pipeline(name, folder, split),
            Dataset.open(folder, split),
            sample=questions,
            num_candidates=self.arguments.candidates,
            store=self.work / "scores" / f"{name}-{split}-{self.arguments.candidates}-{models}.jsonl",
            progress=progress,
        )
        print(file=sys.stderr)
        return name, queries


def values(queries: list[ScoredQuery], weight: float | None) -> np.ndarray:
    """nDCG@10 of each question in the order that a weight makes."""
    return np.array([ndcg(q.gains[fuse(weight, q.logits, q.retrieval_scores)[1]], q.ideal) for q in queries])


def fit_report(name: str, fit: Fit, queries: list[ScoredQuery], shipped: float | None) -> dict[str, Any]:
    found = fit.cross_validation
    print(
        f"{name:16} {found.stage_1:8.4f} {found.fused:8.4f} {found.reranker_alone:8.4f} {found.difference:+8.4f} "
        f"[{found.low:+.4f}, {found.high:+.4f}] {found.p_value:7.4f} {fit.weight:7.2f} "
        f"{found.weight_lowest:5.2f}-{found.weight_highest:.2f} {found.calibration_error:6.3f} "
        f"{'rerank' if fit.rerank else 'stage 1'}"
    )
    change = values(queries, shipped) - values(queries, 0.0)
    low, high = bootstrap_interval(change)
    at_shipped = {"weight": shipped, "difference": float(change.mean()), "low": low, "high": high}
    return dataclasses.asdict(fit) | {"shipped": at_shipped | {"p": randomisation_p_value(change)}}


def test_report(name: str, queries: list[ScoredQuery], weights: dict[str, float | None]) -> dict[str, Any]:
    """Each way of ordering beside stage 1 on the same questions. weights: name -> as for `fuse`."""
    stage_1 = values(queries, 0.0)
    report: dict[str, Any] = {"questions": len(queries), "stage 1": {"mean": float(stage_1.mean())}}
    report["stage 1"]["by question"] = stage_1.tolist()
    for kind, weight in weights.items():
        found = values(queries, weight)
        low, high = bootstrap_interval(found - stage_1)
        p_value = randomisation_p_value(found - stage_1)
        report[kind] = {"weight": weight, "mean": float(found.mean()), "low": low, "high": high, "p": p_value}
        report[kind] |= {"difference": float((found - stage_1).mean()), "by question": found.tolist()}
        shown = "logit" if weight is None else f"{weight:.2f}"
        print(
            f"{name:16} {kind:14} {shown:>6} {stage_1.mean():8.4f} {found.mean():8.4f} "
            f"{report[kind]['difference']:+8.4f} [{low:+.4f}, {high:+.4f}] {p_value:7.4f}"
        )
    return report


def test_reliability(queries: list[ScoredQuery], fusion: Fusion) -> list[Bin]:
    """How far the fitted probabilities hold on questions of other sets."""
    probabilities, relevant = [], []
    for query in queries:
        head = query.retrieval_scores[: len(query.logits)]
        logits = query.logits if fusion.rerank else None
        scores = fuse(fusion.weight, query.logits, head)[0] if fusion.rerank else head
        found = fusion.probabilities(logits, scores, head)
        assert found is not None
        probabilities.append(found)
        relevant.append(query.gains[: len(head)] > 0)
    return reliability(np.concatenate(probabilities), np.concatenate(relevant))


def plot(path: Path, tables: dict[str, list[Bin]]) -> None:
    """Promised against found, a line a table; circles by the number of candidates."""
    require("matplotlib", "the reliability plot", "plot")
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(4.2, 4.2), layout="constrained")).subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, table in tables.items():
        x, y = [row.promised for row in table], [row.found for row in table]
        sizes = [8 * np.log1p(row.candidates) for row in table]
        axes.plot(x, y, linewidth=1)
        axes.scatter(x, y, s=sizes, label=name)
    axes.set(xlabel="probability promised", ylabel="share found relevant", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.legend(loc="upper left", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date and no random ids: the same figures give the same file.
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "reliability", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="append", required=True, metavar="NAME=FOLDER:SPLIT")
    parser.add_argument("--test", action="append", default=[], metavar="NAME=FOLDER:SPLIT")
    parser.add_argument("--index", action="append", default=[], metavar="NAME=FOLDER", help="a ready index of a set")
    parser.add_argument("--no-title", nargs="*", default=[], metavar="NAME", help="sets whose titles are not read")
    parser.add_argument("--fit-questions", type=int, default=60, help="of each set")
    parser.add_argument("--test-questions", type=int, default=60, help="of each set")
    parser.add_argument("--candidates", type=int, default=14, help="rescored for each question")
    parser.add_argument("--model", default="embedded", help="a folder with both models")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    bench = Bench(arguments)
    report: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "encoder": [bench.encoder.name, bench.encoder.identity],
        "reranker": [bench.reranker.name, bench.reranker.identity],
        "candidates": arguments.candidates,
        "weights": WEIGHTS.tolist(),
        "fit": {},
        "test": {},
    }
    shipped = bench.reranker.fusion_weight
    fitting = dict(bench.scored(item, arguments.fit_questions) for item in arguments.fit)
    print(
        f"{'fitted on':16} {'stage 1':>8} {'fused':>8} {'alone':>8} {'differ.':>8} {'95 %':^18} {'p':>7} {'weight':>7}"
    )
    for name, queries in fitting.items():
        report["fit"][name] = fit_report(name, fit_fusion(queries), queries, shipped)
    everything = [query for queries in fitting.values() for query in queries]
    fit = fit_fusion(everything)
    report["fit"]["all"] = fit_report("all", fit, everything, shipped)
    split = "+".join(sorted({item.rpartition(":")[2] for item in arguments.fit}))
    on = FittedOn("+".join(fitting), split, len(everything), arguments.candidates, 0)
    # The models are what the file names: any of the sets' pipelines has them.
    name, _, place = arguments.fit[0].partition("=")
    folder, _, own_split = place.rpartition(":")
    pipeline = bench.pipeline(name, folder, own_split)
    file = fit_to_file(fit, pipeline, on)
    file.write(arguments.work / "fusion.json")
    tables = {"training questions, out of fold": list(fit.table)}
    if arguments.test:
        testing = dict(bench.scored(item, arguments.test_questions) for item in arguments.test)
        columns = ("stage 1", "both", "differ.")
        print(
            f"{'tested on':16} {'order':14} {'weight':>6}",
            *(f"{name:>8}" for name in columns),
            f"{'95 %':^18} {'p':>7}",
        )
        weights = {"fitted": fit.weight, "shipped": shipped, "reranker alone": None}
        for name, queries in testing.items():
            report["test"][name] = test_report(name, queries, weights)
        pooled = [query for queries in testing.values() for query in queries]
        report["test"]["all"] = test_report("all", pooled, weights)
        table = test_reliability(pooled, Fusion(fit.weight, file))
        tables["test questions"] = table
        report["test"]["calibration error"] = calibration_error(table)
    report["reliability"] = {name: [dataclasses.asdict(row) for row in table] for name, table in tables.items()}
    for name, table in tables.items():
        print(f"\n{name}: expected calibration error {calibration_error(table):.4f}")
        for row in table:
            print(f"{row.low:.1f}-{row.high:.1f} {row.candidates:6} promised {row.promised:.3f} found {row.found:.3f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(arguments.plot, tables)


if __name__ == "__main__":
    main()
