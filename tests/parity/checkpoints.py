"""Small checkpoints in the published formats, made from a seed, and the fixtures beside this file.

Only NumPy, safetensors and tokenizers, because the oracles' environments run it too. Weights are large enough that
attention and logits differ from text to text; a network this small otherwise answers nearly the same to everything.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent
HIDDEN, LAYERS, HEADS, INNER, POSITIONS, DIMENSIONS = 32, 2, 2, 64, 600, 16
METADATA = {
    "dim": DIMENSIONS,
    "similarity": "cosine",
    "query_maxlen": 32,
    "doc_maxlen": 64,
    "mask_punctuation": True,
    "attend_to_mask_tokens": False,
    "interaction": "colbert",
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "query_token": "[Q]",
    "doc_token": "[D]",
}


def texts() -> dict[str, Any]:
    """colbert_queries, colbert_passages, pairs [(query, passage)] in ten languages."""
    value: dict[str, Any] = json.loads(gzip.decompress((HERE / "texts.json.gz").read_bytes()))
    return value


def bert_tokenizer_json() -> str:
    """tokenizer.json of an uncased BERT."""
    return gzip.decompress((HERE / "bert_tokenizer.json.gz").read_bytes()).decode("utf-8")


def xlmr_tokenizer_json() -> str:
    """XLM-R's tokenizer, reduced to the pieces that can occur in the fixtures' texts."""
    return gzip.decompress((HERE / "xlmr_tokenizer.json.gz").read_bytes()).decode("utf-8")


def make_colbert(folder: Path, *, attend: bool = False) -> Path:
    """A Stanford ColBERT checkpoint over BERT."""
    vocabulary = len(json.loads(bert_tokenizer_json())["model"]["vocab"])
    state = {f"bert.{name}": value for name, value in _trunk(vocabulary, types=2, seed=1).items()}
    state["linear.weight"] = _normal(np.random.default_rng(2), DIMENSIONS, HIDDEN)
    _write(folder, state, _config("HF_ColBERT", "bert", vocabulary, types=2), bert_tokenizer_json())
    _write_json(folder / "artifact.metadata", METADATA | {"attend_to_mask_tokens": attend})
    return folder


def make_bert_reranker(folder: Path) -> Path:
    """A BertForSequenceClassification, whose pairs have token types."""
    vocabulary = len(json.loads(bert_tokenizer_json())["model"]["vocab"])
    rng = np.random.default_rng(4)
    state = {f"bert.{name}": value for name, value in _trunk(vocabulary, types=2, seed=3).items()}
    state |= {"bert.pooler.dense.weight": _normal(rng, HIDDEN, HIDDEN), "bert.pooler.dense.bias": _normal(rng, HIDDEN)}
    state |= {"classifier.weight": _normal(rng, 1, HIDDEN), "classifier.bias": _normal(rng, 1)}
    config = _config("BertForSequenceClassification", "bert", vocabulary, types=2)
    return _write(folder, state, config, bert_tokenizer_json())


def make_xlmr_reranker(folder: Path) -> Path:
    """An XLMRobertaForSequenceClassification: the shape of bge-reranker-v2-m3, but small."""
    tokenizer = xlmr_tokenizer_json()
    vocabulary = len(json.loads(tokenizer)["model"]["vocab"]) + 1  # <mask> stands behind the pieces
    rng = np.random.default_rng(6)
    state = {f"roberta.{name}": value for name, value in _trunk(vocabulary, types=1, seed=5).items()}
    for part, rows in (("dense", HIDDEN), ("out_proj", 1)):
        state |= {
            f"classifier.{part}.weight": _normal(rng, rows, HIDDEN),
            f"classifier.{part}.bias": _normal(rng, rows),
        }
    config = _config("XLMRobertaForSequenceClassification", "xlm-roberta", vocabulary, types=1)
    return _write(folder, state, config, tokenizer)


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights: a fixture holds only for the weights that it was recorded with."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    """Rows of about unit gain."""
    return (rng.standard_normal(shape) / np.sqrt(shape[-1]) * 1.5).astype(np.float32)


def _trunk(vocabulary: int, *, types: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    tables = {"word": vocabulary, "position": POSITIONS, "token_type": types}
    state = {
        f"embeddings.{name}_embeddings.weight": rng.standard_normal((rows, HIDDEN)).astype(np.float32)
        for name, rows in tables.items()
    }
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{i}." for i in range(LAYERS)):
        for name, rows, columns in (
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", INNER, HIDDEN),
            ("output.dense", HIDDEN, INNER),
        ):
            state[f"{layer}{name}.weight"] = _normal(rng, rows, columns)
            state[f"{layer}{name}.bias"] = _normal(rng, rows)
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    for norm in norms:
        state[f"{norm}.weight"] = np.ones(HIDDEN, np.float32)
        state[f"{norm}.bias"] = np.zeros(HIDDEN, np.float32)
    return state


def _config(architecture: str, family: str, vocabulary: int, *, types: int) -> dict[str, Any]:
    xlmr = family == "xlm-roberta"
    return {
        "architectures": [architecture],
        "model_type": family,
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "hidden_act": "gelu",
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": types,
        "layer_norm_eps": 1e-12,
        "pad_token_id": int(xlmr),
        "bos_token_id": 0,
        "eos_token_id": 2,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }


def _write(folder: Path, state: dict[str, Any], config: dict[str, Any], tokenizer: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    if config["model_type"] == "bert":
        special = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}
        kind = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    else:
        special = {
            "bos": "<s>",
            "cls": "<s>",
            "eos": "</s>",
            "sep": "</s>",
            "pad": "<pad>",
            "unk": "<unk>",
            "mask": "<mask>",
        }
        kind = {"tokenizer_class": "XLMRobertaTokenizer"}
    tokens = {f"{name}_token": token for name, token in special.items()}
    _write_json(folder / "special_tokens_map.json", tokens)
    _write_json(folder / "tokenizer_config.json", kind | tokens | {"model_max_length": 512})
    return folder


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
