"""Speed and fidelity of stage 2: ours and its peers over the same pairs, interleaved question by question in one run.

    python benchmarks/stage2.py --set squad-dev=DATA/squad-dev --set scifact=DATA/scifact --work WORK \\
        --out benchmarks/results/stage2.json --peer flag-embedding=ENV/bin/python --peer openvino=ENV/bin/python

Every system is a process of its own (``benchmarks/peers/cross_worker.py``); peers of another environment
(``benchmarks/peers/make_env.sh``) are named with ``--peer``, transformers and sentence-transformers run in this one.
The model is one that all of them can run (``benchmarks/peers/cross_models.py``): the embedded cross-encoder is no
transformers model, so its encoder's layers with a classifier on top stand in for it (``--shape small``), and random
weights for bge-reranker-v2-m3 (``--shape large``). ``--embedded`` adds the package's own cross-encoder, ours only.
Systems whose names end in ``-bf16`` gain only where the processor computes in bfloat16; ``--leave-out`` names others.

Pairs: for each question of a set its judged passages and random others; and ``windows``, whose passages fill 512
tokens. Reported: pairs a second (from the median of a question's times), milliseconds a question, peak memory, and
Kendall's tau-b with transformers in float32, question by question.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers.cross_models import FORMS, make
from peers.process import PeerProcess, machine_facts

from hybrid_retrieval.corpus.queries import read_qrels, read_queries

WORKER = Path(__file__).parent / "peers" / "cross_worker.py"
OURS, REFERENCE = "hybrid-retrieval", "transformers"
Questions = list[tuple[str, list[str]]]


def questions_of(folder: Path, count: int, pairs: int) -> Questions:
    """Judged passages first, then random ones; a seeded choice."""
    draw = random.Random(0)
    qrels = read_qrels(folder / "qrels" / "test.tsv")
    lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {row["_id"]: row["text"] for row in map(json.loads, lines)}
    asked = [query for query in read_queries(folder / "queries.jsonl") if query.query_id in qrels]
    others = list(texts)
    found = []
    for query in draw.sample(asked, count):
        judged = [passage for passage in qrels[query.query_id] if passage in texts]
        rows = list(dict.fromkeys([*judged, *draw.sample(others, pairs)]))[:pairs]
        found.append((query.text, [texts[row] for row in rows]))
    return found


def windows_of(questions: Questions) -> Questions:
    """The same questions over passages that run past 512 tokens (at most 6 characters a token), where all cut them."""
    found = []
    for query, passages in questions:
        joined = " ".join(passages)
        found.append((query, [(joined[i * 97 :] + " " + joined * 4)[:4000] for i in range(len(passages))]))
    return found


def start(system: str, python: str, model: Path, pairs: Path, work: Path, threads: int) -> PeerProcess:
    kind = system.removesuffix(" (embedded)")
    command = [python, str(WORKER), kind, str(model), str(pairs), str(threads)]
    return PeerProcess(system, command, work / f"{system.replace(' ', '-')}.log")


def kendall_tau_b(a: np.ndarray, b: np.ndarray) -> float:
    """Tau-b (Kendall 1945) of two lists of scores; 1 where either is all ties."""
    upper = np.triu_indices(len(a), 1)
    x, y = (np.sign(values[:, None] - values[None])[upper] for values in (a, b))
    size = np.sqrt(np.abs(x).sum() * np.abs(y).sum())
    return float((x * y).sum() / size) if size else 1.0


def measure(workers: list[PeerProcess], name: str, questions: Questions, rounds: int) -> dict[str, Any]:
    times: dict[str, list[list[float]]] = {w.system: [[] for _ in questions] for w in workers}
    logits: dict[str, list[np.ndarray]] = {w.system: [] for w in workers}
    memory: dict[str, float] = {}
    for worker in workers:
        worker.ask(set=name, question=0)  # the first call pays for what later ones find ready
    for turn in range(rounds):
        for i in range(len(questions)):
            # The order turns, so that no system always runs behind the same neighbour.
            for worker in workers[turn % len(workers) :] + workers[: turn % len(workers)]:
                answer = worker.ask(set=name, question=i)
                times[worker.system][i].append(answer["s"])
                memory[worker.system] = answer["rss_mb"]
                if turn == 0:
                    logits[worker.system].append(np.array(answer["logits"], np.float64))
    pairs = sum(len(passages) for _, passages in questions)
    found: dict[str, Any] = {}
    for worker in workers:
        system = worker.system
        medians = [float(np.median(row)) for row in times[system]]
        same_model = not system.endswith("(embedded)")
        taus = [kendall_tau_b(a, b) for a, b in zip(logits[system], logits[REFERENCE], strict=True)]
        found[system] = {
            "pairs_per_s": pairs / sum(medians),
            "p50_ms": float(np.percentile(medians, 50)) * 1e3,
            "rss_mb": memory[system],
            "tau": float(np.mean(taus)) if same_model else None,
            "largest_difference": (
                float(max(np.abs(a - b).max() for a, b in zip(logits[system], logits[REFERENCE], strict=True)))
                if same_model
                else None
            ),
            "times_s": times[system],
        }
    return found


def show(name: str, questions: Questions, found: dict[str, Any]) -> None:
    print(f"\n{name}: {len(questions)} questions of {len(questions[0][1])} pairs")
    print(f"{'system':34} {'pairs/s':>8} {'of ours':>8} {'p50 ms':>8} {'RSS MB':>7} {'tau':>7}")
    ours = found[OURS]["pairs_per_s"]
    for system, row in found.items():
        tau = "" if row["tau"] is None else f"{row['tau']:7.4f}"
        speed = row["pairs_per_s"]
        print(f"{system:34} {speed:8.1f} {speed / ours:8.2f} {row['p50_ms']:8.0f} {row['rss_mb']:7.0f} {tau:>7}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", required=True, metavar="NAME=FOLDER", help="a BEIR folder")
    parser.add_argument("--peer", action="append", default=[], metavar="SYSTEM=PYTHON")
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="SYSTEM")
    parser.add_argument("--shape", choices=["small", "large"], default="small")
    parser.add_argument("--layers", type=int, default=0, help="fewer than the shape's, for a trial (0: all)")
    parser.add_argument("--embedded", action="store_true", help="the package's own cross-encoder too")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=4, help="of each set")
    parser.add_argument("--pairs", type=int, default=14, help="of each question")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    from hybrid_retrieval.model_files import EMBEDDED_FOLDER

    work = arguments.work / f"{arguments.shape}-{arguments.layers}"
    pythons = {system: sys.executable for system in FORMS if system not in ("flag-embedding", "openvino")}
    pythons |= dict(item.split("=", 1) for item in arguments.peer)
    chosen = [system for system in FORMS if system in pythons and system not in arguments.leave_out]
    make(arguments.shape, work, {FORMS[system] for system in chosen}, arguments.layers)
    pairs: dict[str, Questions] = {}
    for item in arguments.set:
        name, _, folder = item.partition("=")
        pairs[name] = questions_of(Path(folder), arguments.questions, arguments.pairs)
    pairs["windows"] = windows_of(next(iter(pairs.values()))[: max(1, arguments.questions // 2)])
    file = work / "pairs.json"
    file.write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
    systems = [(system, pythons[system], work / FORMS[system]) for system in chosen]
    if arguments.embedded:
        own = [system for system in ("hybrid-retrieval", "hybrid-retrieval-onnx") if system not in arguments.leave_out]
        systems += [(f"{system} (embedded)", sys.executable, EMBEDDED_FOLDER) for system in own]
    began = time.perf_counter()
    workers = [start(*system, file, work, arguments.threads) for system in systems]
    report: dict[str, Any] = {
        **machine_facts(),
        "threads": arguments.threads,
        "shape": arguments.shape,
        "layers": arguments.layers,
        "command": " ".join(sys.argv),
        "systems": {worker.system: worker.facts for worker in workers},
        "sets": {},
    }
    for name, questions in pairs.items():
        report["sets"][name] = measure(workers, name, questions, arguments.rounds)
        show(name, questions, report["sets"][name])
        report["seconds"] = time.perf_counter() - began
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for worker in workers:
        worker.process.kill()


if __name__ == "__main__":
    main()
