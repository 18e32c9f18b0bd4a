"""The residual codec: centroids, and what is left of each vector in 1, 2, 4 or 8 bits a dimension."""

from hybrid_retrieval.codec.residual import ResidualCodec
from hybrid_retrieval.codec.training import default_num_centroids, train_codec

__all__ = ["ResidualCodec", "default_num_centroids", "train_codec"]
