"""The residual codec: fidelity by width, small and degenerate samples, bad input, the same bytes on any
threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval.codec import ResidualCodec, default_num_centroids, train_codec
from hybrid_retrieval.codec.assignment import NearestCentroids
from hybrid_retrieval.codec.training import least_squares_buckets
from hybrid_retrieval.errors import ArrayError, IndexDamagedError, InputError
from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.kernels.reference import unpack_buckets
from tests.support import clustered, random_unit

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("dimensions", [64, 96, 128, 1024])
@pytest.mark.parametrize(("nbits", "least_cosine"), [(1, 0.85), (2, 0.93), (4, 0.985), (8, 0.998)])
def test_more_bits_come_closer(dimensions: int, nbits: int, least_cosine: float) -> None:
    vectors = clustered([25] * 40, dimensions).data
    codec = train_codec(vectors, nbits=nbits, num_centroids=64)
    codes, residuals = codec.encode(vectors)
    assert codes.dtype == np.uint32
    assert residuals.shape == (1000, dimensions * nbits // 8)
    decoded = codec.decode(codes, residuals)
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-5)
    assert float((decoded * vectors).sum(axis=1).mean()) >= least_cosine


def test_encoding_follows_its_definition() -> None:
    vectors = clustered([50] * 10).data
    codec = train_codec(vectors, nbits=2, num_centroids=16)
    codes, residuals = codec.encode(vectors)
    products = vectors @ codec.centroids.T
    np.testing.assert_allclose(products[np.arange(len(codes)), codes], products.max(axis=1), atol=1e-6)
    rest = vectors - codec.centroids[codes]
    expected = (rest[:, :, None] > codec.cutoffs).sum(axis=2)
    np.testing.assert_array_equal(unpack_buckets(residuals, 2), expected)


def test_a_value_equal_to_a_cutoff_belongs_below_it() -> None:
    centroids = np.eye(8, dtype=np.float32)[:1]
    codec = ResidualCodec(centroids, np.array([0.5], np.float32), np.array([0, 1], np.float32))
    vector = centroids + np.array([[0.5, 0.5000001, 0, 0, 0, 0, 0, 0]], np.float32)
    assert unpack_buckets(codec.encode(vector)[1], 1).tolist() == [[0, 1, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("count", [1, 2, 10, 19, 21, 200])
def test_identical_vectors_come_back_as_they_were(count: int) -> None:
    vectors = np.repeat(random_unit(1, 64), count, axis=0)
    codec = train_codec(vectors, nbits=2)
    assert 1 <= codec.num_centroids <= count
    np.testing.assert_allclose(codec.decode(*codec.encode(vectors)), vectors, atol=1e-5)


@pytest.mark.parametrize("variant", dispatch.variants())
@pytest.mark.parametrize("by", ["product", "distance"])
@pytest.mark.parametrize(("count", "dimensions"), [(1, 8), (15, 72), (33, 64), (500, 128), (40, 1024), (20, 2048)])
def test_the_nearest_centroid_is_the_nearest(
    variant: str, by: Any, count: int, dimensions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, variant)
    centroids = random_unit(count, dimensions, 1) * np.linspace(0.5, 2, count, dtype=np.float32)[:, None]
    centroids[count // 2] = centroids[0]  # a tie: the first counts
    vectors = np.concatenate([random_unit(777, dimensions), np.zeros((1, dimensions), np.float32), centroids])
    found = NearestCentroids(centroids, by=by)(vectors)
    gain = vectors.astype(np.float64) @ centroids.T.astype(np.float64)
    if by == "distance":
        gain -= np.square(centroids, dtype=np.float64).sum(axis=1) / 2
    np.testing.assert_allclose(gain[np.arange(len(vectors)), found], gain.max(axis=1), atol=3e-5)
    if dispatch.takes(dimensions) and dispatch.finds_nearest(variant):  # faiss promises nothing of ties
        assert count == 1 or count // 2 not in found
    assert len(NearestCentroids(centroids, by=by)(vectors[:0])) == 0


@pytest.mark.parametrize(("tokens", "centroids"), [(0, 16), (1, 16), (100, 128), (265_000, 8192), (10**9, 262_144)])
def test_the_number_of_centroids_follows_colbert_ais_formula(tokens: int, centroids: int) -> None:
    assert default_num_centroids(tokens) == centroids


def test_the_number_of_centroids_never_exceeds_the_sample() -> None:
    assert train_codec(random_unit(30, 64), nbits=2, num_centroids=10_000).num_centroids == 29


def test_the_seed_decides() -> None:
    vectors = clustered([20] * 30).data
    same = [train_codec(vectors, nbits=2, seed=4).codec_id for _ in range(2)]
    assert same[0] == same[1] != train_codec(vectors, nbits=2, seed=5).codec_id


def test_the_codec_is_the_same_on_one_and_two_threads() -> None:
    code = (
        "from tests.support import clustered\nfrom hybrid_retrieval.codec import train_codec\n"
        "import hashlib\nv = clustered([300] * 40, 128, topics=700).data\nc = train_codec(v, nbits=2)\n"
        "print(c.codec_id, hashlib.sha256(b''.join(a.tobytes() for a in c.encode(v))).hexdigest())"
    )
    outputs = []
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.append(run.stdout)
    assert outputs[0] == outputs[1] != ""


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((3, 60), np.float32), "multiples of 8"),
        (np.zeros(64, np.float32), "float array"),
        (np.zeros((3, 64), np.int64), "float array"),
        ([[0.0] * 64], "got list"),
        (np.full((3, 64), np.nan, np.float32), "row 0 has a NaN"),
        (np.concatenate([np.zeros((2, 64)), np.full((1, 64), np.inf)]).astype(np.float32), "row 2"),
    ],
)
def test_impossible_vectors_are_refused(vectors: np.ndarray, message: str) -> None:
    with pytest.raises(ArrayError, match=message):
        train_codec(vectors, nbits=2)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="nbits must be"):
        train_codec(random_unit(3, 64), nbits=3)
    with pytest.raises(InputError, match="num_centroids"):
        train_codec(random_unit(3, 64), nbits=2, num_centroids=-1)
    with pytest.raises(InputError, match="without vectors"):
        train_codec(random_unit(3, 64)[:0], nbits=2)


def test_codes_and_residuals_of_another_codec_are_refused() -> None:
    codec = train_codec(random_unit(50, 64), nbits=2, num_centroids=4)
    codes, residuals = codec.encode(random_unit(5, 64, 1))
    with pytest.raises(ArrayError, match="below 4"):
        codec.decode(codes + np.uint32(4), residuals)
    with pytest.raises(ArrayError, match="residuals must be"):
        codec.decode(codes, residuals[:, :-1])
    with pytest.raises(ArrayError, match=r"\[T, 64\]"):
        codec.encode(random_unit(5, 72))


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    codec = train_codec(random_unit(50, 64), nbits=4)
    codec.save(tmp_path)
    assert ResidualCodec.load(tmp_path).codec_id == codec.codec_id


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign", "changed"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    train_codec(random_unit(50, 64), nbits=2).save(tmp_path)
    file = tmp_path / "weights.npy"
    if damage == "missing":
        file.unlink()
    elif damage == "changed":
        weights = np.load(file)
        weights[-1] = 1e15
        np.save(file, weights)
    else:
        file.write_bytes(file.read_bytes()[:-3] if damage == "truncated" else b"PK not an array")
    with pytest.raises(IndexDamagedError, match="weights"):
        ResidualCodec.load(tmp_path)


@pytest.mark.parametrize("buckets", [2, 4, 16, 256])
def test_buckets_of_least_squared_error_beat_quantiles(buckets: int) -> None:
    values = np.random.default_rng(3).standard_t(5, size=(500, 16)).astype(np.float32)
    quantiles = np.quantile(values, np.arange(1, 2 * buckets) / (2 * buckets)).astype(np.float32)

    def error(cutoffs: np.ndarray, weights: np.ndarray) -> float:
        return float(np.square(values - weights[np.searchsorted(cutoffs, values, side="left")]).mean())

    cutoffs, weights = least_squares_buckets(values, buckets)
    assert np.all(np.diff(weights) > 0)
    assert np.allclose(cutoffs, (weights[1:] + weights[:-1]) / 2)
    assert error(cutoffs, weights) < 0.95 * error(quantiles[1::2], quantiles[0::2])


def test_buckets_of_equal_values_hold_that_value() -> None:
    cutoffs, weights = least_squares_buckets(np.full((7, 8), 0.25, np.float32), 4)
    assert np.all(weights == np.float32(0.25))
    assert np.all(cutoffs == np.float32(0.25))
