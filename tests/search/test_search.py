"""Search: exact against brute force, pruned against exact, ties, edges, deletes, damage, bad input."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval.builder import build_from_vectors
from hybrid_retrieval.errors import ArrayError, IndexDamagedError, QueryError
from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.kernels.reference import maxsim
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.search import Searcher, steps
from hybrid_retrieval.search.native import NativeCodec
from hybrid_retrieval.search.searcher import Width, _needed
from hybrid_retrieval.storage import Snapshot
from hybrid_retrieval.types import best_first
from tests.support import clustered, random_unit, unit

PASSAGES = clustered([int(n) for n in np.random.default_rng(3).integers(5, 60, 600)], 64, topics=300)


def make(path: Path, rows: Ragged, **options: int) -> Searcher:
    build_from_vectors(path, [f"p{i}" for i in range(len(rows))], rows.data, rows.offsets, **options)
    return Searcher(Snapshot.open(path))


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return make(tmp_path_factory.mktemp("search") / "index", PASSAGES)


@pytest.fixture(params=[10**9, 0], ids=["every window", "by lists"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index small enough to approximate every window of, or one that goes through the lists."""
    monkeypatch.setattr("hybrid_retrieval.search.searcher.TOKENS_WITHOUT_LISTS", request.param)


either_size = pytest.mark.usefixtures("size")


def query_for(row: int, seed: int = 0, length: int = 8) -> np.ndarray:
    random = np.random.default_rng(seed)
    tokens = PASSAGES[row][random.integers(0, len(PASSAGES[row]), length)]
    return unit(tokens + 0.1 * random.standard_normal(tokens.shape))


def decoded(searcher: Searcher) -> Ragged:
    rows = [np.concatenate(searcher.snapshot.token_vectors(i)) for i in range(len(PASSAGES))]
    return Ragged.from_rows(rows)


@pytest.mark.parametrize("kernels", dispatch.variants())
def test_exact_search_is_maxsim_over_the_decoded_vectors(
    searcher: Searcher, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, kernels)
    searcher = Searcher(searcher.snapshot)
    # The native kernels work on 4,095 levels or so: a similarity is off by a few millionths.
    tolerance = {"rtol": 1e-5} if kernels == dispatch.NUMPY else {"rtol": 0, "atol": 2.5e-4}
    vectors = decoded(searcher)
    for row in (0, 17, 599):
        query = query_for(row, row)
        expected = maxsim(query, vectors)
        rows, scores, _ = searcher.search(query, k=600, exact=True)
        assert rows[0] == row
        np.testing.assert_allclose(scores, expected[rows], **tolerance)
        np.testing.assert_array_equal(np.sort(rows), np.arange(600))
        assert np.all(np.diff(scores) <= 0)


