"""The residual codec: centroids, and what is left of each vector in 1, 2, 4 or 8 bits a dimension."""

from hybrid_retrieval.codec.residual import ResidualCodec
from hybrid_retrieval.codec.training import MOST_SAMPLE_VECTORS, default_num_centroids, train_codec

__all__ = ["MOST_SAMPLE_VECTORS", "ResidualCodec", "default_num_centroids", "train_codec"]
