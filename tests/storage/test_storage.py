"""Snapshots and verification: what was written is read, and damage of every kind is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval.builder import build_index
from hybrid_retrieval.config import IndexConfig, PipelineConfig
from hybrid_retrieval.errors import (
    IndexDamagedError,
    IndexExistsError,
    IndexLockedError,
    IndexNotFoundError,
    IndexVersionError,
)
from hybrid_retrieval.storage import IndexWriter, Manifest, Snapshot, verify
from hybrid_retrieval.storage.lists import write_lists
from hybrid_retrieval.storage.manifest import pack_deleted, unpack_deleted
from hybrid_retrieval.storage.snapshot import read_manifest
from tests.support import HashEncoder, HashTokenizer, make_passages, tree

ROOT = Path(__file__).parents[2]
PASSAGES = make_passages(40)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("storage") / "index"
    config = PipelineConfig(index=IndexConfig(chunk_passages=16, window_overlap=2))
    build_index(PASSAGES, path, encoder=HashEncoder(), reranker_tokenizer=HashTokenizer(), config=config)
    return path


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "index"))


def newest(index: Path) -> Path:
    return max((index / "versions").iterdir())


def segment_folder(index: Path) -> Path:
    (folder,) = (index / "segments").iterdir()
    return folder


def all_files(index: Path) -> list[Path]:
    return sorted(p for p in index.rglob("*") if p.is_file() and p.name != "lock")


def test_a_snapshot_gives_back_passages_tokens_and_counts(built: Path) -> None:
    snapshot, encoder = Snapshot.open(built), HashEncoder()
    assert snapshot.num_passages == len(PASSAGES)
    assert [snapshot.passage(row) for row in range(len(PASSAGES))] == PASSAGES
    assert [snapshot.row_of(p.passage_id) for p in PASSAGES] == list(range(len(PASSAGES)))
    assert snapshot.row_of("nobody") is None
    vectors, offsets = encoder.encode_windows([p.content() for p in PASSAGES], overlap_tokens=2)
    assert snapshot.num_windows == len(vectors)
    assert snapshot.num_tokens == len(vectors.data)
    for row in range(len(PASSAGES)):
        windows = snapshot.token_vectors(row)
        assert len(windows) == offsets[row + 1] - offsets[row]
        for number, found in enumerate(windows):
            expected = vectors[int(offsets[row]) + number]
            assert found.shape == expected.shape
            assert float((found * expected).sum(axis=1).mean()) > 0.8
    rows = np.array([5, 0, 5, 39])
    tokens, expected_tokens = (
        snapshot.reranker_tokens(rows),
        HashTokenizer().tokenize([PASSAGES[row].content() for row in rows]),
    )
    assert tokens is not None
    np.testing.assert_array_equal(tokens.data, expected_tokens.data)
    np.testing.assert_array_equal(tokens.offsets, expected_tokens.offsets)


def test_lists_hold_the_windows_of_each_centroid(built: Path) -> None:
    snapshot = Snapshot.open(built)
    (segment,) = snapshot.segments
    for centroid in range(snapshot.codec.num_centroids):
        found = segment.lists[segment.list_offsets[centroid] : segment.list_offsets[centroid + 1]]
        expected = [
            w
            for w in range(segment.num_windows)
            if centroid in segment.codes[segment.token_offsets[w] : segment.token_offsets[w + 1]]
        ]
        assert found.tolist() == expected


def test_lists_built_block_by_block_are_the_same(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid_retrieval.storage.lists.BLOCK_TOKENS", 7)
    copy = Path(shutil.copytree(segment_folder(built), tmp_path / "segment"))
    write_lists(copy, Snapshot.open(built).codec.num_centroids)
    assert tree(copy) == tree(segment_folder(built))


def test_a_row_that_is_not_there_is_an_index_error(built: Path) -> None:
    for row in (-1, len(PASSAGES)):
        with pytest.raises(IndexError):
            Snapshot.open(built).passage(row)


def test_a_sound_index_has_no_problems(built: Path) -> None:
    assert verify(built) == []


@pytest.mark.parametrize("content", ["nothing", "empty folder", "file"])
def test_where_there_is_no_index_it_says_so(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x"
    if content == "empty folder":
        path.mkdir()
    elif content == "file":
        path.write_text("hello")
    for action in (Snapshot.open, verify):
        with pytest.raises(IndexNotFoundError, match=r"no index|not an index"):
            action(path)


def test_every_truncated_file_is_refused(index: Path) -> None:
    for file in all_files(index):
        data = file.read_bytes()
        if not data:
            continue
        file.write_bytes(data[:-1])
        with pytest.raises(IndexDamagedError, match=file.name):
            Snapshot.open(index)
        assert verify(index), file
        file.write_bytes(data)
    assert verify(index) == []


def test_every_missing_file_is_refused(index: Path) -> None:
    for file in all_files(index):
        if file.parent.name == "versions":
            continue
        data = file.read_bytes()
        file.unlink()
        with pytest.raises(IndexDamagedError, match=file.name):
            Snapshot.open(index)
        assert any(file.name in problem for problem in verify(index))
        file.write_bytes(data)


def test_verify_finds_a_flipped_bit_in_every_file(index: Path) -> None:
    for file in all_files(index):
        data = file.read_bytes()
        for position in {0, len(data) // 2, len(data) - 1} if data else ():
            file.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
            assert any(file.name in problem for problem in verify(index)), (file, position)
        file.write_bytes(data)


def test_a_foreign_file_of_the_right_size_is_found(index: Path) -> None:
    file = segment_folder(index) / "residuals.uint8"
    file.write_bytes(b"x" * file.stat().st_size)
    assert any("residuals" in problem for problem in verify(index))


def test_verify_sees_what_checksums_cannot(index: Path) -> None:
    """Files and manifest agree, but the lists name another window than the codes do."""
    lists = segment_folder(index) / "lists.uint32"
    values = np.fromfile(lists, "<u4")
    values[0] += 1
    values.tofile(lists)
    rewrite_manifest(index, lists)
    assert any("inverted lists" in problem for problem in verify(index))


def test_verify_sees_codes_beyond_the_centroids(index: Path) -> None:
    codes = segment_folder(index) / "codes.uint32"
    values = np.fromfile(codes, "<u4")
    values[-1] = 4_000_000_000
    values.tofile(codes)
    rewrite_manifest(index, codes)
    assert any("codes are not all below" in problem for problem in verify(index))


@pytest.mark.parametrize("name", ["token_offsets", "window_offsets", "list_offsets"])
def test_offsets_that_fall_by_more_than_64_bits_hold_are_damage(index: Path, name: str) -> None:
    (file,) = index.glob(f"segments/*/{name}.*")
    offsets = np.fromfile(file, np.int64)
    offsets[1:5] = 2**63 - 3, -(2**63) + 2, -(2**62), 0
    assert not (np.diff(offsets[:6]) < 0).any()
    offsets.tofile(file)
    with pytest.raises(IndexDamagedError, match="fall"):
        Snapshot.open(index)


def test_token_vectors_of_a_damaged_code_are_the_indexs_fault(index: Path) -> None:
    codes = segment_folder(index) / "codes.uint32"
    values = np.fromfile(codes, "<u4")
    values[0] = 0x7FFFFFFF
    values.tofile(codes)
    with pytest.raises(IndexDamagedError, match="row 0 is damaged"):
        Snapshot.open(index).token_vectors(0)


def test_an_identity_is_that_of_the_content(index: Path) -> None:
    first = Snapshot.open(index)
    for seed, same in ((None, True), (9, False)):
        passages = PASSAGES if seed is None else make_passages(len(PASSAGES), seed=seed)
        config = PipelineConfig(index=IndexConfig(chunk_passages=16, window_overlap=2))
        build_index(
            passages, index, encoder=HashEncoder(), reranker_tokenizer=HashTokenizer(), config=config, overwrite=True
        )
        again = Snapshot.open(index)
        assert again.manifest.version > first.manifest.version
        assert (again.identity == first.identity) is same


def test_verify_starts_over_where_the_index_is_replaced_meanwhile(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_manifest

    def replaced(path: Path, version: int) -> Manifest:
        manifest = read(path, version)
        if version == 1:
            build_index(make_passages(5, seed=9), index, encoder=HashEncoder(), overwrite=True)
        return manifest

    monkeypatch.setattr(sys.modules[verify.__module__], "read_manifest", replaced)
    assert verify(index) == []
    assert Snapshot.open(index).manifest.version == 2


def test_verify_sees_ids_that_repeat(index: Path) -> None:
    ids = segment_folder(index) / "ids.uint8"
    ids.write_bytes(ids.read_bytes().replace(b"p2p3", b"p2p2"))
    rewrite_manifest(index, ids)
    assert any("same id" in problem for problem in verify(index))


def rewrite_manifest(index: Path, changed: Path) -> None:
    from hybrid_retrieval.storage.files import sha256_of

    body = json.loads(newest(index).read_bytes())
    body["segments"][0]["files"][changed.name]["sha256"] = sha256_of(changed)
    keys = {k: v for k, v in body.items() if k not in ("checksum", "format_version", "created_by")}
    newest(index).write_bytes(Manifest.create(**keys).to_bytes())


NAN = b'{"format_version": 1, "x": NaN}'


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b'{"format_version": "1"}', b"\xff\xfe", b"[" * 100_000, NAN]
)
def test_a_damaged_newest_manifest_is_an_error_not_a_step_back(index: Path, data: bytes) -> None:
    (index / "versions" / f"{2:020d}.json").write_bytes(data)
    with pytest.raises(IndexDamagedError, match=r"00002\.json"):
        Snapshot.open(index)
    assert verify(index)


def test_a_newer_format_is_refused_by_name(index: Path) -> None:
    body = json.loads(newest(index).read_bytes())
    body["format_version"] = 2
    newest(index).write_text(json.dumps(body))
    with pytest.raises(IndexVersionError, match="format 2; this release reads format 1"):
        Snapshot.open(index)


@pytest.mark.parametrize("key", ["version", "codec", "segments", "encoder", "reranker", "config", "corpus"])
@pytest.mark.parametrize("value", ["missing", [1], {"a": 1}])
def test_a_signed_manifest_without_a_part_is_damaged(index: Path, key: str, value: Any) -> None:
    body = json.loads(newest(index).read_bytes())
    keys = {k: v for k, v in body.items() if k not in ("checksum", "format_version", "created_by")}
    keys = {k: v for k, v in keys.items() if k != key} if value == "missing" else {**keys, key: value}
    newest(index).write_bytes(Manifest.create(**keys).to_bytes())
    with pytest.raises(IndexDamagedError, match="manifest lacks a part"):
        Snapshot.open(index)
    assert any("manifest lacks a part" in problem for problem in verify(index))


def test_a_manifest_of_another_version_is_refused(index: Path) -> None:
    shutil.copy(newest(index), index / "versions" / f"{7:020d}.json")
    with pytest.raises(IndexDamagedError, match="manifest of version 1"):
        Snapshot.open(index)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 1000])
def test_a_delete_bitmap_survives_packing(rows: int) -> None:
    deleted = np.random.default_rng(0).random(rows) < 0.3
    np.testing.assert_array_equal(unpack_deleted(pack_deleted(deleted), rows), deleted)
    assert pack_deleted(np.zeros(rows, np.bool_)) is None


@pytest.mark.parametrize("text", ["", "AAAA", "not base64!", 5])
def test_a_damaged_delete_bitmap_is_refused(text: object) -> None:
    with pytest.raises(IndexDamagedError):
        unpack_deleted(text, 9)  # type: ignore[arg-type]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom hybrid_retrieval.storage import IndexWriter\n"
        f"w = IndexWriter.create({str(tmp_path / 'x')!r})\nprint('held', flush=True)\nsys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(IndexLockedError, match="another process"):
        IndexWriter.create(tmp_path / "x")
    holder.kill()
    holder.communicate()
    with IndexWriter.create(tmp_path / "x") as writer:  # the lock died with its process
        writer.discard()
    assert not (tmp_path / "x" / "building").exists()


def test_a_folder_with_other_files_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(IndexExistsError, match="other files"):
        IndexWriter.create(tmp_path, overwrite=True)
    assert tree(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    "name",
    [
        *("building/house.jpg", "building/segment/notes.txt", "segments/0a/a.txt", "versions/notes.txt"),
        *("codec/0a/.DS_Store", "versions", "segments/0a"),
    ],
)
def test_what_no_build_made_is_not_removed_by_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x"
    (path / name).parent.mkdir(parents=True)
    (path / name).write_text("mine")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(IndexExistsError, match=rf"other files \({name}\)"):
            IndexWriter.create(path, **options)
        assert tree(path) == {name: b"mine"}


def test_a_linked_part_of_an_index_is_not_ours(index: Path, tmp_path: Path) -> None:
    (index / "segments").rename(tmp_path / "elsewhere")
    (index / "segments").symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path)
    with pytest.raises(IndexExistsError, match=r"other files \(segments\)"):
        IndexWriter.create(index, overwrite=True)
    assert tree(tmp_path) == before


def test_a_process_that_was_forked_meanwhile_does_not_keep_the_lock(tmp_path: Path) -> None:
    with IndexWriter.create(tmp_path / "x") as writer:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        writer.discard()
    try:
        IndexWriter.create(tmp_path / "x").close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_process_does_not_release_the_lock(tmp_path: Path) -> None:
    with IndexWriter.create(tmp_path / "x") as writer:
        child = os.fork()
        if child == 0:
            writer.close()
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(IndexLockedError):
            IndexWriter.create(tmp_path / "x")


def test_an_open_snapshot_outlives_its_replacement(index: Path) -> None:
    old = Snapshot.open(index)
    build_index(make_passages(5, seed=9), index, encoder=HashEncoder(), overwrite=True)
    assert [old.passage(row) for row in range(len(PASSAGES))] == PASSAGES
    assert Snapshot.open(index).num_passages == 5
    assert Snapshot.open(index).manifest.version == 2
    assert verify(index) == []
