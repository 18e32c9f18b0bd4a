"""A test collection in BEIR's layout: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybrid_retrieval.corpus.queries import Qrels, read_qrels, read_queries
from hybrid_retrieval.corpus.readers import read_corpus
from hybrid_retrieval.errors import CorpusError
from hybrid_retrieval.types import Passage, Query


@dataclass(frozen=True)
class Dataset:
    """Queries with judgements, and the folder that holds the passages.

    queries: those of the split (the ones that its qrels judge), in file order.
    """

    folder: Path
    split: str
    queries: tuple[Query, ...]
    qrels: Qrels

    @classmethod
    def open(cls, folder: str | Path, split: str = "test") -> Dataset:
        """Read queries and qrels (files may be gzipped). Raises `CorpusError` for what is missing or
        malformed."""
        folder = Path(folder)
        if not folder.is_dir():
            raise CorpusError(f"{folder}: no such folder; expected one with queries.jsonl and qrels/{split}.tsv")
        qrels_path = _either(folder / "qrels" / f"{split}.tsv")
        if qrels_path is None:
            splits = sorted({path.name.split(".tsv")[0] for path in folder.glob("qrels/*.tsv*")})
            have = f"; splits here: {', '.join(splits)}" if splits else ""
            raise CorpusError(f"{folder}: no qrels/{split}.tsv{have}")
        queries_path = _either(folder / "queries.jsonl")
        if queries_path is None:
            raise CorpusError(f"{folder}: no queries.jsonl")
        qrels = read_qrels(qrels_path)
        queries = tuple(query for query in read_queries(queries_path) if query.query_id in qrels)
        if missing := sorted(set(qrels) - {query.query_id for query in queries}):
            raise CorpusError(
                f"{queries_path}: {len(missing)} of {len(qrels)} judged queries have no text here, first '{missing[0]}'"
            )
        return cls(folder, split, queries, qrels)

    def passages(self) -> Iterator[Passage]:
        """Stream the corpus."""
        return read_corpus(self.folder)


def _either(path: Path) -> Path | None:
    compressed = path.with_name(path.name + ".gz")
    return path if path.is_file() else compressed if compressed.is_file() else None
