"""Building an index: read and check every passage, train the codec on a sample, encode chunk by chunk,
commit.

Memory is bounded by the ids, a sample and a chunk. Every step records how far it came, so that a build that
was killed continues with `resume`, and ends in the same bytes as one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.builder.models import PassageTokenizer, WindowEncoder, check_encoded, check_models
from hybrid_retrieval.builder.placing import nearest_on
from hybrid_retrieval.builder.pooling import pool_windows
from hybrid_retrieval.codec import MOST_SAMPLE_VECTORS, ResidualCodec, train_codec
from hybrid_retrieval.config import PipelineConfig
from hybrid_retrieval.errors import (
    ConfigError,
    CorpusError,
    IndexDamagedError,
    IndexExistsError,
    InputError,
    ModelError,
    ModelMismatchError,
    StorageError,
)
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.storage import IndexWriter, PassageEncoder, SegmentWriter
from hybrid_retrieval.storage.files import check_content, sync_files, sync_folder
from hybrid_retrieval.storage.layout import PASSAGE_FILES, RERANKER_FILES, VECTOR_FILES
from hybrid_retrieval.storage.passages import StoredPassages
from hybrid_retrieval.storage.snapshot import read_manifest
from hybrid_retrieval.types import Passage

Progress = Callable[[str, int, int], None]

READ_PASSAGES = 512
# Passages handed to the encoder at once, counted from the chunk's first: what it batches depends on the chunk
# alone.
ENCODE_PASSAGES = 256
# colbert-ai samples 16 * sqrt(120 * N) passages; this many bound what they take on disk.
MOST_SAMPLE_PASSAGES = 32_768


def build_index(
    corpus: Iterable[Passage],
    path: str | Path,
    *,
    encoder: WindowEncoder,
    reranker_tokenizer: PassageTokenizer | None = None,
    config: PipelineConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Build an index of a corpus.

    resume: continue a build that was interrupted; the corpus, the configuration and the models must be the
    same. An index that is complete already is left as it is if they are. overwrite: replace an index.
    With both, an interrupted build is continued, and where there is none an index is replaced.
    progress: called with (step, done, total); total 0 is unknown.

    Bad input (`InputError`) leaves nothing behind, and neither does what fails before any passage is encoded; any other
    failure leaves a build that can be resumed, and no index.
    """
    check_models(encoder, reranker_tokenizer)
    build = _Build(encoder, reranker_tokenizer, config or PipelineConfig(), progress or _silent)
    with IndexWriter.create(path, overwrite=overwrite, resume=resume) as writer:
        fresh = writer.journal is None
        try:
            complete = writer.committed_version is not None and (writer.finished_earlier or not overwrite)
            if resume and fresh and complete:
                build.check_complete(writer, corpus)
                writer.discard()
            else:
                build.run(writer, corpus)
        except BaseException as error:
            # A resumed build keeps what an earlier run has done: the input of this one is at fault.
            if fresh and (isinstance(error, (InputError, StorageError)) or not _has_encoded(writer)):
                writer.discard()
            raise


def _has_encoded(writer: IndexWriter) -> bool:
    """Whether there is work that a resumed build would not do again."""
    return bool(writer.journal and writer.journal["chunks"]) or any((writer.building / "sample").glob("*.npz"))


