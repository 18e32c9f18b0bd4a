"""Where a build finds nearest centroids."""

from __future__ import annotations

import functools
import importlib.util

from hybrid_retrieval.checkpoints import placement
from hybrid_retrieval.codec.assignment import MakeNearest, NearestCentroids
from hybrid_retrieval.optional import require


def nearest_on(device: str) -> MakeNearest:
    """device: `cpu`, `cuda`, or `auto`: CUDA where torch finds one. Raises `ModelSettingsError` or
    `OptionalDependencyError` where CUDA was asked for in vain."""
    if device == "cpu" or (device == "auto" and importlib.util.find_spec("torch") is None):
        return NearestCentroids
    placed, _ = placement(require("torch", "nearest centroids on CUDA", "gpu"), device, "float32")
    if placed.type == "cpu":
        return NearestCentroids
    from hybrid_retrieval.kernels.device import DeviceCentroids

    return functools.partial(DeviceCentroids, device=placed)
