"""Both stages over a real index with the embedded models."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval import Index, Passage, Pipeline, PipelineConfig, Reranker
from hybrid_retrieval.config import FusionConfig
from hybrid_retrieval.errors import ConfigError, ModelError, ModelMismatchError, ModelSettingsError, QueryError
from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.rescoring import Deadline
from tests.small_corpus import PASSAGES, QUERIES


@pytest.fixture(scope="module")
def pipeline(small_index: Path) -> Pipeline:
    return Pipeline.from_config(index=small_index)


def test_models_are_not_copied_to_another_process(pipeline: Pipeline) -> None:
    for model, name in ((pipeline.encoder, "an Encoder"), (pipeline.reranker, "a Reranker")):
        assert copy.copy(model) is model
        with pytest.raises(TypeError, match=f"{name} is not copied to another process"):
            pickle.dumps(model)


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


def with_reranker(pipeline: Pipeline, reranker: Reranker | None = None, **search: Any) -> Pipeline:
    """The same index and encoder with another reranker (by default one that remembers nothing) or other settings."""
    config = dataclasses.replace(pipeline.config, search=dataclasses.replace(pipeline.config.search, **search))
    return Pipeline(pipeline.index, pipeline.encoder, reranker or Reranker.load(cached_pairs=0), config)


def count_batches(monkeypatch: pytest.MonkeyPatch, reranker: Reranker) -> list[int]:
    """Rows of each forward pass from now on."""
    rows: list[int] = []
    forward = reranker.scorer.backend.forward
    monkeypatch.setattr(
        reranker.scorer.backend, "forward", lambda ids, *rest: rows.append(len(ids)) or forward(ids, *rest)
    )
    return rows


def test_a_batch_gives_what_single_queries_give_and_is_rescored_together(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = Reranker.load(cached_pairs=0, batch_tokens=100_000)
    plain = with_reranker(pipeline, reranker)
    rows = count_batches(monkeypatch, reranker)
    queries = list(QUERIES)[:3]
    batch = plain.query_batch(queries, k=5, num_candidates=7)
    assert len(rows) == 1 and rows[0] >= 7 * len(queries), "all pairs of all queries at once"
    alone = [plain.query(query, k=5, num_candidates=7) for query in queries]
    small = with_reranker(pipeline, Reranker.load(cached_pairs=0, batch_tokens=64))
    backwards = small.query_batch(queries[::-1], k=5, num_candidates=7)[::-1]
    equal = np.testing.assert_array_equal if dispatch.variant() != dispatch.NUMPY else within
    for ranking, *others in zip(batch, alone, backwards, strict=True):
        for other in others:
            assert ranking.ids == other.ids
            equal(ranking.scores, other.scores)
            equal(ranking.reranker_scores, other.reranker_scores)


def within(found: Any, expected: Any) -> None:
    """onnxruntime quantises the activations of a batch together."""
    np.testing.assert_allclose(found, expected, atol=0.3)


def test_caches_change_nothing_and_are_counted(pipeline: Pipeline) -> None:
    caching = with_reranker(pipeline, Reranker.load())
    plain = with_reranker(pipeline)
    first = caching.query("how do vaccines work?", k=4)
    before = caching.cache_info()
    again = caching.query("how do vaccines work?", k=4)
    expected = plain.query("how do vaccines work?", k=4)
    for ranking in (first, again):
        assert ranking.ids == expected.ids
        np.testing.assert_array_equal(ranking.scores, expected.scores)
    after = caching.cache_info()
    pairs = after["pair_scores"]
    assert pairs.hits == before["pair_scores"].entries == pairs.entries == pairs.misses > len(PASSAGES) - 1
    assert after["query_vectors"].hits > before["query_vectors"].hits
    assert plain.cache_info()["pair_scores"] == (0, 0, 0, 0)
    assert set(Pipeline(pipeline.index, pipeline.encoder).cache_info()) == {"query_vectors"}


def test_a_distant_deadline_changes_nothing(pipeline: Pipeline) -> None:
    plain = with_reranker(pipeline)
    expected, found = plain.query("tides", k=3), plain.query("tides", k=3, deadline_ms=600_000)
    assert found.ids == expected.ids and found.rescored == expected.rescored == len(PASSAGES)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert not any("deadline" in note for note in found.notes)
    batch = plain.query_batch(["tides", "bread"], k=3, deadline_ms=600_000)
    assert [ranking.ids for ranking in batch] == [expected.ids, plain.query("bread", k=3).ids]


@pytest.mark.parametrize("rerank", [True, False])
def test_a_query_that_is_cut_is_noted_every_time(pipeline: Pipeline, rerank: bool) -> None:
    room = pipeline.encoder.convention.query.room
    for query in ("capital " * (room + 30), "city " * (room + 30)):
        notes = pipeline.query(query, k=2, rerank=rerank).notes
        assert notes[0] == f"the query of {room + 30} tokens was cut to the {room} that {pipeline.encoder.name} reads"
    whole = pipeline.query("capital " * room, k=2, rerank=rerank)
    assert not any(note.startswith("the query of") for note in whole.notes)


def test_a_deadline_that_leaves_no_time_gives_stage_ones_order(pipeline: Pipeline) -> None:
    ranking = with_reranker(pipeline).query("capital city", k=5, deadline_ms=0.001)
    expected = pipeline.query("capital city", k=5, rerank=False)
    assert ranking.ids == expected.ids and ranking.rescored == 0 and ranking.reranker_scores is None
    np.testing.assert_array_equal(ranking.scores, expected.scores)
    assert ranking.notes == ("the deadline of 0.001 ms left no time for stage 2: this is stage 1's order",)


def test_a_deadline_in_between_rescores_the_first_candidates(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pair is said to take a second of a clock that stands still until pairs are scored."""
    reranker = Reranker.load(cached_pairs=0)
    plain = with_reranker(pipeline, reranker)
    whole = plain.query("capital city", k=9)
    now = [0.0]
    score = reranker.scorer.score_pairs

    def scoring(groups: Any, ends: float) -> Any:
        now[0] += sum(map(len, groups))
        return score(groups)

    monkeypatch.setattr(reranker.scorer, "score_pairs", scoring)
    monkeypatch.setattr(reranker.scorer, "predict_seconds", lambda pairs: float(len(pairs)))
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(Deadline.__init__, "__defaults__", (lambda: now[0],))
    ranking = plain.query("capital city", k=9, deadline_ms=5500)
    assert ranking.rescored == 5
    assert ranking.notes[-1] == f"the deadline of 5500 ms left time to rescore 5 of {len(PASSAGES)} candidates"
    assert ranking.retrieval_ranks is not None
    assert sorted(ranking.retrieval_ranks[:5].tolist()) == [1, 2, 3, 4, 5]
    assert ranking.retrieval_ranks[5:].tolist() == [6, 7, 8, 9]
    logits = {hit.passage_id: hit.reranker_score for hit in whole}
    assert all(hit.reranker_score == logits[hit.passage_id] for hit in ranking[:5] if hit.passage_id in logits)
    assert [hit.reranker_score for hit in ranking[5:]] == [None] * 4


