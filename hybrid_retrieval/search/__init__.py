"""Stage 1: exact and centroid-pruned MaxSim search over a snapshot."""

from hybrid_retrieval.search.searcher import Searcher

__all__ = ["Searcher"]
