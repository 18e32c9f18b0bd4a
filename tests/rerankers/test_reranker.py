"""`Reranker` over a graph that can be computed by hand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval import Encoder, Passage, Reranker
from hybrid_retrieval.errors import InputError, ModelError, QueryError
from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.time_limits import OutOfTime
from tests.rerankers.tiny_reranker import NAN_WORD, description, logit, write_tiny_reranker

native = pytest.mark.skipif(dispatch.variant() == dispatch.NUMPY, reason="needs the compiled kernels")
QUERY = "which river"
PASSAGES = ["the river runs by the house", "a house", "trees " * 40, "old men walk", "why"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_reranker(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def reranker(folder: Path) -> Reranker:
    """Cuts long passages, as FlagReranker does."""
    return Reranker.load(str(folder), threads=1, long_passages="cut")


def expected_logit(
    reranker: Reranker, query: str, passage: str, room: int = 21, query_limit: int = 8, start: int = 0
) -> float:
    """start: the passage's first token that is read."""
    query_ids, passage_ids = ([*row] for row in reranker.tokenize([query, passage]))
    query_ids = query_ids[:query_limit]
    passage_ids = passage_ids[start : start + room - len(query_ids)]
    return logit([101, *query_ids, 102, *passage_ids, 102], len(query_ids) + 2)


def test_logits_come_in_input_order_with_types_and_cuts(reranker: Reranker) -> None:
    pairs = [(QUERY, passage) for passage in PASSAGES] + [("river " * 30, "trees " * 30)]
    found = reranker.score(pairs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [expected_logit(reranker, *pair) for pair in pairs], rtol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 30, 100_000])
def test_the_batch_budget_changes_nothing(folder: Path, reranker: Reranker, batch_tokens: int) -> None:
    pairs = [(QUERY, passage) for passage in PASSAGES]
    found = Reranker.load(str(folder), batch_tokens=batch_tokens, long_passages="cut").score(pairs)
    np.testing.assert_allclose(found, reranker.score(pairs), rtol=1e-5)


def test_stored_tokens_score_as_text_does(reranker: Reranker) -> None:
    tokens = reranker.tokenize(PASSAGES)
    assert tokens.data.dtype == np.int32 and tokens.lengths[2] == 40
    pairs = reranker.pair(QUERY, tokens)
    (logits,) = reranker.scorer.score_pairs([pairs])
    np.testing.assert_array_equal(logits, reranker.score([(QUERY, passage) for passage in PASSAGES]))
    assert int((pairs.query_cut | pairs.passage_cut).sum()) == 1


def test_groups_score_as_each_query_does(folder: Path, reranker: Reranker) -> None:
    tokens = reranker.tokenize(PASSAGES)
    groups = [
        reranker.pair(QUERY, tokens),
        reranker.pair("old men", tokens.take([3, 2])),
        reranker.pair("why", tokens.take([])),
        reranker.pair("walk " * 20, tokens.take([1])),
    ]
    found = reranker.scorer.score_pairs(groups)
    assert [len(logits) for logits in found] == [5, 2, 0, 1]
    assert [int((pairs.query_cut | pairs.passage_cut).sum()) for pairs in groups] == [1, 1, 0, 1]
    apart = Reranker.load(str(folder), long_passages="cut", cached_pairs=0)
    for logits, pairs in zip(found, groups, strict=True):
        np.testing.assert_allclose(logits, apart.scorer.score_pairs([pairs])[0], rtol=1e-5)


def test_a_part_of_the_pairs_is_scored_as_in_the_whole(reranker: Reranker) -> None:
    pairs = reranker.pair(QUERY, reranker.tokenize(PASSAGES))
    whole, part = reranker.scorer.score_pairs([pairs, pairs.part(1, 4)])
    np.testing.assert_array_equal(part, whole[1:4])
    assert len(pairs.part(2, 2)) == 0


def test_pairs_of_several_queries_share_batches_and_each_query_is_tokenised_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = Reranker.load(str(folder), batch_tokens=1000)
    calls: list[tuple[int, ...]] = []
    forward = reranker.scorer.backend.forward
    monkeypatch.setattr(
        reranker.scorer.backend,
        "forward",
        lambda ids, *rest: calls.append(ids.shape) or forward(ids, *rest),
    )
    asked: list[str] = []
    encode = reranker._tokenizer.encode

    class Counting:
        encode_batch = staticmethod(reranker._tokenizer.encode_batch)

        @staticmethod
        def encode(text: str, **options: Any) -> Any:
            asked.append(text)
            return encode(text, **options)

    monkeypatch.setattr(reranker, "_tokenizer", Counting)
    queries = ["which river", "old men", "why"]
    reranker.score([(query, passage) for passage in PASSAGES[:2] for query in queries])
    assert len(calls) == 1 and calls[0][0] == 6
    assert sorted(asked) == sorted(queries)


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
    none = reranker.pair(QUERY, Ragged.from_rows([], dtype=np.int32))
    (empty,) = reranker.scorer.score_pairs([none])
    assert empty.shape == (0,) and not (none.query_cut | none.passage_cut).any()


