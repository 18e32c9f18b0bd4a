"""XLM-R and BERT classifiers in int8, in one copy of the weights that onnxruntime and the native kernels both read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.bert_graph import EMBEDDINGS_FILE, BertShape, GraphBuilder
from hybrid_retrieval.rerankers.unpadded import ROBERTA, is_supported

Float32 = NDArray[np.float32]


def can_export(model: Any) -> bool:
    """Whether a transformers classifier is of the kind that this file writes: exact GELU, heads of whole registers."""
    config = model.config
    head_size = config.hidden_size // config.num_attention_heads
    return is_supported(model) and config.hidden_act == "gelu" and head_size % 32 == 0


def write_int8(model: Any, folder: Path) -> dict[str, Any]:
    """Write graph, weights and embeddings; returns the description's `trunk` section.

    The table of the word embeddings is kept in float16, all other matrices as int8 with a scale a row.
    """
    config, embeddings = model.config, model.base_model.embeddings
    table = _array(embeddings.word_embeddings.weight).astype(np.float16)
    shape = BertShape(len(table), config.hidden_size, config.num_attention_heads, float(config.layer_norm_eps))
    builder = GraphBuilder(shape, _state(model))
    hidden = builder.trunk({"table": (0, table.nbytes)})
    logits = builder.first_token_logit(hidden)
    graph, weights = builder.model("logits", logits, ["batch"], "reranker.safetensors", None)
    (folder / EMBEDDINGS_FILE).write_bytes(table.tobytes())
    (folder / "reranker.safetensors").write_bytes(weights)
    (folder / "reranker.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    files = {"weights": "reranker.safetensors", "embeddings": EMBEDDINGS_FILE, "embedding_bits": 16}
    return {**files, **builder.trunk_facts()}


def _state(model: Any) -> dict[str, Float32]:
    """The arrays that `GraphBuilder` reads."""
    body, config = model.base_model, model.config
    roberta = config.model_type in ROBERTA
    positions, types = (
        _array(getattr(body.embeddings, f"{name}_embeddings").weight) for name in ("position", "token_type")
    )
    if roberta:
        positions = positions[config.pad_token_id + 1 :]
    state: dict[str, Float32] = {"pos": positions + types[0] if len(types) == 1 else positions}
    if len(types) > 1:
        state["types"] = types
    modules = {"ln": body.embeddings.LayerNorm}
    for i, layer in enumerate(body.encoder.layer):
        attention, name = layer.attention, f"layers.{i}"
        parts = attention.self.query, attention.self.key, attention.self.value
        for kind in ("weight", "bias"):
            state[f"{name}.qkv.{kind}"] = np.concatenate([_array(getattr(part, kind)) for part in parts])
        modules |= {f"{name}.ao": attention.output.dense, f"{name}.aln": attention.output.LayerNorm}
        modules |= {f"{name}.fi": layer.intermediate.dense, f"{name}.fo": layer.output.dense}
        modules[f"{name}.oln"] = layer.output.LayerNorm
    if roberta:
        modules |= {"dense": model.classifier.dense, "out": model.classifier.out_proj}
    else:
        modules |= {"dense": body.pooler.dense, "out": model.classifier}
    for name, module in modules.items():
        state |= {f"{name}.{kind}": _array(getattr(module, kind)) for kind in ("weight", "bias")}
    return state


def _array(parameter: Any) -> Float32:
    values: Float32 = parameter.detach().float().numpy()
    return values
