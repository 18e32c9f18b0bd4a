"""Cross-encoders: (query, passage) pairs to logits, one interface over onnxruntime and torch."""

from hybrid_retrieval.rerankers.reranker import Reranker

__all__ = ["Reranker"]