def test_a_nan_names_the_pair(reranker: Reranker) -> None:
    with pytest.raises(ModelError, match=r"tiny gave the logit nan for pair 2 of 4 with the query 'which river'"):
        reranker.score([(QUERY, "house"), ("why", "house"), (QUERY, f"a {NAN_WORD} house"), (QUERY, "river")])
    with pytest.raises(ModelError, match=r"logit nan for passage 'b' with the query 'which river'"):
        reranker.rank(QUERY, [Passage("a", "house"), Passage("b", f"trees {NAN_WORD}")])


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_logit_names_the_pair_and_is_not_remembered(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(reranker.scorer.backend, "forward", lambda *_: np.array([1.0, value], np.float32))
        with pytest.raises(ModelError, match=r"logit -?inf for passage '1'"):
            reranker.rank(QUERY, ["a house", "why"])
    assert np.isfinite(reranker.rank(QUERY, ["a house", "why"]).scores).all()


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


class Table:
    """Iterates over the names of its columns, as a data frame does."""

    columns = ("_id", "text")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "house", "title": float("nan")}, "expected 'title' to be a string"),
        ({"_id": None, "text": "house"}, "expected '_id' to be a string or an integer"),
        ({"title": "house"}, "no text"),
    ],
)
def test_rank_reads_records_as_a_corpus_does(reranker: Reranker, record: dict[str, Any], message: str) -> None:
    same = [{"docid": "a", "contents": "house", "metadata": {"year": 3}}, {"_id": np.int64(7), "text": "river"}]
    found = reranker.rank(QUERY, same)
    assert set(found.ids) == {"a", "7"} and found[found.ids.index("a")].metadata == {"year": 3}
    with pytest.raises(InputError, match=f"passage 1.*{message}"):
        reranker.rank(QUERY, ["house", record])


def test_hits_of_another_ranking_are_ranked(reranker: Reranker) -> None:
    first = reranker.rank(QUERY, [Passage("b", "house", "the river", {"year": 3}), Passage("a", "trees")], k=1)
    again = reranker.rank(QUERY, first)
    assert again[0].passage_id == first.ids[0] and again[0].metadata == first[0].metadata
    assert again[0].score == first[0].score


def test_malformed_calls_are_refused(reranker: Reranker) -> None:
    with pytest.raises(InputError, match="pair 0"):
        reranker.score(["house"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="one string"):
        reranker.rank(QUERY, "house")
    for mapping in ({"_id": "a", "text": "house"}, {"a": "house", "b": "river"}):
        with pytest.raises(InputError, match="a sequence of passages; got dict"):
            reranker.rank(QUERY, mapping)
    for pairs in (None, 5, "house"):
        with pytest.raises(InputError, match="score takes a sequence of"):
            reranker.score(pairs)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="tokenize takes a sequence of"):
            reranker.tokenize(pairs)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="passage 1 has the id '0' of passage 0"):
        reranker.rank(QUERY, ["house", {"_id": "0", "text": "river"}])
    for model in (None, 5, "", b"x"):
        with pytest.raises(InputError, match="a model must be a path"):
            Reranker.load(model)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got Table"):
        reranker.rank(QUERY, Table())
    with pytest.raises(QueryError, match="k must be"):
        reranker.rank(QUERY, ["house"], k=0)
    with pytest.raises(InputError, match="one string"):
        reranker.tokenize("house")


def test_limits_can_be_changed_up_to_what_the_model_reads(folder: Path) -> None:
    reranker = Reranker.load(str(folder), max_tokens=32)
    assert reranker.max_tokens == 32
    wide = Reranker.load(str(folder), max_tokens=64, long_passages="cut")
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long_passages": "first"}, "long_passages must be one of max, mean, cut"),
        ({"window_overlap": -1}, "0 or more"),
        ({"max_passage_tokens": -1}, "0 or more"),
        ({"long_passages": "cut", "max_passage_tokens": 9}, "set max_tokens instead"),
        ({"cached_pairs": -1}, "0 or more"),
        ({"max_tokens": 3}, "at least 16, got 3"),
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda, got 'gpu'"),
        ({"backend": "jax"}, "backend must be one of"),
    ],
)
def test_impossible_options_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Reranker.load(str(folder), **options)


