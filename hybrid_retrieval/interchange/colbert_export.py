"""An index of ours as a folder that colbert-ai's Searcher opens."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.codec import ResidualCodec
from hybrid_retrieval.errors import IndexDamagedError, IndexExistsError, InputError
from hybrid_retrieval.interchange.sources import COLLECTION, ENCODER, PASSAGE_IDS
from hybrid_retrieval.interchange.torch_files import Blocks, save_tensors
from hybrid_retrieval.storage import Segment, Snapshot
from hybrid_retrieval.storage.files import canonical_json, sync_files, sync_folder

Progress = Callable[[str, int, int], None]

CHUNK_PASSAGES = 25_000  # as colbert-ai cuts them
BLOCK_TOKENS = 1 << 18
BLOCK_CENTROIDS = 1 << 12

_OUR_FILES = re.compile(
    r"(plan|metadata|passage_ids|encoder_identity|doclens\.\d+|\d+\.metadata)\.json|collection\.tsv"
    r"|(centroids|buckets|avg_residual|ivf|ivf\.pid|\d+\.codes|\d+\.residuals)\.pt"
)


def export_colbert(
    path: str | Path, folder: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> None:
    """Write the index at `path` to `folder` as colbert-ai 0.2 lays it out.

    A passage's number there is its row here; `passage_ids.json` lists the ids by number, `collection.tsv` the texts,
    `encoder_identity.json` which encoder an import takes.
    Codes, residuals and (in float32 where float16 would change them) centroids are the same, so colbert-ai's scores
    on a CPU are. The folder appears when it is complete. overwrite: replace a colbert-ai index that is there.

    Raises `InputError` for an index with deleted passages or with passages of several windows, neither of which
    that layout can hold; `IndexExistsError`; and what `Snapshot.open` raises.
    """
    snapshot = Snapshot.open(path)
    _check_expressible(snapshot)
    folder = Path(os.path.realpath(folder))  # of a link, what it leads to is replaced
    if Path(os.path.realpath(path)) in folder.parents:
        raise InputError(f"{folder}: lies inside the index {path}; give a folder beside it")
    _check_target(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    made = work / "new"
    try:
        made.mkdir()
        _Export(snapshot, made, progress or _silent).run(final=folder)
        sync_files(made)
        _move_into_place(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)  # the first error is the one to report
        raise
    finally:
        if not any(work.iterdir()):  # what was there before stays if it could not be put back
            work.rmdir()


def _check_expressible(snapshot: Snapshot) -> None:
    if snapshot.num_tokens == 0:
        raise InputError(f"{snapshot.path}: expected at least one token vector, got none: there is nothing to export")
    deleted = sum(int(segment.deleted.sum()) for segment in snapshot.segments)
    if deleted:
        raise InputError(
            f"{snapshot.path}: expected an index without deleted passages, got {deleted} of them; compact it first"
        )
    for segment in snapshot.segments:
        several = np.flatnonzero(np.diff(segment.window_offsets) != 1)
        if len(several):
            raise InputError(
                f"{snapshot.path}: expected passages of one window each, which is all that colbert-ai knows, got "
                f"{len(several)} that are longer than the encoder's limit (the first is "
                f"'{segment.passage_id(int(several[0]))}'); split them in the corpus and build the index from that"
            )


def _check_target(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise IndexExistsError(f"{folder}: a file is there; an index is a folder")
    names = sorted(entry.name for entry in folder.iterdir())
    foreign = [name for name in names if not _OUR_FILES.fullmatch(name)]
    if foreign:
        raise IndexExistsError(f"{folder}: the folder holds other files ('{foreign[0]}'); give a folder of its own")
    if names and not overwrite:
        raise IndexExistsError(f"{folder}: an index is there already; --overwrite (overwrite=True) replaces it")


def _move_into_place(made: Path, folder: Path) -> None:
    """A folder cannot be renamed over a full one: the old one steps aside, and comes back if that was in vain."""
    aside = made.with_name("old")
    if folder.exists():
        os.rename(folder, aside)
    try:
        os.rename(made, folder)
    except OSError:
        if aside.exists():
            os.rename(aside, folder)
        raise
    sync_folder(folder.parent)
    if aside.exists():
        shutil.rmtree(aside)


class _Export:
    """One export: what its steps share. Windows are passages here: there is one for each."""

    def __init__(self, snapshot: Snapshot, folder: Path, progress: Progress) -> None:
        self.snapshot, self.folder, self.progress = snapshot, folder, progress
        self.codec: ResidualCodec = snapshot.codec
        self.passages = sum(segment.num_passages for segment in snapshot.segments)

    def run(self, final: Path) -> None:
        """Write every file. final: where the folder will lie."""
        num_chunks, average = self._chunks()
        self._codec(average)
        self._lists()
        self._texts()
        tokens = self.snapshot.num_tokens
        # What is named here overrides the checkpoint, which knows its own markers and lengths.
        config: dict[str, Any] = {
            "dim": self.codec.dimensions,
            "nbits": self.codec.nbits,
            "collection": str(final / COLLECTION),
            "index_path": str(final),
        }
        model = self.snapshot.manifest.body["config"]["encoder"]["model"]
        if model != "embedded":
            config["checkpoint"] = model
        common = {"config": config, "num_chunks": num_chunks, "num_partitions": self.codec.num_centroids}
        estimates = {"num_embeddings_est": float(tokens), "avg_doclen_est": tokens / self.passages}
        (self.folder / "plan.json").write_bytes(canonical_json({**common, **estimates}))
        counts = {"num_embeddings": tokens, "avg_doclen": tokens / self.passages}
        (self.folder / "metadata.json").write_bytes(canonical_json({**common, **counts}))

    def _chunks(self) -> tuple[int, float]:
        """Write the chunks; how many, and the mean size of a stored residual's element."""
        number = tokens_done = 0
        bytes_seen = np.zeros(256, np.int64)
        for segment in self.snapshot.segments:
            for first in range(0, segment.num_passages, CHUNK_PASSAGES):
                last = min(first + CHUNK_PASSAGES, segment.num_passages)
                start, stop = (int(segment.token_offsets[row]) for row in (first, last))
                lengths = np.diff(segment.token_offsets[first : last + 1])
                self._chunk(number, segment, start, stop, bytes_seen)
                (self.folder / f"doclens.{number}.json").write_text(json.dumps(lengths.tolist()), encoding="ascii")
                facts = {
                    "passage_offset": segment.row_base + first,
                    "num_passages": last - first,
                    "num_embeddings": stop - start,
                    "embedding_offset": tokens_done,
                }
                (self.folder / f"{number}.metadata.json").write_bytes(canonical_json(facts))
                number, tokens_done = number + 1, tokens_done + stop - start
                self.progress("export", tokens_done, self.snapshot.num_tokens)
        sizes = np.abs(self.codec.table.astype(np.float64)).sum(axis=1)
        return number, float(sizes @ bytes_seen / (tokens_done * self.codec.dimensions))

    def _chunk(self, number: int, segment: Segment, start: int, stop: int, bytes_seen: NDArray[np.int64]) -> None:
        starts = range(start, stop, BLOCK_TOKENS)

        def residuals() -> Iterator[NDArray[np.uint8]]:
            for at in starts:
                block = segment.residuals[at : min(at + BLOCK_TOKENS, stop)]
                bytes_seen[:] += np.bincount(block.reshape(-1), minlength=256)
                yield block

        def codes() -> Iterator[NDArray[np.int32]]:
            for at in starts:
                block = segment.codes[at : min(at + BLOCK_TOKENS, stop)]
                if int(block.max()) >= self.codec.num_centroids:
                    raise IndexDamagedError(
                        f"{self.snapshot.path}: a code is not below {self.codec.num_centroids}: the index is damaged"
                    )
                yield block.astype("<i4")

        save_tensors(self.folder / f"{number}.codes.pt", Blocks(np.dtype("<i4"), (stop - start,), codes()))
        shape = (stop - start, self.codec.residual_bytes)
        save_tensors(self.folder / f"{number}.residuals.pt", Blocks(np.dtype("u1"), shape, residuals()))

    def _codec(self, average: float) -> None:
        """average: colbert-ai measures it on held-out vectors, here it is that of the stored ones. Nothing reads it."""
        half = self.codec.centroids.astype(np.float16)
        exact = np.array_equal(half.astype(np.float32), self.codec.centroids)
        save_tensors(self.folder / "centroids.pt", Blocks.of(half if exact else self.codec.centroids))
        save_tensors(self.folder / "buckets.pt", [Blocks.of(self.codec.cutoffs), Blocks.of(self.codec.weights)])
        save_tensors(self.folder / "avg_residual.pt", Blocks.of(np.array([average], np.float32)))

    def _lists(self) -> None:
        """The passages of each centroid, and how many they are."""
        lengths = sum(np.diff(segment.list_offsets) for segment in self.snapshot.segments)
        lengths = np.asarray(lengths, np.int64)
        lists = Blocks(np.dtype("<i4"), (int(lengths.sum()),), self._list_blocks())
        save_tensors(self.folder / "ivf.pid.pt", [lists, Blocks.of(lengths)])

    def _list_blocks(self) -> Iterator[NDArray[np.int32]]:
        for first in range(0, self.codec.num_centroids, BLOCK_CENTROIDS):
            last = min(first + BLOCK_CENTROIDS, self.codec.num_centroids)
            pids, centroids = [], []
            for segment in self.snapshot.segments:
                offsets = segment.list_offsets[first : last + 1]
                pids.append(segment.lists[offsets[0] : offsets[-1]].astype(np.int32) + np.int32(segment.row_base))
                centroids.append(np.repeat(np.arange(first, last), np.diff(offsets)))
            order = np.argsort(np.concatenate(centroids), kind="stable")
            yield np.concatenate(pids)[order]

    def _texts(self) -> None:
        """collection.tsv in colbert-ai's form, whose lines hold neither tabs nor line ends, and the ids by number."""
        ids = []
        with open(self.folder / COLLECTION, "w", encoding="utf-8", newline="\n") as file:
            for row in range(self.passages):
                passage = self.snapshot.passage(row)
                ids.append(passage.passage_id)
                title = f"\t{_one_line(passage.title)}" if passage.title else ""
                file.write(f"{row}\t{_one_line(passage.text)}{title}\n")
        (self.folder / PASSAGE_IDS).write_text(json.dumps(ids, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.snapshot.encoder is not None:
            (self.folder / ENCODER).write_bytes(canonical_json(self.snapshot.encoder))


def _one_line(text: str) -> str:
    return re.sub(r"[\t\r\n]+", " ", text)


def _silent(step: str, done: int, total: int) -> None:
    """No progress wanted."""
