"""`Index`: a folder with everything that both stages need, opened as a memory-mapped snapshot."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.builder import (
    PassageTokenizer,
    Progress,
    WindowEncoder,
    build_from_vectors,
    build_index,
)
from hybrid_retrieval.config import Device, PipelineConfig
from hybrid_retrieval.corpus.readers import read_corpus
from hybrid_retrieval.corpus.records import to_passage
from hybrid_retrieval.errors import (
    ArrayError,
    ConfigError,
    CorpusError,
    InputError,
    ModelMismatchError,
    QueryError,
    StorageError,
)
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.search import Searcher
from hybrid_retrieval.storage import Snapshot, verify
from hybrid_retrieval.types import Passage, Ranking, check_count, check_flag, check_path

if TYPE_CHECKING:
    from hybrid_retrieval.encoders import Encoder
    from hybrid_retrieval.rerankers import Reranker

CONFIGURED: Final = "configured"


class Index:
    """One version of an index. Safe to share between threads; keeps its version whatever a writer does."""

    def __init__(self, snapshot: Snapshot, device: str = "cpu") -> None:
        self._snapshot = snapshot
        self._searcher = Searcher(snapshot, device)

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """The newest version. Raises `IndexNotFoundError`, `IndexVersionError` or `IndexDamagedError`."""
        path = check_path("an index", path)
        with _readable(path):
            return cls(Snapshot.open(path))

    def to(self, device: str) -> Index:
        """The same version, searched on `cpu`, on `cuda` (needs the extra `gpu`), or on `auto`: CUDA if there is one.

        Its vectors lie in the device's memory where they fit; else they stay mapped and are read from the host. Raises
        `ModelSettingsError` for another device or one that is not there, `OptionalDependencyError` without the extra.
        """
        return Index(self._snapshot, device)

    @classmethod
    def build(
        cls,
        corpus: str | Path | Iterable[Passage | Mapping[str, Any]],
        path: str | Path,
        *,
        encoder: str | Path | WindowEncoder = CONFIGURED,
        reranker: str | Path | PassageTokenizer | None = CONFIGURED,
        nbits: int | None = None,
        config: PipelineConfig | Mapping[str, Any] | str | Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Index:
        """Build an index and open it.

        corpus: a file or folder that `read_corpus` reads, or passages (`Passage`, or mappings with the keys
        of a JSON line). encoder, reranker: a model's name, a loaded one, or by default what the configuration
        names; reranker None stores no tokens for stage 2. The index remembers where they were
        loaded from. nbits: instead of the configuration's. config: a
        `PipelineConfig`, a mapping, or a YAML file. resume, overwrite, progress: see `builder.build_index`. Raises
        `CorpusError`, `ConfigError`, `IndexExistsError`, `IndexLockedError`, and what loading the models raises; no
        index is left behind. What the operating system refuses while it writes stays an `OSError`.
        """
        path = check_path("an index", path)
        resume, overwrite = check_flag("resume", resume), check_flag("overwrite", overwrite)
        if progress is not None and not callable(progress):
            raise InputError(f"progress must be a function of (step, done, total), got {progress!r:.80}")
        settings = _settings(config)
        if nbits is not None:
            settings = dataclasses.replace(settings, index=dataclasses.replace(settings.index, nbits=nbits))
        if isinstance(encoder, (str, os.PathLike)):
            encoder = os.fspath(encoder)
            if encoder != CONFIGURED and encoder != settings.encoder.model:
                part = dataclasses.replace(settings.encoder, model=encoder, revision=None)
                settings = dataclasses.replace(settings, encoder=part)
            encoder = load_encoder(settings)
        if isinstance(reranker, (str, os.PathLike)):
            reranker = os.fspath(reranker)
            if reranker != CONFIGURED and reranker != settings.reranker.model:
                stage = dataclasses.replace(settings.reranker, model=reranker, revision=None)
                settings = dataclasses.replace(settings, reranker=stage)
            reranker = load_reranker(settings)
        build_index(
            _passages(corpus),
            path,
            encoder=encoder,
            reranker_tokenizer=reranker,
            config=_with_sources(settings, encoder, reranker),
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
        return cls.open(path)

    @classmethod
    def from_vectors(
        cls,
        path: str | Path,
        ids: Sequence[str],
        data: NDArray[Any],
        offsets: NDArray[np.int64],
        *,
        nbits: int = 2,
        centroids: int = 0,
        pool_factor: int = 1,
        seed: int = 0,
        device: Device = "cpu",
        overwrite: bool = False,
    ) -> Index:
        """Build an index from vectors of your own and open it.

        ids: N strings. data: float16 or float32 [T, D], unit rows. offsets: int64 [N + 1]. device: of the build alone;
        `to` moves search. See `builder.build_from_vectors`.
        """
        build_from_vectors(
            path,
            ids,
            data,
            offsets,
            nbits=nbits,
            centroids=centroids,
            pool_factor=pool_factor,
            seed=seed,
            device=device,
            overwrite=overwrite,
        )
        return cls.open(path)

    def search(
        self,
        query_vectors: NDArray[Any],
        k: int = 10,
        *,
        exact: bool = False,
        nprobe: int = 0,
        num_candidates: int = 0,
        threads: int = 0,
        bound: bool = False,
    ) -> Ranking:
        """The k best passages by MaxSim.

        query_vectors: float [Lq, D]. exact: score every passage. nprobe: centroids that each query token probes, 0
        chooses from k. num_candidates: passages that are scored exactly by MaxSim, 0 chooses (not the candidates that
        `Pipeline.query` rescores). threads: 0 means every core. bound: fill in the ranking's `recall_bound`, which
        reads every code. Raises `QueryError` and `ArrayError`.
        """
        rows, scores, recall_bound = self._searcher.search(
            query_vectors,
            k=k,
            exact=exact,
            nprobe=nprobe,
            num_candidates=num_candidates,
            threads=threads,
            bound=bound,
        )
        passages = tuple(self._snapshot.passage(row) for row in rows.tolist())
        return Ranking(
            ids=tuple(passage.passage_id for passage in passages),
            scores=scores,
            retrieval_scores=scores,
            retrieval_ranks=np.arange(1, len(rows) + 1, dtype=np.int64),
            passages=passages,
            recall_bound=recall_bound,
        )

    @property
    def searcher(self) -> Searcher:
        """Stage 1 without passages: rows and scores, which `passage`, `token_vectors` and `reranker_tokens` take."""
        return self._searcher

    def verify(self) -> list[str]:
        """Read all of the newest version and return what is wrong with it."""
        return self.verify_path(self.path)

    @staticmethod
    def verify_path(path: str | Path) -> list[str]:
        """`verify` for an index that may be too damaged to open. Raises `IndexNotFoundError` where there is
        none, `IndexVersionError` for one of another format."""
        path = check_path("an index", path)
        with _readable(path):
            return verify(path)

    def __copy__(self) -> Index:
        return self  # nothing of it changes

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"an Index is not copied to another process: open it there, Index.open({str(self.path)!r})")

    def check_encoder(self, identity: str, name: str) -> None:
        """Raise `ModelMismatchError` where the index was built with another encoder. One made from vectors
        takes any."""
        built = self._snapshot.encoder
        if built is not None and built["identity"] != identity:
            same = " (same name, other weights or settings)" if built["name"] == name else ""
            raise ModelMismatchError(
                f"{self.path} was built with the encoder '{built['name']}', not with '{name}'{same}: "
                "query it with that one, or build the index anew"
            )

    def info(self) -> dict[str, Any]:
        """What the index holds."""
        codec = self._snapshot.codec
        return {
            "passages": self.passages,
            "windows": self._snapshot.num_windows,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "nbits": self.nbits,
            "dimensions": self.dimensions,
            "centroids": codec.num_centroids,
            "encoder": self.encoder,
            "reranker": self._snapshot.reranker and self._snapshot.reranker["name"],
            "version": self.version,
        }

    @property
    def path(self) -> Path:
        """The folder."""
        return self._snapshot.path

    @property
    def passages(self) -> int:
        """Number of passages."""
        return self._snapshot.num_passages

    @property
    def tokens(self) -> int:
        """Number of token vectors."""
        return self._snapshot.num_tokens

    @property
    def bytes(self) -> int:
        """Bytes of all files of this version."""
        return self._snapshot.manifest.num_bytes

    @property
    def nbits(self) -> int:
        """Bits a dimension of the residuals."""
        return self._snapshot.codec.nbits

    @property
    def dimensions(self) -> int:
        """D of the token vectors."""
        return self._snapshot.dimensions

    @property
    def version(self) -> int:
        """Number of the version: 1 for a new index."""
        return self._snapshot.manifest.version

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of what it holds: the same for the same content, whatever its version and folder."""
        return self._snapshot.identity

    @property
    def encoder(self) -> str | None:
        """Name of the encoder; None for an index made from vectors."""
        return None if self._snapshot.encoder is None else str(self._snapshot.encoder["name"])

    @property
    def reranker_tokenizer(self) -> str | None:
        """Identity of the tokenizer behind `reranker_tokens`, or None."""
        return None if self._snapshot.reranker is None else str(self._snapshot.reranker["identity"])

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the index was built with."""
        config: dict[str, Any] = self._snapshot.manifest.body["config"]
        return config

    def own_config(self) -> PipelineConfig:
        """The configuration that queries of text take where none is given: the one that the index was built with.

        Raises `ConfigError` where nobody knows how to encode a query: the index was made from vectors.
        """
        config = PipelineConfig.from_stored(self.config, source=f"{self.path} (its own configuration)")
        if self.encoder is None and config.encoder.model == "embedded":
            raise ConfigError(
                f"{self.path} was made from vectors, and says of no encoder for queries: give a configuration that "
                "names it (--config; from_config(FILE, index=...)), or search by vectors (Index.search)"
            )
        return config

    @property
    def has_texts(self) -> bool:
        """Whether any passage has a text or a title; one made from vectors alone has none."""
        return self._snapshot.has_texts

    @property
    def include_title(self) -> bool:
        """Whether the models read titles."""
        return bool(self.config["index"]["include_title"])

    @property
    def window_overlap(self) -> int:
        """Tokens that neighbouring windows of a long passage share."""
        return int(self.config["index"]["window_overlap"])

    @property
    def pool_factor(self) -> int:
        """Token vectors that were pooled to one, on average; 1 where they were not."""
        return int(self.config["index"].get("pool_factor", 1))

    def row_of(self, passage_id: str) -> int | None:
        """The row of an id, or None. Raises `QueryError` for what is no string."""
        if not isinstance(passage_id, str):
            raise QueryError(f"a passage's id must be a string, got {passage_id!r:.80}")
        return self._snapshot.row_of(passage_id)

    def passage(self, row: int) -> Passage:
        """The passage of a row, from 0. Raises `QueryError` for one that is not there."""
        return self._snapshot.passage(self._checked_row(row))

    def token_vectors(self, row: int) -> list[NDArray[np.float32]]:
        """Decoded unit vectors of a row: one float32 [Ld, D] a window. Raises as `passage`."""
        return self._snapshot.token_vectors(self._checked_row(row))

    def _checked_row(self, row: int) -> int:
        return check_count("a row", row, 0, self.passages - 1)

    def reranker_tokens(self, rows: NDArray[np.int64]) -> Ragged | None:
        """The reranker's tokens (int32, no specials, uncut) of rows; None where the index holds none.

        rows: integers [N]. Raises `ArrayError`.
        """
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise ArrayError(f"rows must be integers [N], got {rows.dtype} of shape {rows.shape}")
        if rows.size and not (rows.min() >= 0 and rows.max() < self.passages):
            raise ArrayError(f"rows must lie between 0 and {self.passages - 1}, got {rows.min()} to {rows.max()}")
        return self._snapshot.reranker_tokens(rows.astype(np.int64))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What the operating system refuses to read, as this package's error."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from None


def _settings(config: PipelineConfig | Mapping[str, Any] | str | Path | None) -> PipelineConfig:
    if config is None:
        return PipelineConfig()
    if isinstance(config, PipelineConfig):
        return config
    return PipelineConfig.load(config) if isinstance(config, (str, Path)) else PipelineConfig.from_dict(config)


def _passages(corpus: str | Path | Iterable[Passage | Mapping[str, Any]]) -> Iterator[Passage]:
    """What is no corpus is refused at once, before there is a folder for its index."""
    if isinstance(corpus, (str, Path)):
        return read_corpus(corpus)
    if not isinstance(corpus, Iterable) or isinstance(corpus, (Mapping, bytes)):
        raise CorpusError(f"a corpus is a path or an iterable of passages, got {type(corpus).__name__}")
    return _each_passage(corpus)


def _each_passage(corpus: Iterable[Passage | Mapping[str, Any]]) -> Iterator[Passage]:
    for row, passage in enumerate(corpus):
        if isinstance(passage, Passage):
            yield passage
        elif isinstance(passage, Mapping):
            yield to_passage(passage, f"passage {row}")
        else:
            raise CorpusError(f"passage {row}: expected a Passage or a mapping, got {type(passage).__name__}")


def load_encoder(settings: PipelineConfig) -> Encoder:
    """The encoder that a configuration names."""
    from hybrid_retrieval.encoders import Encoder

    return Encoder.load(**dataclasses.asdict(settings.encoder))


def load_reranker(settings: PipelineConfig) -> Reranker | None:
    """The reranker that a configuration names; None for `none`."""
    if settings.reranker.model == "none":
        return None
    from hybrid_retrieval.rerankers import Reranker

    return Reranker.load(**dataclasses.asdict(settings.reranker))


def _with_sources(settings: PipelineConfig, encoder: object, reranker: object) -> PipelineConfig:
    """The configuration with names that lead to its models and its fusion file again, from any folder."""
    source = getattr(encoder, "source", None)
    if source is not None:
        settings = dataclasses.replace(settings, encoder=dataclasses.replace(settings.encoder, model=source))
    source = getattr(reranker, "source", None)
    if source is not None:
        settings = dataclasses.replace(settings, reranker=dataclasses.replace(settings.reranker, model=source))
    if settings.fusion.file is not None:
        file = str(Path(settings.fusion.file).resolve())
        settings = dataclasses.replace(settings, fusion=dataclasses.replace(settings.fusion, file=file))
    return settings