# 50 tokens beside a query of 2 leave windows of 19: 0, 13 and 26 start one with an overlap of 6, and 31 the last.
LONG = "the river runs by the house where old men walk " * 5
STARTS = (0, 13, 26, 31)


@pytest.mark.parametrize(("policy", "pool"), [("max", np.max), ("mean", np.mean)])
def test_a_long_passage_is_scored_by_its_windows(folder: Path, policy: Any, pool: Any) -> None:
    reranker = Reranker.load(str(folder), long_passages=policy, window_overlap=6)
    windows = [expected_logit(reranker, QUERY, LONG, start=start) for start in STARTS]
    short = expected_logit(reranker, QUERY, "a house")
    assert len(set(windows)) == len(STARTS)
    pairs = [(QUERY, "a house"), (QUERY, LONG)]
    np.testing.assert_allclose(reranker.score(pairs), [short, pool(windows)], rtol=1e-5)
    ranking = reranker.rank(QUERY, [Passage("short", "a house"), Passage("long", LONG)])
    assert dict(zip(ranking.ids, ranking.scores, strict=True))["long"] == reranker.score(pairs)[1]
    assert np.diff(reranker.pair(QUERY, reranker.tokenize(["a house", LONG])).offsets).tolist() == [1, 4]


def test_windows_are_noted_where_no_pair_could_hold_the_passage(folder: Path, tmp_path: Path) -> None:
    reranker = Reranker.load(str(folder))
    assert reranker.rank(QUERY, [LONG, "a house"]).notes == ()
    (note,) = reranker.rank(QUERY, [LONG * 2, LONG, "a house"]).notes
    assert "1 of 3 passages did not fit a pair of 64 tokens" in note and "windows, scored by their best" in note
    write_tiny_reranker(tmp_path, longest_tokens=40)
    shorter = Reranker.load(str(tmp_path))
    assert len(shorter.rank(QUERY, [LONG]).notes) == 1 and shorter.identity == reranker.identity


def test_windows_read_every_token_unless_told_to_stop(folder: Path) -> None:
    """The last word of a long passage reaches a window; a limit leaves it out, and a note says so."""
    needle = LONG + NAN_WORD
    with pytest.raises(ModelError, match="logit nan"):
        Reranker.load(str(folder)).rank(QUERY, [needle])
    limited = Reranker.load(str(folder), max_passage_tokens=30)
    ranking = limited.rank(QUERY, [needle, "a house"])
    assert "1 of 2 passages were cut at 30 tokens" in ranking.notes
    assert ranking.scores.tolist() == limited.rank(QUERY, [" ".join(LONG.split()[:30]), "a house"]).scores.tolist()


def test_windows_stay_under_the_batch_budget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = Reranker.load(str(folder), batch_tokens=50)
    sizes: list[int] = []
    forward = reranker.scorer.backend.forward
    monkeypatch.setattr(
        reranker.scorer.backend, "forward", lambda ids, *rest: sizes.append(ids.size) or forward(ids, *rest)
    )
    reranker.score([(QUERY, LONG * 4)])
    assert len(sizes) > 3 and max(sizes) <= 50


@pytest.mark.parametrize("truncation", ["only_second", "longest_first"])
def test_a_query_that_is_cut_is_noted(folder: Path, truncation: Any) -> None:
    reranker = Reranker.load(str(folder), truncation=truncation)
    ranking = reranker.rank("river " * 30, [LONG, "house"])
    assert any("the query was cut in 2 of 2 pairs" in note for note in ranking.notes)


def test_a_passage_that_fits_is_scored_alike_under_every_policy(folder: Path) -> None:
    pairs = [(QUERY, passage) for passage in PASSAGES if len(passage) < 60]
    scores = [Reranker.load(str(folder), long_passages=policy).score(pairs) for policy in ("max", "mean", "cut")]
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])


def test_a_passage_that_the_tokenizer_drops_is_scored_as_an_empty_one(reranker: Reranker) -> None:
    (empty,) = reranker.scorer.score_pairs([reranker.pair(QUERY, Ragged.from_rows([[], [5]], dtype=np.int32))])
    query_ids = [*reranker.tokenize([QUERY])[0]]
    assert empty[0] == pytest.approx(logit([101, *query_ids, 102, 102], len(query_ids) + 2), rel=1e-5)