class _Build:
    """One build: the parts that all its steps share."""

    def __init__(
        self,
        encoder: WindowEncoder,
        reranker: PassageTokenizer | None,
        config: PipelineConfig,
        progress: Progress,
    ) -> None:
        self.encoder, self.reranker, self.config, self.progress = encoder, reranker, config, progress
        self.keys: dict[str, Any] = {
            "encoder": {"name": encoder.name, "identity": encoder.identity, "dimensions": encoder.dimensions},
            "reranker": reranker and {"name": reranker.name, "identity": reranker.tokenizer_identity},
            "config": config.to_dict(),
        }
        self.make_nearest = nearest_on(config.index.device)

    def run(self, writer: IndexWriter, corpus: Iterable[Passage]) -> None:
        """All steps, each from where an interrupted build left it."""
        journal = writer.journal
        begun = {**self.keys, "corpus": None, "passages": 0, "codec": None, "chunks": 0, "files": {}}
        if journal is None:
            journal = begun
            writer.save_journal(journal)
        elif not journal.keys() >= begun.keys():
            raise IndexDamagedError(
                f"{writer.path}: the journal of the interrupted build is damaged; start over with overwrite=True"
            )
        else:
            self._check_same(journal, f"the interrupted build of {writer.path}")
        if journal["corpus"] is None:
            journal = self._read(writer, journal, corpus)
        else:
            self._check_corpus(journal["corpus"], corpus, f"the interrupted build of {writer.path}")
            with _resuming(writer):
                for file in PASSAGE_FILES:
                    check_content(writer.building / "segment" / file.name, journal["files"][file.name])
        stored = StoredPassages(writer.building / "segment")
        codec = self._train(writer, journal["codec"], stored)
        journal = {**journal, "codec": codec.codec_id}
        writer.save_journal(journal)
        self._encode(writer, journal, stored, codec)
        self.progress("commit", 0, 1)
        writer.commit(codec, corpus=journal["corpus"], **self.keys)
        self.progress("commit", 1, 1)

    def check_complete(self, writer: IndexWriter, corpus: Iterable[Passage]) -> None:
        """Raise unless the finished index is the one that this build would make."""
        version = writer.committed_version
        assert version is not None
        body = read_manifest(writer.path, version).body
        if body["encoder"] is None:
            raise IndexExistsError(f"{writer.path}: there is an index made from vectors; nothing to resume")
        self._check_same(body, f"the index at {writer.path}")
        self._check_corpus(body["corpus"], corpus, f"the index at {writer.path}")

    def _check_same(self, earlier: dict[str, Any], what: str) -> None:
        for key in ("encoder", "reranker"):
            if earlier[key] != self.keys[key]:
                theirs, ours = (value["name"] if value else "none" for value in (earlier[key], self.keys[key]))
                raise ModelMismatchError(
                    f"{what} used another {key} ({theirs}; now {ours}): use the same, or start over with overwrite"
                )
        # Keys that came later than that build have their defaults there.
        before = PipelineConfig.from_stored(earlier["config"], source=what).to_dict()
        if before != self.keys["config"]:
            theirs, ours = (
                {f"{section}.{key}": value for section, values in config.items() for key, value in values.items()}
                for config in (before, self.keys["config"])
            )
            changed = sorted(
                key for key in {*theirs, *ours} if key not in theirs or key not in ours or theirs[key] != ours[key]
            )
            raise ConfigError(
                f"{what} had another configuration ({', '.join(changed)}): use the same, or start over with overwrite"
            )

    def _check_corpus(self, fingerprint: str, corpus: Iterable[Passage], what: str) -> None:
        checked = PassageEncoder(self.config.index.include_title)
        for passage in corpus:
            checked.encode(passage)
            if checked.count % READ_PASSAGES == 0:
                self.progress("read", checked.count, 0)
        if checked.fingerprint != fingerprint:
            raise CorpusError(f"{what} was of another corpus: use the same, or start over with overwrite")

    def _read(self, writer: IndexWriter, journal: dict[str, Any], corpus: Iterable[Passage]) -> dict[str, Any]:
        """Check and store every passage. Begins anew after an interruption: reading is quick."""
        checked = PassageEncoder(self.config.index.include_title)
        with SegmentWriter(writer.building / "segment", PASSAGE_FILES) as segment:
            encoded = (checked.encode(passage) for passage in corpus)
            while rows := list(islice(encoded, READ_PASSAGES)):
                segment.append_passages(rows)
                self.progress("read", checked.count, 0)
            if checked.count == 0:
                raise CorpusError("the corpus is empty: an index needs at least one passage")
            files = segment.checkpoint()
        journal = {**journal, "corpus": checked.fingerprint, "passages": checked.count, "files": files}
        writer.save_journal(journal)
        self.progress("read", checked.count, checked.count)
        return journal

    def _chunks(self, num_passages: int) -> list[range]:
        size = self.config.index.chunk_passages
        return [range(start, min(start + size, num_passages)) for start in range(0, num_passages, size)]

    def _train(self, writer: IndexWriter, trained: str | None, stored: StoredPassages) -> ResidualCodec:
        """The codec, from the vectors of whole chunks drawn by the seed; those are kept, not encoded
        again. trained: the id of the one that is there already."""
        folder, samples = writer.building / "codec", writer.building / "sample"
        if trained is not None:
            with _resuming(writer):
                codec = dataclasses.replace(ResidualCodec.load(folder), make_nearest=self.make_nearest)
                if codec.codec_id != trained:
                    raise IndexDamagedError(f"{folder}: the codec is another than was trained")
            return codec
        if folder.exists():  # it was saved, and not noted
            shutil.rmtree(folder)
        samples.mkdir(exist_ok=True)
        index, chunks = self.config.index, self._chunks(stored.count)
        wanted = min(stored.count, 1 + int(16 * math.sqrt(120 * stored.count)), MOST_SAMPLE_PASSAGES)
        number = math.ceil(wanted / index.chunk_passages)
        drawn = np.random.default_rng(index.seed).choice(len(chunks), min(number, len(chunks)), replace=False)
        total, done = sum(len(chunks[i]) for i in drawn), 0
        for i in sorted(drawn.tolist()):
            if not (samples / f"{i}.npz").exists():
                _save_sample(samples / f"{i}.npz", self._encode_chunk(stored, chunks[i], "sample", done, total))
            done += len(chunks[i])
        files = {i: samples / f"{i}.npz" for i in sorted(drawn.tolist())}
        sizes = [_sample_size(file) for file in files.values()]
        share = min(1.0, MOST_SAMPLE_VECTORS / max(1, sum(sizes)))
        ends = np.cumsum([int(share * size) for size in sizes])
        sample = np.empty((ends[-1], self.encoder.dimensions), np.float32)
        for (i, file), part in zip(files.items(), np.split(sample, ends[:-1]), strict=True):
            part[:] = _load_share(file, len(part), (index.seed, i))
        self.progress("train", 0, 1)
        codec = train_codec(
            sample,
            nbits=index.nbits,
            num_centroids=index.centroids,
            seed=index.seed,
            num_tokens=sum(sizes) * stored.count // total,
            make_nearest=self.make_nearest,
        )
        temporary = writer.building / "codec.tmp"
        temporary.mkdir(exist_ok=True)
        codec.save(temporary)
        sync_files(temporary)
        os.rename(temporary, folder)
        sync_folder(writer.building)
        self.progress("train", 1, 1)
        return codec

    def _encode(
        self, writer: IndexWriter, journal: dict[str, Any], stored: StoredPassages, codec: ResidualCodec
    ) -> None:
        """Encode, compress and append every chunk that is not there yet."""
        files = VECTOR_FILES if self.reranker is None else (*VECTOR_FILES, *RERANKER_FILES)
        with SegmentWriter(writer.building / "segment", files, journal["files"]) as segment:
            for i, chunk in enumerate(self._chunks(stored.count)):
                if i < journal["chunks"]:
                    continue
                sample = writer.building / "sample" / f"{i}.npz"
                if sample.exists():
                    vectors, window_offsets = _load_sample(sample)
                else:
                    vectors, window_offsets = self._encode_chunk(stored, chunk, "encode", chunk.start, stored.count)
                codes, residuals = codec.encode(vectors.data)
                segment.append_vectors(codes, residuals, vectors.lengths, np.diff(window_offsets))
                if self.reranker is not None:
                    tokens = self.reranker.tokenize(self._texts(stored, chunk))
                    if len(tokens) != len(chunk):
                        raise ModelError(f"{self.reranker.name} tokenized {len(chunk)} passages to {len(tokens)} rows")
                    segment.append_reranker_tokens(tokens)
                journal = {**journal, "chunks": i + 1, "files": {**journal["files"], **segment.checkpoint()}}
                writer.save_journal(journal)
                sample.unlink(missing_ok=True)
                self.progress("encode", chunk.stop, stored.count)

    def _texts(self, stored: StoredPassages, rows: range) -> list[str]:
        return [passage.content(self.config.index.include_title) for passage in stored.read(rows)]

    def _encode_chunk(
        self, stored: StoredPassages, chunk: range, step: str, done: int, total: int
    ) -> tuple[Ragged, NDArray[np.int64]]:
        """(windows over float32 [T, D], window offsets int64 [n + 1]) of a chunk's passages."""
        data: list[NDArray[np.float32]] = []
        lengths: list[NDArray[np.int64]] = []
        windows: list[NDArray[np.int64]] = []
        for start in range(chunk.start, chunk.stop, ENCODE_PASSAGES):
            rows = range(start, min(start + ENCODE_PASSAGES, chunk.stop))
            vectors, offsets = self.encoder.encode_windows(
                self._texts(stored, rows), overlap_tokens=self.config.index.window_overlap
            )
            check_encoded(self.encoder, vectors, offsets, len(rows))
            vectors = pool_windows(vectors, self.config.index.pool_factor)
            data.append(vectors.data.astype(np.float32, copy=False))
            lengths.append(vectors.lengths)
            windows.append(np.diff(offsets))
            self.progress(step, done + rows.stop - chunk.start, total)
        return (
            Ragged(np.concatenate(data), _offsets(np.concatenate(lengths))),
            _offsets(np.concatenate(windows)),
        )


