from typing import Any

import numpy as np
from numpy.typing import NDArray

def variants() -> list[str]: ...
def finds_nearest(variant: str) -> bool: ...
def dense(
    variant: str,
    x: NDArray[np.float32],
    weight: NDArray[np.int8],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
) -> NDArray[np.float32]: ...

class Projection:
    def __init__(self, variant: str, weight: NDArray[np.float32]) -> None: ...
    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
    def product(self, x: NDArray[np.float32]) -> NDArray[np.float32]: ...

class Assigner:
    def __init__(self, variant: str, centroids: NDArray[np.float32], by_distance: bool) -> None: ...
    def nearest(self, vectors: NDArray[np.float32]) -> NDArray[np.uint32]: ...

class Codec:
    def __init__(
        self, variant: str, centroids: NDArray[np.float32], weights: NDArray[np.float32], buckets: NDArray[np.uint8]
    ) -> None: ...
    def centroid_scores(self, query: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, float]: ...
    def levels(self, scores: NDArray[np.float32], tokens: int, least: float, most: float) -> NDArray[np.uint8]: ...
    def maxsim(
        self,
        query: NDArray[np.float32],
        scores: NDArray[np.float32],
        codes: NDArray[np.uint32],
        residuals: NDArray[np.uint8],
        inverse_norms: NDArray[np.float32],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> NDArray[np.float32]: ...
    @property
    def estimates(self) -> bool: ...
    @property
    def rough_levels(self) -> bool: ...
    def level_table(self, query: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float, float]: ...
    def fill_scores(
        self,
        query: NDArray[np.float32],
        scores: NDArray[np.float32],
        known: NDArray[np.uint8],
        codes: NDArray[np.uint32],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> None: ...
    def estimate(
        self,
        query: NDArray[np.float32],
        scores: NDArray[np.float32],
        codes: NDArray[np.uint32],
        residuals: NDArray[np.uint8],
        inverse_norms: NDArray[np.float32],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> NDArray[np.float32]: ...
    def candidates(
        self,
        table: NDArray[np.uint8],
        tokens: int,
        nprobe: int,
        lists: NDArray[np.uint32],
        list_offsets: NDArray[np.int64],
        windows: int,
        most: int,
        allowed: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[np.uint32], NDArray[np.int32], int]: ...
    def approximate(
        self,
        table: NDArray[np.uint8],
        codes: NDArray[np.uint32],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> NDArray[np.int32]: ...

class Trunk:
    def __init__(self, variant: str, hidden: int, heads: int, head_size: int, epsilon: float) -> None: ...
    def add_layer(self, *arrays: NDArray[Any]) -> None: ...
    def run(
        self, x: NDArray[np.float32], offsets: NDArray[np.int64], seconds: float = ...
    ) -> NDArray[np.float32] | None: ...