@pytest.mark.parametrize("query", ["\ue000", "\ufffd"])
def test_a_query_that_the_tokenizer_drops_is_scored_as_an_empty_one(reranker: Reranker, query: str) -> None:
    passage = PASSAGES[0]
    (ids,) = reranker.tokenize([passage])
    assert reranker.score([(query, passage)])[0] == pytest.approx(logit([101, 102, *ids, 102], 2), rel=1e-5)


def test_scores_are_remembered_by_tokens_and_change_nothing(folder: Path) -> None:
    plain, caching = Reranker.load(str(folder), cached_pairs=0), Reranker.load(str(folder), cached_pairs=100)
    pairs = [(QUERY, passage) for passage in [*PASSAGES, LONG]]
    for _ in range(2):
        np.testing.assert_array_equal(caching.score(pairs), plain.score(pairs))
    # 4 short passages and the windows of two long ones: 4 and 5, of which 1 and 2 differ.
    windows = 4 + 4 + 5
    assert caching.cache_info() == (windows, windows, 4 + 1 + 2, 100)
    assert plain.cache_info() == (0, 0, 0, 0)
    other = caching.score([("why " + QUERY, passage) for passage in PASSAGES])
    assert caching.cache_info().hits == windows and not np.array_equal(other, caching.score(pairs)[:5])


def warmed(reranker: Reranker) -> Reranker:
    reranker.score([("a", "b")])
    return reranker


def test_the_time_of_pairs_is_predicted_from_batches_before(folder: Path) -> None:
    reranker = warmed(Reranker.load(str(folder)))
    pairs = reranker.pair(QUERY, reranker.tokenize(PASSAGES))
    assert reranker.scorer.predict_seconds(pairs) is None
    reranker.score([("a", "c")])
    alone, all_of_them = reranker.scorer.predict_seconds(pairs.part(1, 2)), reranker.scorer.predict_seconds(pairs)
    assert alone is not None and all_of_them is not None and 0 < alone < all_of_them
    reranker.scorer.score_pairs([pairs])
    assert reranker.scorer.predict_seconds(pairs) == 0, "what is remembered costs nothing"


