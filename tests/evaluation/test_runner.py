"""A collection through a pipeline: depth, sampling, measures, times."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from evaluation_fakes import WordPipeline

from hybrid_retrieval.corpus.dataset import Dataset
from hybrid_retrieval.errors import ConfigError, CorpusError, QueryError
from hybrid_retrieval.evaluation.runner import latency_of, run_dataset
from hybrid_retrieval.types import Passage, Query, Ranking

PASSAGES = [Passage(f"p{i}", f"word{i} common") for i in range(30)]


@pytest.fixture
def dataset() -> Dataset:
    queries = tuple(Query(f"q{i}", f"word{i}") for i in range(30))
    # Every third query is judged for a passage that it does not match.
    qrels = {f"q{i}": {f"p{29 - i if i % 3 == 0 else i}": 1} for i in range(30)}
    return Dataset(Path("nowhere"), "test", queries, qrels)


def test_the_run_its_measures_and_times(dataset: Dataset) -> None:
    pipeline = WordPipeline(PASSAGES)
    steps: list[tuple[str, int, int]] = []
    found = run_dataset(pipeline, dataset, "RR@1 R@100", progress=lambda *step: steps.append(step))
    assert found.queries == 30 and list(found.run) == [query.query_id for query in dataset.queries]
    assert next(iter(found.run["q4"])) == "p4"
    assert found.measures == pytest.approx({"RR@1": 20 / 30, "R@100": 1.0})
    assert found.latency_ms == {
        "encode": {"p50": 1.0, "p95": 1.0},
        "search": {"p50": 2.0, "p95": 2.0},
        "rerank": {"p50": 10.0, "p95": 10.0},
        "total": {"p50": 13.0, "p95": 13.0},
    }
    assert steps[-1] == ("queries", 30, 30)


def test_a_measure_without_a_cutoff_hangs_on_no_other(dataset: Dataset) -> None:
    pipeline = WordPipeline([Passage(f"p{i}", "common") for i in range(300)])
    alone, beside = (run_dataset(pipeline, dataset, names).measures["NumRet"] for names in ("NumRet", "NumRet R@200"))
    assert alone == beside == 30 * 100


def test_a_query_that_cannot_be_asked_is_named_before_any_is(dataset: Dataset) -> None:
    pipeline = WordPipeline(PASSAGES)
    broken = dataclasses.replace(dataset, queries=(*dataset.queries[:-1], Query("q29", "x" * 20_000)))
    with pytest.raises(QueryError, match=r"query 'q29': the query has 20,000 characters"):
        run_dataset(pipeline, broken, "RR@1")
    assert pipeline.calls == []


def test_an_interrupted_run_goes_on_where_it_stopped(dataset: Dataset, tmp_path: Path) -> None:
    class Interrupted(WordPipeline):
        def query_batch(self, *arguments: Any, **named: Any) -> list[Ranking]:
            if len(self.calls) == 11:
                raise KeyboardInterrupt
            return super().query_batch(*arguments, **named)

    store, whole = tmp_path / "answers.jsonl", run_dataset(WordPipeline(PASSAGES), dataset, "RR@1 AP")
    with pytest.raises(KeyboardInterrupt):
        run_dataset(Interrupted(PASSAGES), dataset, "RR@1 AP", store=store)
    with store.open("ab") as stream:
        stream.write(b'{"query_id": "q11", "que')  # torn, as by a kill
    second, third = WordPipeline(PASSAGES), WordPipeline(PASSAGES)
    assert run_dataset(second, dataset, "RR@1 AP", store=store) == whole
    assert len(second.calls) == 19
    again = run_dataset(third, dataset, "RR@10", store=store)  # another measure, the same answers
    assert again.run == whole.run and third.calls == []


def test_answers_of_another_run_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    store, pipeline = tmp_path / "answers.jsonl", WordPipeline(PASSAGES)
    run_dataset(pipeline, dataset, "RR@1", store=store, identity={"encoder": "e"})
    with pytest.raises(CorpusError, match=r"these answers come from another run \(it differs in encoder\)"):
        run_dataset(pipeline, dataset, "RR@1", store=store, identity={"encoder": "f"})
    with pytest.raises(CorpusError, match=r"it differs in rerank"):
        run_dataset(pipeline, dataset, "RR@1", store=store, identity={"encoder": "e"}, rerank=False)
    kept = store.read_text().splitlines()
    for key, value in (("scores", [1.0]), ("ids", ["p1"] * 30), ("timings_ms", {"encode": "1"}), ("query_id", 1)):
        store.write_text("\n".join([*kept[:-1], json.dumps({**json.loads(kept[-1]), key: value})]) + "\n")
        with pytest.raises(CorpusError, match=r"answers\.jsonl:31: expected a question's id and text"):
            run_dataset(pipeline, dataset, "RR@1", store=store, identity={"encoder": "e"})


def test_stage_1_alone(dataset: Dataset) -> None:
    found = run_dataset(WordPipeline(PASSAGES), dataset, "RR@1", rerank=False)
    assert set(found.latency_ms) == {"encode", "search", "total"}


def test_a_sample_is_drawn_by_seed_and_measured_alone(dataset: Dataset) -> None:
    pipeline = WordPipeline(PASSAGES)
    first = run_dataset(pipeline, dataset, "R@100", sample=7)
    assert first.queries == 7 and first.measures == {"R@100": 1.0}
    assert list(run_dataset(pipeline, dataset, "R@100", sample=7).run) == list(first.run)
    assert list(run_dataset(pipeline, dataset, "R@100", sample=7, seed=1).run) != list(first.run)
    assert run_dataset(pipeline, dataset, "R@100", sample=99).queries == 30
    with pytest.raises(ConfigError, match="sample must be at least 1, got 0"):
        run_dataset(pipeline, dataset, "R@100", sample=0)


def test_rankings_are_as_deep_as_the_measures_ask(dataset: Dataset) -> None:
    pipeline = WordPipeline(PASSAGES)
    run_dataset(pipeline, dataset, "nDCG@10 AP", sample=1)
    run_dataset(pipeline, dataset, "nDCG@10 R@1000", sample=1)
    run_dataset(pipeline, dataset, "nDCG@10", sample=1, k=5, num_candidates=3)
    assert pipeline.calls == [(1, 100, None, True), (1, 1000, None, True), (1, 5, 3, True)]


def test_deep_rankings_keep_the_pipelines_number_of_candidates(dataset: Dataset) -> None:
    pipeline = WordPipeline(PASSAGES)
    pipeline.config = SimpleNamespace(search=SimpleNamespace(num_candidates=24))  # type: ignore[attr-defined]
    run_dataset(pipeline, dataset, "R@100", sample=1)
    run_dataset(pipeline, dataset, "R@100", sample=1, num_candidates=7)
    assert [call[2] for call in pipeline.calls] == [24, 7]


def test_percentiles() -> None:
    rankings = [Ranking((), np.empty(0, np.float32), timings_ms={"search": float(ms)}) for ms in range(101)]
    assert latency_of(rankings)["search"] == {"p50": 50.0, "p95": 95.0}
    assert latency_of([Ranking((), np.empty(0, np.float32))]) == {}
