"""A sequence classifier as an ONNX folder that runs without torch."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.batching import pad
from hybrid_retrieval.onnx_export import write_onnx_folder
from hybrid_retrieval.optional import require
from hybrid_retrieval.rerankers.torch_backend import torch_parts

SAMPLE = (
    ("what is a panda?", "hi"),
    ("what is a panda?", "The giant panda is a bear species endemic to China."),
    ("how do vaccines work?", "Vaccines train the immune system to recognise a pathogen before the real one arrives."),
)
# Largest difference of an int8 logit, in units of the float32 logits' size, above which an export is refused.
MOST_INT8_DIFFERENCE = 0.25


def export_reranker(source: Path, out: Path, *, dtype: str = "float32") -> float:
    """Export the checkpoint in folder `source` to folder `out`; returns the largest difference of a logit.

    dtype: `float32` or `int8` (dynamic activations, weights a channel). An int8 XLM-R or BERT also runs on the native
    kernels (`int8_export`). Raises `ModelError` where the graph disagrees
    with torch, `InputError` for an `out` that is not empty.
    """
    torch = require("torch", "the ONNX export", "export")
    require("onnx", "the ONNX export", "export")
    from hybrid_retrieval.rerankers.int8_export import can_export, write_int8

    parts = torch_parts(source, device="cpu", dtype="float32", threads=0, max_tokens=0, padded=True)
    model, convention, tokenizer = parts["backend"].model, parts["convention"], parts["tokenizer"]

    class Graph(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits.reshape(-1)

    def tokens(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    pairs = [(tokens(query), tokens(passage)) for query, passage in SAMPLE]
    ids, mask = pad([convention.join(query, passage) for query, passage in pairs], convention.pad_id)
    starts = np.array([convention.passage_start(len(query)) for query, _ in pairs])
    types = (np.arange(ids.shape[1]) >= starts[:, None]).astype(np.int64) * mask
    names = ["input_ids", "attention_mask", "token_type_ids"][: 3 if convention.token_types else 2]

    def tolerance(expected: NDArray[np.float32], found: NDArray[np.float32]) -> tuple[float, bool]:
        difference = float(np.abs(expected - found).max())
        limit = 1e-4 if dtype == "float32" else MOST_INT8_DIFFERENCE * (1 + float(np.abs(expected).max()))
        return difference, difference < limit

    return write_onnx_folder(
        "reranker",
        Graph().eval(),
        out,
        dtype=dtype,
        description={
            "name": parts["name"],
            "identity": parts["identity"],
            "tokenizer_identity": parts["tokenizer_identity"],
            **asdict(convention),
            "max_tokens": parts["max_tokens"],
            "max_query_tokens": parts["max_query_tokens"],
            "longest_tokens": parts["longest_tokens"],
        },
        tokenizer_bytes=tokenizer.to_str().encode("utf-8"),
        sample=(ids, mask, types)[: len(names)],
        input_names=names,
        output_name="logits",
        tolerance=tolerance,
        write_graph=functools.partial(write_int8, model) if dtype == "int8" and can_export(model) else None,
    )
