"""Speed and fidelity of stage 2: ours and its peers over the same pairs, interleaved question by question in one run.

    python benchmarks/stage2.py --set squad-dev=DATA/squad-dev --set scifact=DATA/scifact --work WORK \\
        --out benchmarks/results/stage2.json --peer flag-embedding=ENV/bin/python --peer openvino=ENV/bin/python

Every system is a process of its own (``benchmarks/peers/cross_worker.py``); peers of another environment
(``benchmarks/peers/make_env.sh``) are named with ``--peer``, transformers and sentence-transformers run in this one.
The model is one that all of them can run (``benchmarks/peers/cross_models.py``): the embedded cross-encoder is no
transformers model, so its encoder's layers with a classifier on top stand in for it (``--shape small``), and random
weights for bge-reranker-v2-m3 (``--shape large``). ``--embedded`` adds the package's own cross-encoder, ours only.
Systems whose names end in ``-bf16`` gain only where the processor computes in bfloat16; ``--leave-out`` names others.

``--device cuda`` runs the systems that a GPU has, in half precision and float8.

Pairs: for each question of a set its judged passages and random others; and ``windows``, whose passages fill 512
tokens. Reported: pairs a second (from the median of a question's times), milliseconds a question, peak memory,
Kendall's tau-b with transformers in float32, question by question, and the share of the device's limit: the
multiplications and additions that the pairs' real tokens take at least, a second, beside those of one large product
of the same type of numbers, measured last. (No system may do without one: but for those of the last layer that only
the first token needs, which are counted once a pair.)
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers.cross_models import OWN_ENVIRONMENT, SYSTEMS, make
from peers.process import PeerProcess, machine_facts

from hybrid_retrieval.corpus.queries import read_qrels, read_queries

WORKER = Path(__file__).parent / "peers" / "cross_worker.py"
OURS = {"cpu": "hybrid-retrieval", "cuda": "hybrid-retrieval-torch-fp16"}
REFERENCE, MAX_TOKENS = "transformers", 512
Questions = list[tuple[str, list[str]]]


def questions_of(folder: Path, count: int, pairs: int) -> Questions:
    """Judged passages first, then random ones; a seeded choice."""
    draw = random.Random(0)
    qrels = read_qrels(folder / "qrels" / "test.tsv")
    lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {row["_id"]: row["text"] for row in map(json.loads, lines)}
    asked = [q for q in read_queries(folder / "queries.jsonl") if max(qrels.get(q.query_id, {"": 0}).values()) > 0]
    others = list(texts)
    found = []
    for query in draw.sample(asked, min(count, len(asked))):
        judged = [passage for passage in qrels[query.query_id] if passage in texts]
        rows = list(dict.fromkeys([*judged, *draw.sample(others, min(pairs, len(others)))]))[:pairs]
        found.append((query.text, [texts[row] for row in rows]))
    return found


def windows_of(questions: Questions) -> Questions:
    """The same questions over passages that run past 512 tokens (at most 6 characters a token), where all cut them."""
    found = []
    for query, passages in questions:
        joined = " ".join(passages)
        found.append((query, [(joined[i * 97 :] + " " + joined * 4)[:4000] for i in range(len(passages))]))
    return found


def start(
    system: str, python: str, model: Path, pairs: Path, work: Path, threads: int, device: str = "cpu"
) -> PeerProcess:
    kind = system.removesuffix(" (embedded)")
    command = [python, str(WORKER), kind, str(model), str(pairs), str(threads), device]
    return PeerProcess(system, command, work / f"{system.replace(' ', '-')}.log")


def kendall_tau_b(a: np.ndarray, b: np.ndarray) -> float:
    """Tau-b (Kendall 1945) of two lists of scores; 1 where either is all ties."""
    upper = np.triu_indices(len(a), 1)
    x, y = (np.sign(values[:, None] - values[None])[upper] for values in (a, b))
    size = np.sqrt(np.abs(x).sum() * np.abs(y).sum())
    return float((x * y).sum() / size) if size else 1.0


def work_of(questions: Questions, folder: Path) -> float:
    """GFLOP that all pairs take at least, cut to 512 tokens: products of the layers and of attention; in the last layer
    keys and values of every token, all else of the first alone."""
    from tokenizers import Tokenizer

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hidden, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS, strategy="only_second")
    total = 0.0
    for query, passages in questions:
        for pair in tokenizer.encode_batch([(query, passage) for passage in passages]):
            tokens = len(pair.ids)
            full = tokens * (8 * hidden**2 + 4 * hidden * inner + 4 * tokens * hidden)
            last = tokens * 4 * hidden**2 + 4 * hidden**2 + 4 * hidden * inner + 4 * tokens * hidden
            total += (layers - 1) * full + last
    return total / 1e9


def matrix_rates(device: str, threads: int) -> dict[str, float]:
    """GFLOP/s of one large product of torch's at its best, by type of numbers."""
    import torch

    torch.set_num_threads(threads)
    size = 8192 if device == "cuda" else 2048

    def rate(make: Callable[[], Callable[[], object]]) -> float:
        best = float("inf")
        for _ in range(5):
            product = make()  # in other memory, which can make a difference
            for _ in range(4):
                began = time.perf_counter()
                product()
                if device == "cuda":
                    torch.cuda.synchronize()
                best = min(best, time.perf_counter() - began)
        return 2 * size**3 / best / 1e9

    def floats(kind: Any) -> Callable[[], object]:
        a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
        return lambda: a @ b

    def float8() -> Callable[[], object]:
        functional = torch.nn.functional
        row, ones = functional.ScalingType.RowWise, torch.ones(size, 1, device=device)
        a, b = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
        return lambda: functional.scaled_mm(a, b.t(), ones, row, ones.t(), row, output_dtype=torch.bfloat16)

    def int8() -> Callable[[], object]:
        codes = [torch.randint(-127, 128, (size, size), dtype=torch.int8) for _ in range(2)]
        return lambda: torch._int_mm(*codes)

    kinds = ["float32", "bfloat16", *(["float16"] if device == "cuda" else [])]
    rates = {kind: rate(lambda kind=kind: floats(getattr(torch, kind))) for kind in kinds}
    if device == "cpu":
        rates["int8"] = rate(int8)
    elif torch.cuda.get_device_capability() >= (8, 9):
        rates["float8"] = rate(float8)
    return rates


