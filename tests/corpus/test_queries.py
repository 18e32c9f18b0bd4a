"""Queries, qrels, runs, and collections that hold them together."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_retrieval.corpus.dataset import Dataset
from hybrid_retrieval.corpus.queries import read_qrels, read_queries
from hybrid_retrieval.corpus.runs import read_run, trec_lines, write_run
from hybrid_retrieval.errors import CorpusError, InputError
from hybrid_retrieval.types import Passage, Query

QUERIES = [Query("q1", "how?"), Query("2", "why, \u2028 then?")]


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", '{"_id": "q1", "text": "how?"}\n\n{"qid": 2, "query": "why, \u2028 then?"}'),
        ("q.txt", '{"_id": "q1", "text": "how?"}\n{"id": 2, "text": "why, \u2028 then?", "x": 1}\n'),
        ("q.tsv", "q1\thow?\n2\twhy, \u2028 then?\n"),
        ("q.tsv", "\ufeffquery_id\ttext\r\nq1\thow?\r\n2\twhy, \u2028 then?\r\n"),
    ],
)
def test_queries(tmp_path: Path, name: str, content: str) -> None:
    assert read_queries(written(tmp_path / name, content)) == QUERIES
    assert read_queries(written(tmp_path / f"{name}.gz", gzip.compress(content.encode()))) == QUERIES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "q.jsonl",
            '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}',
            ":2: the query id 'a' came before, at line 1",
        ),
        ("q.jsonl", '{"_id": "a"}', ":1: no text: expected one of the keys text, query; found '_id'"),
        ("q.jsonl", '{"text": "a"}', ":1: no query id"),
        ("q.jsonl", '{"_id": "a", "text": " "}', ":1: 'text' is empty"),
        ("q.jsonl", "a\tb", ":1: malformed JSON"),
        ("q.tsv", "a\tx\nb", ":2: expected id<TAB>text, got no tab"),
        ("q.tsv", "a\t\n", ":1: 'text' is empty"),
        ("q.tsv", "", ": holds no queries"),
        ("q.tsv", b"a\t\xff", ":1: expected UTF-8"),
    ],
)
def test_bad_queries_are_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(CorpusError) as caught:
        read_queries(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_missing_queries(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such file"):
        read_queries(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\nq1\tp 1\t2\nq1\tp2\t0\nq2\tp 1\t1\n",
        "q1\tp 1\t2\r\nq1\tp2\t0.0\r\nq2\tp 1\t1\r\nq2\tp 1\t1\r\n",
    ],
)
def test_beir_qrels(tmp_path: Path, content: str) -> None:
    expected = {"q1": {"p 1": 2, "p2": 0}, "q2": {"p 1": 1}}
    assert read_qrels(written(tmp_path / "qrels.tsv", content)) == expected


def test_ids_in_qrels_are_the_corpus_own_white_space_and_all(tmp_path: Path) -> None:
    assert read_qrels(written(tmp_path / "qrels.tsv", "q1 \t d0 \t1\n")) == {"q1 ": {" d0 ": 1}}


def test_a_header_names_the_columns_of_queries(tmp_path: Path) -> None:
    expected = [Query("a", "one")]
    for name, content in (("x.tsv", "_ID\tText\tlang\na\tone\ten\n"), ("y.tsv", "query\tqid\none\ta\n")):
        assert read_queries(written(tmp_path / name, content)) == expected
    assert read_queries(written(tmp_path / "z.tsv", "a\tone\n")) == expected
    assert read_queries(written(tmp_path / "t.tsv", "qid\tquery\na\tone\ttwo\n")) == [Query("a", "one\ttwo")]
    for content in ("qid\tquestion\na\tone\n", "query_id\ttitle\na\tone\n"):
        with pytest.raises(CorpusError, match=r"z\.tsv:1: no text column in the header"):
            read_queries(written(tmp_path / "z.tsv", content))


def test_trec_qrels(tmp_path: Path) -> None:
    path = written(tmp_path / "qrels.txt", "q1 0 p1 2\nq1\t0\tp2\t-1\n")
    assert read_qrels(path) == {"q1": {"p1": 2, "p2": -1}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q1\tp1\n", ":1: expected 3 columns (query-id, corpus-id, score) or TREC's 4, got 2"),
        ("q1\tp1\t1\nq1 0 p2 1\n", ":2: expected 3 columns as above, got 4"),
        ("q1\tp1\tyes\n", ":1: expected an integer relevance, got 'yes'"),
        ("q1\tp1\t0.5\n", ":1: expected an integer relevance, got '0.5'"),
        ("q1\tp1\tinf\n", ":1: expected an integer relevance, got 'inf'"),
        ("q1\tp1\t" + "9" * 5000 + "\n", ":1: expected an integer relevance, got '9999"),
        (" \tp1\t1\n", ":1: an empty query id"),
        ("q1\tp1\t1_0\n", ":1: expected an integer relevance, got '1_0'"),
        ("q1\tp1\t4294967295\n", ":1: expected a relevance of at most 1,000,000, got '4294967295'"),
        ("q1\tp1\t-9223372036854775808\n", ":1: expected a relevance of at most 1,000,000"),
        ("q1\tp1\t1\nq1\tp1\t0\n", ":2: query 'q1', passage 'p1': judged 0 here and 1 before"),
        ("\tp1\t1\n", ":1: an empty query id"),
        ("query-id\tcorpus-id\tscore\n", ": holds no judgements"),
    ],
)
def test_bad_qrels_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = written(tmp_path / "qrels.tsv", content)
    with pytest.raises(CorpusError) as caught:
        read_qrels(path)
    assert str(caught.value).startswith(f"{path}{message}")


@given(
    run=st.dictionaries(
        st.text("abc1-", min_size=1),
        st.dictionaries(st.text("xyzé/", min_size=1), st.floats(-1e6, 1e6, width=32), min_size=1),
    )
)
@settings(max_examples=50, deadline=None)
def test_a_run_reads_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, run: dict[str, dict[str, float]]
) -> None:
    path = tmp_path_factory.mktemp("run") / "r.trec"
    write_run(path, run)
    found = read_run(path)
    assert set(found) == set(run)
    for query_id, scores in run.items():
        assert list(found[query_id]) == sorted(scores, key=lambda passage_id: -scores[passage_id])
        # Nine digits hold every float32.
        assert {p: np.float32(s) for p, s in found[query_id].items()} == {p: np.float32(s) for p, s in scores.items()}


def test_trec_lines() -> None:
    lines = list(trec_lines("q", ["a", "b"], np.array([1.5, -0.25], np.float32), tag="t"))
    assert lines == ["q Q0 a 1 1.5 t", "q Q0 b 2 -0.25 t"]


@pytest.mark.parametrize(
    ("query_id", "passage_id", "score", "tag", "message"),
    [
        ("q 1", "p", 1.0, "t", "a run's query id must be one word"),
        ("q", "p\t1", 1.0, "t", "a run's passage id must be one word"),
        ("q", "p", 1.0, "", "a run's tag must be one word"),
        ("q", "p", float("nan"), "t", "the score is nan"),
    ],
)
def test_what_a_run_cannot_hold_is_refused(
    query_id: str, passage_id: str, score: float, tag: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        list(trec_lines(query_id, [passage_id], [score], tag))


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_run(tmp_path / "none" / "r.trec", {"q": {"p": 1.0}})
    write_run(tmp_path / "r.trec", {"q": {"p": 1.0}})
    with pytest.raises(InputError, match="one word"):
        write_run(tmp_path / "r.trec", {"q": {"p p": 1.0}})
    assert [path.name for path in tmp_path.iterdir()] == ["r.trec"] and read_run(tmp_path / "r.trec") == {
        "q": {"p": 1.0}
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q Q0 p 1 2.0\n", ":1: expected 6 columns"),
        ("q Q0 p 1 x t\n", ":1: expected a finite score in column 5, got 'x'"),
        ("q Q0 p 1 nan t\n", ":1: expected a finite score"),
        ("q Q0 p 1 2 t\nq Q0 p 2 1 t\n", ":2: query 'q' has the passage 'p' twice"),
    ],
)
def test_bad_runs_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = written(tmp_path / "r.trec", content)
    with pytest.raises(CorpusError) as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path}{message}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    written(tmp_path / "corpus.jsonl", '{"_id": "p1", "text": "one"}\n')
    written(
        tmp_path / "queries.jsonl",
        '{"_id": "a", "text": "A"}\n{"_id": "b", "text": "B"}\n{"_id": "c", "text": "C"}\n',
    )
    written(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nc\tp1\t1\na\tp1\t1\n")
    written(tmp_path / "qrels" / "train.tsv", "query-id\tcorpus-id\tscore\nz\tp1\t1\n")
    return tmp_path


def test_a_dataset_holds_the_judged_queries_in_file_order(folder: Path) -> None:
    dataset = Dataset.open(folder)
    assert dataset.queries == (Query("a", "A"), Query("c", "C"))
    assert dataset.qrels == {"a": {"p1": 1}, "c": {"p1": 1}}
    assert list(dataset.passages()) == [Passage("p1", "one")]


def test_a_dataset_with_parts_missing(folder: Path) -> None:
    with pytest.raises(CorpusError, match=r"no qrels/dev\.tsv; splits here: test, train"):
        Dataset.open(folder, "dev")
    with pytest.raises(CorpusError, match="1 of 1 judged queries have no text here, first 'z'"):
        Dataset.open(folder, "train")
    with pytest.raises(CorpusError, match="no such folder"):
        Dataset.open(folder / "none")
    (folder / "queries.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"no queries\.jsonl"):
        Dataset.open(folder)
