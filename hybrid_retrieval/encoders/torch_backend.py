"""ColBERT checkpoints through torch: a trunk, a projection, unit length; on a CPU or on CUDA."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.checkpoints import Copies, Words, all_devices, model_name, placement
from hybrid_retrieval.encoders.backend import EncoderBackend
from hybrid_retrieval.encoders.pylate import load_pylate
from hybrid_retrieval.encoders.stanford import load_stanford
from hybrid_retrieval.model_files import fingerprint
from hybrid_retrieval.optional import require


class TorchEncoderBackend(EncoderBackend):
    """trunk: a transformers model with `last_hidden_state`. projection: a module [.., H] -> [.., D]. On CUDA every
    device that this process may see holds both, and works on a batch of its own."""

    def __init__(self, trunk: Any, projection: Any, *, device: str, dtype: str, threads: int) -> None:
        self._torch = torch = require("torch", "the torch backend")
        placed, chosen = placement(torch, device, dtype)
        if threads and placed.type == "cpu":
            torch.set_num_threads(threads)  # the whole process shares them: 0 leaves them as they are
        self._words = Words(trunk)
        self.trunk, self.projection = trunk.eval().to(chosen), projection.eval().to(chosen)
        self._copies = Copies(torch.nn.ModuleList([self.trunk, self.projection]), all_devices(torch, placed))
        self.devices = self._copies.count

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        self._words.check(ids)
        torch = self._torch
        with self._copies.taken() as ((trunk, projection), device), torch.inference_mode():
            states = trunk(
                input_ids=torch.from_numpy(ids).to(device), attention_mask=torch.from_numpy(mask).to(device)
            ).last_hidden_state
            # Unit length in float32: float16 loses a quarter of a percent on the sum of squares.
            vectors = torch.nn.functional.normalize(projection(states).float(), dim=-1)
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
