"""Indexes of colbert-ai and fast-plaid: read exactly, written exactly, and never executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval import Index, Pipeline
from hybrid_retrieval.builder import build_index
from hybrid_retrieval.cli import main
from hybrid_retrieval.codec import ResidualCodec
from hybrid_retrieval.config import IndexConfig, PipelineConfig
from hybrid_retrieval.errors import (
    CorpusError,
    HybridRetrievalError,
    IndexDamagedError,
    IndexExistsError,
    IndexNotFoundError,
    InputError,
    ModelMismatchError,
    QueryError,
)
from hybrid_retrieval.interchange import colbert_export, colbert_import, export_colbert, import_colbert
from hybrid_retrieval.interchange.torch_files import Blocks, open_tensor, open_tensors, save_tensors
from hybrid_retrieval.storage import Snapshot
from hybrid_retrieval.types import Passage
from tests.support import HashEncoder, clustered, make_passages, tree

HERE = Path(__file__).parent
COLBERT_INDEX = HERE / "colbert_index"
LENGTHS = [5, 9, 0, 14, 3, 1] * 10  # one passage in six has no vectors


@pytest.fixture(scope="module")
def vectors() -> Any:
    return clustered(LENGTHS, 64)


@pytest.fixture(scope="module", params=[1, 2, 4, 8])
def original(request: pytest.FixtureRequest, vectors: Any, tmp_path_factory: pytest.TempPathFactory) -> Index:
    path = tmp_path_factory.mktemp("original") / "index"
    ids = [f"passage {row}" for row in range(len(vectors))]
    return Index.from_vectors(path, ids, vectors.data, vectors.offsets, nbits=request.param)


@pytest.fixture
def exported(vectors: Any, tmp_path: Path) -> Path:
    """A folder in colbert-ai's layout, of two chunks, for tests to spoil."""
    Index.from_vectors(tmp_path / "first", [str(row) for row in range(60)], vectors.data, vectors.offsets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colbert_export, "CHUNK_PASSAGES", 40)
        export_colbert(tmp_path / "first", tmp_path / "exported")
    return tmp_path / "exported"


def parts(index: Index) -> list[np.ndarray[Any, Any]]:
    """Everything that scores depend on."""
    snapshot = Snapshot.open(index.path)
    (segment,) = snapshot.segments
    codec = snapshot.codec
    stored = [segment.codes, segment.residuals, segment.token_offsets, segment.window_offsets]
    return [*stored, segment.lists, segment.list_offsets, codec.centroids, codec.cutoffs, codec.weights]


