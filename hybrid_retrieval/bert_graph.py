"""ONNX graphs of BERT's layers, written node by node with onnxruntime's fused operators (CPU).

Weights are uint8 per output channel with zero point 128, activations uint8 quantised dynamically
(``MatMulIntegerToFloat``). Unsigned weights matter: without VNNI the signed int8 kernels add pairs of products in 16
saturating bits. All weights lie in a safetensors file beside the graph, which the native kernels read too
(``native_trunk``), and the embedding table in a file of its own. The graphs refer to both as external data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from hybrid_retrieval.native_trunk import EMBEDDING_BLOCK

MICROSOFT = "com.microsoft"
EMBEDDINGS_FILE = "embeddings.bin"


class BertShape(NamedTuple):
    """vocabulary: rows of the embedding table. epsilon: of every LayerNorm."""

    vocabulary: int
    hidden: int
    heads: int
    epsilon: float


def quantise(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 codes [in, out] (zero point 128) and float32 scales [out] of a float32 weight [out, in]."""
    scale = np.maximum(np.abs(weight).max(axis=1), 1e-8) / 127
    codes = np.clip(np.rint(weight / scale[:, None]), -127, 127) + 128
    return np.ascontiguousarray(codes.T).astype(np.uint8), scale.astype(np.float32)


class WeightsFile(NamedTuple):
    """A safetensors file: its name and its contents."""

    name: str
    contents: bytes

    def places(self, weights: Mapping[str, np.ndarray]) -> dict[str, tuple[str, int, int]]:
        """(file, offset, length) of those of the weights that this file holds, byte for byte."""
        header = 8 + int.from_bytes(self.contents[:8], "little")
        found = {}
        for name, facts in json.loads(self.contents[8:header]).items():
            start, stop = (header + offset for offset in facts["data_offsets"])
            if name in weights and weights[name].tobytes() == self.contents[start:stop]:
                found[name] = (self.name, start, stop - start)
        return found


