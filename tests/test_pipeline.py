"""Both stages over a real index with the embedded models."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hybrid_retrieval import Index, Pipeline, PipelineConfig
from hybrid_retrieval.errors import ConfigError, ModelMismatchError, QueryError
from tests.small_corpus import PASSAGES, QUERIES


@pytest.fixture(scope="module")
def pipeline(small_index: Path) -> Pipeline:
    return Pipeline.from_config(index=small_index)


@pytest.mark.parametrize(("query", "expected"), QUERIES.items())
def test_each_stage_finds_the_passage_in_any_language(pipeline: Pipeline, query: str, expected: str) -> None:
    assert expected in [hit.passage_id for hit in pipeline.query(query, k=3)]
    assert expected in pipeline.query(query, k=3, rerank=False).ids


def test_a_hit_carries_both_stages(pipeline: Pipeline) -> None:
    ranking = pipeline.query("how do vaccines work?", k=3)
    hit = ranking[0]
    assert hit.passage_id == "vaccine"
    assert hit.title == "Vaccines"
    assert hit.text.startswith("Vaccines train")
    assert hit.metadata == {"year": 2021}
    assert hit.reranker_score is not None
    assert hit.retrieval_score is not None
    assert hit.retrieval_rank is not None
    assert np.all(np.diff(ranking.scores) <= 0)
    assert set(ranking.timings_ms) == {"encode", "search", "rerank", "fetch"}


def test_without_reranking_the_score_is_maxsim(pipeline: Pipeline) -> None:
    ranking = pipeline.query("tides", k=4, rerank=False)
    assert ranking.reranker_scores is None
    assert ranking.retrieval_ranks is not None
    assert ranking.retrieval_ranks.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(ranking.scores, ranking.retrieval_scores)


def test_a_batch_gives_what_single_queries_give(pipeline: Pipeline) -> None:
    batch = pipeline.query_batch(list(QUERIES), k=5)
    for query, ranking in zip(QUERIES, batch, strict=True):
        alone = pipeline.query(query, k=5)
        assert ranking.ids == alone.ids
        np.testing.assert_array_equal(ranking.scores, alone.scores)


def test_threads_share_a_pipeline(pipeline: Pipeline) -> None:
    queries = list(QUERIES) * 3
    expected = [pipeline.query(query, k=4).ids for query in queries]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda query: pipeline.query(query, k=4).ids, queries)) == expected


def test_k_beyond_the_collection_returns_every_passage(pipeline: Pipeline) -> None:
    assert sorted(pipeline.query("anything at all", k=1000).ids) == sorted(str(p["_id"]) for p in PASSAGES)


def test_fewer_candidates_than_k_leave_a_tail_in_stage_ones_order(pipeline: Pipeline) -> None:
    ranking = pipeline.query("capital city", k=8, num_candidates=3)
    assert len(ranking) == 8
    assert [hit.reranker_score is None for hit in ranking] == [False] * 3 + [True] * 5
    assert [hit.retrieval_rank for hit in ranking[3:]] == [4, 5, 6, 7, 8]
    assert np.all(np.diff(ranking.scores) <= 0)


def test_what_stands_at_the_end_of_a_long_passage_is_found(pipeline: Pipeline) -> None:
    assert pipeline.query("name of the last lighthouse keeper", k=1, rerank=False).ids == ("long",)


def test_a_pair_over_the_limit_is_noted(pipeline: Pipeline) -> None:
    ranking = pipeline.query("name of the last lighthouse keeper", k=3)
    assert len(ranking.notes) == 1
    assert "pairs were cut at" in ranking.notes[0]


@pytest.mark.parametrize("k", [0, -1, 1.5, "3", True])
def test_an_impossible_k_is_refused(pipeline: Pipeline, k: object) -> None:
    with pytest.raises(QueryError, match="k must be a whole number of at least 1"):
        pipeline.query("x", k=k)  # type: ignore[arg-type]


@pytest.mark.parametrize("query", ["", "   ", "x" * 100_000])
def test_an_impossible_query_is_refused(pipeline: Pipeline, query: str) -> None:
    with pytest.raises(QueryError):
        pipeline.query(query)


def test_one_string_is_not_a_batch(pipeline: Pipeline) -> None:
    with pytest.raises(QueryError, match="sequence of queries"):
        pipeline.query_batch("one")


def test_zero_candidates_are_refused(pipeline: Pipeline) -> None:
    with pytest.raises(QueryError, match="num_candidates"):
        pipeline.query("x", num_candidates=0)


def test_explain_names_the_matching_tokens_and_sums_to_maxsim(pipeline: Pipeline) -> None:
    query = "how do vaccines work?"
    explanation = pipeline.explain(query, "vaccine")
    exact = pipeline.index.search(pipeline.encoder.encode_query(query), k=20, exact=True)
    score = dict(zip(exact.ids, exact.scores, strict=True))["vaccine"]
    assert explanation.retrieval_score == pytest.approx(score, abs=1e-3)
    assert sum(match.similarity for match in explanation.matches) == pytest.approx(score, abs=1e-3)
    matched = {
        match.query_token: match.passage_token for match in pipeline.explain("the immune system", "vaccine").matches
    }
    assert matched["▁system"] == "▁system"


def test_explain_works_on_a_passage_of_several_windows(pipeline: Pipeline) -> None:
    explanation = pipeline.explain("lighthouse keeper Abernathy", "long")
    assert explanation.retrieval_score > 0


def test_explain_of_an_unknown_passage_is_one_clear_error(pipeline: Pipeline) -> None:
    with pytest.raises(QueryError, match="no passage 'nowhere'"):
        pipeline.explain("x", "nowhere")


def test_the_index_refuses_another_encoder(small_index: Path) -> None:
    index = Index.open(small_index)
    with pytest.raises(ModelMismatchError, match="was built with the encoder"):
        index.check_encoder("0" * 64, "some-other-model")


def test_a_configuration_may_be_a_file_a_mapping_or_an_object(small_index: Path) -> None:
    no_rerank = {"reranker": {"model": "none"}}
    from_mapping = Pipeline.from_config(no_rerank, index=small_index)
    assert from_mapping.reranker is None
    settings = PipelineConfig.from_dict(no_rerank)
    assert Pipeline.from_config(settings, index=small_index).config == settings
    file = Path(__file__).parent.parent / "pipelines" / "embedded.yaml"
    assert Pipeline.from_config(file, index=small_index).reranker is not None
    with pytest.raises(ConfigError):
        Pipeline.from_config({"rerankr": {}}, index=small_index)


def test_exact_search_agrees_with_pruned_search_here(small_index: Path, pipeline: Pipeline) -> None:
    search = dataclasses.replace(pipeline.config.search, exact=True)
    exact = Pipeline(pipeline.index, pipeline.encoder, None, dataclasses.replace(pipeline.config, search=search))
    for query in QUERIES:
        assert exact.query(query, k=5).ids[:3] == pipeline.query(query, k=5, rerank=False).ids[:3]