@either_size
@pytest.mark.parametrize("k", [1, 10, 100])
def test_where_centroids_are_many_the_scores_are_the_very_same(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    queries = [query_for(row, row) for row in range(0, 600, 60)]
    exact = [searcher.search(query, k=600, exact=True) for query in queries]
    few = [searcher.search(query, k=k) for query in queries]
    rough: list[bool] = []
    score = NativeCodec.scores

    def seen(codec: NativeCodec, query: np.ndarray, centroid: Any, *others: Any) -> np.ndarray:
        rough.append(centroid.known is not None)
        return score(codec, query, centroid, *others)

    monkeypatch.setattr(NativeCodec, "scores", seen)
    monkeypatch.setattr("hybrid_retrieval.search.native.MANY_CENTROIDS", 1)
    monkeypatch.setattr("hybrid_retrieval.search.native.CENTROIDS_A_TOKEN", 0)
    many = [searcher.search(query, k=k, threads=1 + i % 2) for i, query in enumerate(queries)]
    assert set(rough) == ({searcher._native._codec.rough_levels} if searcher._native is not None else set())
    same = 0
    for (rows, scores, _), one, every in zip(many, few, exact, strict=True):
        by_row = dict(zip(every.rows.tolist(), every.scores.tolist(), strict=True))
        assert [by_row[row] for row in rows.tolist()] == scores.tolist()
        same += len(np.intersect1d(rows, one.rows))
    assert same >= 0.98 * k * 10


@either_size
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_queries_searched_together_find_what_each_finds_alone(searcher: Searcher, threads: int, exact: bool) -> None:
    queries = [query_for(row, row, length=1 + row % 20) for row in range(0, 600, 60)]
    together = searcher.search_batch(queries, k=20, threads=threads, exact=exact, bound=True)
    for query, found in zip(queries, together, strict=True):
        rows, scores, bound = searcher.search(query, k=20, threads=1, exact=exact, bound=True)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_array_equal(found.scores, scores)
        assert found.recall_bound == bound
    assert searcher.search_batch([], k=20, threads=threads) == []


@either_size
@pytest.mark.parametrize("k", [1, 10, 50, 100])
def test_default_search_finds_what_exact_search_finds_with_the_very_scores(searcher: Searcher, k: int) -> None:
    found = 0
    for row in range(0, 600, 40):
        query = query_for(row, row)
        rows, scores, _ = searcher.search(query, k=k)
        exact_rows, *_ = searcher.search(query, k=k, exact=True)
        all_rows, all_scores, _ = searcher.search(query, k=600, exact=True)
        by_row = dict(zip(all_rows.tolist(), all_scores.tolist(), strict=True))
        assert [by_row[r] for r in rows.tolist()] == scores.tolist()
        assert len(rows) == k
        found += len(set(rows.tolist()) & set(exact_rows.tolist()))
    assert found >= 0.95 * k * 15


@either_size
def test_probing_every_centroid_and_keeping_all_candidates_is_exact(searcher: Searcher) -> None:
    query = query_for(5)
    pruned = searcher.search(query, k=50, nprobe=2**64, num_candidates=599)
    exact = searcher.search(query, k=50, exact=True)
    np.testing.assert_array_equal(pruned[0], exact[0])
    np.testing.assert_array_equal(pruned[1], exact[1])


@either_size
@pytest.mark.parametrize("k", [600, 601, 10_000])
def test_k_at_or_beyond_the_collection_returns_everything(searcher: Searcher, k: int) -> None:
    rows, *_ = searcher.search(query_for(1), k=k)
    assert sorted(rows.tolist()) == list(range(600))


@either_size
def test_the_narrowest_search_still_returns_k(searcher: Searcher) -> None:
    rows, scores, _ = searcher.search(query_for(1), k=400, nprobe=1, num_candidates=1)
    assert len(set(rows.tolist())) == 400
    assert np.all(np.isfinite(scores))


def test_nothing_carries_over_from_one_call_to_the_next(searcher: Searcher) -> None:
    query = query_for(2)
    before = searcher.search(query, k=10)
    searcher.search(query, k=500, nprobe=3)
    after = searcher.search(query, k=10)
    np.testing.assert_array_equal(before[0], after[0])


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
def test_threads_change_nothing(searcher: Searcher, threads: int) -> None:
    query = query_for(3)
    expected = searcher.search(query, k=300, exact=True, threads=1)
    found = searcher.search(query, k=300, exact=True, threads=threads)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_many_threads_share_a_searcher(searcher: Searcher) -> None:
    queries = [query_for(row) for row in range(24)]
    expected = [searcher.search(query, k=10)[0].tolist() for query in queries]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda q: searcher.search(q, k=10)[0].tolist(), queries)) == expected


def test_one_passage_of_one_token(tmp_path: Path) -> None:
    vector = random_unit(1, 64)
    rows, scores, _ = make(tmp_path / "x", Ragged.from_rows([vector])).search(vector, k=10)
    assert rows.tolist() == [0]
    np.testing.assert_allclose(scores, [1], atol=1e-5)


@either_size
@pytest.mark.parametrize("copies", [10, 1000])
def test_identical_passages_tie_and_stand_in_row_order(tmp_path: Path, copies: int) -> None:
    passage = clustered([7], 64)[0]
    searcher = make(tmp_path / "x", Ragged.from_rows([passage] * copies))
    for exact in (True, False):
        rows, scores, _ = searcher.search(random_unit(3, 64, 5), k=9, exact=exact)
        assert rows.tolist() == list(range(9))
        assert len(set(scores.tolist())) == 1


