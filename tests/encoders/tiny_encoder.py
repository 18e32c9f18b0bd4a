"""An ONNX encoder small enough to compute by hand: a token's vector is its row of a table, made unit length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.parity.checkpoints import bert_tokenizer_json

DIMENSIONS = 8
CLS, SEP, MASK, QUERY, PASSAGE = 101, 102, 103, 1, 2
# Pieces of the BERT vocabulary whose rows are NaN and zero.
NAN_WORD, NAN_ID = "nuclear", 4517


def table() -> np.ndarray[Any, Any]:
    """float32 [30522, 8], unit rows, but for the NaN one."""
    rows = np.random.default_rng(0).standard_normal((30522, DIMENSIONS)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[NAN_ID] = np.nan
    return rows


def description() -> dict[str, Any]:
    return {
        "format": 1,
        "kind": "encoder",
        "name": "tiny",
        "graph": "encoder.onnx",
        "tokenizer": "tokenizer.json",
        "dimensions": DIMENSIONS,
        "pad_id": 0,
        "dtype": "float32",
        "query": {
            "prefix_ids": [CLS, QUERY],
            "suffix_ids": [SEP],
            "max_tokens": 12,
            "skip_ids": [],
            "expansion": {"token_id": MASK, "length": 12, "attend": False},
        },
        "passage": {"prefix_ids": [CLS, PASSAGE], "suffix_ids": [SEP], "max_tokens": 16, "skip_ids": [1010, 1012]},
    }


def write_tiny_encoder(folder: Path, **changes: Any) -> Path:
    """`changes` replace keys of the description."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"], axis=0),
        helper.make_node("Cast", ["attention_mask"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["seen", "zero"], ["nothing"]),
        helper.make_node("Unsqueeze", ["nothing", "last"], ["column"]),
        helper.make_node("Add", ["rows", "column"], ["token_vectors"]),
    ]
    constants = {"table": table(), "zero": np.zeros((), np.float32), "last": np.array([-1], np.int64)}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["B", "L"]) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("token_vectors", TensorProto.FLOAT, ["B", "L", DIMENSIONS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "encoder.onnx")
    (folder / "tokenizer.json").write_text(bert_tokenizer_json(), encoding="utf-8")
    (folder / "encoder.json").write_text(json.dumps(description() | changes), encoding="utf-8")
    return folder
