"""Two-stage retrieval: ColBERT late interaction finds the candidates, a cross-encoder orders them.

The public names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_retrieval.config import PipelineConfig
    from hybrid_retrieval.encoders import Encoder
    from hybrid_retrieval.errors import HybridRetrievalError
    from hybrid_retrieval.index import Index
    from hybrid_retrieval.pipeline import Pipeline
    from hybrid_retrieval.ragged import Ragged
    from hybrid_retrieval.rerankers import Reranker
    from hybrid_retrieval.types import Hit, Passage, Query, Ranking

__version__ = "0.1.0"

_HOMES = {
    "Encoder": "encoders",
    "Hit": "types",
    "HybridRetrievalError": "errors",
    "Index": "index",
    "Passage": "types",
    "Pipeline": "pipeline",
    "PipelineConfig": "config",
    "Query": "types",
    "Ragged": "ragged",
    "Ranking": "types",
    "Reranker": "rerankers",
}

__all__ = [
    "Encoder",
    "Hit",
    "HybridRetrievalError",
    "Index",
    "Passage",
    "Pipeline",
    "PipelineConfig",
    "Query",
    "Ragged",
    "Ranking",
    "Reranker",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hybrid_retrieval' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"hybrid_retrieval.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