def assert_same(first: Index, second: Index) -> None:
    for a, b in zip(parts(first), parts(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def refuses(source: Path, target: Path, *expected: str, kind: type[HybridRetrievalError] = InputError) -> None:
    """Import fails with one line that says all of `expected`, and leaves nothing behind."""
    with pytest.raises(kind) as caught:
        import_colbert(source, target)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message
    assert not target.exists()


# Round trips


def test_an_index_takes_no_export_inside(original: Index) -> None:
    with pytest.raises(InputError, match="lies inside the index"):
        export_colbert(original.path, original.path / "exported")


@pytest.mark.parametrize("chunk_passages", [25_000, 7])
def test_export_and_import_change_nothing(
    original: Index, vectors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_passages: int
) -> None:
    monkeypatch.setattr(colbert_export, "CHUNK_PASSAGES", chunk_passages)
    monkeypatch.setattr(colbert_export, "BLOCK_TOKENS", 10)
    monkeypatch.setattr(colbert_export, "BLOCK_CENTROIDS", 13)
    monkeypatch.setattr(colbert_import, "BLOCK_TOKENS", 11)
    monkeypatch.setattr(colbert_import, "BLOCK_PASSAGES", 5)
    export_colbert(original.path, tmp_path / "colbert")
    import_colbert(tmp_path / "colbert", tmp_path / "back")
    back = Index.open(tmp_path / "back")
    assert_same(original, back)
    assert Index.verify_path(back.path) == []
    for row in (0, 3, 33):
        for exact in (False, True):
            expected, found = (index.search(vectors[row], k=60, exact=exact) for index in (original, back))
            assert found.ids == expected.ids
            np.testing.assert_array_equal(found.scores, expected.scores)


def test_an_encoder_comes_back_and_no_other_is_taken(tmp_path: Path) -> None:
    passages = [Passage("a", "word1 word2"), Passage("b", "word3")]
    Index.build(passages, tmp_path / "first", encoder=HashEncoder(), reranker=None)
    export_colbert(tmp_path / "first", tmp_path / "colbert")
    import_colbert(tmp_path / "colbert", tmp_path / "back", collection=tmp_path / "colbert" / "collection.tsv")
    back, other = Index.open(tmp_path / "back"), HashEncoder(name="other")
    assert back.info()["encoder"] == HashEncoder().name and Index.verify_path(back.path) == []
    back.check_encoder(HashEncoder().identity, HashEncoder().name)
    with pytest.raises(ModelMismatchError):
        back.check_encoder(other.identity, other.name)


def test_what_a_killed_export_left_is_in_nobodys_way(original: Index, tmp_path: Path) -> None:
    (tmp_path / f".colbert.{os.getpid()}.new").mkdir()
    export_colbert(original.path, tmp_path / "colbert")
    made, plain = (tmp_path / name for name in ("colbert", f".colbert.{os.getpid()}.new"))
    assert made.stat().st_mode == plain.stat().st_mode
    assert set(tmp_path.iterdir()) == {made, plain}


def test_an_export_over_a_link_replaces_what_it_leads_to(original: Index, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(exported)
    (exported / "passage_ids.json").write_text("[]")
    export_colbert(original.path, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert json.loads((exported / "passage_ids.json").read_text())


def test_a_damaged_code_is_not_exported(original: Index, tmp_path: Path) -> None:
    index = Path(shutil.copytree(original.path, tmp_path / "index"))
    (codes,) = index.glob("segments/*/codes.uint32")
    values = np.fromfile(codes, "<u4")
    values[3] = 0x7FFFFFFF
    values.tofile(codes)
    with pytest.raises(IndexDamagedError, match="a code is not below"):
        export_colbert(index, tmp_path / "colbert")
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]


def test_the_same_index_gives_the_same_files(original: Index, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_colbert(original.path, tmp_path / name / "colbert")
        # these two name the folder
        for file in ("plan.json", "metadata.json"):
            (tmp_path / name / "colbert" / file).unlink()
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_lists_are_those_of_colbert(exported: Path) -> None:
    lists, lengths = (array.read() for array in open_tensors(exported / "ivf.pid.pt"))
    codes = np.concatenate([open_tensor(exported / f"{chunk}.codes.pt").read() for chunk in (0, 1)])
    assert (lists.dtype, lengths.dtype, codes.dtype) == (np.int32, np.int64, np.int32)
    owners = np.repeat(np.arange(60), LENGTHS)
    expected = [sorted(set(owners[codes == centroid].tolist())) for centroid in range(len(lengths))]
    assert lengths.tolist() == [len(pids) for pids in expected]
    assert lists.tolist() == [pid for pids in expected for pid in pids]


def test_texts_and_titles_come_back_from_the_collection(tmp_path: Path) -> None:
    passages = [Passage("a", "one two", "a title"), Passage("b", "three\tfour\nfive"), Passage("ü", "six ")]
    build_index(passages, tmp_path / "index", encoder=HashEncoder())
    export_colbert(tmp_path / "index", tmp_path / "colbert")
    import_colbert(tmp_path / "colbert", tmp_path / "back", collection=tmp_path / "colbert" / "collection.tsv")
    back = Index.open(tmp_path / "back")
    assert [back.passage(row) for row in range(3)] == [
        Passage("a", "one two", "a title"),
        Passage("b", "three four five"),
        Passage("ü", "six"),
    ]
    assert back.encoder == "hash"
    assert Index.verify_path(back.path) == []


def test_tensors_start_where_the_memory_mapped_mode_of_colbert_looks(exported: Path) -> None:
    codes = open_tensor(exported / "0.codes.pt").read()
    assert (exported / "0.codes.pt").read_bytes()[320 : 320 + codes.nbytes] == codes.tobytes()


def test_torch_reads_what_is_written_and_is_read_in_turn(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    arrays = [np.arange(6, dtype=dtype).reshape(2, 3) for dtype in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1")]
    arrays += [np.array([True, False]), np.array(7, np.int64), np.empty((0, 4), np.float32)]
    save_tensors(tmp_path / "ours.pt", [Blocks.of(array) for array in arrays])
    loaded = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert isinstance(loaded, tuple)
    torch.save(tuple(map(torch.from_numpy, arrays)), tmp_path / "theirs.pt")
    for array, tensor, read in zip(arrays, loaded, open_tensors(tmp_path / "theirs.pt"), strict=True):
        for found in (tensor.numpy(), read.read()):
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)


def test_a_part_of_a_larger_storage_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    whole = torch.arange(40).reshape(10, 4)
    torch.save(whole[2:9], tmp_path / "part.pt")
    tensor = open_tensor(tmp_path / "part.pt")
    np.testing.assert_array_equal(tensor.read(), whole[2:9].numpy())
    assert [len(block) for block in tensor.blocks(3)] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(list(tensor.blocks(3))), whole[2:9].numpy())
    torch.save(whole.T, tmp_path / "turned.pt")
    with pytest.raises(InputError, match=r"contiguous.*save its \.contiguous"):
        open_tensor(tmp_path / "turned.pt")


# colbert-ai's own


def test_scores_and_rankings_of_colbert(tmp_path: Path) -> None:
    import_colbert(COLBERT_INDEX, tmp_path / "index", collection=HERE / "collection.tsv")
    index = Index.open(tmp_path / "index")
    assert Index.verify_path(index.path) == []
    assert index.config["encoder"]["model"] == "./checkpoint"
    with np.load(HERE / "rankings.npz") as recorded:
        queries, pids, scores = (recorded[name] for name in ("queries", "pids", "scores"))
    assert len(queries) >= 6
    for query, expected_pids, expected_scores in zip(queries.astype(np.float32), pids, scores, strict=True):
        for exact in (False, True):
            found = index.search(query, k=len(expected_pids), exact=exact)
            assert [int(passage_id) for passage_id in found.ids] == expected_pids.tolist()
            np.testing.assert_allclose(found.scores, expected_scores, atol=1e-3, rtol=0)
    lines = (HERE / "collection.tsv").read_text(encoding="utf-8").splitlines()
    texts = [line.split("\t")[1] for line in lines]
    assert [index.passage(row).text for row in range(index.passages)] == texts


def test_exporting_an_imported_index_gives_the_tensors_of_colbert(tmp_path: Path) -> None:
    import_colbert(COLBERT_INDEX, tmp_path / "index")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colbert_export, "CHUNK_PASSAGES", 16)
        export_colbert(tmp_path / "index", tmp_path / "colbert")
    names = sorted(path.name for path in COLBERT_INDEX.glob("*.pt") if path.name != "avg_residual.pt")
    assert len(names) == 9
    for name in names:
        for theirs, ours in zip(
            open_tensors(COLBERT_INDEX / name), open_tensors(tmp_path / "colbert" / name), strict=True
        ):
            assert theirs.dtype == ours.dtype
            expected, found = theirs.read(), ours.read()
            if name == "ivf.pid.pt":  # colbert-ai may fill up with zeros at the end
                expected = expected[: len(found)]
            np.testing.assert_array_equal(found, expected)
    for name in ("0.metadata.json", "2.metadata.json", "doclens.1.json"):
        assert json.loads((tmp_path / "colbert" / name).read_text()) == json.loads((COLBERT_INDEX / name).read_text())
    ours, theirs = (
        json.loads((folder / "metadata.json").read_text()) for folder in (tmp_path / "colbert", COLBERT_INDEX)
    )
    for key in ("num_chunks", "num_partitions", "num_embeddings", "avg_doclen"):
        assert ours[key] == theirs[key]


def test_a_model_from_the_hubs_cache_keeps_its_name(exported: Path, tmp_path: Path) -> None:
    metadata = json.loads((exported / "metadata.json").read_text())
    revision = "c1e84128e85ef755c096a95bdb06b47793b13acf"
    metadata["config"]["checkpoint"] = f"/hub/models--colbert-ir--colbertv2.0/snapshots/{revision}/"
    (exported / "metadata.json").write_text(json.dumps(metadata))
    import_colbert(exported, tmp_path / "index")
    encoder = Index.open(tmp_path / "index").config["encoder"]
    assert (encoder["model"], encoder["revision"]) == ("colbert-ir/colbertv2.0", revision)


def test_queries_that_colbert_would_encode_otherwise_are_told_of(
    exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "artifact.metadata").write_text('{"query_maxlen": 32, "attend_to_mask_tokens": false}')
    metadata = json.loads((exported / "metadata.json").read_text())
    own = {"checkpoint": str(tmp_path / "checkpoint"), "query_maxlen": 64, "attend_to_mask_tokens": False}
    metadata["config"] |= own
    (exported / "metadata.json").write_text(json.dumps(metadata))
    import_colbert(exported, tmp_path / "index")
    assert len(caplog.messages) == 1 and "query_maxlen 64, its checkpoint says 32" in caplog.messages[0]


def test_npy_folders_of_fast_plaid(original: Index, tmp_path: Path) -> None:
    snapshot = Snapshot.open(original.path)
    (segment,) = snapshot.segments
    folder = tmp_path / "plaid"
    folder.mkdir()
    codec = snapshot.codec
    half = ResidualCodec(codec.centroids.astype("f2").astype("f4"), codec.cutoffs, codec.weights)
    np.save(folder / "centroids.npy", codec.centroids.astype(np.float16))
    np.save(folder / "bucket_cutoffs.npy", codec.cutoffs)
    np.save(folder / "bucket_weights.npy", codec.weights)
    for chunk, (first, last) in enumerate(((0, 25), (25, 60))):
        start, stop = int(segment.token_offsets[first]), int(segment.token_offsets[last])
        np.save(folder / f"{chunk}.codes.npy", segment.codes[start:stop].astype(np.int64))
        np.save(folder / f"{chunk}.residuals.npy", segment.residuals[start:stop])
        (folder / f"doclens.{chunk}.json").write_text(json.dumps(LENGTHS[first:last]))
    facts = {"num_chunks": 2, "nbits": original.nbits, "num_partitions": codec.num_centroids, "num_documents": 60}
    (folder / "metadata.json").write_text(json.dumps(facts))
    import_colbert(folder, tmp_path / "index")
    found = Index.open(tmp_path / "index")
    for a, b in zip(parts(found)[:6], parts(original)[:6], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(Snapshot.open(found.path).codec.centroids, half.centroids)
    np.save(folder / "1.codes.npy", np.array([{"an": "object"}]), allow_pickle=True)
    refuses(folder, tmp_path / "other", "1.codes.npy", "expected a .npy file of numbers")


# Files that are not what they should be


class Hostile:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


def write_archive(path: Path, data: bytes, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_pickle_is_refused_and_not_run(exported: Path, tmp_path: Path, protocol: int) -> None:
    bait = tmp_path / "bait"
    data = pickle.dumps(Hostile(bait), protocol)
    pickle.loads(data)
    assert bait.exists(), "the bait must work where it is taken"
    bait.unlink()
    write_archive(exported / "centroids.pt", data)
    refuses(exported, tmp_path / "index", "centroids.pt", "expected tensors and nothing else", "nothing of it was run")
    assert not bait.exists()


def test_a_bare_pickle_is_refused_and_not_run(exported: Path, tmp_path: Path) -> None:
    bait = tmp_path / "bait"
    (exported / "1.codes.pt").write_bytes(pickle.dumps(Hostile(bait), 2))
    refuses(exported, tmp_path / "index", "1.codes.pt", "before 1.6", "save it again")
    assert not bait.exists()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"\x80\x02cbuiltins\neval\n.", "builtins.eval"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "damaged"),  # a storage type is not to be called
        (b"\x80\x02ctorch\nFloatStorage\n}b.", "EMPTY_DICT"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        (b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.", "damaged"),
        (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "memo"),  # would take 16 GB
        (b"\x80\x02(\x8a\x01\x05tQ.", "no storage"),
        (b"\x80\x02X\x00\x00\x00\x00.", "a str"),
        (b"\x80\x02(ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtRt.", "malformed tensor"),
        (b"\x80\x02", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02" + b"(" * 70_000 + b".", "70003 bytes"),
    ],
)
def test_a_pickle_of_anything_else_is_refused(exported: Path, tmp_path: Path, data: bytes, named: str) -> None:
    write_archive(exported / "buckets.pt", data)
    refuses(exported, tmp_path / "index", "buckets.pt", named)


def rewritten(path: Path, *, data: bytes | None = None, drop: str = "", resize: int = 0, method: int = 0) -> None:
    """The archive with other content."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            if drop and name.endswith(drop):
                continue
            if name.endswith("data.pkl") and data is not None:
                content = data
            if name.endswith("data/0") and resize:
                content = content[:resize]
            archive.writestr(name, content)


def test_an_archive_that_contradicts_itself_is_refused(exported: Path, tmp_path: Path) -> None:
    kept = (exported / "0.codes.pt").read_bytes()
    with zipfile.ZipFile(exported / "0.codes.pt") as archive:
        described = archive.read("archive/data.pkl")
    large = described.replace(b"cpuK\xdct", b"cpuM\xdc\x7ft")  # 220 tokens become 32732
    assert large != described
    for spoil, named in (
        ({"drop": "data/0"}, "got nothing"),
        ({"drop": "data.pkl"}, "one data.pkl"),
        ({"resize": 8}, "got 8"),
        ({"method": zipfile.ZIP_DEFLATED}, "method 8"),
        ({"data": large}, "uncompressed bytes"),
        ({"data": described.replace(b"IntStorage", b"FloatStorage")}, "expected whole numbers"),
        ({"data": described.replace(b"IntStorage", b"BFloat16Storage")}, "torch.BFloat16Storage"),
    ):
        rewritten(exported / "0.codes.pt", **spoil)  # type: ignore[arg-type]
        refuses(exported, tmp_path / "index", "0.codes.pt", named)
        (exported / "0.codes.pt").write_bytes(kept)
    import_colbert(exported, tmp_path / "index")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["centroids.pt", "1.codes.pt", "1.residuals.pt", "doclens.1.json", "metadata.json"])
def test_truncated_files(exported: Path, tmp_path: Path, name: str, share: float) -> None:
    data = (exported / name).read_bytes()
    (exported / name).write_bytes(data[: min(int(len(data) * share), len(data) - 2)])  # JSON ends in a line end
    refuses(exported, tmp_path / "index", name)


@pytest.mark.parametrize(
    "name", ["metadata.json", "buckets.pt", "0.codes.pt", "1.residuals.pt", "doclens.0.json", "doclens.1.json"]
)
def test_missing_files(exported: Path, tmp_path: Path, name: str) -> None:
    (exported / name).unlink()
    refuses(exported, tmp_path / "index", f"{exported / name}: missing")


def test_a_changed_byte_is_found_by_the_checksum_and_an_old_index_stays(exported: Path, tmp_path: Path) -> None:
    import_colbert(exported, tmp_path / "index")
    before = tree(tmp_path / "index")
    data = bytearray((exported / "1.residuals.pt").read_bytes())
    data[400] ^= 1
    (exported / "1.residuals.pt").write_bytes(data)
    refuses(exported, tmp_path / "other", "1.residuals.pt", "CRC")
    with pytest.raises(InputError, match="CRC"):
        import_colbert(exported, tmp_path / "index", overwrite=True)
    after = tree(tmp_path / "index")
    assert {name: content for name, content in after.items() if name != "lock"} == {
        name: content for name, content in before.items() if name != "lock"
    }


@pytest.mark.parametrize(("bad", "named"), [(-1, "got -1"), (10**6, "got 1000000")])
def test_codes_that_name_no_centroid(exported: Path, tmp_path: Path, bad: int, named: str) -> None:
    codes = np.array(open_tensor(exported / "1.codes.pt").read())
    codes[-1] = bad
    save_tensors(exported / "1.codes.pt", Blocks.of(codes))
    refuses(exported, tmp_path / "index", "1.codes.pt", "expected codes from 0 to", named)


def test_a_broken_name_in_an_archive_or_a_broken_npy_head(exported: Path, tmp_path: Path) -> None:
    data = (exported / "0.codes.pt").read_bytes()
    (exported / "0.codes.pt").write_bytes(data.replace(b"archive/data.pkl", b"archive/dat\xff.pkl", 1))
    refuses(exported, tmp_path / "index", "0.codes.pt", "truncated or damaged")
    (exported / "centroids.pt").unlink()
    np.save(exported / "centroids.npy", np.zeros((4, 64), np.float16))
    head = (exported / "centroids.npy").read_bytes()
    (exported / "centroids.npy").write_bytes(head.replace(b"64)", b"64,"))
    refuses(exported, tmp_path / "index", "centroids.npy", "expected a .npy file of numbers")


def test_one_code_too_many(exported: Path, tmp_path: Path) -> None:
    centroids = open_tensor(exported / "centroids.pt").read()
    highest = max(int(open_tensor(exported / f"{chunk}.codes.pt").read().max()) for chunk in (0, 1))
    save_tensors(exported / "centroids.pt", Blocks.of(centroids[:highest]))
    refuses(exported, tmp_path / "index", f"got {highest}", f"from 0 to {highest - 1}")


@pytest.mark.parametrize(
    ("name", "array", "named"),
    [
        ("centroids.pt", np.zeros(64, np.float32), "two axes"),
        ("centroids.pt", np.zeros((4, 60), np.float32), "multiple of 8"),
        ("centroids.pt", np.zeros((0, 64), np.float32), "multiple of 8"),
        ("centroids.pt", np.zeros((512, 64), np.int64), "floating-point"),
        ("centroids.pt", np.full((512, 64), np.nan, np.float32), "finite"),
        ("centroids.pt", np.zeros((512, 128), np.float32), "metadata.json: expected dim 128"),
        ("0.codes.pt", np.zeros((3, 3), np.int32), "expected whole numbers"),
        ("0.codes.pt", np.zeros(3, np.int32), "0.residuals.pt: expected uint8 [3, 16]"),
        ("0.residuals.pt", np.zeros((3, 16), np.uint8), "expected uint8"),
        ("0.residuals.pt", np.zeros((3, 16), np.int8), "got int8"),
    ],
)
def test_arrays_of_another_shape(
    exported: Path, tmp_path: Path, name: str, array: np.ndarray[Any, Any], named: str
) -> None:
    save_tensors(exported / name, Blocks.of(array))
    refuses(exported, tmp_path / "index", named)


def test_buckets_of_another_shape(exported: Path, tmp_path: Path) -> None:
    save_tensors(exported / "buckets.pt", Blocks.of(np.zeros(4, np.float32)))
    refuses(exported, tmp_path / "index", "buckets.pt: expected two tensors")
    save_tensors(exported / "buckets.pt", [Blocks.of(np.zeros(count, np.float32)) for count in (4, 5)])
    refuses(exported, tmp_path / "index", "expected 2, 4, 16 or 256 weights")
    save_tensors(exported / "buckets.pt", [Blocks.of(np.zeros(count, np.float32)) for count in (15, 16)])
    refuses(exported, tmp_path / "index", "metadata.json: expected nbits 4 as in the codec's files, got 2")
    save_tensors(exported / "buckets.pt", [Blocks.of(np.array(v, np.float32)) for v in ([3, 2, 1], [1, 2, 3, 4])])
    refuses(exported, tmp_path / "index", "must never fall")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("doclens.0.json", "[1, 2]", "sum to the"),
        ("doclens.0.json", "[-1]", "got -1 at 0"),
        ("doclens.0.json", "[1.5]", "got 1.5 at 0"),
        ("doclens.0.json", "{}", "expected a JSON array"),
        ("metadata.json", "[]", "expected a JSON object"),
        ("metadata.json", '{"num_chunks": 2}', "expected a 'config'"),
        ("metadata.json", '{"config": {}, "num_chunks": 0}', "got 0"),
        ("metadata.json", '{"config": {}, "num_chunks": "2"}', "got '2'"),
        ("metadata.json", '{"config": {}, "num_chunks": 3}', "doclens.2.json: missing"),
        ("passage_ids.json", '["a"]', "each of 60 passages, got 1"),
        ("passage_ids.json", json.dumps(["a"] * 60), "the id 'a' is that of passage 0"),
        ("passage_ids.json", json.dumps([1] * 60), "must be a string"),
        ("encoder_identity.json", '{"name": "e", "identity": 5, "dimensions": 64}', "expected name, identity"),
        ("encoder_identity.json", '{"name": "e", "identity": "5", "dimensions": 32}', "dimensions (64)"),
    ],
)
def test_json_that_says_something_else(exported: Path, tmp_path: Path, name: str, content: str, named: str) -> None:
    (exported / name).write_text(content)
    refuses(exported, tmp_path / "index", named)


def test_folders_that_are_no_index(tmp_path: Path) -> None:
    refuses(tmp_path / "nowhere", tmp_path / "index", "no such folder", kind=IndexNotFoundError)
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", tmp_path / "index", "neither a colbert-ai nor", kind=IndexNotFoundError)


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([f"{i}\ttext" for i in range(59)], "expected 60 passages"),
        ([f"{i}\ttext" for i in range(61)], "got 61"),
        ([], "got 0"),
        ([f"{i + 1}\ttext" for i in range(60)], ":1: expected passage number 0, got '1'"),
        (["0\ttext", "text"], ":2: expected number<TAB>text"),
        (["text", "1\ttext"], ":2: expected text without tabs"),
    ],
)
def test_collections_of_something_else(exported: Path, tmp_path: Path, lines: list[str], named: str) -> None:
    file = tmp_path / "collection.tsv"
    file.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(CorpusError) as caught:
        import_colbert(exported, tmp_path / "index", collection=file)
    assert str(file) in str(caught.value)
    assert named in str(caught.value)
    assert not (tmp_path / "index").exists()


def test_a_collection_of_plain_lines(exported: Path, tmp_path: Path) -> None:
    file = tmp_path / "collection.txt"
    file.write_text("".join(f"text {i}\n" for i in range(60)))
    import_colbert(exported, tmp_path / "index", collection=file)
    assert Index.open(tmp_path / "index").passage(59).text == "text 59"


def test_an_index_is_not_overwritten_unasked(exported: Path, tmp_path: Path) -> None:
    import_colbert(exported, tmp_path / "index")
    with pytest.raises(IndexExistsError):
        import_colbert(exported, tmp_path / "index")
    import_colbert(exported, tmp_path / "index", overwrite=True)
    assert Index.open(tmp_path / "index").version == 2


# What colbert-ai's layout cannot hold, and where it may be written


def test_passages_of_several_windows_are_refused(tmp_path: Path) -> None:
    config = PipelineConfig(index=IndexConfig(window_overlap=2))
    build_index(make_passages(9), tmp_path / "index", encoder=HashEncoder(), config=config)
    with pytest.raises(InputError, match=r"one window each.*'p\d'"):
        export_colbert(tmp_path / "index", tmp_path / "colbert")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]


def test_export_replaces_only_what_it_may(exported: Path, tmp_path: Path) -> None:
    source = tmp_path / "first"
    with pytest.raises(IndexExistsError, match="--overwrite"):
        export_colbert(source, exported)
    export_colbert(source, exported, overwrite=True)
    assert not (exported / "1.codes.pt").exists(), "a file of the old index"
    import_colbert(exported, tmp_path / "index")
    (exported / "notes.txt").write_text("mine")
    with pytest.raises(IndexExistsError, match=r"notes\.txt"):
        export_colbert(source, exported, overwrite=True)
    with pytest.raises(IndexExistsError, match="a file is there"):
        export_colbert(source, exported / "notes.txt", overwrite=True)
    (tmp_path / "empty").mkdir()
    export_colbert(source, tmp_path / "empty")


def test_an_export_that_fails_leaves_what_was_there(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, around = tree(exported), sorted(path.name for path in tmp_path.iterdir())

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(colbert_export._Export, "_texts", fail)
    with pytest.raises(OSError, match="No space"):
        export_colbert(tmp_path / "first", exported, overwrite=True)
    assert tree(exported) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == around


# The command line


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def test_commands(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "import-colbert", exported, tmp_path / "index", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert (facts["passages"], facts["tokens"], facts["nbits"], facts["encoder"]) == (60, sum(LENGTHS), 2, None)
    code, out, err = run(capsys, "export-colbert", tmp_path / "index", tmp_path / "again", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["passages"] == 60
    code, out, err = run(capsys, "import-colbert", exported, tmp_path / "index", "--overwrite")
    assert (code, err) == (0, "")
    assert "60 passages" in out
    code, out, err = run(capsys, "export-colbert", tmp_path / "index", tmp_path / "again", "--overwrite")
    assert (code, err) == (0, "")
    assert "60 passages" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("import-colbert", "nowhere", "new"),
        ("import-colbert", "exported", "first"),
        ("import-colbert", "spoilt", "new"),
        ("import-colbert", "exported", "new", "--collection", "nowhere.tsv"),
        ("import-colbert", "exported"),
        ("export-colbert", "nowhere", "new"),
        ("export-colbert", "first", "exported"),
        ("export-colbert", "exported", "new"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    shutil.copytree(exported, tmp_path / "spoilt")
    (tmp_path / "spoilt" / "centroids.pt").write_bytes(b"spoilt")
    command, *rest = arguments
    paths = [part if part.startswith("--") else str(tmp_path / part) for part in rest]
    code, out, err = run(capsys, command, *paths)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_an_empty_text_among_others_is_scored_and_no_texts_at_all_say_so(tmp_path: Path) -> None:
    """A collection may hold an empty line: the reranker scores it as nothing, and the query is answered."""
    texts = ["Tides follow the moon.", "", "Bread rises by yeast."]
    vectors = np.eye(3, 256, dtype=np.float32)
    for name, given in (("some", texts), ("none", [""] * 3)):
        Index.from_vectors(tmp_path / f"own-{name}", ["0", "1", "2"], vectors, np.arange(4))
        export_colbert(tmp_path / f"own-{name}", tmp_path / f"colbert-{name}")
        lines = [f"{number}\t{text}" for number, text in enumerate(given)]
        (tmp_path / "collection.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        import_colbert(tmp_path / f"colbert-{name}", tmp_path / name, collection=tmp_path / "collection.tsv")
    pipeline = Pipeline.from_config({}, index=tmp_path / "some")
    ranking = pipeline.query("what causes tides?", k=3)
    assert ranking.rescored == 3 and set(ranking.ids) == {"0", "1", "2"}
    row = int(np.argmax([passage_id == "1" for passage_id in ranking.ids]))
    empty_alone = Index.open(tmp_path / "some").reranker_tokens(np.array([1]))
    assert empty_alone is None and ranking[row].text == ""
    tokens = pipeline._reranker_tokens(pipeline.reranker, np.array([1]))
    assert tokens.lengths.tolist() == [0], "one empty candidate does not make an index without texts"
    with pytest.raises(QueryError, match=r"holds no texts that the reranker could read: build it with them"):
        Pipeline.from_config({}, index=tmp_path / "none").query("what causes tides?", k=3)
