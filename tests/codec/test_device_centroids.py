"""Nearest centroids through torch, here on a CPU (and on CUDA where there is one), against NumPy."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hybrid_retrieval import Index  # noqa: E402
from hybrid_retrieval.builder import placing  # noqa: E402
from hybrid_retrieval.codec import train_codec  # noqa: E402
from hybrid_retrieval.codec.assignment import NearestCentroids  # noqa: E402
from hybrid_retrieval.config import IndexConfig, PipelineConfig  # noqa: E402
from hybrid_retrieval.errors import DeviceMemoryError, ModelSettingsError  # noqa: E402
from hybrid_retrieval.kernels import device as kernels  # noqa: E402
from hybrid_retrieval.kernels.device import DeviceCentroids  # noqa: E402
from tests.support import clustered, random_unit, tree  # noqa: E402
from tests.test_builder import build  # noqa: E402

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("by", ["product", "distance"])
def test_the_nearest_is_numpys(device: str, by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "PRODUCTS_A_BLOCK", 900)  # several blocks, the last one shorter
    random = np.random.default_rng(0)
    centroids = random_unit(30, 64) * random.uniform(0.5, 2, (30, 1)).astype(np.float32)
    centroids[7] = centroids[3]  # a tie: the first
    vectors = np.concatenate([random_unit(100, 64), centroids])
    products = vectors.astype(np.float64) @ centroids.T.astype(np.float64)
    scores = products if by == "product" else products - np.square(centroids, dtype=np.float64).sum(1) / 2
    found = DeviceCentroids(centroids, by=by, device=torch.device(device))(vectors)
    assert found.dtype == np.int64 and found.tolist() == scores.argmax(axis=1).tolist() and 7 not in found
    assert len(DeviceCentroids(centroids, device=torch.device(device))(vectors[:0])) == 0


def test_a_codec_trained_on_a_device_is_as_good() -> None:
    vectors = clustered([60] * 40, 64, topics=300).data
    make = functools.partial(DeviceCentroids, device=torch.device("cpu"))
    errors = []
    for make_nearest in (NearestCentroids, make):
        codec = train_codec(vectors, nbits=2, num_centroids=64, make_nearest=make_nearest)
        assert codec.make_nearest is make_nearest
        errors.append(float(np.square(codec.decode(*codec.encode(vectors)) - vectors).mean()))
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


def test_a_build_finds_centroids_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    class Watched(DeviceCentroids):
        def __call__(self, vectors: Any) -> Any:
            used.append(len(vectors))
            return super().__call__(vectors)

    monkeypatch.setattr(kernels, "DeviceCentroids", Watched)
    if not torch.cuda.is_available():
        with pytest.raises(ModelSettingsError, match="no CUDA device"):
            build(tmp_path / "none", config=PipelineConfig(index=IndexConfig(device="cuda")))
        assert not (tmp_path / "none").exists()
        # A processor stands for the card.
        monkeypatch.setattr(placing, "cuda_or_none", lambda device, purpose: torch.device("meta"))
        monkeypatch.setattr(Watched, "__init__", _on_a_cpu)
    config = PipelineConfig(index=IndexConfig(device="cuda"))
    for name in ("a", "b"):
        build(tmp_path / name, config=config)
        assert used
        used.clear()
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    passages = clustered([9] * 30, 64)
    ids = [str(i) for i in range(30)]
    index = Index.from_vectors(tmp_path / "c", ids, passages.data, passages.offsets, device="cuda")
    assert used and index.search(passages[4], k=1)[0].passage_id == "4"


def _on_a_cpu(self: DeviceCentroids, centroids: Any, *, device: Any, by: Any = "product") -> None:
    DeviceCentroids.__init__(self, centroids, device=torch.device("cpu"), by=by)


def test_a_full_device_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    centroids = DeviceCentroids(random_unit(30, 64), device=torch.device("cpu"))

    def full(array: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore lines")

    monkeypatch.setattr(kernels.torch, "from_numpy", full)
    with pytest.raises(DeviceMemoryError, match=r"index\.device: cpu"):
        centroids(random_unit(3, 64))


def test_auto_is_the_processor_where_there_is_no_card() -> None:
    if not torch.cuda.is_available():
        assert placing.nearest_on("auto") is NearestCentroids
    assert placing.nearest_on("cpu") is NearestCentroids
