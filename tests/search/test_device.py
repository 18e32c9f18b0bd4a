"""Search through torch, here on a CPU (and on CUDA where there is one), against search on NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hybrid_retrieval import Index  # noqa: E402
from hybrid_retrieval.builder import build_from_vectors  # noqa: E402
from hybrid_retrieval.errors import DeviceMemoryError, IndexDamagedError, ModelSettingsError  # noqa: E402
from hybrid_retrieval.kernels import device as kernels  # noqa: E402
from hybrid_retrieval.kernels import dispatch  # noqa: E402
from hybrid_retrieval.kernels.reference import unpack_buckets  # noqa: E402
from hybrid_retrieval.ragged import Ragged  # noqa: E402
from hybrid_retrieval.search import Searcher  # noqa: E402
from hybrid_retrieval.search import device as device_search  # noqa: E402
from hybrid_retrieval.search.device import DeviceSearcher  # noqa: E402
from hybrid_retrieval.storage import Snapshot  # noqa: E402
from tests.support import clustered, random_unit, unit  # noqa: E402

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SIZES = [int(n) for n in np.random.default_rng(3).integers(1, 60, 500)]
PASSAGES = clustered(SIZES, 64, topics=200)


@pytest.fixture(autouse=True)
def numpy_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, dispatch.NUMPY)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks and groups where one would do."""
    monkeypatch.setattr(device_search, "BLOCK_TOKENS", 700)
    monkeypatch.setattr(device_search, "GROUP_BYTES", 4 * 12 * 1024 * 2)


def queries(count: int = 5) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    found = []
    for i in range(count):
        tokens = PASSAGES[40 * i][random.integers(0, len(PASSAGES[40 * i]), 4 + 2 * i)]
        found.append(unit(tokens + 0.1 * random.standard_normal(tokens.shape)))
    return found


def placed(snapshot: Snapshot, device: str, *, resident: bool = True) -> Searcher:
    searcher = Searcher(snapshot)
    searcher._device = DeviceSearcher(snapshot, searcher._all_rows, device, resident=resident)
    return searcher


