"""Cross-encoders of one shape in every form that the systems of ``stage2.py`` read: the same weights for all.

small   12 layers of 384 (12 heads, inner 1,536): the embedded encoder's trained layers under a random classifier. Its
        weights are moved off their 8-bit grid by up to half a step, so that rounding them again is not for free.
large   24 layers of 1,024 (16 heads, inner 4,096), random: the shape of bge-reranker-v2-m3.

Written: ``hf`` (what transformers reads), ``onnx-float32`` and ``onnx-int8`` (`hybrid-retrieval export-onnx`; the
native kernels read the second).
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hybrid_retrieval.model_files import EMBEDDED_FOLDER
from hybrid_retrieval.rerankers.export import export_reranker

Arrays = dict[str, np.ndarray]
SPECIAL = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
# bge-reranker-v2-m3's own table has 250,002 rows; this tokenizer's last id is 250,001 too.
VOCABULARY = 250_002


ON_CPU = {
    "hybrid-retrieval": ("onnx-int8", "int8"),
    "hybrid-retrieval-onnx": ("onnx-int8", "int8"),
    "hybrid-retrieval-torch": ("hf", "float32"),
    "hybrid-retrieval-torch-bf16": ("hf", "bfloat16"),
    "transformers": ("hf", "float32"),
    "transformers-bf16": ("hf", "bfloat16"),
    "sentence-transformers": ("hf", "float32"),
    "sentence-transformers-bf16": ("hf", "bfloat16"),
    "flag-embedding": ("hf", "float32"),
    "openvino": ("onnx-float32", "int8"),
}
ON_CUDA = {
    "hybrid-retrieval-torch-fp16": ("hf", "float16"),
    "hybrid-retrieval-torch-bf16": ("hf", "bfloat16"),
    "hybrid-retrieval-torch-fp8": ("hf", "float8"),
    "transformers": ("hf", "float32"),
    "transformers-fp16": ("hf", "float16"),
    "sentence-transformers-fp16": ("hf", "float16"),
    "sentence-transformers-bf16": ("hf", "bfloat16"),
    "flag-embedding-fp16": ("hf", "float16"),
}
SYSTEMS = {"cpu": ON_CPU, "cuda": ON_CUDA}
"""Device -> system -> the form of the model that it reads, and the type of numbers that its products are of."""
OWN_ENVIRONMENT = ("flag-embedding", "flag-embedding-fp16", "openvino")
"""Systems that are named with ``--peer``."""


def make(shape: str, folder: Path, wanted: set[str], layers: int = 0) -> None:
    """The wanted forms in `folder`, where they are not there yet. layers: fewer than the shape's, for a trial."""
    source = folder / "hf"
    if not (source / "config.json").exists():
        shutil.rmtree(source, ignore_errors=True)
        _write_hf(source, *(_small(layers or 12) if shape == "small" else _large(layers or 24)))
    for form in sorted(wanted - {"hf"}):
        if (folder / form).exists():
            continue
        export_reranker(source, folder / form, dtype=form.removeprefix("onnx-"))
        # OpenVINO's worker reads the tokenizer that makes pairs itself.
        shutil.copyfile(source / "tokenizer.json", folder / form / "tokenizer.json")


