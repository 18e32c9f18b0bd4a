"""Making an index: from a corpus and an encoder, or from token vectors made elsewhere."""

from hybrid_retrieval.builder.from_corpus import Progress, build_index
from hybrid_retrieval.builder.from_vectors import build_from_vectors
from hybrid_retrieval.builder.models import PassageTokenizer, WindowEncoder

__all__ = ["PassageTokenizer", "Progress", "WindowEncoder", "build_from_vectors", "build_index"]
