"""Small deterministic stand-ins: vectors with structure, an encoder and a tokenizer that need no model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.types import Passage

WORDS = [f"word{i}" for i in range(120)]


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows brought to unit length, float32."""
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random_unit(rows: int, dimensions: int, seed: int = 0) -> NDArray[np.float32]:
    """Random unit rows."""
    return unit(np.random.default_rng(seed).standard_normal((rows, dimensions)))


def clustered(lengths: Sequence[int], dimensions: int = 64, seed: int = 0, topics: int = 40) -> Ragged:
    """Token vectors as an encoder gives them: around common topics, with a share of each passage's own."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((topics, dimensions))
    rows = [
        unit(
            centres[random.integers(0, topics, n)]
            + 0.6 * random.standard_normal(dimensions)
            + 0.3 * random.standard_normal((n, dimensions))
        )
        for n in lengths
    ]
    return Ragged.from_rows(rows, dtype=np.float32, tail=(dimensions,))


class HashEncoder:
    """A word is a random unit vector seeded by its hash; a window holds `window` words."""

    max_passage_tokens = 8

    def __init__(self, dimensions: int = 64, name: str = "hash", window: int = 8) -> None:
        self.dimensions, self.name, self.window = dimensions, name, window
        self.identity = hashlib.sha256(f"{name} {dimensions} {window}".encode()).hexdigest()
        self.calls = 0

    def encode_query(self, text: str) -> NDArray[np.float32]:
        return np.stack([self._vector(word) for word in text.split()])

    def encode_windows(self, texts: list[str], overlap_tokens: int = 2) -> tuple[Ragged, NDArray[np.int64]]:
        self.calls += 1
        windows: list[NDArray[np.float32]] = []
        offsets = [0]
        for text in texts:
            vectors = self.encode_query(text)
            step = max(self.window - overlap_tokens, 1)
            stops = range(0, max(len(vectors) - overlap_tokens, 1), step)
            windows += [vectors[start : start + self.window] for start in stops]
            offsets.append(len(windows))
        return Ragged.from_rows(windows, dtype=np.float32), np.array(offsets, np.int64)

    def _vector(self, word: str) -> NDArray[np.float32]:
        seed = int.from_bytes(hashlib.sha256(f"{self.name} {word}".encode()).digest()[:8], "little")
        return random_unit(1, self.dimensions, seed)[0]


class HashTokenizer:
    """The part of a reranker that a build uses: a word is a number."""

    def __init__(self, name: str = "hash-reranker") -> None:
        self.name, self.tokenizer_identity = name, hashlib.sha256(name.encode()).hexdigest()

    def tokenize(self, texts: list[str]) -> Ragged:
        rows = [[int(word.removeprefix("word")) for word in text.split()] for text in texts]
        return Ragged.from_rows(rows, dtype=np.int32)


def make_passages(count: int, seed: int = 0) -> list[Passage]:
    """Passages of 3 to 20 words; every third has a title and metadata."""
    random = np.random.default_rng(seed)
    passages = []
    for i in range(count):
        text = " ".join(random.choice(WORDS, int(random.integers(3, 21))).tolist())
        extra = i % 3 == 0
        passages.append(Passage(f"p{i}", text, "word1" if extra else "", {"n": i} if extra else {}))
    return passages


def tree(folder: Path) -> dict[str, bytes]:
    """{relative path: content} of all files under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
