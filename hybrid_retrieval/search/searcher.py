"""`Searcher`: the best passages for a query's token vectors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.checkpoints import cuda_or_none
from hybrid_retrieval.codec.assignment import available_threads
from hybrid_retrieval.config import MOST_THREADS
from hybrid_retrieval.errors import ArrayError, IndexDamagedError
from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.search.bounds import centroid_spreads, recall_bound, row_bounds, similarity_bounds
from hybrid_retrieval.search.native import CentroidScores, NativeCodec
from hybrid_retrieval.search.steps import approximate_scores, candidate_windows, centroid_scores, exact_scores
from hybrid_retrieval.storage import Snapshot
from hybrid_retrieval.types import best_first, check_count, check_flag

if TYPE_CHECKING:
    from hybrid_retrieval.search.device import DeviceSearcher

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

# Of a query's vector: products with what an index holds are then far from float32's limit.
MOST_LENGTH = 1e15
# Automatic widths: centroids that each query token probes; the best by approximate score, which are scored exactly in
# any case, and of how many at most the best are found among.
NPROBE, NPROBE_PER_K = 16, 0.32
FIRST, FIRST_PER_K = 32, 1.5
MOST, MOST_PER_K = 512, 40
# What an approximate score may rise by when it is made exact, in standard deviations of what those scored so far rose
# by beyond their mean: MARGIN + MARGIN_OVER_K / k, for five hits or fewer as for five (of few, each weighs more).
MARGIN, MARGIN_OVER_K = 3.25, 5.0
# The native kernels approximate every window of an index of up to this many tokens, a few milliseconds' work, and
# leave the inverted lists to larger ones.
TOKENS_WITHOUT_LISTS = 4_000_000
# In those, windows that are approximated for each passage that may be scored: the best by what the lists alone say.
LISTED_PER_CANDIDATE = 4


class Found(NamedTuple):
    """What a search found. rows: int64 [n]. scores: float32 [n], MaxSim. recall_bound: see `Searcher.search`."""

    rows: Int64
    scores: Float32
    recall_bound: float | None


class Width(NamedTuple):
    """Passages that pruned search scores exactly: the `first`, and as many of up to `most` as may yet be hits."""

    first: int
    most: int

    @classmethod
    def chosen(cls, k: int, asked: int) -> Width:
        """asked: for exactly so many, 0 for a choice from k."""
        if asked:
            return cls(max(k, asked), max(k, asked))
        return cls(FIRST + int(FIRST_PER_K * k), MOST + MOST_PER_K * k)


class Approximated(NamedTuple):
    """What approximate scores were worked out for. rows: of each segment, int64. scores: float32, of all rows, one
    segment after the other; a position counts within them."""

    rows: list[Int64]
    scores: Float32

    def by_segment(self, positions: Int64) -> list[Int64]:
        """The rows, of each segment, at rising positions."""
        bounds = np.cumsum([0, *map(len, self.rows)])
        cuts = np.searchsorted(positions, bounds[1:-1])
        parts = np.split(positions, cuts)
        return [rows[part - start] for rows, part, start in zip(self.rows, parts, bounds[:-1], strict=True)]


class Searcher:
    """Searches one snapshot. Safe to share between threads; no answer depends on earlier calls.

    On the native kernels a searcher remembers the norm of every token that it has scored (4 bytes each, in memory).
    """

    def __init__(self, snapshot: Snapshot, device: str = "cpu") -> None:
        """device: `cpu` (NumPy or the native kernels), `cuda` (torch), or `auto`: CUDA where there is one. Raises
        `ModelSettingsError` or `OptionalDependencyError` where CUDA was asked for in vain."""
        self.snapshot = snapshot
        codec = snapshot.codec
        self._packed = [codec.packed(segment.codes, segment.residuals) for segment in snapshot.segments]
        self._native = NativeCodec(codec, dispatch.variant()) if dispatch.takes(codec.dimensions) else None
        self._spreads: list[Float32 | None] = [None for _ in snapshot.segments]
        # Pages of zeros cost nothing before they are written to.
        self._inverse_norms = [np.zeros(len(segment.codes), np.float32) for segment in snapshot.segments]
        self._device = self._placed(device)
        self._device_lock = threading.Lock()

    def search(
        self,
        query_vectors: NDArray[Any],
        *,
        k: int,
        exact: bool = False,
        nprobe: int = 0,
        num_candidates: int = 0,
        threads: int = 0,
        bound: bool = False,
    ) -> Found:
        """The k best passages for one query, float [Lq, D]; the rest as `search_batch` has it."""
        return self.search_batch(
            [query_vectors],
            k=k,
            exact=exact,
            nprobe=nprobe,
            num_candidates=num_candidates,
            threads=threads,
            bound=bound,
        )[0]

    def search_batch(
        self,
        queries: Sequence[NDArray[Any]],
        *,
        k: int,
        exact: bool = False,
        nprobe: int = 0,
        num_candidates: int = 0,
        threads: int = 0,
        bound: bool = False,
    ) -> list[Found]:
        """For each query the k best passages, best first, ties by row.

        queries: float [Lq, D] each, of vectors shorter than `MOST_LENGTH`. exact: score every passage. nprobe:
        centroids that each query token probes, 0 chooses from k. num_candidates: passages that are scored exactly,
        never fewer than k; 0 chooses from k and from what they score (`_needed`; on CUDA from k alone). threads: at
        most 1,024, 0 means every core; on a CPU they share out the queries, and what is over works within one. n is k
        or, where there are fewer, the number of passages that have vectors. Scores are the true MaxSim over the
        compressed vectors in either mode.
        bound: also work out for how large a share of the hits it is sure that exhaustive search returns them
        (`search.bounds`), which reads every code and, the first time, decodes every token; else the bound is None.
        Raises `QueryError` and `ArrayError`.
        """
        exact, bound = check_flag("exact", exact), check_flag("bound", bound)
        checked = [self._checked(query) for query in queries]
        k = check_count("k", k, 1)
        nprobe = check_count("nprobe", nprobe, 0)
        num_candidates = check_count("num_candidates", num_candidates, 0)
        threads = check_count("threads", threads, 0, MOST_THREADS)
        threads = threads or available_threads()
        width = Width.chosen(k, num_candidates)
        nprobe = min(nprobe or NPROBE + int(NPROBE_PER_K * k), self.snapshot.codec.num_centroids)
        try:
            exact = exact or width.first >= self._num_rows
            if self._device is not None:
                return self._search_device(self._device, checked, k, exact, nprobe, width.most, bound)
            within = max(1, threads // max(1, len(checked)))

            def one(query: Float32) -> Found:
                return self._search(query, k, exact, nprobe, width, within, bound)

            if threads == 1 or len(checked) < 2:
                return [one(query) for query in checked]
            with ThreadPoolExecutor(min(threads, len(checked))) as pool:
                return list(pool.map(one, checked))
        except (IndexError, ValueError) as error:
            # The query was checked above: only files that contradict each other lead here.
            raise IndexDamagedError(
                f"{self.snapshot.path}: the index is damaged ({error}); run verify on it, and build it anew"
            ) from error

    def _search(
        self, query: Float32, k: int, exact: bool, nprobe: int, width: Width, threads: int, bound: bool
    ) -> Found:
        native, tokens = self._native, self.snapshot.num_tokens
        if not exact:
            tokens = width.first * tokens // self._num_rows
        centroid = None if native is None else native.centroid_scores(query, tokens)
        estimates = native is not None and native.estimates and k < self._num_rows
        candidates = Approximated(self._all_rows, np.zeros(self._num_rows if exact else 0, np.float32))
        if not exact and native is not None and centroid is not None:
            candidates = self._candidates_native(native, query, centroid, nprobe, width, threads)
        elif not exact:
            candidates = self._candidates(query, nprobe)

        def measure(positions: Int64, roughly: bool) -> Float32:
            return self._measured(query, centroid, candidates.by_segment(positions), threads, roughly)

        if exact:
            kept = np.arange(self._num_rows)
            measured = measure(kept, estimates)
        else:
            kept, measured = _in_rounds(candidates.scores, width, k, measure, estimates)
        certain, scores = _made_sure(kept, measured, k, measure)
        best = best_first(scores, k)
        rows = candidates.by_segment(kept)
        all_rows = np.concatenate(
            [part + segment.row_base for segment, part in zip(self.snapshot.segments, rows, strict=True)]
        )
        sure = self._recall_bound(query, scores[best], rows) if bound else None
        return Found(all_rows[certain[best]], scores[best], sure)

    def _measured(
        self, query: Float32, centroid: CentroidScores | None, rows: list[Int64], threads: int, roughly: bool
    ) -> Float32:
        """float32 [2, n]: the MaxSim of each segment's rows, one segment after the other, and what each is wrong by at
        most: nothing, or, roughly, as estimates are."""
        found = [np.empty((2, 0), np.float32)]
        for segment, packed, norms, local in zip(
            self.snapshot.segments, self._packed, self._inverse_norms, rows, strict=True
        ):
            if not len(local):
                continue
            windows, first = segment.windows_of(local)
            if self._native is None or centroid is None:
                scores = exact_scores(query, packed, segment.token_offsets, windows, threads=threads)
                measured = np.stack([scores, np.zeros_like(scores)])
            else:
                measured = self._native.scores(query, centroid, segment, norms, windows, threads, roughly)
            found.append(np.maximum.reduceat(measured, first, axis=1))
        return np.concatenate(found, axis=1)

    def _search_device(
        self, device: DeviceSearcher, queries: list[Float32], k: int, exact: bool, nprobe: int, width: int, bound: bool
    ) -> list[Found]:
        found = []
        with self._device_lock:
            results = list(device.search(queries, k=k, width=width, nprobe=nprobe, exact=exact)) if queries else []
        for query, (rows, scores, kept) in zip(queries, results, strict=True):
            best = best_first(scores, k)
            sure = self._recall_bound(query, scores[best], kept or self._all_rows) if bound else None
            found.append(Found(rows[best], scores[best], sure))
        return found

    def _placed(self, device: str) -> DeviceSearcher | None:
        placed = cuda_or_none(device, "search on CUDA")
        if placed is None:
            return None
        from hybrid_retrieval.search.device import DeviceSearcher

        return DeviceSearcher(self.snapshot, self._all_rows, str(placed))

    def _recall_bound(self, query: Float32, scores: Float32, scored: list[Int64]) -> float:
        most = -np.inf
        for number, (segment, rows, kept) in enumerate(
            zip(self.snapshot.segments, self._all_rows, scored, strict=True)
        ):
            rest = np.setdiff1d(rows, kept, assume_unique=True)
            if len(rest):
                spreads = self._spreads[number]
                if spreads is None:
                    spreads = self._spreads[number] = centroid_spreads(self._packed[number])
                bounds = similarity_bounds(query, self.snapshot.codec.centroids, spreads)
                most = max(most, float(row_bounds(bounds, segment, rest).max()))
        return recall_bound(scores, query, most)

    def _checked(self, query: NDArray[Any]) -> Float32:
        wanted = f"a float array [Lq, {self.snapshot.dimensions}]"
        if not isinstance(query, np.ndarray) or isinstance(query, np.ma.MaskedArray):
            raise ArrayError(f"query vectors must be {wanted}, got {type(query).__name__}")
        if query.ndim != 2 or query.dtype.kind != "f" or query.shape[1] != self.snapshot.dimensions:
            raise ArrayError(f"query vectors must be {wanted}, got {query.dtype} of shape {query.shape}")
        if len(query) == 0:
            raise ArrayError(f"query vectors must be {wanted} with at least one row, got none")
        with np.errstate(over="ignore"):
            found = np.ascontiguousarray(query, np.float32)
            lengths = np.sqrt(np.einsum("ld,ld->l", found, found))
        if not (lengths < MOST_LENGTH).all():  # a NaN is not
            raise ArrayError(
                f"query vectors must be finite and shorter than {MOST_LENGTH:.0e}, got one of length {lengths.max()}"
            )
        return found

    @cached_property
    def _all_rows(self) -> list[Int64]:
        """Rows of each segment that can be found: not deleted, and with at least one vector."""
        return [
            np.flatnonzero((np.diff(segment.token_offsets[segment.window_offsets]) > 0) & ~segment.deleted)
            for segment in self.snapshot.segments
        ]

    @cached_property
    def _num_rows(self) -> int:
        return sum(map(len, self._all_rows))

    @cached_property
    def _owners(self) -> list[Int64]:
        """The row of each window of each segment."""
        return [
            np.repeat(np.arange(segment.num_passages), np.diff(segment.window_offsets))
            for segment in self.snapshot.segments
        ]

    @cached_property
    def _allowed(self) -> list[NDArray[np.bool_] | None]:
        """Which windows of each segment are not deleted, None for all."""
        return [
            ~segment.deleted[owners] if segment.deleted.any() else None
            for segment, owners in zip(self.snapshot.segments, self._owners, strict=True)
        ]

    def _candidates(self, query: Float32, nprobe: int) -> Approximated:
        """Every row that can be found, with its approximate score."""
        scores = centroid_scores(query, self.snapshot.codec.centroids)
        approximate = []
        for segment, local, owner_of in zip(self.snapshot.segments, self._all_rows, self._owners, strict=True):
            allowed = None
            if len(local) < segment.num_passages:
                allowed = np.zeros(segment.num_windows, np.bool_)
                allowed[segment.windows_of(local)[0]] = True
            found = candidate_windows(scores, segment.lists, segment.list_offsets, nprobe, allowed)
            owners = owner_of[found.windows]
            # A passage that no probed list names still has a bound: it fills up what candidates leave of the
            # width.
            by_row = np.full(segment.num_passages, found.floor.sum(dtype=np.float32), np.float32)
            np.maximum.at(by_row, owners, approximate_scores(found))
            approximate.append(by_row[local])
        return Approximated(self._all_rows, np.concatenate(approximate))

    def _candidates_native(
        self, native: NativeCodec, query: Float32, centroid: CentroidScores, nprobe: int, width: Width, threads: int
    ) -> Approximated:
        """The same on the native kernels; of large indexes only rows that the probed lists name, and others, if these
        are fewer than are scored in any case."""
        table = native.table(centroid, len(query))
        rows, approximate = [], []
        for number, (segment, local) in enumerate(zip(self.snapshot.segments, self._all_rows, strict=True)):
            if len(segment.codes) <= TOKENS_WITHOUT_LISTS:
                windows, first = segment.windows_of(local)
            else:
                most, allowed = LISTED_PER_CANDIDATE * width.most, self._allowed[number]
                while True:
                    windows, named = native.candidate_windows(table, len(query), nprobe, segment, allowed, most)
                    owners = self._owners[number][windows]
                    if len(windows) == named or len(np.unique(owners)) >= width.first:
                        break
                    most *= 4  # few passages of many windows
                first = np.flatnonzero(np.diff(owners, prepend=-1))
                local = owners[first]
            levels = native.approximate_scores(table, segment, windows, threads)
            if len(local):
                levels = np.maximum.reduceat(levels, first)
            rows.append(local)
            approximate.append(centroid.of_levels(levels, len(query)))
        missing = width.first - sum(map(len, rows))
        if missing > 0:
            for number, local in enumerate(rows):
                others = np.setdiff1d(self._all_rows[number], local, assume_unique=True)[:missing]
                scores = np.append(approximate[number], np.full(len(others), -np.inf, np.float32))
                filled = np.concatenate([local, others])
                rising = np.argsort(filled)
                rows[number], approximate[number] = filled[rising], scores[rising]
        return Approximated(rows, np.concatenate(approximate))


def _in_rounds(
    approximate: Float32, width: Width, k: int, measure: Callable[[Int64, bool], Float32], estimates: bool
) -> tuple[Int64, Float32]:
    """Of the candidates that may be among the k best: their positions in `approximate`, rising, and what `measure`
    (positions, roughly) says of them, float32 [2, n].

    Each round is of as many as were measured by then: what is measured raises what the others have to reach. Rounds
    after the first, few of which are hits, are of estimates where there are some.
    """
    order = best_first(approximate, width.most)
    done, wanted = 0, min(width.first, len(order))
    kept, measured = order[:0], np.empty((2, 0), np.float32)
    while wanted > done:
        batch = np.sort(order[done:wanted])
        kept = np.concatenate([kept, batch])
        measured = np.concatenate([measured, measure(batch, estimates and done > 0)], axis=1)
        done = wanted
        wanted = min(2 * done, _needed(order, approximate, kept, measured[0], k))
    rising = np.argsort(kept)
    return kept[rising], measured[:, rising]


def _made_sure(
    kept: Int64, measured: Float32, k: int, measure: Callable[[Int64, bool], Float32]
) -> tuple[Int64, Float32]:
    """Which of `kept` have exact scores, rising, the k best among them, and these scores: what was estimated and may be
    among the k best is measured now, the rest cannot be."""
    scores, errors = measured
    hopeful = np.flatnonzero((errors > 0) & (scores + errors >= _kth_best(scores - errors, k)))
    if len(hopeful):
        scores[hopeful], errors[hopeful] = measure(kept[hopeful], False)
    certain = np.flatnonzero(errors == 0)
    return certain, scores[certain]


def _needed(order: Int64, approximate: Float32, scored: Int64, scores: Float32, k: int) -> int:
    """How many of the candidates `order`, positions in `approximate` best first, may be among the k best, scored ones
    included.

    scored: positions of those that have scores, exact or estimated, and these. From an approximate score to the exact
    one it is further for some passages than for others, and how much further differs by query and by collection. So it
    is measured on those that are scored: the others may rise by their mean and some standard deviations (`MARGIN`).
    """
    rises = (scores - approximate[scored])[np.isfinite(approximate[scored])].astype(np.float64)
    if not len(rises):
        return 0
    most = rises.mean() + (MARGIN + MARGIN_OVER_K / max(k, 5)) * rises.std()
    return int(np.count_nonzero(approximate[order] + most >= _kth_best(scores, k)))


def _kth_best(scores: Float32, k: int) -> float:
    """The k-th of the scores, best first, or the last, where there are fewer."""
    place = max(0, len(scores) - k)
    return float(np.partition(scores, place)[place]) if len(scores) else -np.inf