@either_size
def test_passages_without_vectors_are_never_found(tmp_path: Path) -> None:
    searcher = make(tmp_path / "x", clustered([0, 4, 0, 0, 3, 1, 0], 64))
    for exact in (True, False):
        rows, scores, _ = searcher.search(random_unit(3, 64), k=7, exact=exact)
        assert sorted(rows.tolist()) == [1, 4, 5]
        assert np.all(np.isfinite(scores))


def test_negative_similarities_order_passages(tmp_path: Path) -> None:
    query = random_unit(1, 64)
    away = unit(-query + 0.9 * random_unit(1, 64, 1))
    searcher = make(tmp_path / "x", Ragged.from_rows([-query, away]), nbits=8)
    rows, scores, _ = searcher.search(query, k=2)
    assert rows.tolist() == [1, 0]
    assert scores[0] < 0
    np.testing.assert_allclose(scores, [float((query @ away.T)[0, 0]), -1], atol=0.02)


@pytest.mark.parametrize("dimensions", [64, 96, 128, 1024])
@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_every_width_finds_a_passage_by_its_own_vectors(tmp_path: Path, dimensions: int, nbits: int) -> None:
    rows = clustered([6] * 40, dimensions)
    searcher = make(tmp_path / "x", rows, nbits=nbits)
    for row in (0, 20, 39):
        assert searcher.search(rows[row], k=3)[0][0] == row


def with_deleted(searcher: Searcher, rows: list[int]) -> Searcher:
    snapshot = searcher.snapshot
    deleted = np.zeros(len(PASSAGES), np.bool_)
    deleted[rows] = True
    segment = dataclasses.replace(snapshot.segments[0], deleted=deleted)
    return Searcher(Snapshot(snapshot.path, snapshot.manifest, snapshot.codec, (segment,)))


@either_size
def test_deleted_passages_are_left_out_before_pruning(searcher: Searcher) -> None:
    query = query_for(8)
    best = searcher.search(query, k=600, exact=True)[0].tolist()
    remaining = with_deleted(searcher, best[:300])
    assert remaining.snapshot.num_passages == 300
    assert remaining.search(query, k=20, exact=True)[0].tolist() == best[300:320]
    assert len(set(remaining.search(query, k=20)[0].tolist()) & set(best[300:320])) >= 17
    assert sorted(remaining.search(query, k=1000)[0].tolist()) == sorted(best[300:])
    assert remaining.snapshot.row_of(f"p{best[0]}") is None


@either_size
def test_segments_are_searched_as_one_index(searcher: Searcher) -> None:
    one = searcher.snapshot
    second = dataclasses.replace(one.segments[0], row_base=600, window_base=one.num_windows)
    both = Searcher(Snapshot(one.path, one.manifest, one.codec, (one.segments[0], second)))
    query = query_for(9)
    alone, scores, _ = searcher.search(query, k=5)
    rows, twice, _ = both.search(query, k=10)
    assert rows.tolist() == [r for row in alone.tolist() for r in (row, row + 600)]
    assert twice.tolist() == np.repeat(scores, 2).tolist()
    assert both.snapshot.passage_id(int(alone[0]) + 600) == both.snapshot.passage_id(int(alone[0]))


@either_size
def test_a_segment_that_is_mostly_deleted_beside_a_whole_one(searcher: Searcher) -> None:
    one = searcher.snapshot
    deleted = np.arange(600) % 10 > 0
    first = dataclasses.replace(one.segments[0], deleted=deleted)
    second = dataclasses.replace(one.segments[0], row_base=600, window_base=one.num_windows)
    both = Searcher(Snapshot(one.path, one.manifest, one.codec, (first, second)))
    for row in (3, 250, 590):
        exact = both.search(query_for(row), k=20, exact=True)
        found = both.search(query_for(row), k=20)
        assert len(set(exact.rows.tolist()) & set(found.rows.tolist())) >= 19
        assert not any(r < 600 and r % 10 for r in found.rows.tolist())


