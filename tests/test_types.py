"""Values that travel: rankings are arrays with views, best first, one tie rule."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from hybrid_retrieval.errors import ArrayError, OptionalDependencyError
from hybrid_retrieval.ragged import Ragged, expand_spans
from hybrid_retrieval.types import Hit, Passage, Ranking, best_first


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 9])
def test_best_first_breaks_ties_by_position(k: int) -> None:
    scores = np.array([1.0, 3.0, 2.0, 3.0, 2.0], np.float32)
    assert best_first(scores, k).tolist() == [1, 3, 2, 4, 0][:k]


def test_best_first_equals_a_stable_full_sort_on_many_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 5, rng.integers(1, 60)).astype(np.float32)
        k = int(rng.integers(1, 70))
        assert best_first(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


def test_a_hit_is_a_view_of_the_arrays() -> None:
    passages = (Passage("a", "first", "T", {"n": 1}), Passage("b", "second"))
    ranking = Ranking(
        ids=("a", "b"),
        scores=np.array([2, 1], np.float32),
        retrieval_scores=np.array([5, 6], np.float32),
        retrieval_ranks=np.array([2, 1]),
        reranker_scores=np.array([0.5, np.nan], np.float32),
        passages=passages,
    )
    first, second = ranking
    assert (first.passage_id, first.rank, first.score, first.retrieval_rank) == ("a", 1, 2.0, 2)
    assert (first.text, first.title, first.metadata) == ("first", "T", {"n": 1})
    assert first.reranker_score == 0.5
    assert second.reranker_score is None, "NaN marks a passage that was not rescored"
    assert ranking[-1].passage_id == "b"
    assert [hit.passage_id for hit in ranking[:1]] == ["a"]
    with pytest.raises(IndexError):
        ranking[2]


def test_content_joins_title_and_text_unless_told_not_to() -> None:
    passage = Passage("1", "text", "title")
    assert passage.content() == "title text"
    assert passage.content(include_title=False) == "text"
    assert Passage("1", "text").content() == "text"


@pytest.mark.parametrize(
    "offsets",
    [
        np.array([0, 2], np.int32),
        np.array([[0, 2]]),
        np.array([0, 1]),
        np.array([1, 2]),
        np.array([0, 3, 2]),
        np.array([], np.int64),
    ],
)
def test_ragged_refuses_offsets_that_do_not_fit(offsets: np.ndarray) -> None:
    with pytest.raises(ArrayError):
        Ragged(np.zeros(2), offsets)


def test_ragged_rows_and_take() -> None:
    ragged = Ragged.from_rows([[1, 2], [], [3], [4, 5, 6]], dtype=np.int32)
    assert [row.tolist() for row in ragged] == [[1, 2], [], [3], [4, 5, 6]]
    taken = ragged.take([3, 1, 0, 3])
    assert [row.tolist() for row in taken] == [[4, 5, 6], [], [1, 2], [4, 5, 6]]
    assert ragged[-1].tolist() == [4, 5, 6]
    assert ragged.lengths.tolist() == [2, 0, 1, 3]
    with pytest.raises(IndexError):
        ragged[4]


def test_no_rows_have_the_shape_asked_for() -> None:
    empty = Ragged.from_rows([], dtype=np.float32, tail=(8,))
    assert len(empty) == 0
    assert empty.data.shape == (0, 8)


def test_expand_spans() -> None:
    spans = expand_spans(np.array([3, 9, 0]), np.array([2, 1, 0]))
    assert spans.tolist() == [3, 4, 9]


def test_errors_reach_another_process() -> None:
    error = OptionalDependencyError("pyarrow", "parquet", "Reading Parquet")
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.package, copied.extra) == (str(error), "pyarrow", "parquet")


def test_passages_and_hits_go_into_sets() -> None:
    one, other = Passage("p", "text", metadata={"year": 1950}), Passage("p", "text", metadata={"year": 2026})
    assert len({one, other, dataclasses.replace(one)}) == 2
    assert len({Hit("p", 1, 0.5, metadata={"a": []}), Hit("p", 1, 0.5, metadata={"a": []})}) == 1


def test_a_threshold_says_what_it_left_out() -> None:
    scores, probabilities = np.array([3, 2, 1], np.float32), np.array([0.6, 0.2, np.nan], np.float32)
    ranking = Ranking(("a", "b", "c"), scores, probabilities=probabilities)
    assert ranking.at_least(0.5).ids == ("a",)
    left_out = "1 of 3 hits were not rescored: they have no probability, and are left out"
    assert ranking.at_least(0.5).notes == (left_out,)
    assert ranking.at_least(0.9).notes[1] == "no passage is relevant with a probability of 0.9: the best has 0.600"
