"""ONNX graphs of the two models, written node by node with onnxruntime's fused operators (CPU).

Weights are uint8 per output channel with zero point 128, activations uint8 quantised dynamically
(``MatMulIntegerToFloat``).
Unsigned weights matter: without VNNI the signed int8 kernels add pairs of products in 16 saturating bits. All weights
lie in a safetensors file beside the graph, which the native kernels read too (``native_trunk``); the embedding table
stays on the base's 4-bit grid in ``embeddings.bin``, shared by both models. The graphs refer to both as external data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from hybrid_retrieval.training.base_weights import BLOCK, BaseModel

MICROSOFT = "com.microsoft"
EMBEDDINGS_FILE = "embeddings.bin"


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


def quantise(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 codes [in, out] (zero point 128) and float32 scales [out] of a float32 weight [out, in]."""
    scale = np.maximum(np.abs(weight).max(axis=1), 1e-8) / 127
    codes = np.clip(np.rint(weight / scale[:, None]), -127, 127) + 128
    return np.ascontiguousarray(codes.T).astype(np.uint8), scale.astype(np.float32)


class GraphBuilder:
    """Collects nodes and initializers. ``state`` holds float32 arrays under the names of ``modules.Trunk``.
    ``weights`` is what goes into the weights file."""

    def __init__(self, base: BaseModel, state: Mapping[str, np.ndarray], *, int8: bool) -> None:
        self.base, self.state, self.int8 = base, state, int8
        self.weights: dict[str, np.ndarray] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.count = 0

    def constant(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, name: str, value: np.ndarray) -> str:
        """An initializer that lies in the weights file."""
        self.weights[name] = np.array(value, order="C")  # keeps a scalar a scalar
        return name

    def node(
        self, op: str, inputs: list[str], *, domain: str = "", outputs: int = 1, **attributes: object
    ) -> list[str]:
        self.count += 1
        names = [f"{op}_{self.count}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, domain=domain, **attributes))
        return names

    def dense(self, x: str | list[str], name: str, bias: bool = True) -> str:
        """x @ weight.T + bias; ``x`` may be an already quantised triple (codes, scale, zero point)."""
        weight = self.state[f"{name}.weight"]
        added = self.weight(f"{name}.bias", self.state[f"{name}.bias"])
        if not self.int8:
            assert isinstance(x, str)
            (y,) = self.node("MatMul", [x, self.weight(f"{name}.weight", weight.T)])
            return self.node("Add", [y, added])[0] if bias else y
        codes, scale = quantise(weight)
        q, s, z = x if isinstance(x, list) else self.quantised(x)
        zero = self.constant(f"{name}.z", np.full(len(scale), 128, np.uint8))
        inputs = [q, self.weight(f"{name}.codes", codes), s, self.weight(f"{name}.scale", scale), z, zero]
        return self.node("MatMulIntegerToFloat", [*inputs, added] if bias else inputs, domain=MICROSOFT)[0]

    def quantised(self, x: str) -> list[str]:
        return self.node("DynamicQuantizeLinear", [x], outputs=3)

    def embeddings(self, ids: str, where: Mapping[str, tuple[int, int]]) -> str:
        rows = self.base.embedding_codes.shape[0]
        shapes = {"codes": [rows, self.base.hidden], "scales": [rows, self.base.hidden // BLOCK]}
        for name, kind in (("codes", TensorProto.INT4), ("scales", TensorProto.FLOAT16)):
            tensor = onnx.TensorProto(name=name, data_type=kind, dims=shapes[name])
            tensor.data_location = TensorProto.EXTERNAL
            offset, length = where[name]
            for key, value in (("location", EMBEDDINGS_FILE), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            self.initializers.append(tensor)
        attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": BLOCK, "bits": 4}
        inputs = ["codes", ids, "scales"]
        (half,) = self.node("GatherBlockQuantized", inputs, domain=MICROSOFT, **attributes)
        (words,) = self.node("Cast", [half], to=TensorProto.FLOAT)
        (shape,) = self.node("Shape", [ids], start=1, end=2)
        starts, axes = self.constant("zero", np.zeros(1, np.int64)), self.constant("axis", np.zeros(1, np.int64))
        positions = self.weight("pos", self.state["pos"].astype(np.float32))
        (rows_used,) = self.node("Slice", [positions, starts, shape, axes])
        (total,) = self.node("Add", [words, rows_used])
        return self.norm(total, "ln")

    def norm(self, x: str, name: str) -> str:
        weight = self.weight(f"{name}.weight", self.state[f"{name}.weight"])
        bias = self.weight(f"{name}.bias", self.state[f"{name}.bias"])
        return self.node("LayerNormalization", [x, weight, bias], epsilon=self.base.epsilon)[0]

    def skip_norm(self, x: str, skip: str, name: str) -> str:
        weight = self.weight(f"{name}.weight", self.state[f"{name}.weight"])
        bias = self.weight(f"{name}.bias", self.state[f"{name}.bias"])
        inputs = [x, skip, weight, bias]
        return self.node("SkipLayerNormalization", inputs, domain=MICROSOFT, epsilon=self.base.epsilon)[0]

    def layer(self, x: str, mask: str, i: int) -> str:
        """One transformer layer on x [B, L, H]; mask int32 [B, L]."""
        name, state = f"layers.{i}", self.state
        width = state[f"{name}.ao.weight"].shape[1]  # heads may have been pruned
        qkv = self.dense(x, f"{name}.qkv")
        q, k, v = self.node("Split", [qkv], outputs=3, axis=2, num_outputs=3)
        inputs = [q, k, v, "", mask]
        (a,) = self.node(
            "MultiHeadAttention", inputs, domain=MICROSOFT, num_heads=width * self.base.heads // self.base.hidden
        )
        a = self.dense(a, f"{name}.ao")
        x = self.skip_norm(a, x, f"{name}.aln")
        up = self.dense(x, f"{name}.fi", bias=False)
        (up,) = self.node("BiasGelu", [up, f"{name}.fi.bias"], domain=MICROSOFT)
        down = self.dense(up, f"{name}.fo")
        return self.skip_norm(down, x, f"{name}.oln")

    def trunk(self, where: Mapping[str, tuple[int, int]]) -> str:
        (mask,) = self.node("Cast", ["attention_mask"], to=TensorProto.INT32)
        x = self.embeddings("input_ids", where)
        for i in range(int(self.trunk_facts()["layers"])):
            x = self.layer(x, mask, i)
        return x

    def trunk_facts(self) -> dict[str, int | float]:
        """The numbers of a description's ``trunk`` section."""
        depth = 1 + max(int(name.split(".")[1]) for name in self.state if name.startswith("layers."))
        size = self.base.hidden // self.base.heads
        return {
            "vocabulary": self.base.embedding_codes.shape[0],
            "hidden": self.base.hidden,
            "layers": depth,
            "heads": self.state["layers.0.ao.weight"].shape[1] // size,
            "head_size": size,
            "epsilon": self.base.epsilon,
        }

    def model(self, output: str, result: str, shape: list[str | int], file: str) -> tuple[onnx.ModelProto, bytes]:
        """The graph, and the contents of the weights file, to be named ``file``."""
        blob = save(self.weights)
        header = 8 + int.from_bytes(blob[:8], "little")
        for name, facts in json.loads(blob[8:header]).items():
            kind = helper.np_dtype_to_tensor_dtype(self.weights[name].dtype)
            tensor = onnx.TensorProto(name=name, data_type=kind, dims=self.weights[name].shape)
            tensor.data_location = TensorProto.EXTERNAL
            start, stop = facts["data_offsets"]
            for key, value in (("location", file), ("offset", header + start), ("length", stop - start)):
                tensor.external_data.add(key=key, value=str(value))
            self.initializers.append(tensor)
        self.nodes.append(helper.make_node("Identity", [result], [output]))
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self.nodes, "hybrid_retrieval", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="hybrid_retrieval")
        return model, blob


def _split(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("trunk."): value for name, value in state.items() if name.startswith("trunk.")}


class Exported(NamedTuple):
    """A graph, the contents of its weights file, and the numbers of its description's ``trunk`` section."""

    model: onnx.ModelProto
    weights: bytes
    trunk: dict[str, int | float]


def encoder_graph(
    base: BaseModel, state: Mapping[str, np.ndarray], where: Mapping[str, tuple[int, int]], *, int8: bool, file: str
) -> Exported:
    """Graph of ``modules.Encoder``: token_vectors float32 [B, L, D]. The projection stays float32 (it costs little)."""
    builder = GraphBuilder(base, _split(state), int8=int8)
    hidden = builder.trunk(where)
    weight = state["projection.weight"]
    (turned,) = builder.node("Transpose", [builder.weight("projection", weight)], perm=[1, 0])
    (y,) = builder.node("MatMul", [hidden, turned])
    (unit,) = builder.node("LpNormalization", [y], axis=-1, p=2)
    model = builder.model("token_vectors", unit, ["batch", "length", int(weight.shape[0])], file)
    return Exported(*model, builder.trunk_facts())


def reranker_graph(
    base: BaseModel, state: Mapping[str, np.ndarray], where: Mapping[str, tuple[int, int]], *, int8: bool, file: str
) -> Exported:
    """Graph of ``modules.CrossEncoder``: logits float32 [B]."""
    builder = GraphBuilder(base, _split(state), int8=int8)
    hidden = builder.trunk(where)
    interaction = _interaction(builder, hidden, state["scale"])
    (first,) = builder.node("Gather", [hidden, builder.constant("first", np.array(0, np.int64))], axis=1)
    weights = [builder.weight(name, state[name]) for name in ("dense.weight", "dense.bias", "out.weight", "out.bias")]
    (dense,) = builder.node("Gemm", [first, weights[0], weights[1]], transB=1)
    (bounded,) = builder.node("Tanh", [dense])
    (logit,) = builder.node("Gemm", [bounded, weights[2], weights[3]], transB=1)
    (flat,) = builder.node("Squeeze", [logit, builder.constant("last", np.array([1], np.int64))])
    (total,) = builder.node("Add", [flat, interaction])
    return Exported(*builder.model("logits", total, ["batch"], file), builder.trunk_facts())


def _interaction(builder: GraphBuilder, hidden: str, scale: np.ndarray) -> str:
    """The scaled mean MaxSim of ``modules.CrossEncoder``: float32 [B]."""
    end, two = builder.constant("end", np.array(2, np.int64)), builder.constant("two", np.array(2, np.int32))
    zero, none = builder.constant("bos", np.array(0, np.int64)), builder.constant("none", np.array(0, np.int32))
    (is_end,) = builder.node("Equal", ["input_ids", end])
    (ends,) = builder.node("Cast", [is_end], to=TensorProto.INT32)
    (part,) = builder.node("CumSum", [ends, builder.constant("along", np.array(1, np.int64))])
    (before,) = builder.node("Equal", [part, none])
    (is_bos,) = builder.node("Equal", ["input_ids", zero])
    (not_bos,) = builder.node("Not", [is_bos])
    (query,) = builder.node("And", [before, not_bos])
    (weights,) = builder.node("Cast", [query], to=TensorProto.FLOAT)
    (after,) = builder.node("Equal", [part, two])
    (not_end,) = builder.node("Not", [is_end])
    (passage,) = builder.node("And", [after, not_end])
    (row,) = builder.node("Unsqueeze", [passage, builder.constant("middle", np.array([1], np.int64))])
    (unit,) = builder.node("LpNormalization", [hidden], axis=-1, p=2)
    (turned,) = builder.node("Transpose", [unit], perm=[0, 2, 1])
    (products,) = builder.node("MatMul", [unit, turned])
    (masked,) = builder.node("Where", [row, products, builder.constant("least", np.array(-1, np.float32))])
    (best,) = builder.node("ReduceMax", [masked, builder.constant("ending", np.array([2], np.int64))], keepdims=0)
    (weighed,) = builder.node("Mul", [best, weights])
    second = builder.constant("second", np.array([1], np.int64))
    (total,) = builder.node("ReduceSum", [weighed, second], keepdims=0)
    (count,) = builder.node("ReduceSum", [weights, second], keepdims=0)
    (mean,) = builder.node("Div", [total, count])
    return builder.node("Mul", [mean, builder.weight("scale", np.asarray(scale, np.float32))])[0]