def test_approximate_scores_with_every_centroid_are_maxsim_over_centroids(searcher: Searcher) -> None:
    (segment,) = searcher.snapshot.segments
    centroids, query = searcher.snapshot.codec.centroids, query_for(4)
    scores = steps.centroid_scores(query, centroids)
    found = steps.candidate_windows(scores, segment.lists, segment.list_offsets, len(centroids), None)
    expected = maxsim(query, Ragged(centroids[segment.codes], segment.token_offsets))
    assert found.windows.tolist() == list(range(segment.num_windows))
    np.testing.assert_allclose(steps.approximate_scores(found), expected, rtol=1e-4, atol=1e-4)


def test_a_missing_similarity_is_bounded_by_the_last_probed_centroid(searcher: Searcher) -> None:
    (segment,) = searcher.snapshot.segments
    centroids, query = searcher.snapshot.codec.centroids, query_for(4)
    scores = steps.centroid_scores(query, centroids)
    found = steps.candidate_windows(scores, segment.lists, segment.list_offsets, 4, None)
    full = maxsim(query, Ragged(centroids[segment.codes], segment.token_offsets))
    assert np.all(steps.approximate_scores(found) >= full[found.windows] - 1e-4)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.zeros((2, 63), np.float32), r"\[Lq, 64\]"),
        (np.zeros(64, np.float32), r"\[Lq, 64\]"),
        (np.zeros((2, 64), np.int32), "float array"),
        (np.zeros((0, 64), np.float32), "at least one row"),
        (np.full((2, 64), np.nan, np.float32), "finite"),
        (np.full((2, 64), 3e38, np.float32), "shorter than 1e"),
        (np.full((2, 64), 1e40), "shorter than 1e"),
        ([[0.0] * 64], "got list"),
    ],
)
def test_impossible_queries_are_refused(searcher: Searcher, query: np.ndarray, message: str) -> None:
    with pytest.raises(ArrayError, match=message):
        searcher.search(query, k=3)


@pytest.mark.parametrize(
    "options",
    [{"k": 0}, {"k": -1}, {"k": 1.5}, {"k": True}, {"k": 1, "nprobe": -1}, {"k": 1, "num_candidates": -2}],
)
def test_impossible_numbers_are_refused(searcher: Searcher, options: dict[str, int]) -> None:
    with pytest.raises(QueryError, match="whole number"):
        searcher.search(query_for(0), **options)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("k", [np.int8(100), np.uint8(3), np.int16(900)])
def test_small_numbers_of_numpy_do_not_overflow(searcher: Searcher, k: np.integer, exact: bool) -> None:
    query = random_unit(4, 64)
    found = searcher.search(query, k=k, num_candidates=np.uint8(200), exact=exact)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.rows, searcher.search(query, k=int(k), num_candidates=200, exact=exact).rows)
    assert len(searcher.search(query, k=k, exact=exact).rows) == len(searcher.search(query, k=int(k)).rows)  # type: ignore[arg-type]


def test_half_precision_queries_are_taken(searcher: Searcher) -> None:
    query = query_for(0)
    assert searcher.search(query.astype(np.float16), k=1)[0].tolist() == searcher.search(query, k=1)[0].tolist()


def test_codes_beyond_the_centroids_are_damage_not_a_crash(searcher: Searcher) -> None:
    snapshot = searcher.snapshot
    segment = dataclasses.replace(snapshot.segments[0], codes=snapshot.segments[0].codes + np.uint32(10**9))
    damaged = Searcher(Snapshot(snapshot.path, snapshot.manifest, snapshot.codec, (segment,)))
    with pytest.raises(IndexDamagedError, match="run verify"):
        damaged.search(query_for(0), k=5)


def test_best_first_is_the_tie_rule_of_search() -> None:
    assert best_first(np.array([1, 3, 3, 2], np.float32), 3).tolist() == [1, 2, 3]