class GraphBuilder:
    """Collects nodes and initializers. ``weights`` is what goes into the weights file.

    state: float32 arrays: ``pos`` [positions, H] (with the type's embedding added, where there is one type only),
    ``types`` [2, H] where there are two, ``ln.weight``, ``ln.bias``, and for each layer ``layers.{i}.`` before
    ``qkv``, ``ao``, ``fi``, ``fo`` (``.weight`` [out, in], ``.bias``) and ``aln``, ``oln`` (``.weight``, ``.bias``).
    """

    def __init__(self, shape: BertShape, state: Mapping[str, np.ndarray]) -> None:
        self.shape, self.state = shape, state
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

    def dense(self, x: str, name: str, bias: bool = True) -> str:
        """x @ weight.T + bias."""
        weight = self.state[f"{name}.weight"]
        added = self.weight(f"{name}.bias", self.state[f"{name}.bias"])
        codes, scale = quantise(weight)
        q, s, z = self.node("DynamicQuantizeLinear", [x], outputs=3)
        zero = self.constant(f"{name}.z", np.full(len(scale), 128, np.uint8))
        inputs = [q, self.weight(f"{name}.codes", codes), s, self.weight(f"{name}.scale", scale), z, zero]
        return self.node("MatMulIntegerToFloat", [*inputs, added] if bias else inputs, domain=MICROSOFT)[0]

    def external(self, name: str, kind: int, dims: list[int], place: tuple[int, int]) -> str:
        """An initializer that lies in the file of the embeddings. place: its offset and length there."""
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", EMBEDDINGS_FILE), ("offset", place[0]), ("length", place[1])):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name

    def embeddings(self, ids: str, places: Mapping[str, tuple[int, int]]) -> str:
        """Word, position and type, normalised. places: of ``table`` (float16), or of ``codes`` and ``scales`` (4-bit
        codes, the lower index in the low nibble, and a float16 scale for each block)."""
        rows, hidden = self.shape.vocabulary, self.shape.hidden
        if "table" in places:
            table = self.external("table", TensorProto.FLOAT16, [rows, hidden], places["table"])
            (half,) = self.node("Gather", [table, ids])
        else:
            codes = self.external("codes", TensorProto.INT4, [rows, hidden], places["codes"])
            blocks = [rows, hidden // EMBEDDING_BLOCK]
            scales = self.external("scales", TensorProto.FLOAT16, blocks, places["scales"])
            attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": EMBEDDING_BLOCK, "bits": 4}
            (half,) = self.node("GatherBlockQuantized", [codes, ids, scales], domain=MICROSOFT, **attributes)
        (words,) = self.node("Cast", [half], to=TensorProto.FLOAT)
        (shape,) = self.node("Shape", [ids], start=1, end=2)
        starts, axes = self.constant("zero", np.zeros(1, np.int64)), self.constant("axis", np.zeros(1, np.int64))
        positions = self.weight("pos", self.state["pos"].astype(np.float32))
        (rows_used,) = self.node("Slice", [positions, starts, shape, axes])
        (total,) = self.node("Add", [words, rows_used])
        if "types" in self.state:
            (kinds,) = self.node("Gather", [self.weight("types", self.state["types"]), "token_type_ids"])
            (total,) = self.node("Add", [total, kinds])
        return self.norm(total, "ln")

    def norm(self, x: str, name: str) -> str:
        weight = self.weight(f"{name}.weight", self.state[f"{name}.weight"])
        bias = self.weight(f"{name}.bias", self.state[f"{name}.bias"])
        return self.node("LayerNormalization", [x, weight, bias], epsilon=self.shape.epsilon)[0]

    def skip_norm(self, x: str, skip: str, name: str) -> str:
        weight = self.weight(f"{name}.weight", self.state[f"{name}.weight"])
        bias = self.weight(f"{name}.bias", self.state[f"{name}.bias"])
        inputs = [x, skip, weight, bias]
        return self.node("SkipLayerNormalization", inputs, domain=MICROSOFT, epsilon=self.shape.epsilon)[0]

    def layer(self, x: str, mask: str, i: int) -> str:
        """One transformer layer on x [B, L, H]; mask int32 [B, L]."""
        name = f"layers.{i}"
        qkv = self.dense(x, f"{name}.qkv")
        q, k, v = self.node("Split", [qkv], outputs=3, axis=2, num_outputs=3)
        inputs = [q, k, v, "", mask]
        (a,) = self.node("MultiHeadAttention", inputs, domain=MICROSOFT, num_heads=self.shape.heads)
        a = self.dense(a, f"{name}.ao")
        x = self.skip_norm(a, x, f"{name}.aln")
        up = self.dense(x, f"{name}.fi", bias=False)
        (up,) = self.node("BiasGelu", [up, f"{name}.fi.bias"], domain=MICROSOFT)
        down = self.dense(up, f"{name}.fo")
        return self.skip_norm(down, x, f"{name}.oln")

    def trunk(self, places: Mapping[str, tuple[int, int]]) -> str:
        """Final states float32 [B, L, H]."""
        (mask,) = self.node("Cast", ["attention_mask"], to=TensorProto.INT32)
        x = self.embeddings("input_ids", places)
        for i in range(int(self.trunk_facts()["layers"])):
            x = self.layer(x, mask, i)
        return x

    def trunk_facts(self) -> dict[str, int | float]:
        """The numbers of a description's ``trunk`` section."""
        depth = 1 + max(int(name.split(".")[1]) for name in self.state if name.startswith("layers."))
        return {
            "vocabulary": self.shape.vocabulary,
            "hidden": self.shape.hidden,
            "layers": depth,
            "heads": self.shape.heads,
            "head_size": self.shape.hidden // self.shape.heads,
            "epsilon": self.shape.epsilon,
        }

    def model(
        self, output: str, result: str, shape: list[str | int], file: str, shared: WeightsFile | None
    ) -> tuple[onnx.ModelProto, bytes]:
        """The graph, and the contents of the weights file, to be named ``file``: all that ``shared`` does not hold."""
        places = {} if shared is None else shared.places(self.weights)
        own = WeightsFile(file, save({name: value for name, value in self.weights.items() if name not in places}))
        for name, (location, offset, length) in (places | own.places(self.weights)).items():
            kind = helper.np_dtype_to_tensor_dtype(self.weights[name].dtype)
            tensor = onnx.TensorProto(name=name, data_type=kind, dims=self.weights[name].shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            self.initializers.append(tensor)
        self.nodes.append(helper.make_node("Identity", [result], [output]))
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask", *(["token_type_ids"] if "types" in self.state else []))
        ]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self.nodes, "hybrid_retrieval", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="hybrid_retrieval")
        return model, own.contents

    def first_token_logit(self, hidden: str) -> str:
        """float32 [B]: first token -> dense -> tanh -> 1."""
        (first,) = self.node("Gather", [hidden, self.constant("first", np.array(0, np.int64))], axis=1)
        names = ("dense.weight", "dense.bias", "out.weight", "out.bias")
        weights = [self.weight(name, self.state[name]) for name in names]
        (dense,) = self.node("Gemm", [first, weights[0], weights[1]], transB=1)
        (bounded,) = self.node("Tanh", [dense])
        (logit,) = self.node("Gemm", [bounded, weights[2], weights[3]], transB=1)
        return self.node("Squeeze", [logit, self.constant("last", np.array([1], np.int64))])[0]