def test_rows_are_paid_for_by_the_lane(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two lanes, one idles while the other works on a third row."""
    reranker = warmed(Reranker.load(str(folder)))
    monkeypatch.setattr(reranker.scorer, "lanes", 2)
    reranker.score([("a", "c")])
    pairs = reranker.pair(QUERY, reranker.tokenize(["a house"] * 4))
    seconds = [reranker.scorer.predict_seconds(pairs.part(0, count)) for count in (1, 2, 3, 4)]
    assert seconds[0] == seconds[1] < seconds[2] == seconds[3]  # type: ignore[operator]


@pytest.mark.parametrize("backend", ["onnx", pytest.param("native", marks=native)])
@pytest.mark.parametrize("count", [1, 12])
def test_a_batch_is_stopped_at_its_time(backend: str, count: int) -> None:
    """Amid a run that would last much longer; the next one is as if nothing had been."""
    reranker = Reranker.load(backend=backend, cached_pairs=0)
    pairs = reranker.pair(QUERY, reranker.tokenize(["the river runs by the old house " * 60] * count))
    began = time.perf_counter()
    whole = reranker.scorer.score_pairs([pairs])[0]
    half = (time.perf_counter() - began) / 2
    began = time.perf_counter()
    with pytest.raises(OutOfTime):
        reranker.scorer.score_pairs([pairs], began + half / 10)
    assert time.perf_counter() - began < half
    again = reranker.scorer.score_pairs([pairs], time.perf_counter() + 600)[0]
    np.testing.assert_allclose(again, whole, atol=0 if backend == "native" else 1e-5)


@native
def test_an_error_of_its_own_is_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = Reranker.load(backend="native", cached_pairs=0, threads=2)
    trunk = reranker.scorer.backend._trunk  # type: ignore[attr-defined]
    run = trunk._run

    def failing(rows: Any, *rest: Any) -> Any:
        if min(map(len, rows)) < 20:
            raise MemoryError("no more")
        return run(rows, *rest)

    monkeypatch.setattr(trunk, "_run", failing)
    pairs = reranker.pair(QUERY, reranker.tokenize(["the river runs by the old house " * 60, "a house"]))
    for ends in (float("inf"), time.perf_counter() + 600):
        with pytest.raises(MemoryError):
            reranker.scorer.score_pairs([pairs], ends)


@pytest.mark.parametrize("backend", ["onnx", pytest.param("native", marks=native)])
def test_an_end_beyond_what_the_system_can_wait_for_is_none(folder: Path, backend: str) -> None:
    reranker = Reranker.load(backend=backend, cached_pairs=0)
    pairs = reranker.pair(QUERY, reranker.tokenize(["a house"] * 4))
    assert len(reranker.scorer.score_pairs([pairs], 1e300)[0]) == 4


@native
def test_a_deadline_passes_in_the_queue_behind_others_too() -> None:
    """Of two threads that share the model, one holds its workers."""
    reranker = Reranker.load(backend="native", cached_pairs=0, threads=2)
    pairs = reranker.pair(QUERY, reranker.tokenize(["the river runs by the old house " * 60] * 20))
    began = time.perf_counter()
    reranker.scorer.score_pairs([pairs])
    whole = time.perf_counter() - began
    other = threading.Thread(target=reranker.scorer.score_pairs, args=([pairs],))
    other.start()
    began = time.perf_counter()
    with pytest.raises(OutOfTime):
        reranker.scorer.score_pairs([pairs.part(0, 2)], began + whole / 20)
    assert time.perf_counter() - began < whole / 2
    other.join()


class OutOfMemoryError(RuntimeError):
    """Named as torch's is."""


def test_out_of_memory_halves_the_batch_and_goes_on(
    folder: Path, reranker: Reranker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = Reranker.load(str(folder), batch_tokens=400, cached_pairs=0)
    forward = small.scorer.backend.forward

    def limited(ids: Any, *rest: Any) -> Any:
        if ids.size > 60:
            raise OutOfMemoryError("CUDA out of memory")
        return forward(ids, *rest)

    monkeypatch.setattr(small.scorer.backend, "forward", limited)
    pairs = [(QUERY, passage) for passage in PASSAGES if len(passage) < 60] * 8
    for _ in range(2):
        np.testing.assert_allclose(small.score(pairs), reranker.score(pairs), rtol=1e-5)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "out of memory" in caplog.text
    monkeypatch.setattr(small.scorer.backend, "forward", lambda *_: (_ for _ in ()).throw(OutOfMemoryError("full")))
    with pytest.raises(ModelError, match="not enough memory on the device for a single row of"):
        small.score(pairs)


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
    with pytest.raises(ModelError, match=r"'fusion' must be an object, got 0\.5"):
        Reranker.load(str(write_tiny_reranker(tmp_path, fusion=0.5)))
    for weight in ("x", 2, True, float("nan")):
        with pytest.raises(ModelError, match=r"fusion\.weight must be a number from 0 to 1"):
            Reranker.load(str(write_tiny_reranker(tmp_path, fusion={"weight": weight})))
    for changes in ({"max_tokens": 4}, {"max_query_tokens": 0}, {"max_tokens": 99}, {"max_query_tokens": 21}):
        with pytest.raises(ModelError, match="leave no room for query and passage"):
            Reranker.load(str(write_tiny_reranker(tmp_path, **changes)))
    with pytest.raises(ModelError, match="'tokenizer' must be a string, got None"):
        Reranker.load(str(write_tiny_reranker(tmp_path, tokenizer=None)))
    without = {key: value for key, value in description().items() if key != "graph"}
    (tmp_path / "reranker.json").write_text(json.dumps(without))
    with pytest.raises(ModelError, match="'graph' is missing"):
        Reranker.load(str(tmp_path))


def test_white_space_at_the_end_of_a_text_is_no_token() -> None:
    """XLM-R's tokenizer, run alone, makes one of it."""
    embedded = Reranker.load("embedded")
    plain, spaced = embedded.score([("what is a panda", "A bear."), ("what is a panda \n", "A bear. \n")])
    assert plain == spaced
    rows = embedded.tokenize(text for text in ("A bear.", "A bear.\u3000"))
    assert rows[0].tolist() == rows[1].tolist() != []
    encoder = Encoder.load("embedded")
    for encode in (encoder.encode_queries, encoder.encode_passages):
        one, other = encode(["what is a panda", "what is a panda \n"])
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("backend", ["onnx", pytest.param("native", marks=native)])
def test_markup_in_a_text_ends_no_part_of_it_for_the_embedded_model(backend: Any) -> None:
    """A page's <s>struck out</s> is read by the tokenizer as the markers that stand around query and passage."""
    embedded = Reranker.load("embedded", backend=backend)
    answers = ["The price was 12. It is 9 dollars since May.", "The price was <s>12</s>. It is 9 dollars since May."]
    other = "The river rises in the north and flows into the sea."
    for question in ("How much is it since May?", "<s>How many</s> How much is it since May?"):
        plain, marked, least = embedded.score([(question, text) for text in (*answers, other)])
        assert marked - least > 0.8 * (plain - least) > 0
