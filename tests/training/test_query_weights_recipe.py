"""The weights of query tokens: who is asked of what, and that what misleads comes to count less."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("torch")

from hybrid_retrieval.training import query_weights_recipe as recipe
from hybrid_retrieval.training.data import Pair
from hybrid_retrieval.training.query_weights_recipe import Asked

DIMENSIONS = 16


class TableEncoder:
    """Unit vectors of ids from a table; markers are left out."""

    table = np.random.default_rng(0).standard_normal((3000, DIMENSIONS)).astype(np.float32)

    def vectors(self, prefix: Any, texts: list[list[int]], limit: int) -> list[np.ndarray[Any, Any]]:
        rows = [self.table[text[:limit]] for text in texts]
        return [row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows]


def test_every_passage_is_asked_for_once_and_comes_first() -> None:
    random = np.random.default_rng(1)
    pairs = [Pair([i, 2000], [i, *random.integers(1000, 1900, 5).tolist()], i) for i in range(100)]
    again = Pair([5, 2001], pairs[5].passage, 5)
    asked = recipe.gather(cast(Any, TableEncoder()), [*pairs, again], pairs)
    assert len(asked) == 100
    for one in asked:
        assert one.best.shape == (2, recipe.HARDEST)
        assert one.best[0, 0] == pytest.approx(1, abs=1e-5)
        others = one.best[:, 1:].sum(axis=0)
        assert (np.diff(others) <= 1e-5).all()
    assert recipe.gather(cast(Any, TableEncoder()), pairs[: recipe.FEWEST - 1], pairs) == []


def test_other_answers_are_no_wrong_ones() -> None:
    random = np.random.default_rng(4)
    pairs = [Pair([i, 2000], [i, *random.integers(1000, 1900, 5).tolist()], i) for i in range(100)]
    also = Pair(pairs[7].query, [*pairs[7].query, 1950], 200)  # holds the question: the best passage there is
    alone, beside = (recipe.gather(cast(Any, TableEncoder()), pairs, pool) for pool in (pairs, [*pairs, also]))
    np.testing.assert_array_equal(alone[7].best, beside[7].best)
    other = Pair([9, 9], also.passage, 200)
    beside = recipe.gather(cast(Any, TableEncoder()), pairs, [*pairs, other])
    assert beside[7].best[:, 1].tolist() == pytest.approx([1, 1], abs=1e-5)


def test_tokens_that_mislead_come_to_count_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "STEPS", 100)
    random = np.random.default_rng(2)
    helpful, misleading = np.eye(DIMENSIONS, dtype=np.float32)[:2]

    def ask() -> Asked:
        best = random.uniform(0.2, 0.8, (2, 10)).astype(np.float32)
        best[0, 0], best[1, 0] = 0.9, 0.1
        return Asked(np.stack([helpful, misleading]), best)

    questions = {"one": [ask() for _ in range(50)], "few": []}
    direction, _ = recipe.train_query_weights(questions, seed=0)
    assert direction.shape == (DIMENSIONS,)
    assert direction[0] > 0.5 > -0.5 > direction[1]
    again, _ = recipe.train_query_weights(questions, seed=0)
    np.testing.assert_array_equal(direction, again)
