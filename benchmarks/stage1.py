"""Speed and fidelity of stage 1: ours and its peers over the same vectors, interleaved query by query in one run.

    python benchmarks/stage1.py --set squad-dev=DATA/squad-dev --work WORK --out benchmarks/results/stage1.json \\
        --peer colbert-ai=ENV/bin/python --peer exact-torch=ENV/bin/python

Each peer runs in an environment of its own (``benchmarks/peers/make_env.sh``) as ``benchmarks/peers/worker.py``.
Vectors come from the embedded encoder and are kept in WORK. Reported for each system and k: milliseconds a query at
the median and the 95th percentile, overlap of the top k with exhaustive MaxSim over the float vectors and over the
same 2-bit index, nDCG@10 (without qrels in the folder, its queries are asked for speed alone); queries a second of all
in one call, at the largest k; and build time, bytes and peak memory. Query encoding is excluded everywhere.
``--dimensions`` keeps only the first dimensions of each vector (the encoder's are turned at random, so all weigh
alike), for peers such as maxsim-cpu that end their process at 256. ``--peer SYSTEM`` without an environment is one of
ours (such as hybrid-retrieval-4bits). ``--plot`` draws the speed at the largest k against the overlap.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from peers.process import PeerProcess, machine_facts

WORKER = Path(__file__).parent / "peers" / "worker.py"
OURS, EXACT = "hybrid-retrieval", "hybrid-retrieval-exact"


def encoded(name: str, folder: Path, work: Path, queries: int, passages: int, titles: bool) -> Path:
    """The vectors of a collection, from the cache or from the embedded encoder."""
    from hybrid_retrieval import Encoder

    encoder = Encoder.load("embedded")
    read = f"{'titles-' if titles else ''}{encoder.identity[:8]}"
    path = work / f"{name}-{queries}-{passages}-{read}.npz"
    if path.exists():
        return path
    from hybrid_retrieval.corpus.queries import read_qrels, read_queries

    judged = folder / "qrels" / "test.tsv"
    qrels = read_qrels(judged) if judged.exists() else {}
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    if passages:
        rows = rows[:passages]
    position = {row["_id"]: i for i, row in enumerate(rows)}
    asked = [
        query
        for query in read_queries(folder / "queries.jsonl")
        if not judged.exists() or any(p in position for p, grade in qrels.get(query.query_id, {}).items() if grade > 0)
    ]
    asked = random.Random(0).sample(asked, min(queries, len(asked)))
    texts = [f"{row['title']} {row['text']}" if titles and row.get("title") else row["text"] for row in rows]
    parts, lengths = [], []
    for start in range(0, len(texts), 256):
        found = encoder.encode_passages(texts[start : start + 256])
        parts.append(found.data.astype(np.float16))
        lengths += found.lengths.tolist()
        print(f"\r{name}: {start + len(found)} of {len(texts)} passages encoded", end="", file=sys.stderr)
    print(file=sys.stderr)
    vectors = encoder.encode_queries([query.text for query in asked])
    relevant = [
        [position[p] for p, grade in qrels.get(query.query_id, {}).items() if grade > 0 and p in position]
        for query in asked
    ]
    work.mkdir(parents=True, exist_ok=True)
    save(
        path,
        data=np.concatenate(parts),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        queries=vectors.data,
        query_offsets=vectors.offsets,
        relevant=json.dumps(relevant),
    )
    return path


def narrowed(path: Path, dimensions: int) -> Path:
    """The same vectors with their first ``dimensions`` dimensions, as long as before."""
    arrays = dict(np.load(path))
    if dimensions > arrays["data"].shape[1]:
        sys.exit(f"stage1.py: --dimensions must be at most {arrays['data'].shape[1]}, got {dimensions}")
    for name in ("data", "queries"):
        whole = arrays[name].astype(np.float32)
        cut = whole[:, :dimensions]
        shortened = np.linalg.norm(cut, axis=1, keepdims=True) / np.linalg.norm(whole, axis=1, keepdims=True)
        arrays[name] = (cut / shortened).astype(arrays[name].dtype)
    narrow = path.with_name(f"{path.stem}-{dimensions}d.npz")
    save(narrow, **arrays)
    return narrow


def save(path: Path, **arrays: Any) -> None:
    """`numpy.savez`, of which an interruption leaves nothing under that name."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    np.savez(unfinished, **arrays)
    unfinished.replace(path)


def oracle(vectors: Any, k: int) -> list[list[int]]:
    """The top k of each query by exhaustive MaxSim over the float vectors."""
    from hybrid_retrieval.kernels.reference import maxsim
    from hybrid_retrieval.ragged import Ragged
    from hybrid_retrieval.types import best_first

    passages = Ragged(vectors["data"].astype(np.float32), vectors["offsets"])
    queries = Ragged(vectors["queries"], vectors["query_offsets"])
    return [best_first(maxsim(query, passages), k).tolist() for query in queries]


def ndcg_at_10(ids: list[int], relevant: list[int]) -> float:
    from hybrid_retrieval.evaluation.fusion_fit import ndcg

    return ndcg(np.isin(ids, relevant).astype(np.float64), np.ones(len(relevant)))


def start(system: str, python: str, vectors: Path, work: Path, threads: int) -> PeerProcess:
    command = [python, str(WORKER), system, str(vectors), str(work / f"index-{system}"), str(threads)]
    return PeerProcess(system, command, work / f"{system}.log")