@pytest.mark.parametrize("deadline_ms", [1e13, np.float32(6e4), np.float16(6e4), np.int64(10**12)])
def test_any_number_is_a_deadline(pipeline: Pipeline, deadline_ms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.perf_counter
    monkeypatch.setattr("hybrid_retrieval.pipeline.time.perf_counter", lambda: began() + 3e6)  # up for a month
    monkeypatch.setattr(Deadline.__init__, "__defaults__", (lambda: began() + 3e6,))
    ranking = with_reranker(pipeline).query("capital city", k=5, deadline_ms=deadline_ms)
    assert ranking.rescored == len(PASSAGES)


@pytest.mark.parametrize("deadline_ms", [0, -1, float("nan"), "50", True])
def test_an_impossible_deadline_is_refused(pipeline: Pipeline, deadline_ms: Any) -> None:
    for call in (pipeline.query, lambda text, **options: pipeline.query_batch([text], **options)):
        with pytest.raises(QueryError, match=r"deadline_ms must be a number of milliseconds above 0.*leave it out"):
            call("x", deadline_ms=deadline_ms)


def test_early_stop_leaves_out_what_would_not_enter(pipeline: Pipeline) -> None:
    """A bound that nothing reaches ends after k candidates; one that everything reaches changes nothing."""
    by_logit = dataclasses.replace(pipeline.config, fusion=FusionConfig(method="reranker"))
    base = Pipeline(pipeline.index, pipeline.encoder, pipeline.reranker, by_logit)
    reranker = pipeline.reranker
    never = with_reranker(base, reranker, early_stop=True, early_stop_bound=-1e6)
    always = with_reranker(base, reranker, early_stop=True, early_stop_bound=1e6)
    ranking = never.query("capital city", k=3)
    assert ranking.rescored == 3
    assert ranking.ids == base.query("capital city", k=3, num_candidates=3).ids
    assert f"3 of {len(PASSAGES)} candidates were rescored: the rest were not expected to rise" in ranking.notes
    whole = always.query("capital city", k=3)
    assert whole.rescored == len(PASSAGES) and whole.ids == base.query("capital city", k=3).ids
    assert [ranking.rescored for ranking in never.query_batch(["capital city", "tides"], k=3)] == [3, 3]
    settled = never.query("capital city", k=8)
    assert settled.rescored == 5 and [hit.reranker_score is None for hit in settled] == [False] * 5 + [True] * 3
    every_place = with_reranker(base, reranker, early_stop=True, early_stop_bound=-1e6, early_stop_top=0)
    assert every_place.query("capital city", k=8).rescored == 8


def test_early_stop_knows_what_no_logit_could_change(pipeline: Pipeline) -> None:
    """With all the weight on MaxSim, no candidate can enter the top k any more, whatever its logit is."""
    by_maxsim = dataclasses.replace(pipeline.config, fusion=FusionConfig(method="weighted", weight=0.0))
    base = Pipeline(pipeline.index, pipeline.encoder, pipeline.reranker, by_maxsim)
    ranking = with_reranker(base, pipeline.reranker, early_stop=True, early_stop_bound=1e6).query("tides", k=3)
    assert ranking.rescored == 3 and ranking.ids == base.query("tides", k=3).ids


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_impossible_logit_names_query_and_passage(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    reranker = Reranker.load(cached_pairs=0)
    monkeypatch.setattr(reranker.scorer.backend, "forward", lambda ids, *_: np.full(len(ids), value, np.float32))
    broken = with_reranker(pipeline, reranker)
    with pytest.raises(ModelError, match=r"gave the logit (nan|inf) for passage '[a-z]+' with the query 'tides'"):
        broken.query_batch(["tides", "bread"], k=3)


def test_a_long_passage_is_read_to_its_end(pipeline: Pipeline) -> None:
    """The answer stands in the last sentence of a passage of several windows."""
    query = "name of the last lighthouse keeper"
    windows, cut = pipeline.query(query, k=12), with_reranker(pipeline, Reranker.load(long_passages="cut")).query(query)
    score = {hit.passage_id: hit.reranker_score for hit in windows}
    assert score["long"] == max(value for value in score.values() if value is not None)
    at_cut = {hit.passage_id: hit.reranker_score for hit in cut}["long"]
    assert at_cut is not None and score["long"] is not None and at_cut < score["long"]
    alone = Reranker.load().rank(query, [passage_of(pipeline, "long")])
    assert alone.scores[0] == pytest.approx(score["long"], abs=1e-4)


def passage_of(pipeline: Pipeline, passage_id: str) -> Passage:
    row = pipeline.index.row_of(passage_id)
    assert row is not None
    return pipeline.index.passage(row)


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
    query = "name of the last lighthouse keeper"
    (note,) = pipeline.query(query, k=3).notes
    assert "1 of 12 passages did not fit a pair of 512 tokens" in note
    (note,) = with_reranker(pipeline, Reranker.load(long_passages="cut")).query(query, k=3).notes
    assert note == "1 of 12 pairs were cut at 216 tokens"


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
    for wrong in (None, {"one": 1}, 3):
        with pytest.raises(QueryError, match=f"a sequence of queries; got {type(wrong).__name__}"):
            pipeline.query_batch(wrong)  # type: ignore[arg-type]
    one, other = (pipeline.query_batch(texts, k=2) for texts in (["tides"], (text for text in ["tides"])))
    assert one[0].ids == other[0].ids


@pytest.mark.parametrize("number", [0, 2.5, "a", True])
def test_an_impossible_number_of_candidates_is_refused(pipeline: Pipeline, number: object) -> None:
    with pytest.raises(QueryError, match="num_candidates must be a whole number of at least 1"):
        pipeline.query("x", num_candidates=number)  # type: ignore[arg-type]


def test_explain_names_the_matching_tokens_and_sums_to_maxsim(pipeline: Pipeline) -> None:
    query = "how do vaccines work?"
    explanation = pipeline.explain(query, "vaccine")
    exact = pipeline.index.search(pipeline.encoder.encode_query(query), k=20, exact=True)
    score = dict(zip(exact.ids, exact.scores, strict=True))["vaccine"]
    assert explanation.retrieval_score == pytest.approx(score, abs=1e-3)
    assert sum(match.similarity for match in explanation.matches) == pytest.approx(score, abs=1e-3)
    weights = {match.query_token: match.weight for match in explanation.matches}
    assert np.mean([match.weight for match in explanation.matches]) == pytest.approx(1, abs=1e-5)
    assert weights["<s>"] < 1 < weights["▁vaccin"]
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


def test_a_batch_on_a_device_is_searched_together_and_gives_the_same(pipeline: Pipeline) -> None:
    """Through torch, which stands in on a CPU for CUDA."""
    pytest.importorskip("torch")
    from hybrid_retrieval.search.device import DeviceSearcher

    index = Index.open(pipeline.index.path)
    searcher = index.searcher
    searcher._device = DeviceSearcher(searcher.snapshot, searcher._all_rows, "cpu")
    placed = Pipeline(index, pipeline.encoder, pipeline.reranker, pipeline.config)
    for options in ({}, {"rerank": False}):
        found = placed.query_batch(list(QUERIES), k=4, **options)
        for one, other in zip(found, pipeline.query_batch(list(QUERIES), k=4, **options), strict=True):
            assert one.ids == other.ids
            np.testing.assert_allclose(one.retrieval_scores, other.retrieval_scores, atol=1e-3)


def test_a_device_that_is_not_there_is_refused(small_index: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ModelSettingsError, match="no CUDA device"):
        Pipeline.from_config({"search": {"device": "cuda"}}, index=small_index)
    assert not Pipeline.from_config({"search": {"device": "auto"}}, index=small_index).index.searcher._device