@contextlib.contextmanager
def _resuming(writer: IndexWriter) -> Iterator[None]:
    """Says what to do where what was built before is damaged."""
    try:
        yield
    except IndexDamagedError as error:
        raise IndexDamagedError(
            f"{error}; the interrupted build of {writer.path} cannot be resumed: build again with overwrite"
        ) from None


def _save_sample(path: Path, encoded: tuple[Ragged, NDArray[np.int64]]) -> None:
    vectors, window_offsets = encoded
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, data=vectors.data, offsets=vectors.offsets, window_offsets=window_offsets)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextlib.contextmanager
def _sample(path: Path) -> Iterator[Mapping[str, Any]]:
    """A file of the sample: reads an array when it is asked for. Raises `IndexDamagedError`."""
    try:
        with np.load(path) as kept:
            yield kept
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise IndexDamagedError(
            f"{path}: the interrupted build is damaged ({error}); start over with overwrite=True"
        ) from None


def _load_sample(path: Path) -> tuple[Ragged, NDArray[np.int64]]:
    with _sample(path) as kept:
        return Ragged(kept["data"], kept["offsets"]), kept["window_offsets"]


def _sample_size(path: Path) -> int:
    """Vectors in a file of the sample."""
    with _sample(path) as kept:
        return int(kept["offsets"][-1])


def _load_share(path: Path, count: int, seed: tuple[int, int]) -> NDArray[np.float32]:
    """So many of the vectors in a file of the sample, drawn by the seed."""
    data: NDArray[np.float32] = _load_sample(path)[0].data
    if count == len(data):
        return data
    return data[np.sort(np.random.default_rng(seed).choice(len(data), count, replace=False))]


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _silent(step: str, done: int, total: int) -> None:
    """Nobody watches."""