def test_what_may_yet_be_a_hit_is_told_by_what_the_first_rose_by() -> None:
    approximate = np.array([9, 8, 6.3, 5.2, 5, -np.inf], np.float32)
    scored, scores = np.array([0, 1, 5]), np.array([9.5, 9.5, 4], np.float32)  # rose by .5 and 1.5: 1, give or take .5
    order = np.arange(6)
    assert _needed(order, approximate, scored, scores, 2) == 2
    assert _needed(order, approximate, scored, scores, 3) == 5
    assert _needed(order, approximate + np.float32(0.6), scored, scores + np.float32(0.6), 2) == 2
    # Rose by .5 and fell by .5: those within 4.25 times that of the second best are open.
    assert _needed(order, approximate, np.array([0, 1]), np.array([9.5, 7.5], np.float32), 2) == 3
    assert _needed(order, approximate, scored[2:], scores[2:], 1) == 0


@either_size
def test_more_is_scored_where_approximate_scores_say_less(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    query, counts = query_for(5), []
    seen: set[int] = set()
    totals: list[int] = []  # after each round
    measure = searcher._measured

    def counted(query: np.ndarray, centroid: Any, rows: list[np.ndarray], threads: int, roughly: bool) -> np.ndarray:
        seen.update(np.concatenate(rows).tolist())
        totals.append(len(seen))
        return measure(query, centroid, rows, threads, roughly)

    def count(**options: int) -> None:
        seen.clear()
        totals.clear()
        searcher.search(query, k=3, **options)
        counts.append(len(seen))

    monkeypatch.setattr(searcher, "_measured", counted)
    monkeypatch.setattr("hybrid_retrieval.search.searcher.MOST", 256)
    for margin in (-1e6, 0.0, 1e6):
        monkeypatch.setattr("hybrid_retrieval.search.searcher.MARGIN", margin)
        count()
    width = Width.chosen(3, 0)
    assert counts[0] == width.first <= counts[1] <= counts[2] == width.most < len(PASSAGES)
    assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(totals))
    count(num_candidates=50)
    assert counts[-1] == 50


@either_size
@pytest.mark.parametrize("nbits", [1, 2, 4])
def test_estimates_change_no_hit_and_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbits: int) -> None:
    """In exhaustive search; in pruned search, where they have a part in how many passages are looked at, no score."""
    twins = Ragged.from_rows([*PASSAGES, *(PASSAGES[row] for row in (0, 1, 7, 7, 300))])  # ties
    searcher = make(tmp_path / "index", twins, nbits=nbits)
    estimated: list[int] = []
    score = NativeCodec.scores

    def counted(*arguments: Any) -> np.ndarray:
        found = score(*arguments)
        if arguments[-1]:  # roughly
            estimated.append(found.shape[1])
        return found

    monkeypatch.setattr(NativeCodec, "scores", counted)
    monkeypatch.setattr("hybrid_retrieval.search.native.SCORED_A_THREAD", 500)
    queries = [query_for(row, row, length=1 + row % 40) for row in (0, 1, 7, 33, 300)]
    asked = [{"k": k, "exact": exact, "threads": 3} for k in (1, 4, 40, 600, 605) for exact in (False, True)]
    found = [(options, searcher.search(query, **options)) for query in queries for options in asked]
    assert bool(estimated) == (searcher._native is not None and searcher._native.estimates)
    monkeypatch.setattr(NativeCodec, "estimates", False)
    estimated.clear()
    plain = [searcher.search(query, **options) for query in queries for options in asked]
    every = [searcher.search(query, k=605, exact=True) for query in queries for _ in asked]
    assert not estimated
    for (options, one), other, whole in zip(found, plain, every, strict=True):
        if options["exact"]:
            np.testing.assert_array_equal(one.rows, other.rows)
            np.testing.assert_array_equal(one.scores, other.scores)
        by_row = dict(zip(whole.rows.tolist(), whole.scores.tolist(), strict=True))
        assert [by_row[row] for row in one.rows.tolist()] == one.scores.tolist()
        assert len(np.intersect1d(one.rows, other.rows)) >= 0.95 * len(other.rows)
