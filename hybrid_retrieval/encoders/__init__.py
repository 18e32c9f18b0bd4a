"""ColBERT encoders: text to unit token vectors, one interface over onnxruntime and torch."""

from hybrid_retrieval.encoders.encoder import Encoder

__all__ = ["Encoder"]
