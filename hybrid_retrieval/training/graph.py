"""ONNX graphs of the two embedded models; their table stays on the base's 4-bit grid, in a file that both share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto

from hybrid_retrieval.bert_graph import BertShape, GraphBuilder, WeightsFile
from hybrid_retrieval.training.base_weights import BaseModel


def embedding_bytes(base: BaseModel) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The bytes of ``embeddings.bin`` and (offset, length) of ``codes`` (two per byte, the lower index in the
    low nibble)
    and ``scales`` (float16). Codes are written as signed 4-bit integers (code - 8), whose zero point is 0.
    Offsets are multiples of 4096 so that the file can be mapped."""
    codes = base.embedding_codes ^ 8  # code - 8 in two's complement
    packed = (codes[:, 0::2] | (codes[:, 1::2] << 4)).astype(np.uint8).tobytes()
    scales = base.embedding_scales.astype("<f2").tobytes()
    start = -(-len(packed) // 4096) * 4096
    blob = packed + bytes(start - len(packed)) + scales
    return blob, {"codes": (0, len(packed)), "scales": (start, len(scales))}


def _split(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("trunk."): value for name, value in state.items()}


def _shape(base: BaseModel) -> BertShape:
    return BertShape(base.embedding_codes.shape[0], base.hidden, base.heads, base.epsilon)


class Exported(NamedTuple):
    """A graph, the contents of its weights file, and the numbers of its description's ``trunk`` section."""

    model: onnx.ModelProto
    weights: bytes
    trunk: dict[str, int | float]


def encoder_graph(
    base: BaseModel, state: Mapping[str, np.ndarray], where: Mapping[str, tuple[int, int]], *, file: str
) -> Exported:
    """Graph of ``modules.Encoder``: token_vectors float32 [B, L, D]. The projection stays float32 (it costs little)."""
    builder = GraphBuilder(_shape(base), _split(state))
    hidden = builder.trunk(where)
    weight = state["projection.weight"]
    (turned,) = builder.node("Transpose", [builder.weight("projection", weight)], perm=[1, 0])
    (y,) = builder.node("MatMul", [hidden, turned])
    (unit,) = builder.node("LpNormalization", [y], axis=-1, p=2)
    model = builder.model("token_vectors", unit, ["batch", "length", int(weight.shape[0])], file, None)
    return Exported(*model, builder.trunk_facts())


def reranker_graph(
    base: BaseModel,
    state: Mapping[str, np.ndarray],
    where: Mapping[str, tuple[int, int]],
    *,
    file: str,
    shared: WeightsFile | None,
) -> Exported:
    """Graph of ``modules.CrossEncoder``: logits float32 [B]. shared: a file some of whose weights are the same."""
    builder = GraphBuilder(_shape(base), _split(state))
    hidden = builder.trunk(where)
    interaction = _interaction(builder, hidden, state)
    (total,) = builder.node("Add", [builder.first_token_logit(hidden), interaction])
    return Exported(*builder.model("logits", total, ["batch"], file, shared), builder.trunk_facts())


def _interaction(builder: GraphBuilder, hidden: str, state: Mapping[str, np.ndarray]) -> str:
    """The scaled, weighted MaxSim of ``modules.CrossEncoder``: float32 [B]."""
    end, two = builder.constant("end", np.array(2, np.int64)), builder.constant("two", np.array(2, np.int32))
    zero, none = builder.constant("bos", np.array(0, np.int64)), builder.constant("none", np.array(0, np.int32))
    (is_end,) = builder.node("Equal", ["input_ids", end])
    (ends,) = builder.node("Cast", [is_end], to=TensorProto.INT32)
    (part,) = builder.node("CumSum", [ends, builder.constant("along", np.array(1, np.int64))])
    (before,) = builder.node("Equal", [part, none])
    (is_bos,) = builder.node("Equal", ["input_ids", zero])
    (not_bos,) = builder.node("Not", [is_bos])
    (query,) = builder.node("And", [before, not_bos])
    (asked,) = builder.node("Cast", [query], to=TensorProto.FLOAT)
    (turned_gate,) = builder.node("Transpose", [builder.weight("gate.weight", state["gate.weight"])], perm=[1, 0])
    (read,) = builder.node("MatMul", [hidden, turned_gate])
    (raised,) = builder.node("Add", [read, builder.weight("gate.bias", state["gate.bias"])])
    ending = builder.constant("ending", np.array([2], np.int64))
    (flat,) = builder.node("Squeeze", [raised, ending])
    (gate,) = builder.node("Sigmoid", [flat])
    (weights,) = builder.node("Mul", [gate, asked])
    (after,) = builder.node("Equal", [part, two])
    (not_end,) = builder.node("Not", [is_end])
    (passage,) = builder.node("And", [after, not_end])
    (row,) = builder.node("Unsqueeze", [passage, builder.constant("middle", np.array([1], np.int64))])
    (unit,) = builder.node("LpNormalization", [hidden], axis=-1, p=2)
    (turned,) = builder.node("Transpose", [unit], perm=[0, 2, 1])
    (products,) = builder.node("MatMul", [unit, turned])
    (masked,) = builder.node("Where", [row, products, builder.constant("least", np.array(-1, np.float32))])
    (best,) = builder.node("ReduceMax", [masked, ending], keepdims=0)
    (weighed,) = builder.node("Mul", [best, weights])
    second = builder.constant("second", np.array([1], np.int64))
    (total,) = builder.node("ReduceSum", [weighed, second], keepdims=0)
    (count,) = builder.node("ReduceSum", [weights, second], keepdims=0)
    (mean,) = builder.node("Div", [total, count])
    return builder.node("Mul", [mean, builder.weight("scale", np.asarray(state["scale"], np.float32))])[0]
