"""Fusion files: strict, for one pair of models, and what a pipeline makes of one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval import Index, Pipeline
from hybrid_retrieval.config import FusionConfig
from hybrid_retrieval.errors import ConfigError, ModelMismatchError, QueryError
from hybrid_retrieval.fusion import Calibration, FittedOn, Fusion, FusionFile, evidence, fuse
from tests.fusion_files import fusion_file
from tests.small_corpus import write_corpus


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_a_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    fusion_file().write(tmp_path / "fusion.json")
    assert FusionFile.read(tmp_path / "fusion.json") == fusion_file()
    assert [path.name for path in tmp_path.iterdir()] == ["fusion.json"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("wieght", 1, "unknown key 'wieght'; did you mean 'weight'"),
        ("calibration.slope", 1, "unknown key 'calibration.slope'; did you mean 'calibration.score'"),
        ("weight", None, "weight must be float, got None"),
        ("weight", 1.5, "weight must lie between 0 and 1, got 1.5"),
        ("weight", float("nan"), "weight must lie between 0 and 1, got nan"),
        ("rerank", "yes", "rerank must be bool, got 'yes'"),
        ("format", 2, "format 2; this release reads fusion files of format 1"),
        ("calibration.score", -1.0, "calibration.score must be 0 or more, got -1.0"),
        ("calibration.intercept", float("inf"), "calibration.intercept must be a finite number"),
        ("cross_validation.p_value", float("nan"), "cross_validation.p_value must be a finite number"),
        ("fitted_on.num_candidates", 0, "fitted_on.num_candidates must be at least 1, got 0"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, path: str, value: Any, message: str) -> None:
    values = dataclasses.asdict(fusion_file())
    *outer, last = path.split(".")
    (values[outer[0]] if outer else values)[last] = value
    file = tmp_path / "fusion.json"
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError) as caught:
        FusionFile.read(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(FusionFile)])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    values = dataclasses.asdict(fusion_file())
    del values[key]
    (tmp_path / "fusion.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=f"missing '{key}'"):
        FusionFile.read(tmp_path / "fusion.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_fusion_file_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fusion.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        FusionFile.read(tmp_path / "fusion.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no such fusion file"):
        FusionFile.read(tmp_path / "nowhere.json")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        fusion_file().write(tmp_path / "nowhere" / "fusion.json")


@pytest.mark.parametrize(
    ("encoder", "reranker", "message"),
    [
        (("encoder", "x"), None, "the encoder 'encoder', not with 'encoder' (same name, other weights or settings)"),
        (("encoder", "e" * 64), ("other", "x"), "the reranker 'reranker', not with 'other': fit the fusion anew"),
    ],
)
def test_other_models_are_refused(
    tmp_path: Path, encoder: tuple[str, str], reranker: tuple[str, str] | None, message: str
) -> None:
    fusion_file().write(tmp_path / "fusion.json")
    config = FusionConfig(method="fitted", file=str(tmp_path / "fusion.json"))
    with pytest.raises(ModelMismatchError) as caught:
        Fusion.of(config, encoder=encoder, reranker=reranker, recommended_weight=None)
    assert message in str(caught.value)


def test_probabilities_follow_the_order_and_stop_where_nothing_was_compared() -> None:
    fusion = Fusion(0.4, fusion_file())
    maxsim, logits = f32(30, 29, 28, 20, 11), f32(-5, 7, -9)
    scores, order = fuse(0.4, logits, maxsim)
    found = fusion.probabilities(logits, scores, maxsim)
    assert found is not None
    expected = 1 / (1 + np.exp(-(-3 + 2 * scores[:3].astype(float) + 0.5 * 7)))
    np.testing.assert_allclose(found[:3], expected, rtol=1e-6)
    assert np.isnan(found[3:]).all()
    assert np.all(np.diff(found[order][:3]) <= 0)
    assert fusion.probabilities(None, maxsim, maxsim) is None, "calibrated for both stages"


def test_probabilities_of_stage_1_compare_as_many_as_were_fitted() -> None:
    fusion = Fusion(0.4, fusion_file(rerank=False))
    maxsim = f32(30, 29, 28, 20, 11, 9)
    assert fusion.candidates_of_stage_1(2) == 4
    assert fusion.candidates_of_stage_1(9) == 9
    found = fusion.probabilities(None, maxsim, maxsim)
    assert found is not None
    assert np.isnan(found).tolist() == [False] * 4 + [True] * 2
    same = fusion.probabilities(None, maxsim[:4], maxsim[:4])
    assert same is not None
    np.testing.assert_array_equal(found[:4], same)


def test_extreme_scores_give_probabilities_not_overflow() -> None:
    with np.errstate(all="raise"):
        found = Calibration(0.0, 1000.0, 0.0).probabilities(f32(-1e6, 0, 1e6), 0.0)
    assert found.tolist() == [0.0, 0.5, 1.0]


def test_evidence_of_stage_1_does_not_grow_with_the_query() -> None:
    maxsim = f32(12, 9, 9)
    assert evidence(None, maxsim) == pytest.approx(0.2)
    assert evidence(None, maxsim * 3) == pytest.approx(0.2)
    assert evidence(f32(-2, 4), maxsim) == 4
    assert evidence(None, f32()) == evidence(f32(), f32()) == 0


@pytest.fixture(scope="module")
def plain(small_index: Path) -> Pipeline:
    return Pipeline.from_config(index=small_index)


@pytest.fixture
def fitted(tmp_path: Path, plain: Pipeline):  # type: ignore[no-untyped-def]
    """A function: a pipeline over the small index with a fusion file of its models, changed as told."""

    def make(**changes: Any) -> Pipeline:
        assert plain.reranker is not None
        models = {"encoder_identity": plain.encoder.identity, "reranker_identity": plain.reranker.identity}
        fusion_file(**models, **changes).write(tmp_path / "fusion.json")
        config = dataclasses.replace(
            plain.config, fusion=FusionConfig(method="fitted", file=str(tmp_path / "fusion.json"))
        )
        return Pipeline(plain.index, plain.encoder, plain.reranker, config)

    return make


def test_a_pipeline_orders_by_the_fitted_weight(plain: Pipeline, fitted) -> None:  # type: ignore[no-untyped-def]
    weighted = dataclasses.replace(plain.config, fusion=FusionConfig(method="weighted", weight=0.4))
    expected = Pipeline(plain.index, plain.encoder, plain.reranker, weighted).query("tides", k=5)
    assert expected.probabilities is None and expected[0].probability is None
    ranking = fitted().query("tides", k=5)
    assert ranking.ids == expected.ids
    np.testing.assert_array_equal(ranking.scores, expected.scores)
    assert ranking.probabilities.dtype == np.float32
    assert np.all(np.diff(ranking.probabilities) <= 0)
    assert ranking[0].probability == ranking.probabilities[0]
    assert any("probabilities were calibrated on 4 rescored candidates a query" in note for note in ranking.notes)
    assert not any("calibrated" in note for note in fitted().query("tides", k=2, num_candidates=4).notes)
    assert fitted().query("tides", k=2, rerank=False).probabilities is None


def test_a_hit_that_was_not_rescored_has_no_probability(fitted) -> None:  # type: ignore[no-untyped-def]
    ranking = fitted().query("tides", k=8, num_candidates=4)
    assert [hit.probability is None for hit in ranking] == [False] * 4 + [True] * 4


def test_no_hit_is_probable_where_a_deadline_left_no_time(fitted) -> None:  # type: ignore[no-untyped-def]
    ranking = fitted().query("tides", k=3, deadline_ms=0.001)
    assert [hit.probability for hit in ranking] == [None] * 3
    assert ranking.at_least(0.0).ids == ()
    assert "left no time" in ranking.at_least(0.0).notes[0]


def test_a_pipeline_stops_after_stage_1_where_re_ranking_does_not_pay(plain: Pipeline, fitted) -> None:  # type: ignore[no-untyped-def]
    pipeline = fitted(rerank=False)
    ranking, expected = pipeline.query("tides", k=3), plain.query("tides", k=3, rerank=False)
    assert ranking.ids == expected.ids
    np.testing.assert_array_equal(ranking.scores, expected.scores)
    assert ranking.reranker_scores is None
    assert "rerank" not in ranking.timings_ms
    assert ranking.notes[0].startswith(
        "not reranked, as the fusion file advises: nDCG@10 0.800 by stage 1, 0.850 fused"
    )
    assert len(ranking.probabilities) == 3
    np.testing.assert_array_equal(pipeline.query("tides", k=1).probabilities, ranking.probabilities[:1])
    assert pipeline.query("tides", k=3, rerank=False).notes == ()


def test_a_threshold_keeps_the_probable_hits(plain: Pipeline, fitted) -> None:  # type: ignore[no-untyped-def]
    ranking = fitted(fitted_on=FittedOn("set", "train", 9, 14, 0)).query("tides", k=8)
    limit = float(ranking.probabilities[2])
    kept = ranking.at_least(limit)
    assert kept.ids == ranking.ids[:3]
    assert [hit.rank for hit in kept] == [1, 2, 3]
    assert kept.notes == ranking.notes
    assert len(ranking.at_least(0.0)) == 8
    with pytest.raises(QueryError, match="no probabilities"):
        plain.query("tides").at_least(0.5)
    with pytest.raises(QueryError, match="between 0 and 1"):
        ranking.at_least(1.5)


def test_an_index_remembers_its_fusion_file_from_any_folder(
    tmp_path: Path, plain: Pipeline, fitted, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    fitted()
    monkeypatch.chdir(tmp_path)
    config = {"fusion": {"method": "fitted", "file": "fusion.json"}}
    built = Index.build(write_corpus(tmp_path / "corpus.jsonl"), tmp_path / "index", config=config)
    monkeypatch.chdir("/")
    assert built.config["fusion"]["file"] == str(tmp_path / "fusion.json")
    assert Pipeline.from_config(index=built).fusion.weight == 0.4
