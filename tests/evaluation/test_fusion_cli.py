"""`fit-fusion` from the command line, and a fusion file in use, over a small collection with the embedded models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybrid_retrieval import Index, Pipeline
from hybrid_retrieval.cli import main
from hybrid_retrieval.config import PipelineConfig
from hybrid_retrieval.evaluation.fusion_runner import open_both_stages
from hybrid_retrieval.fusion import FusionFile
from tests.small_corpus import PASSAGES, QUERIES


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judged question for each passage (a few of its words) besides the multilingual ones."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "qrels").mkdir()
    asked = [(str(p["text"])[:40], str(p["_id"])) for p in PASSAGES] + list(QUERIES.items())
    lines = [json.dumps({"_id": f"q{i}", "text": text}, ensure_ascii=False) for i, (text, _) in enumerate(asked)]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    judged = [f"q{i}\t{passage}\t1" for i, (_, passage) in enumerate(asked)]
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(judged) + "\n")
    return folder


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so that the questions are scored once."""
    return tmp_path_factory.mktemp("scores") / "scores.jsonl"


@pytest.fixture
def fit(run, small_index: Path, dataset: Path, scores: Path):  # type: ignore[no-untyped-def]
    return lambda *more: run(
        "fit-fusion", small_index, dataset, "--num-candidates", 6, "--scores", scores, "--folds", 3, *more
    )


def test_a_fit_prints_its_figures_and_writes_a_file_that_queries_use(
    run, fit, small_index: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "fusion.json"
    code, out, err = fit("--out", file, "--json")
    assert (code, err) == (0, "")
    report, written = json.loads(out), FusionFile.read(file)
    assert report["weight"] == written.weight
    assert report["fitted_on"] == {
        "dataset": written.fitted_on.dataset,
        "split": "train",
        "queries": len(PASSAGES) + len(QUERIES),
        "num_candidates": 6,
        "seed": 0,
    }
    assert len(report["ndcg_by_weight"]) == 21
    assert sum(row["candidates"] for row in report["reliability"]) == 6 * written.fitted_on.queries
    assert not written.rerank, "so small a collection is no ground for stage 2"

    config = tmp_path / "pipeline.yaml"
    config.write_text(f"fusion:\n  method: fitted\n  file: {file}\n")
    asked = ("query", small_index, "how do vaccines work?", "--config", config)
    code, out, err = run(*asked, "--json")
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert 0 < answer["hits"][0]["probability"] <= 1
    assert answer["hits"][0]["reranker_score"] is None
    assert answer["notes"][0].startswith("not reranked, as the fusion file advises")
    limit = (answer["hits"][0]["probability"] + answer["hits"][1]["probability"]) / 2
    _, out, _ = run(*asked, "--json", "--min-probability", limit)
    assert [hit["passage_id"] for hit in json.loads(out)["hits"]] == ["vaccine"]
    _, out, _ = run(*asked)
    assert "probability" in out


def test_a_lost_fusion_file_that_an_index_asks_for_is_named_and_can_be_fitted_anew(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "fusion.json"
    config = PipelineConfig.from_dict({"fusion": {"method": "fitted", "file": str(file)}})
    index = Index.build([{"_id": "a", "text": "why"}], tmp_path / "index", config=config)
    code, _, err = run("query", tmp_path / "index", "why")
    assert code == 2
    assert f"{file}: no such fusion file, which fusion.file of the configuration names (of the index's own" in err
    assert open_both_stages(index.own_config(), index).fusion.fitted is None


def test_a_fit_scores_every_candidate_whatever_the_configuration_stops_at(small_index: Path) -> None:
    config = PipelineConfig.from_dict({"search": {"early_stop": True}})
    assert Pipeline.from_config(config, index=small_index).config.search.early_stop
    pipeline = open_both_stages(config, small_index)
    ranking = pipeline.query("how do vaccines work?", k=1, num_candidates=6)
    assert ranking.rescored == 6


def test_the_table_and_the_verdict(fit) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = fit()
    assert code == 0
    for part in ("stage 1 alone", "p (paired randomisation)", "reliability", "Brier score", "do not rerank"):
        assert part in out


def test_without_a_fitted_fusion_there_is_no_probability(run, small_index: Path) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = run("query", small_index, "tides", "-k", 1, "--json")
    assert "probability" not in json.loads(out)["hits"][0]
    code, out, err = run("query", small_index, "tides", "--min-probability", 0.5)
    assert (code, out) == (2, "")
    assert "no probabilities" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split", "test"], "no qrels/test.tsv; splits here: train"),
        (["--sample", 3], "at least 10 judged questions, got 3"),
        (["--sample", 0], "sample must be at least 1, got 0"),
        (["--folds", 1], "folds must lie between 2"),
        (["--seed", -1], "seed must be 0 or more, got -1"),
        (["--min-gain", "nan"], "min_gain must be a finite number, got nan"),
        (["--significance", 7], "significance is a p-value"),
        (["--num-candidates", 1], "num_candidates must be at least 2"),
        (["--num-candidates", 7], "another run (it differs in num_candidates)"),
        (["--out", "nowhere/fusion.json"], "its folder does not exist"),
    ],
)
def test_bad_input_is_one_line(fit, more: list[object], message: str) -> None:  # type: ignore[no-untyped-def]
    assert fit()[0] == 0
    code, out, err = fit(*more)
    assert (code, out) == (2, "")
    assert message in err and len(err.strip().splitlines()) == 1


def test_scores_of_other_settings_are_refused(fit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """They are of the same models over the same index."""
    assert fit()[0] == 0
    config = tmp_path / "pipeline.yaml"
    config.write_text("reranker:\n  truncation: longest_first\n")
    code, _, err = fit("--config", config)
    assert code == 2 and "another run (it differs in reranker.truncation)" in err


def test_fitting_needs_both_stages(run, small_index: Path, dataset: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = tmp_path / "pipeline.yaml"
    config.write_text("reranker:\n  model: none\n")
    code, _, err = run("fit-fusion", small_index, dataset, "--config", config)
    assert code == 2
    assert "needs both stages" in err
