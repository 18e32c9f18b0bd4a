"""A small base of random weights, for shapes."""

from __future__ import annotations

import numpy as np
import pytest

from hybrid_retrieval.training.base_weights import BaseModel

LAYERS, HIDDEN, INNER, VOCABULARY = 3, 64, 96, 50


@pytest.fixture(scope="module")
def base() -> BaseModel:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.3).astype(np.float32)

    tensors = {"emb.pos": normal(80, HIDDEN), "emb.type": normal(HIDDEN)}
    norms = ["emb.ln", *(f"l{i}.{name}" for i in range(LAYERS) for name in ("aln", "oln"))]
    for name in norms:
        tensors |= {f"{name}.w": np.ones(HIDDEN, np.float32), f"{name}.b": np.zeros(HIDDEN, np.float32)}
    for i in range(LAYERS):
        for name in ("q", "k", "v", "ao", "fi", "fo"):
            rows, columns = {"fi": (INNER, HIDDEN), "fo": (HIDDEN, INNER)}.get(name, (HIDDEN, HIDDEN))
            tensors |= {f"l{i}.{name}.w": normal(rows, columns), f"l{i}.{name}.b": normal(rows)}
    pieces = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")] + [(chr(97 + i), -1.0) for i in range(26)]
    return BaseModel(
        hidden=HIDDEN, layers=LAYERS, heads=2, inner=INNER, epsilon=1e-12,
        embedding_codes=random.integers(0, 16, (VOCABULARY, HIDDEN)).astype(np.uint8),
        embedding_scales=np.full((VOCABULARY, HIDDEN // 32), 0.1, np.float16), pieces=pieces,
        special_ids={"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}, tensors=tensors,
    )  # fmt: skip