def measure(workers: list[PeerProcess], vectors: Any, ks: list[int], rounds: int) -> dict[str, Any]:
    count, relevant = len(vectors["query_offsets"]) - 1, json.loads(str(vectors["relevant"]))
    float_top = oracle(vectors, max(ks))
    found: dict[str, Any] = {worker.system: {"build": worker.facts, "k": {}} for worker in workers}
    for k in ks:
        times: dict[str, list[float]] = {worker.system: [] for worker in workers}
        tops: dict[str, list[list[int]]] = {worker.system: [] for worker in workers}
        for worker in workers:
            worker.ask(query=0, k=k)  # the first call of a k pays for what later ones find ready
        draw = random.Random(k)
        for turn in range(rounds):
            for query in range(count):
                for worker in draw.sample(workers, len(workers)):  # so that none always runs behind the same neighbour
                    answer = worker.ask(query=query, k=k)
                    times[worker.system].append(answer["ms"])
                    found[worker.system]["rss_mb"] = answer["rss_mb"]
                    if turn == 0:
                        tops[worker.system].append(answer["ids"])
        quantised = tops.get(EXACT)
        for system, top in tops.items():

            def overlap(truth: list[list[int]], top: list[list[int]] = top, k: int = k) -> float:
                return float(
                    np.mean([len(set(a[:k]) & set(b[:k])) / len(b[:k]) for a, b in zip(top, truth, strict=True)])
                )

            found[system]["k"][k] = {
                "p50_ms": float(np.percentile(times[system], 50)),
                "p95_ms": float(np.percentile(times[system], 95)),
                "overlap_float": overlap(float_top),
                "overlap_same_index": overlap(quantised) if quantised and system == OURS else None,
                "ndcg@10": float(np.mean([ndcg_at_10(a, b) for a, b in zip(top, relevant, strict=True)]))
                if any(relevant)
                else None,
            }
    batches: dict[str, list[float]] = {worker.system: [] for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            batches[worker.system].append(count / worker.ask(k=max(ks))["ms"] * 1e3)
    for system, rates in batches.items():
        found[system]["batch_queries_per_s"] = float(np.median(rates))
    return found


def show(name: str, found: dict[str, Any], ks: list[int]) -> None:
    print(f"\n{name}")
    print(
        f"{'system':28} {'build s':>8} {'MB':>7} {'RSS MB':>7} {'queries/s':>9}",
        *(f"{f'k={k}: p50 ms':>14} {'ratio':>6} {'overlap':>8} {'nDCG@10':>8}" for k in ks),
    )
    for system, facts in found.items():
        cells = []
        for k in ks:
            row = facts["k"][k]
            ratio = row["p50_ms"] / found[OURS]["k"][k]["p50_ms"]
            gain = "" if row["ndcg@10"] is None else f"{row['ndcg@10']:.3f}"
            cells.append(f"{row['p50_ms']:14.2f} {ratio:5.1f}x {row['overlap_float']:8.3f} {gain:>8}")
        build = facts["build"]
        print(
            f"{system:28} {build['build_s']:8.1f} {build['bytes'] / 1e6:7.1f} {facts['rss_mb']:7.0f} "
            f"{facts['batch_queries_per_s']:9.1f}",
            *cells,
        )
    for k in ks:
        same = found[OURS]["k"][k]["overlap_same_index"]
        if same is not None:
            print(f"k={k}: {same:.4f} of the exhaustive top {k} over the same index")


def plot(path: Path, found: dict[str, Any], k: int) -> None:
    """Milliseconds a query against the overlap with exhaustive MaxSim over float vectors."""
    from hybrid_retrieval.optional import require

    matplotlib = require("matplotlib", "the plot", "plot")
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(7.5, 4), layout="constrained")).subplots()
    for system, facts in sorted(found.items(), key=lambda item: item[1]["k"][k]["p50_ms"]):
        row, ours = facts["k"][k], system.startswith(OURS)
        axes.plot(row["p50_ms"], row["overlap_float"], "o" if ours else "s", markersize=8, alpha=0.8, label=system)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    axes.set(xscale="log", xlabel=f"ms a query at the median, k = {k}", ylabel=f"overlap of the top {k}")
    axes.grid(True, alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date and no random ids: the same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "stage1", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", required=True, metavar="NAME=FOLDER", help="a BEIR folder")
    parser.add_argument("--peer", action="append", default=[], metavar="SYSTEM[=PYTHON]")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="of the last set")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--passages", type=int, default=0, help="only the first so many (0: all)")
    parser.add_argument("--titles", action="store_true", help="titles belong to the text")
    parser.add_argument("--dimensions", type=int, default=0, help="only the first so many (0: all)")
    parser.add_argument("-k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        **machine_facts(),
        "threads": arguments.threads,
        "command": " ".join(sys.argv),
        "sets": {},
    }
    for item in arguments.set:
        name, _, folder = item.partition("=")
        path = encoded(name, Path(folder), arguments.work, arguments.queries, arguments.passages, arguments.titles)
        if arguments.dimensions:
            path = narrowed(path, arguments.dimensions)
        systems = [(OURS, sys.executable), (EXACT, sys.executable)]
        systems += [(peer.partition("=")[0], peer.partition("=")[2] or sys.executable) for peer in arguments.peer]
        # One after the other: builds do not compete.
        workers = [start(*system, path, arguments.work, arguments.threads) for system in systems]
        report["sets"][name] = measure(workers, np.load(path), arguments.k, arguments.rounds)
        for worker in workers:
            worker.process.kill()
        show(name, report["sets"][name], arguments.k)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(arguments.plot, report["sets"][name], max(arguments.k))


if __name__ == "__main__":
    main()
