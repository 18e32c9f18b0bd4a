"""ColBERT checkpoints through torch: a trunk, a projection, unit length; on a CPU or on CUDA."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.checkpoints import model_name, placement
from hybrid_retrieval.encoders.backend import EncoderBackend
from hybrid_retrieval.encoders.pylate import load_pylate
from hybrid_retrieval.encoders.stanford import load_stanford
from hybrid_retrieval.model_files import fingerprint
from hybrid_retrieval.optional import require


class TorchEncoderBackend(EncoderBackend):
    """trunk: a transformers model with `last_hidden_state`. projection: a module [.., H] -> [.., D]."""

    def __init__(self, trunk: Any, projection: Any, *, device: str, dtype: str, threads: int) -> None:
        self._torch = torch = require("torch", "the torch backend")
        self._device, self._dtype = placement(torch, device, dtype)
        if threads and self._device.type == "cpu":
            torch.set_num_threads(threads)
        self.trunk = trunk.eval().to(self._device, self._dtype)
        self.projection = projection.eval().to(self._device, self._dtype)
        # Two forward passes at a time on one device only take each other's memory.
        self._lock = threading.Lock()

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        torch = self._torch
        with self._lock, torch.inference_mode():
            states = self.trunk(
                input_ids=torch.from_numpy(ids).to(self._device),
                attention_mask=torch.from_numpy(mask).to(self._device),
            ).last_hidden_state
            # Unit length in float32: float16 loses a quarter of a percent on the sum of squares.
            vectors = torch.nn.functional.normalize(self.projection(states).float(), dim=-1)
            found: NDArray[np.float32] = vectors.cpu().numpy()
        return found


def torch_parts(folder: Path, *, device: str, dtype: str, threads: int) -> dict[str, Any]:
    """The keyword arguments of `Encoder` that come from the model's files."""
    require("torch", f"the checkpoint {folder}")
    loader = load_pylate if (folder / "modules.json").exists() else load_stanford
    trunk, projection, convention, tokenizer, (files, tokenizer_bytes) = loader(folder)
    dimensions = _output_width(projection)
    tokenizer_digest = hashlib.sha256(tokenizer_bytes).hexdigest()
    return {
        "name": model_name(folder),
        "identity": fingerprint(files, convention.to_dict(), dimensions, tokenizer_digest),
        "dimensions": dimensions,
        "convention": convention,
        "tokenizer": tokenizer,
        "backend": TorchEncoderBackend(trunk, projection, device=device, dtype=dtype, threads=threads),
    }


def _output_width(projection: Any) -> int:
    weights = [parameter for parameter in projection.parameters() if parameter.ndim == 2]
    return int(weights[-1].shape[0])