def _small(layers: int) -> tuple[Arrays, dict[str, Any]]:
    from hybrid_retrieval.native_trunk import NativeTrunk, TrunkFacts

    description = json.loads((EMBEDDED_FOLDER / "encoder.json").read_text(encoding="utf-8"))
    facts = TrunkFacts.from_dict(description["trunk"], "encoder.json")
    trunk, random = NativeTrunk(EMBEDDED_FOLDER, facts, variant="portable"), np.random.default_rng(0)
    given, hidden = trunk.tensors, facts.hidden

    def dense(name: str) -> tuple[np.ndarray, np.ndarray]:
        codes = (
            given[f"{name}.codes"].astype(np.float32) - 128 + random.uniform(-0.5, 0.5, given[f"{name}.codes"].shape)
        )
        return (codes * given[f"{name}.scale"]).T.astype(np.float32), given[f"{name}.bias"]

    table = trunk._words.rows(np.arange(VOCABULARY))
    state: Arrays = {
        "bert.embeddings.word_embeddings.weight": table,
        "bert.embeddings.position_embeddings.weight": given["pos"],
        "bert.embeddings.token_type_embeddings.weight": np.zeros((1, hidden), np.float32),
    }
    norms = {"bert.embeddings.LayerNorm": "ln"}
    for i in range(layers):
        ours, theirs = f"layers.{i}", f"bert.encoder.layer.{i}"
        weight, bias = dense(f"{ours}.qkv")
        for part, rows, added in zip(("query", "key", "value"), np.split(weight, 3), np.split(bias, 3), strict=True):
            state[f"{theirs}.attention.self.{part}.weight"], state[f"{theirs}.attention.self.{part}.bias"] = rows, added
        for short, long in (("ao", "attention.output.dense"), ("fi", "intermediate.dense"), ("fo", "output.dense")):
            state[f"{theirs}.{long}.weight"], state[f"{theirs}.{long}.bias"] = dense(f"{ours}.{short}")
        norms |= {f"{theirs}.attention.output.LayerNorm": f"{ours}.aln", f"{theirs}.output.LayerNorm": f"{ours}.oln"}
    for theirs, ours in norms.items():
        state[f"{theirs}.weight"], state[f"{theirs}.bias"] = given[f"{ours}.weight"], given[f"{ours}.bias"]
    state["bert.pooler.dense.weight"] = _normal(random, hidden, hidden)
    state["bert.pooler.dense.bias"] = np.zeros(hidden, np.float32)
    state["classifier.weight"], state["classifier.bias"] = _normal(random, 1, hidden) * 8, np.zeros(1, np.float32)
    config = _config("BertForSequenceClassification", "bert", VOCABULARY, hidden, layers, facts.heads, 1536)
    return state, config | {"max_position_embeddings": 512, "layer_norm_eps": facts.epsilon}


def _large(layers: int) -> tuple[Arrays, dict[str, Any]]:
    hidden, inner, random = 1024, 4096, np.random.default_rng(0)
    state: Arrays = {
        "roberta.embeddings.word_embeddings.weight": random.standard_normal((VOCABULARY, hidden), np.float32),
        "roberta.embeddings.position_embeddings.weight": random.standard_normal((8194, hidden), np.float32),
        "roberta.embeddings.token_type_embeddings.weight": np.zeros((1, hidden), np.float32),
    }
    norms = ["roberta.embeddings.LayerNorm"]
    for i in range(layers):
        name = f"roberta.encoder.layer.{i}"
        shapes = {f"attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
        shapes |= {"attention.output.dense": (hidden, hidden)}
        shapes |= {"intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
        for part, shape in shapes.items():
            state[f"{name}.{part}.weight"] = _normal(random, *shape)
            state[f"{name}.{part}.bias"] = np.zeros(shape[0], np.float32)
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for norm in norms:
        state[f"{norm}.weight"], state[f"{norm}.bias"] = np.ones(hidden, np.float32), np.zeros(hidden, np.float32)
    for part, rows in (("dense", hidden), ("out_proj", 1)):
        state[f"classifier.{part}.weight"] = _normal(random, rows, hidden)
        state[f"classifier.{part}.bias"] = np.zeros(rows, np.float32)
    config = _config("XLMRobertaForSequenceClassification", "xlm-roberta", VOCABULARY, hidden, layers, 16, inner)
    return state, config | {"max_position_embeddings": 8194, "layer_norm_eps": 1e-5}


def _normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Rows of about unit gain."""
    return random.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))


def _config(
    architecture: str, family: str, vocabulary: int, hidden: int, layers: int, heads: int, inner: int
) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": family,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "hidden_act": "gelu",
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }


def _write_hf(folder: Path, state: Arrays, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    tokenizer = json.loads(gzip.decompress((EMBEDDED_FOLDER / "tokenizer.json.gz").read_bytes()))
    ends = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in (("<s>", 0), ("</s>", 2))}

    def row(*parts: str) -> list[dict[str, Any]]:
        return [
            {"Sequence": {"id": part, "type_id": 0}} if part in "AB" else {"SpecialToken": {"id": part, "type_id": 0}}
            for part in parts
        ]

    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": row("<s>", "A", "</s>"),
        "pair": row("<s>", "A", "</s>", "</s>", "B", "</s>"),
        "special_tokens": ends,
    }
    names = {f"{name}_token": token for name, token in SPECIAL.items()}
    settings = {
        "tokenizer_class": "XLMRobertaTokenizer",  # FlagEmbedding asks the class, not the file, for separators
        "model_max_length": 512,
        "model_input_names": ["input_ids", "attention_mask"],
        **names,
    }
    for file, value in (
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", settings),
        ("special_tokens_map.json", names),
    ):
        (folder / file).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    arrays = {name: np.ascontiguousarray(value) for name, value in state.items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    # Last, because a folder with it counts as whole.
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
