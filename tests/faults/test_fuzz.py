"""Whatever stands in an index's files, opening and searching it gives an answer or a named error; never a crash."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hybrid_retrieval import Index
from hybrid_retrieval.errors import HybridRetrievalError
from hybrid_retrieval.kernels import dispatch

EXTREMES = {1: [0, 255], 4: [0, 2**31 - 1, 2**32 - 1], 8: [0, -1, 2**31, 2**62, -(2**63)]}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 30, 300)
    data = random.standard_normal((int(lengths.sum()), 64)).astype(np.float32)
    data /= np.linalg.norm(data, axis=1, keepdims=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    path = tmp_path_factory.mktemp("fuzz") / "index"
    Index.from_vectors(path, [str(i) for i in range(300)], data, offsets)
    return path


def damage(file: Path, random: np.random.Generator) -> None:
    """Overwrite a few whole elements with extremes, or a stretch with noise; the size stays."""
    content = bytearray(file.read_bytes())
    if not content:
        return
    if random.random() < 0.5:
        start = int(random.integers(len(content)))
        stop = min(len(content), start + int(random.integers(1, 64)))
        content[start:stop] = random.bytes(stop - start)
    else:
        size = int(random.choice([1, 4, 8]))
        for _ in range(int(random.integers(1, 5))):
            place = int(random.integers(max(1, len(content) // size))) * size
            value = int(random.choice(EXTREMES[size]))
            content[place : place + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")[: len(content) - place]
    file.write_bytes(content)


@pytest.mark.parametrize("kernels", dispatch.variants())
@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_index_never_crashes(
    sound: Path, tmp_path: Path, seed: int, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, kernels)
    # Lists are read where the index is large: make this one large.
    monkeypatch.setattr("hybrid_retrieval.search.searcher.TOKENS_WITHOUT_LISTS", 0 if seed % 2 else 10**9)
    random = np.random.default_rng(seed)
    path = tmp_path / "index"
    shutil.copytree(sound, path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix != ".json")
    damage(files[seed % len(files)], random)
    query = random.standard_normal((9, 64)).astype(np.float32)
    try:
        index = Index.open(path)
        for exact in (False, True):
            ranking = index.search(query, k=10, exact=exact)
            assert len(ranking) <= 10
    except HybridRetrievalError:
        pass  # a named error is what is wanted
