"""Where a build finds nearest centroids."""

from __future__ import annotations

import functools

from hybrid_retrieval.checkpoints import cuda_or_none
from hybrid_retrieval.codec.assignment import MakeNearest, NearestCentroids


def nearest_on(device: str) -> MakeNearest:
    """device: `cpu`, `cuda`, or `auto`: CUDA where torch finds one. Raises as `cuda_or_none`."""
    placed = cuda_or_none(device, "nearest centroids on CUDA")
    if placed is None:
        return NearestCentroids
    from hybrid_retrieval.kernels.device import DeviceCentroids

    return functools.partial(DeviceCentroids, device=placed)