def measure(workers: list[PeerProcess], name: str, questions: Questions, rounds: int) -> dict[str, Any]:
    times: dict[str, list[list[float]]] = {w.system: [[] for _ in questions] for w in workers}
    logits: dict[str, list[np.ndarray]] = {w.system: [] for w in workers}
    memory: dict[str, float] = {}
    on_device: dict[str, float | None] = {}
    for worker in workers:
        worker.ask(set=name, question=0)  # the first call pays for what later ones find ready
    draw = random.Random(0)
    for turn in range(rounds):
        for i in range(len(questions)):
            for worker in draw.sample(workers, len(workers)):  # so that none always runs behind the same neighbour
                answer = worker.ask(set=name, question=i)
                times[worker.system][i].append(answer["s"])
                memory[worker.system], on_device[worker.system] = answer["rss_mb"], answer["device_mb"]
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
            "device_mb": on_device[system],
            "tau": float(np.mean(taus)) if same_model else None,
            "largest_difference": (
                float(max(np.abs(a - b).max() for a, b in zip(logits[system], logits[REFERENCE], strict=True)))
                if same_model
                else None
            ),
            "times_s": times[system],
        }
    return found


def show(name: str, questions: Questions, found: dict[str, Any], ours: str) -> None:
    print(f"\n{name}: {len(questions)} questions of {len(questions[0][1])} pairs")
    print(
        f"{'system':34} {'pairs/s':>8} {'of ours':>8} {'p50 ms':>8} {'RSS MB':>7} {'GPU MB':>7} {'tau':>7} {'share':>6}"
    )
    for system, row in found.items():
        tau = "" if row["tau"] is None else f"{row['tau']:7.4f}"
        share = f"{row['share_of_limit']:6.2f}" if row.get("share_of_limit") else ""
        device = "" if row["device_mb"] is None else f"{row['device_mb']:7.0f}"
        speed = row["pairs_per_s"]
        print(
            f"{system:34} {speed:8.1f} {speed / found[ours]['pairs_per_s']:8.2f} {row['p50_ms']:8.0f} "
            f"{row['rss_mb']:7.0f} {device:>7} {tau:>7} {share:>6}"
        )


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
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    from hybrid_retrieval.model_files import EMBEDDED_FOLDER

    work = arguments.work / f"{arguments.shape}-{arguments.layers}"
    known = SYSTEMS[arguments.device]
    pythons = {system: sys.executable for system in known if system not in OWN_ENVIRONMENT}
    pythons |= dict(item.split("=", 1) for item in arguments.peer)
    if unknown := [system for system in [*pythons, *arguments.leave_out] if system not in known]:
        parser.error(f"no system '{unknown[0]}' on {arguments.device}: known are {', '.join(known)}")
    chosen = [system for system in known if system in pythons and system not in arguments.leave_out]
    make(arguments.shape, work, {known[system][0] for system in chosen}, arguments.layers)
    pairs: dict[str, Questions] = {}
    for item in arguments.set:
        name, _, folder = item.partition("=")
        pairs[name] = questions_of(Path(folder), arguments.questions, arguments.pairs)
    pairs["windows"] = windows_of(next(iter(pairs.values()))[: max(1, arguments.questions // 2)])
    file = work / "pairs.json"
    file.write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
    systems = [(system, pythons[system], work / known[system][0]) for system in chosen]
    if arguments.embedded:
        own = [system for system in ("hybrid-retrieval", "hybrid-retrieval-onnx") if system not in arguments.leave_out]
        systems += [(f"{system} (embedded)", sys.executable, EMBEDDED_FOLDER) for system in own]
    began = time.perf_counter()
    workers = [start(*system, file, work, arguments.threads, arguments.device) for system in systems]
    ours = OURS[arguments.device]
    report: dict[str, Any] = {
        **machine_facts(),
        "threads": arguments.threads,
        "device": arguments.device,
        "shape": arguments.shape,
        "layers": arguments.layers,
        "command": " ".join(sys.argv),
        "systems": {worker.system: worker.facts for worker in workers},
        "sets": {},
    }
    for name, questions in pairs.items():
        report["sets"][name] = measure(workers, name, questions, arguments.rounds)
        show(name, questions, report["sets"][name], ours)
        report["seconds"] = time.perf_counter() - began
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for worker in workers:
        worker.process.kill()
        worker.process.wait()
    report["matrix_gflop_per_s"] = rates = matrix_rates(arguments.device, arguments.threads)
    print("\nGFLOP/s of one large product:", {kind: round(rate) for kind, rate in rates.items()})
    for name, questions in pairs.items():
        work_a_pair = work_of(questions, work / "hf") / sum(len(passages) for _, passages in questions)
        for system, row in report["sets"][name].items():
            limit = rates.get(known[system][1]) if system in known else None
            row["share_of_limit"] = None if limit is None else row["pairs_per_s"] * work_a_pair / limit
        show(name, questions, report["sets"][name], ours)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