@pytest.fixture(scope="module", params=[1, 2, 4, 8])
def snapshot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    path = tmp_path_factory.mktemp("device") / "index"
    ids = [f"p{i}" for i in range(len(PASSAGES))]
    build_from_vectors(path, ids, PASSAGES.data, PASSAGES.offsets, nbits=request.param)
    yield Snapshot.open(path)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_exact_search_finds_what_numpy_finds(snapshot: Snapshot, device: str, resident: bool) -> None:
    found = placed(snapshot, device, resident=resident).search_batch(queries(), k=20, exact=True)
    for ours, query in zip(found, queries(), strict=True):
        rows, scores, _ = Searcher(snapshot).search(query, k=20, exact=True)
        np.testing.assert_allclose(ours.scores, scores, atol=1e-4)
        assert np.isin(ours.rows, rows).mean() >= 0.95  # the last place may be a near tie


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_pruned_search_gives_true_scores_and_loses_little(snapshot: Snapshot, device: str, resident: bool) -> None:
    searcher = placed(snapshot, device, resident=resident)
    together = searcher.search_batch(queries(), k=10, num_candidates=60, nprobe=16, bound=True)
    for ours, query in zip(together, queries(), strict=True):
        rows, scores, _ = Searcher(snapshot).search(query, k=len(PASSAGES), exact=True)
        true = dict(zip(rows.tolist(), scores.tolist(), strict=True))
        np.testing.assert_allclose(ours.scores, [true[row] for row in ours.rows.tolist()], atol=1e-4)
        assert np.isin(ours.rows, rows[:10]).mean() >= 0.9
        assert ours.recall_bound is not None and 0 <= ours.recall_bound <= 1
        alone = searcher.search(query, k=10, num_candidates=60, nprobe=16)
        assert alone.rows.tolist() == ours.rows.tolist()
        np.testing.assert_allclose(alone.scores, ours.scores, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_a_passage_in_windows_or_without_tokens_or_deleted_or_equal(tmp_path: Path, device: str) -> None:
    """Empty passages are never found, equal ones come in the order of insertion."""
    rows = [random_unit(6, 64, seed=1), np.empty((0, 64), np.float32), random_unit(3, 64, seed=2)]
    ragged = Ragged.from_rows([*rows, *[random_unit(5, 64, seed=3)] * 40], tail=(64,))
    build_from_vectors(tmp_path / "index", [f"p{i}" for i in range(43)], ragged.data, ragged.offsets)
    searcher = placed(Snapshot.open(tmp_path / "index"), device)
    query = random_unit(5, 64, seed=3)
    for options in ({"exact": True}, {"num_candidates": 12}):
        found = searcher.search(query, k=12, **options)
        assert found.rows.tolist() == list(range(3, 15)), options
    everything = searcher.search(query, k=100)
    assert sorted(everything.rows.tolist()) == [0, *range(2, 43)]


def test_bytes_in_the_devices_order_hold_the_same_buckets() -> None:
    for nbits in (1, 2, 4, 8):
        weights = np.random.default_rng(nbits).standard_normal(2**nbits).astype(np.float32)
        codec = kernels.DeviceCodec.place(np.zeros((1, 8), np.float32), weights, torch.device("cpu"))
        packed = np.arange(256, dtype=np.uint8)[:, None]
        reordered = codec.reordered(torch.from_numpy(packed))
        expected = weights[unpack_buckets(packed, nbits)]
        np.testing.assert_array_equal(codec.table[reordered[:, 0].int()].numpy(), expected)
        shifts = np.arange(8 // nbits) * nbits
        little = (reordered.numpy().astype(int) >> shifts) & (2**nbits - 1)
        np.testing.assert_array_equal(weights[little], expected)


def test_a_machine_without_cuda_says_so_and_auto_stays_on_the_cpu(snapshot: Snapshot) -> None:
    if torch.cuda.is_available():
        assert Searcher(snapshot, "auto")._device
        return
    assert not Searcher(snapshot, "auto")._device
    with pytest.raises(ModelSettingsError, match="no CUDA device"):
        Searcher(snapshot, "cuda")
    with pytest.raises(ModelSettingsError, match="no CUDA device"):
        Index(snapshot).to("cuda")
    with pytest.raises(ModelSettingsError, match="got 'cuda:0'"):
        Index(snapshot).to("cuda:0")


@pytest.mark.parametrize("device", DEVICES)
def test_a_query_of_any_scale_alone_or_beside_longer_ones_finds_the_same(snapshot: Snapshot, device: str) -> None:
    searcher = placed(snapshot, device)
    short, long = queries(4)[0], queries(4)[3]
    for options in ({"exact": True}, {"num_candidates": 40, "nprobe": 2}):
        alone = searcher.search(short, k=10, **options)
        beside = searcher.search_batch([short, long], k=10, **options)[0]
        scaled = searcher.search(short * np.float32(50), k=10, **options)
        assert alone.rows.tolist() == beside.rows.tolist() == scaled.rows.tolist()
        np.testing.assert_allclose(scaled.scores, 50 * alone.scores, rtol=1e-4)


def test_lists_that_name_few_passages_do_not_widen_the_search(snapshot: Snapshot) -> None:
    searcher = placed(snapshot, "cpu")
    scored = next(searcher._device.search(queries(1), k=3, width=450, nprobe=1, exact=False))
    assert scored.kept is not None and sum(map(len, scored.kept)) == 450


def test_a_damaged_index_is_not_placed(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = dataclasses.replace(snapshot.segments[0], codes=np.full_like(snapshot.segments[0].codes, 2**31))
    monkeypatch.setattr(snapshot, "segments", [segment])
    with pytest.raises(IndexDamagedError, match="run verify"):
        DeviceSearcher(snapshot, Searcher(snapshot)._all_rows, "cpu")


@pytest.mark.parametrize(("method", "doing"), [("place", "placing the codec"), ("approximate", "searching")])
def test_a_full_device_is_told_in_one_line(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, method: str, doing: str
) -> None:
    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nmore lines")

    monkeypatch.setattr(kernels.DeviceCodec if method == "place" else kernels, method, full)
    with pytest.raises(
        DeviceMemoryError, match=rf"^cpu ran out of memory {doing} \(CUDA .* GiB\.\): free some"
    ) as caught:
        placed(snapshot, "cpu").search(queries(1)[0], k=3)
    assert "\n" not in str(caught.value)
