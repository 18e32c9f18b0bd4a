"""Configuration is strict, round-trips, and every key of it is read by something."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Any

import pytest

import hybrid_retrieval
from hybrid_retrieval import Encoder, Reranker
from hybrid_retrieval.config import PipelineConfig
from hybrid_retrieval.errors import ConfigError

PIPELINES = Path(__file__).parent.parent / "pipelines"


def sections() -> dict[str, type]:
    return typing.get_type_hints(PipelineConfig)


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_load_and_round_trip(path: Path) -> None:
    config = PipelineConfig.load(path)
    assert PipelineConfig.from_dict(config.to_dict()) == config


def test_the_defaults_are_those_of_the_embedded_configuration() -> None:
    assert PipelineConfig.load(PIPELINES / "embedded.yaml") == PipelineConfig()


def test_the_four_named_configurations_are_there() -> None:
    assert {path.stem for path in PIPELINES.glob("*.yaml")} == {
        "embedded",
        "colbertv2-bge-m3",
        "multilingual",
        "cpu-int8",
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoderr": {}}, "unknown key 'encoderr'; did you mean 'encoder'"),
        ({"index": {"nbit": 2}}, "unknown key 'index.nbit'; did you mean 'index.nbits'"),
        ({"index": {"zzzz": 2}}, "known keys: nbits, centroids"),
        ({"index": {"nbits": 3}}, "index.nbits must be 1, 2, 4 or 8, got 3"),
        ({"index": {"nbits": "2"}}, "index.nbits must be int, got '2'"),
        ({"index": {"nbits": True}}, "index.nbits must be int, got True"),
        ({"index": {"include_title": 1}}, "index.include_title must be bool, got 1"),
        ({"search": {"num_candidates": 0}}, "search.num_candidates must be at least 1"),
        ({"search": {"early_stop_top": -1}}, "search.early_stop_top must be 0"),
        ({"search": {"early_stop_bound": float("nan")}}, "search.early_stop_bound must be a finite number"),
        ({"search": {"threads": 10**6}}, "search.threads must be 0 (every core"),
        ({"encoder": {"cached_queries": -1}}, "encoder.cached_queries must be 0"),
        ({"reranker": {"cached_pairs": -1}}, "reranker.cached_pairs must be 0 or more"),
        ({"reranker": {"long_passages": "windows"}}, "reranker.long_passages must be one of max, mean, cut"),
        ({"reranker": {"long_passages": "cut", "max_passage_tokens": 9}}, "reranker.max_passage_tokens limits windows"),
        ({"encoder": {"device": "cdua"}}, "did you mean 'cuda'"),
        ({"encoder": {"model": ""}}, "encoder.model must not be empty"),
        ({"fusion": {"weight": 1.5}}, "fusion.weight must lie between 0 and 1"),
        ({"fusion": {"weight": 0.3}}, "fusion.weight is read with method 'weighted' only"),
        ({"fusion": {"method": "reranker", "weight": 0.0}}, "fusion.weight is read with method 'weighted' only"),
        ({"fusion": {"method": "fitted"}}, "fusion.method 'fitted' needs fusion.file"),
        ({"fusion": {"file": "x.json"}}, "fusion.file is read with method 'fitted' only, got method 'auto'"),
        ({"reranker": {"max_tokens": 3}}, "reranker.max_tokens must be 0"),
        ({"encoder": ["embedded"]}, "encoder must be a mapping"),
        (["encoder"], "the top level must be a mapping"),
    ],
)
def test_bad_values_are_refused_by_name(values: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as caught:
        PipelineConfig.from_dict(values, source="x.yaml")  # type: ignore[arg-type]
    assert str(caught.value).startswith("x.yaml: ")


def test_a_stored_configuration_may_hold_a_weight_that_is_not_read() -> None:
    stored = PipelineConfig().to_dict()
    stored["fusion"]["weight"] = 0.3
    assert PipelineConfig.from_stored(stored, source="an index") == PipelineConfig()
    stored["fusion"]["method"] = "weighted"
    assert PipelineConfig.from_stored(stored, source="an index").fusion.weight == 0.3


def test_a_whole_number_stands_for_a_float_and_empty_sections_for_their_defaults() -> None:
    config = PipelineConfig.from_dict({"fusion": {"method": "weighted", "weight": 1}, "search": None})
    assert config.fusion.weight == 1.0
    assert config.search == PipelineConfig().search


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "\x00",
        "- 1\n- 2",
        "a: b: c",
        "a: 2024-13-45",
        "a: 0x_",
        "a: !!timestamp x",
        "a: !!bool x",
        "a: !!int _",
        "a: !!map [b]",
    ],
)
def test_an_unreadable_file_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        PipelineConfig.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_number_that_no_float_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fusion\.weight is larger than any number"):
        PipelineConfig.from_dict({"fusion": {"weight": 10**400}})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        PipelineConfig.load(tmp_path / "missing.yaml")


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert PipelineConfig.load(path) == PipelineConfig()


@pytest.mark.parametrize(("section", "model"), [("encoder", Encoder), ("reranker", Reranker)])
def test_a_models_section_holds_what_its_loader_takes(section: str, model: Any) -> None:
    keys = {field.name for field in dataclasses.fields(sections()[section])}
    assert keys == set(inspect.signature(model.load).parameters)


@pytest.mark.parametrize("section", sorted(set(sections()) - {"encoder", "reranker"}))
def test_every_other_key_is_read_somewhere(section: str) -> None:
    sources = [
        path.read_text(encoding="utf-8")
        for path in Path(hybrid_retrieval.__file__).parent.rglob("*.py")
        if path.name != "config.py"
    ]
    for key in dataclasses.fields(sections()[section]):
        assert any(f".{key.name}" in source for source in sources), f"nothing reads {section}.{key.name}"
