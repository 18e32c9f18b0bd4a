"""A ColBERT checkpoint as an ONNX folder that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.batching import pad
from hybrid_retrieval.encoders.torch_backend import torch_parts
from hybrid_retrieval.onnx_export import write_onnx_folder
from hybrid_retrieval.optional import require

SAMPLE = (
    "Late interaction keeps one vector for every token of a passage.",
    "A short one.",
    "Vaccines train the immune system to recognise a pathogen; when the real one arrives, the body answers faster.",
)
# Cosine between int8 and float32 token vectors below which an export is refused.
LEAST_INT8_COSINE = 0.9


def export_encoder(source: Path, out: Path, *, dtype: str = "float32") -> float:
    """Export the checkpoint in folder `source` to folder `out`; returns the largest difference of a vector's component.

    dtype: `float32` or `int8` (dynamic activations, weights a channel). Raises `ModelError` where the graph disagrees
    with torch, `InputError` for an `out` that is not empty.
    """
    torch = require("torch", "the ONNX export", "export")
    parts = torch_parts(source, device="cpu", dtype="float32", threads=0)
    backend, convention, tokenizer = parts["backend"], parts["convention"], parts["tokenizer"]

    class Graph(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.projection = backend.trunk, backend.projection

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            states = self.trunk(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return torch.nn.functional.normalize(self.projection(states), dim=-1)

    side = convention.passage
    rows = [side.wrap(tokenizer.encode(text, add_special_tokens=False).ids[: side.room]) for text in SAMPLE]
    ids, mask = pad(rows, convention.pad_id)
    real = mask.astype(bool)

    def tolerance(expected: NDArray[np.float32], found: NDArray[np.float32]) -> tuple[float, bool]:
        difference = float(np.abs(expected - found)[real].max())
        cosine = float((expected * found).sum(-1)[real].min())
        return difference, difference < 1e-4 if dtype == "float32" else cosine > LEAST_INT8_COSINE

    return write_onnx_folder(
        "encoder",
        Graph().eval(),
        out,
        dtype=dtype,
        description={
            "name": parts["name"],
            "identity": parts["identity"],
            "dimensions": parts["dimensions"],
            **convention.to_dict(),
        },
        tokenizer_bytes=tokenizer.to_str().encode("utf-8"),
        sample=(ids, mask),
        input_names=["input_ids", "attention_mask"],
        output_name="token_vectors",
        tolerance=tolerance,
    )
