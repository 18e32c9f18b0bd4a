"""Sequence classifiers (XLM-R, BERT and their kin) through torch, on a CPU or on CUDA."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.checkpoints import checkpoint_tokenizer, model_name, no_progress_bars, placement, weight_files
from hybrid_retrieval.errors import ModelError
from hybrid_retrieval.model_files import fingerprint
from hybrid_retrieval.optional import require
from hybrid_retrieval.rerankers.backend import RerankerBackend
from hybrid_retrieval.rerankers.loading import FLAG_MAX_TOKENS, limits
from hybrid_retrieval.rerankers.pairs import convention_of


class TorchRerankerBackend(RerankerBackend):
    """model: a transformers ...ForSequenceClassification with one output."""

    def __init__(self, model: Any, *, device: str, dtype: str, threads: int) -> None:
        self._torch = torch = require("torch", "the torch backend")
        self._device, chosen = placement(torch, device, dtype)
        if threads and self._device.type == "cpu":
            torch.set_num_threads(threads)
        self.model = model.eval().to(self._device, chosen)
        self._lock = threading.Lock()

    def forward(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], types: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        torch = self._torch
        inputs = {"input_ids": ids, "attention_mask": mask}
        if types is not None:
            inputs["token_type_ids"] = types
        with self._lock, torch.inference_mode():
            placed = {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}
            logits: NDArray[np.float32] = self.model(**placed).logits.float().reshape(-1).cpu().numpy()
        return logits


def torch_parts(folder: Path, *, device: str, dtype: str, threads: int, max_tokens: int) -> dict[str, Any]:
    """The keyword arguments of `Reranker` that come from the model's files."""
    transformers = require("transformers", f"the checkpoint {folder}")
    tokenizer, tokenizer_bytes = checkpoint_tokenizer(folder)
    try:
        with no_progress_bars():
            model = transformers.AutoModelForSequenceClassification.from_pretrained(str(folder))
    except Exception as error:  # safetensors and pickle raise errors of their own
        raise ModelError(f"{folder}: not a sequence classifier ({' '.join(str(error).split()):.200})") from None
    config = model.config
    if config.num_labels != 1:
        raise ModelError(f"{folder} has {config.num_labels} outputs; a reranker has one (num_labels 1)")
    pad_id = config.pad_token_id if config.pad_token_id is not None else 0
    convention = convention_of(tokenizer, pad_id, token_types=getattr(config, "type_vocab_size", 1) > 1)
    # RoBERTa's positions start behind the padding's, so that many of them are never used.
    roberta = config.model_type in ("roberta", "xlm-roberta", "camembert")
    longest = int(config.max_position_embeddings) - (pad_id + 1 if roberta else 0)
    own = min(FLAG_MAX_TOKENS, longest)
    tokenizer_identity = hashlib.sha256(tokenizer_bytes).hexdigest()
    return {
        "name": model_name(folder),
        "identity": fingerprint(weight_files(folder), tokenizer_identity),
        "tokenizer_identity": tokenizer_identity,
        "convention": convention,
        "tokenizer": tokenizer,
        "backend": TorchRerankerBackend(model, device=device, dtype=dtype, threads=threads),
        "fusion_weight": None,
        **limits(own, own * 3 // 4, max_tokens, longest, folder),
    }
