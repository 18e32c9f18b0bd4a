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
    """model: a transformers ...ForSequenceClassification with one output. XLM-R and BERT run without padding where
    torch can, all others as transformers runs them; `padded` asks for that."""

    def __init__(self, model: Any, *, device: str, dtype: str, threads: int, padded: bool = False) -> None:
        self._torch = torch = require("torch", "the torch backend")
        from hybrid_retrieval.rerankers import unpadded

        self._device, chosen = placement(torch, device, dtype)
        if threads and self._device.type == "cpu":
            torch.set_num_threads(threads)
        unpaddable = unpadded.is_supported(model) and unpadded.has_varlen_attention(self._device, chosen, model)
        self.padded = padded or not unpaddable
        self.model = (model if self.padded else unpadded.UnpaddedClassifier(model)).eval().to(self._device, chosen)
        self._lock = threading.Lock()

    def forward(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], types: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        run = self._padded if self.padded else self._unpadded
        with self._lock, self._torch.inference_mode():
            logits: NDArray[np.float32] = run(ids, mask, types).float().reshape(-1).cpu().numpy()
        return logits

    def _padded(self, ids: NDArray[np.int64], mask: NDArray[np.int64], types: NDArray[np.int64] | None) -> Any:
        inputs = {"input_ids": ids, "attention_mask": mask}
        if types is not None:
            inputs["token_type_ids"] = types
        return self.model(**{name: self._placed(array) for name, array in inputs.items()}).logits

    def _unpadded(self, ids: NDArray[np.int64], mask: NDArray[np.int64], types: NDArray[np.int64] | None) -> Any:
        real = mask != 0
        return self.model(
            self._placed(ids[real]),
            self._placed(self.model.positions(ids, mask)[real]),
            None if types is None else self._placed(types[real]),
            mask.sum(axis=1).tolist(),
        )

    def _placed(self, array: NDArray[np.int64]) -> Any:
        return self._torch.from_numpy(array).to(self._device)


def torch_parts(
    folder: Path, *, device: str, dtype: str, threads: int, max_tokens: int, padded: bool = False
) -> dict[str, Any]:
    """The keyword arguments of `Reranker` that come from the model's files. padded: as `TorchRerankerBackend`."""
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
    from hybrid_retrieval.rerankers.unpadded import ROBERTA

    roberta = config.model_type in ROBERTA
    longest = int(config.max_position_embeddings) - (pad_id + 1 if roberta else 0)
    own = min(FLAG_MAX_TOKENS, longest)
    tokenizer_identity = hashlib.sha256(tokenizer_bytes).hexdigest()
    return {
        "name": model_name(folder),
        "identity": fingerprint(weight_files(folder), tokenizer_identity),
        "tokenizer_identity": tokenizer_identity,
        "convention": convention,
        "tokenizer": tokenizer,
        "backend": TorchRerankerBackend(model, device=device, dtype=dtype, threads=threads, padded=padded),
        "fusion_weight": None,
        **limits(own, own * 3 // 4, max_tokens, longest, folder),
    }
