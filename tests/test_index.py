"""`Index`: the user's view of a build, a search and a check."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval.config import PipelineConfig
from hybrid_retrieval.errors import (
    ArrayError,
    ConfigError,
    CorpusError,
    IndexNotFoundError,
    InputError,
    ModelMismatchError,
    QueryError,
    StorageError,
)
from hybrid_retrieval.index import Index
from hybrid_retrieval.types import Passage
from tests.support import HashEncoder, HashTokenizer, clustered, make_passages, random_unit

PASSAGES = make_passages(30)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    path = tmp_path_factory.mktemp("index") / "x"
    return Index.build(PASSAGES, path, encoder=HashEncoder(), reranker=HashTokenizer(), nbits=4)


def test_info_says_what_the_index_holds(index: Index) -> None:
    info = index.info()
    expected = {"passages": 30, "nbits": 4, "dimensions": 64, "encoder": "hash", "reranker": "hash-reranker"}
    assert expected.items() <= info.items()
    assert info["version"] == 1
    files = [p for p in index.path.rglob("*") if p.is_file()]
    assert info["bytes"] == sum(p.stat().st_size for p in files)
    assert info["tokens"] == sum(len(v) for row in range(30) for v in index.token_vectors(row))


def test_a_search_finds_the_passage_that_the_words_come_from(index: Index) -> None:
    for row in (0, 7, 29):
        ranking = index.search(HashEncoder().encode_query(PASSAGES[row].content()), k=5)
        hit = ranking[0]
        assert hit.passage_id == PASSAGES[row].passage_id
        assert (hit.text, hit.title, hit.metadata) == (
            PASSAGES[row].text,
            PASSAGES[row].title,
            PASSAGES[row].metadata,
        )
        assert (hit.rank, hit.retrieval_rank, hit.reranker_score) == (1, 1, None)
        assert hit.score == hit.retrieval_score
        assert len(ranking) == 5


def test_the_score_is_the_best_windows(index: Index) -> None:
    query = HashEncoder().encode_query("word1 word2 word3")
    rows, scores, _ = index.searcher.search(query, k=30, exact=True)
    for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
        best = max(float((query @ window.T).max(axis=1).sum()) for window in index.token_vectors(row))
        assert score == pytest.approx(best, rel=1e-4, abs=1e-4)


def test_the_configuration_is_kept(index: Index) -> None:
    config = PipelineConfig.from_dict(index.config)
    assert config.index.nbits == 4
    assert index.include_title is True
    assert index.window_overlap == 32


def test_opening_with_another_encoder_is_an_error(index: Index) -> None:
    encoder = HashEncoder()
    index.check_encoder(encoder.identity, encoder.name)
    with pytest.raises(ModelMismatchError, match="'hash', not with 'other'"):
        index.check_encoder("f00", "other")
    with pytest.raises(ModelMismatchError, match="same name"):
        index.check_encoder("f00", "hash")


def test_reranker_tokens_are_there_for_the_tokenizer_that_made_them(index: Index) -> None:
    assert index.reranker_tokenizer == HashTokenizer().tokenizer_identity
    tokens = index.reranker_tokens(np.array([3, 1]))
    assert tokens is not None
    assert tokens[1].tolist() == HashTokenizer().tokenize([PASSAGES[1].content()])[0].tolist()


def test_without_a_reranker_there_are_no_tokens(tmp_path: Path) -> None:
    index = Index.build(PASSAGES, tmp_path / "x", encoder=HashEncoder(), reranker=None)
    assert index.reranker_tokenizer is None
    assert index.reranker_tokens(np.array([0])) is None


def test_mappings_and_files_are_taken_as_passages(tmp_path: Path) -> None:
    records = [{"_id": "a", "text": "word1 word2", "year": 1999}, {"id": 2, "contents": "word3"}]
    built = Index.build(records, tmp_path / "x", encoder=HashEncoder(), reranker=None)
    assert built.passage(0) == Passage("a", "word1 word2", "", {"year": 1999})
    assert built.row_of("2") == 1
    (tmp_path / "c.jsonl").write_text('{"_id": "a", "text": "word1"}\n{"_id": "b", "text": "word2"}\n')
    assert Index.build(tmp_path / "c.jsonl", tmp_path / "y", encoder=HashEncoder(), reranker=None).passages == 2


@pytest.mark.parametrize("corpus", [[{"_id": "a"}], ["just text"], "nowhere.jsonl"])
def test_what_is_no_corpus_leaves_nothing_behind(tmp_path: Path, corpus: object) -> None:
    with pytest.raises(CorpusError):
        Index.build(corpus, tmp_path / "x", encoder=HashEncoder(), reranker=None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_vectors_of_your_own(tmp_path: Path) -> None:
    rows = clustered([4, 6, 5], 96)
    index = Index.from_vectors(tmp_path / "x", ["a", "b", "c"], rows.data, rows.offsets, nbits=8)
    ranking = index.search(rows[1], k=2)
    assert ranking.ids[0] == "b"
    assert ranking.scores[0] == pytest.approx(6, abs=0.05)
    assert index.encoder is None
    index.check_encoder("any", "any")
    assert index.verify() == Index.verify_path(tmp_path / "x") == []


def test_where_there_is_no_index(tmp_path: Path) -> None:
    for action in (Index.open, Index.verify_path):
        with pytest.raises(IndexNotFoundError, match="no index"):
            action(tmp_path / "x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nbits": "2"}, "index.nbits must be int, got '2'"),
        ({"centroids": "a"}, "index.centroids must be int, got 'a'"),
        ({"pool_factor": 1.5}, "index.pool_factor must be int, got 1.5"),
        ({"seed": None}, "index.seed must be int, got None"),
    ],
)
def test_settings_of_another_type_are_named(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    rows = clustered([4, 6], 64)
    with pytest.raises(ConfigError, match=message):
        Index.from_vectors(tmp_path / "x", ["a", "b"], rows.data, rows.offsets, **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_more_threads_than_any_machine_has_are_refused(index: Index) -> None:
    with pytest.raises(QueryError, match="threads must be at most 1,024, got 1,000,000"):
        index.search(HashEncoder().encode_query("word1"), threads=10**6)


def test_k_below_one_is_refused(index: Index) -> None:
    with pytest.raises(QueryError, match="k must be"):
        index.search(HashEncoder().encode_query("word1"), k=0)


@pytest.mark.parametrize("path", [None, 5, b"x", ["x"], "", "a\0b"])
def test_what_is_no_path_is_named(path: Any) -> None:
    vectors = np.eye(8, dtype=np.float32)
    for call in (
        Index.open,
        Index.verify_path,
        lambda path: Index.build([Passage("a", "b")], path),
        lambda path: Index.from_vectors(path, ["a"], vectors, np.array([0, 8])),
    ):
        with pytest.raises(InputError, match="an index must be a path, got"):
            call(path)


def test_an_empty_path_is_no_corpus(tmp_path: Path) -> None:
    """It would be the working directory."""
    with pytest.raises(InputError, match="a corpus must be a path, got an empty string"):
        Index.build("", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overwrite": "no"}, "overwrite must be True or False, got 'no'"),
        ({"resume": 1}, "resume must be True or False, got 1"),
        ({"progress": 5}, "progress must be a function"),
        ({"encoder": None}, "encoder must be a model's name, or have .* encode_windows"),
        ({"reranker": 5}, "reranker must be a model's name, or have .* tokenize"),
    ],
)
def test_impossible_options_of_a_build_are_named_before_anything_is_made(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Index.build([Passage("a", "b")], tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("row", [None, "a", 1.5, -1, 10**30, True])
def test_a_row_that_is_not_there_is_named(index: Index, row: Any) -> None:
    for call in (index.passage, index.token_vectors):
        with pytest.raises(QueryError, match="a row must be"):
            call(row)
    with pytest.raises(QueryError, match="id must be a string"):
        index.row_of([row])  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [{"a", "b"}, {"a": 1, "b": 2}, frozenset("ab")])
def test_ids_without_an_order_are_refused(tmp_path: Path, ids: Any) -> None:
    Index.from_vectors(tmp_path / "y", {"a": 1, "b": 2}.keys(), np.eye(8, dtype=np.float32), np.array([0, 4, 8]))  # type: ignore[arg-type]
    with pytest.raises(CorpusError, match="in the vectors' order"):
        Index.from_vectors(tmp_path / "x", ids, np.eye(8, dtype=np.float32), np.array([0, 4, 8]))


def test_a_name_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        Index.open(tmp_path / ("x" * 300))


@pytest.mark.parametrize("number", [10**400, 2**70])
def test_absurd_numbers_are_refused(index: Index, number: int) -> None:
    with pytest.raises(QueryError, match="k must be at most"):
        index.search(random_unit(2, index.dimensions), k=number)


@pytest.mark.parametrize("rows", [[-1], [999], [0.5], [True], [[0]]])
def test_rows_that_no_passage_has_are_refused(index: Index, rows: Any) -> None:
    with pytest.raises(ArrayError, match="rows must"):
        index.reranker_tokens(np.array(rows))


def test_a_pickle_says_what_to_do_instead(index: Index) -> None:
    assert copy.copy(index) is index
    with pytest.raises(TypeError, match=r"open it there, Index\.open\('"):
        pickle.dumps(index)
