"""An ONNX cross-encoder small enough to compute by hand: the sum of a weight for each token times its position."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.parity.checkpoints import bert_tokenizer_json

NAN_WORD, NAN_ID = "nuclear", 4517
POSITIONS = 64


def weights() -> np.ndarray[Any, Any]:
    """float32 [30522], one a token; NaN at one word."""
    # Small whole numbers, so that sums are exact in any order.
    rows = np.random.default_rng(0).integers(-99, 100, 30522).astype(np.float32)
    rows[NAN_ID] = np.nan
    return rows


def logit(ids: Sequence[int], passage_start: int) -> float:
    """What the graph gives for one pair; the passage's tokens (type 1) count ten times."""
    value = weights()[list(ids)] * np.arange(1, len(ids) + 1)
    return float((value * np.where(np.arange(len(ids)) >= passage_start, 10, 1)).sum())


def description() -> dict[str, Any]:
    return {
        "format": 1,
        "kind": "reranker",
        "name": "tiny",
        "graph": "reranker.onnx",
        "tokenizer": "tokenizer.json",
        "dtype": "float32",
        "pad_id": 0,
        "prefix_ids": [101],
        "middle_ids": [102],
        "suffix_ids": [102],
        "max_tokens": 24,
        "max_query_tokens": 8,
        "longest_tokens": 64,
        "token_types": True,
        "fusion": {"weight": 0.25},
    }


def write_tiny_reranker(folder: Path, **changes: Any) -> Path:
    """`changes` replace keys of the description."""
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["values"]),
        helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
        helper.make_node("Slice", ["positions", "start", "length"], ["used"]),
        helper.make_node("Mul", ["values", "used"], ["placed"]),
        helper.make_node("Cast", ["token_type_ids"], ["second"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["second", "nine"], ["more"]),
        helper.make_node("Add", ["more", "one"], ["factor"]),
        helper.make_node("Mul", ["placed", "factor"], ["weighed"]),
        helper.make_node("Cast", ["attention_mask"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["weighed", "seen"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["logits"], keepdims=0),
    ]
    constants = {
        "weights": weights(),
        "positions": np.arange(1, POSITIONS + 1, dtype=np.float32),
        "start": np.array([0], np.int64),
        "nine": np.array(9, np.float32),
        "one": np.array(1, np.float32),
        "axis": np.array([1], np.int64),
    }
    names = ("input_ids", "attention_mask", "token_type_ids")
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "L"]) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "reranker.onnx")
    (folder / "tokenizer.json").write_text(bert_tokenizer_json(), encoding="utf-8")
    (folder / "reranker.json").write_text(json.dumps(description() | changes), encoding="utf-8")
    return folder
