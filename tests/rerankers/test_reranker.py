"""`Reranker` over a graph that can be computed by hand."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval import Passage, Reranker
from hybrid_retrieval.errors import InputError, ModelError, QueryError
from hybrid_retrieval.ragged import Ragged
from tests.rerankers.tiny_reranker import NAN_WORD, description, logit, write_tiny_reranker

QUERY = "which river"
PASSAGES = ["the river runs by the house", "a house", "trees " * 40, "old men walk", "why"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_reranker(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def reranker(folder: Path) -> Reranker:
    return Reranker.load(str(folder), threads=1)


def expected_logit(reranker: Reranker, query: str, passage: str, room: int = 21, query_limit: int = 8) -> float:
    query_ids, passage_ids = ([*row] for row in reranker.tokenize([query, passage]))
    query_ids = query_ids[:query_limit]
    passage_ids = passage_ids[: room - len(query_ids)]
    return logit([101, *query_ids, 102, *passage_ids, 102], len(query_ids) + 2)


def test_logits_come_in_input_order_with_types_and_cuts(reranker: Reranker) -> None:
    pairs = [(QUERY, passage) for passage in PASSAGES] + [("river " * 30, "trees " * 30)]
    found = reranker.score(pairs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [expected_logit(reranker, *pair) for pair in pairs], rtol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 30, 100_000])
def test_the_batch_budget_changes_nothing(folder: Path, reranker: Reranker, batch_tokens: int) -> None:
    pairs = [(QUERY, passage) for passage in PASSAGES]
    found = Reranker.load(str(folder), batch_tokens=batch_tokens).score(pairs)
    np.testing.assert_allclose(found, reranker.score(pairs), rtol=1e-5)


def test_stored_tokens_score_as_text_does(reranker: Reranker) -> None:
    tokens = reranker.tokenize(PASSAGES)
    assert tokens.data.dtype == np.int32 and tokens.lengths[2] == 40
    scores = reranker.score_tokens(QUERY, tokens)
    np.testing.assert_array_equal(scores.logits, reranker.score([(QUERY, passage) for passage in PASSAGES]))
    assert scores.truncated == 1


def test_groups_score_as_each_query_does(reranker: Reranker) -> None:
    tokens = reranker.tokenize(PASSAGES)
    groups = [
        (QUERY, tokens),
        ("old men", tokens.take([3, 2])),
        ("why", tokens.take([])),
        ("walk " * 20, tokens.take([1])),
    ]
    found = reranker.score_token_groups(groups)
    assert [len(scores.logits) for scores in found] == [5, 2, 0, 1]
    assert [scores.truncated for scores in found] == [1, 1, 0, 1]
    for scores, group in zip(found, groups, strict=True):
        np.testing.assert_allclose(scores.logits, reranker.score_tokens(*group).logits, rtol=1e-5)


def test_rank_orders_a_plain_list(reranker: Reranker) -> None:
    logits = reranker.score([(QUERY, passage) for passage in PASSAGES])
    order = np.argsort(-logits, kind="stable")
    ranking = reranker.rank(QUERY, PASSAGES, k=3)
    assert ranking.ids == tuple(str(i) for i in order[:3])
    np.testing.assert_array_equal(ranking.scores, logits[order[:3]])
    assert ranking[0].reranker_score == ranking[0].score and ranking[0].retrieval_score is None
    assert ranking[0].text == PASSAGES[order[0]]
    assert ranking.notes == ("1 of 5 pairs were cut at 24 tokens",)
    assert "rerank" in ranking.timings_ms


def test_rank_takes_passages_and_mappings_and_keeps_ties_in_order(reranker: Reranker) -> None:
    mixed = [{"_id": "a", "text": "house", "year": 3}, Passage("b", "house"), "house", {"id": 7, "text": "house"}]
    ranking = reranker.rank(QUERY, mixed)
    assert ranking.ids == ("a", "b", "2", "7")
    assert ranking[0].metadata == {"year": 3} and ranking.notes == ()


def test_a_title_is_read_before_the_text(reranker: Reranker) -> None:
    titled = reranker.rank(QUERY, [Passage("a", "by the house", title="the river runs")])
    assert titled.scores[0] == reranker.score([(QUERY, PASSAGES[0])])[0]


def test_nothing_to_score_gives_nothing(reranker: Reranker) -> None:
    assert reranker.score([]).shape == (0,)
    assert len(reranker.rank(QUERY, [])) == 0
    empty = reranker.score_tokens(QUERY, Ragged.from_rows([], dtype=np.int32))
    assert empty.logits.shape == (0,) and empty.truncated == 0


def test_a_nan_names_the_pair(reranker: Reranker) -> None:
    with pytest.raises(ModelError, match=r"logit nan for pair 2 of 3"):
        reranker.score([(QUERY, "house"), (QUERY, "river"), (QUERY, f"a {NAN_WORD} house")])


@pytest.mark.parametrize(("query", "message"), [("", "empty"), (" \n", "empty"), ("a" * 10_001, "10,001")])
def test_an_impossible_query_is_refused(reranker: Reranker, query: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        reranker.score([(query, "house")])
    with pytest.raises(QueryError, match=message):
        reranker.rank(query, [])


@pytest.mark.parametrize("passage", ["", "  ", None, 3])
def test_a_passage_without_text_is_refused_by_its_position(reranker: Reranker, passage: Any) -> None:
    with pytest.raises(InputError, match="passage 1"):
        reranker.score([(QUERY, "house"), (QUERY, passage)])
    with pytest.raises(InputError, match="passage 1"):
        reranker.rank(QUERY, ["house", passage])


def test_malformed_calls_are_refused(reranker: Reranker) -> None:
    with pytest.raises(InputError, match="pair 0"):
        reranker.score(["house"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="one string"):
        reranker.rank(QUERY, "house")
    with pytest.raises(QueryError, match="k must be"):
        reranker.rank(QUERY, ["house"], k=0)
    with pytest.raises(InputError, match="one string"):
        reranker.tokenize("house")


def test_limits_can_be_changed_up_to_what_the_model_reads(folder: Path) -> None:
    reranker = Reranker.load(str(folder), max_tokens=32)
    assert reranker.max_tokens == 32
    wide = Reranker.load(str(folder), max_tokens=64)
    pair = (QUERY, "trees " * 80)
    assert wide.score([pair])[0] == pytest.approx(expected_logit(wide, *pair, room=61), rel=1e-5)
    with pytest.raises(ModelError, match="at most 64"):
        Reranker.load(str(folder), max_tokens=65)


def test_truncation_is_chosen_at_loading(folder: Path) -> None:
    pair = ("river " * 30, "trees " * 5)
    first = Reranker.load(str(folder), truncation="longest_first")
    assert first.score([pair])[0] == pytest.approx(expected_logit(first, *pair, query_limit=16), rel=1e-5)
    with pytest.raises(InputError, match="truncation"):
        Reranker.load(str(folder), truncation="middle")  # type: ignore[arg-type]


def test_threads_share_a_reranker(reranker: Reranker) -> None:
    pairs = [(QUERY, passage) for passage in PASSAGES]
    expected = reranker.score(pairs)
    problems: list[object] = []

    def work() -> None:
        try:
            for _ in range(20):
                np.testing.assert_array_equal(reranker.score(pairs), expected)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_what_the_files_say_is_exposed(folder: Path, tmp_path: Path, reranker: Reranker) -> None:
    assert (reranker.name, reranker.max_tokens, reranker.fusion_weight) == ("tiny", 24, 0.25)
    plain = Reranker.load(str(write_tiny_reranker(tmp_path, fusion=None, max_tokens=30)))
    assert plain.fusion_weight is None
    assert plain.tokenizer_identity == reranker.tokenizer_identity != reranker.identity
    assert plain.identity != reranker.identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "exported in float32"),
        ({"backend": "torch"}, "backend 'onnx'"),
        ({"device": "cuda"}, "cuda"),
    ],
)
def test_what_a_backend_cannot_do_is_an_error(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Reranker.load(str(folder), **options)


def test_a_wrong_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="kind 'reranker'"):
        Reranker.load(str(write_tiny_reranker(tmp_path, kind="encoder")))
    without = {key: value for key, value in description().items() if key != "graph"}
    (tmp_path / "reranker.json").write_text(json.dumps(without))
    with pytest.raises(ModelError, match="'graph' is missing"):
        Reranker.load(str(tmp_path))
