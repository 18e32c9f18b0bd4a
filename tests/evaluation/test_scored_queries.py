"""Scores of judged questions: in stage 1's order, kept in a file, continued where a run stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_fakes import WordPipeline

from hybrid_retrieval.corpus.dataset import Dataset
from hybrid_retrieval.errors import ConfigError, CorpusError
from hybrid_retrieval.evaluation.scored_queries import ScoredQuery, score_queries
from hybrid_retrieval.types import Passage, Query, Ranking

PASSAGES = [Passage(f"p{i}", f"word{i} common") for i in range(30)]
IDENTITY = {"encoder": "e", "reranker": "r"}


class Reversing(WordPipeline):
    """Stage 2 turns the order of its candidates round, and scores `num_candidates` of them."""

    def query_batch(
        self, queries: list[str], k: int = 10, *, num_candidates: int | None = None, rerank: bool = True
    ) -> list[Ranking]:
        found = super().query_batch(queries, k, num_candidates=num_candidates, rerank=False)
        return [self._turn(ranking, num_candidates or k) for ranking in found]

    def _turn(self, ranking: Ranking, rescored: int) -> Ranking:
        order = np.r_[np.arange(rescored)[::-1], np.arange(rescored, len(ranking))]
        logits = np.where(order < rescored, order, np.nan).astype(np.float32)
        assert ranking.retrieval_scores is not None and ranking.retrieval_ranks is not None
        return Ranking(
            ids=tuple(ranking.ids[i] for i in order),
            scores=-np.arange(len(order), dtype=np.float32),
            retrieval_scores=ranking.retrieval_scores[order],
            retrieval_ranks=ranking.retrieval_ranks[order],
            reranker_scores=logits,
        )


@pytest.fixture
def dataset() -> Dataset:
    queries = tuple(Query(f"q{i}", f"word{i}") for i in range(20))
    qrels = {f"q{i}": {f"p{i}": 2, "p29": 1, "p28": 0, "elsewhere": 3} for i in range(20)}
    return Dataset(Path("nowhere"), "train", queries, qrels)


def score(pipeline: WordPipeline, dataset: Dataset, store: Path | None = None, count: int = 20) -> list[ScoredQuery]:
    return score_queries(pipeline, dataset, dataset.queries[:count], num_candidates=6, identity=IDENTITY, store=store)


def test_candidates_stand_in_stage_ones_order_with_their_judgements(dataset: Dataset) -> None:
    steps: list[tuple[str, int, int]] = []
    found = score_queries(
        Reversing(PASSAGES),
        dataset,
        dataset.queries,
        num_candidates=6,
        identity=IDENTITY,
        progress=lambda *step: steps.append(step),
    )
    assert [query.query_id for query in found] == [f"q{i}" for i in range(20)]
    for query in found:
        assert len(query.retrieval_scores) == 10, "nDCG@10 needs ten"
        assert np.all(np.diff(query.retrieval_scores) <= 0)
        assert query.logits.tolist() == [0, 1, 2, 3, 4, 5]
        assert query.gains[0] == 2, "the passage with the question's word comes first"
        assert query.ideal.tolist() == [3, 2, 1]
    assert steps == [("questions", 8, 20), ("questions", 16, 20), ("questions", 20, 20)]


def test_an_interrupted_run_goes_on_where_it_stopped(dataset: Dataset, tmp_path: Path) -> None:
    store, whole = tmp_path / "scores.jsonl", score(Reversing(PASSAGES), dataset)
    score(Reversing(PASSAGES), dataset, store, count=11)
    with store.open("ab") as stream:
        stream.write(b'{"query_id": "q11", "que')  # torn by the interruption
    second = Reversing(PASSAGES)
    found = score(second, dataset, store)
    assert sum(call[0] for call in second.calls) == 9
    for a, b in zip(found, whole, strict=True):
        assert a.query_id == b.query_id
        np.testing.assert_array_equal(a.retrieval_scores, b.retrieval_scores)
        np.testing.assert_array_equal(a.logits, b.logits)
    third = Reversing(PASSAGES)
    assert len(score(third, dataset, store)) == 20 and third.calls == []


def test_a_question_with_an_exotic_line_end_is_read_back(dataset: Dataset, tmp_path: Path) -> None:
    asked = [Query(query.query_id, f"{query.text}\u2028\x85") for query in dataset.queries]
    other = Dataset(dataset.folder, "train", tuple(asked), dataset.qrels)
    score(Reversing(PASSAGES), other, tmp_path / "scores.jsonl")
    again = Reversing(PASSAGES)
    assert len(score(again, other, tmp_path / "scores.jsonl")) == 20 and again.calls == []


def test_a_question_with_other_words_is_scored_anew(dataset: Dataset, tmp_path: Path) -> None:
    score(Reversing(PASSAGES), dataset, tmp_path / "scores.jsonl")
    other = Dataset(dataset.folder, "train", (Query("q0", "word7"), *dataset.queries[1:]), dataset.qrels)
    pipeline = Reversing(PASSAGES)
    found = score(pipeline, other, tmp_path / "scores.jsonl")
    assert [call[0] for call in pipeline.calls] == [1]
    assert found[0].gains[0] == 0


def test_scores_of_another_run_and_other_files_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    store = tmp_path / "scores.jsonl"
    score(Reversing(PASSAGES), dataset, store)
    with pytest.raises(CorpusError, match=r"another run \(it differs in encoder\)"):
        score_queries(
            Reversing(PASSAGES),
            dataset,
            dataset.queries,
            num_candidates=6,
            identity=IDENTITY | {"encoder": "x"},
            store=store,
        )
    store.write_text("no json\n")
    with pytest.raises(CorpusError, match="not a file of scores"):
        score(Reversing(PASSAGES), dataset, store)
    for line, message in (
        ("[1, 2]", "no JSON object"),
        ('{"format": 1}', "another run"),
        ("{", "not a file of scores"),
    ):
        store.write_text(line + "\n")
        with pytest.raises(CorpusError, match=message):
            score(Reversing(PASSAGES), dataset, store)
    for content in ("a note", '{"_id": "q"}\n{"_id": "r"}'):  # without an end of line, as after an interruption
        store.write_text(content)
        with pytest.raises(CorpusError):
            score(Reversing(PASSAGES), dataset, store)
        assert store.read_text() == content
    store.unlink()
    score(Reversing(PASSAGES), dataset, store, count=2)
    with store.open("a") as stream:
        stream.write(json.dumps({"query_id": "q2"}) + "\n")
    with pytest.raises(CorpusError, match=r"scores.jsonl:4: expected the keys ids, logits"):
        score(Reversing(PASSAGES), dataset, store)
    with pytest.raises(ConfigError, match="cannot be kept there"):
        score(Reversing(PASSAGES), dataset, tmp_path)


def test_stage_1_alone_is_not_enough(dataset: Dataset) -> None:
    class Stage1(WordPipeline):
        def query_batch(self, *given: object, **options: object) -> list[Ranking]:
            return super().query_batch(*given, **{**options, "rerank": False})  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="needs both stages"):
        score(Stage1(PASSAGES), dataset)


@pytest.mark.parametrize(
    "change",
    [
        *({"logits": value} for value in ("abc", None, [], [None], [float("nan")], [1e39], [True], [1.0] * 11)),
        *({"retrieval_scores": value} for value in (None, [1.0], ["1"] * 10)),
        *({"ids": value} for value in (None, ["a"], list(range(10)), ["a"] * 10)),
        *({"query_id": value} for value in (["q"], None)),
    ],
)
def test_a_damaged_line_is_named(dataset: Dataset, tmp_path: Path, change: dict[str, Any]) -> None:
    store = tmp_path / "scores.jsonl"
    score(Reversing(PASSAGES), dataset, store)
    lines = store.read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), **change})
    store.write_text("\n".join(lines) + "\n")
    with pytest.raises(CorpusError, match=rf"{store}:3: expected a question's id"):
        score(Reversing(PASSAGES), dataset, store)
