"""Corpora: a file or folder in any of the usual layouts to a stream of passages, one in memory at a time.

| path | layout |
|---|---|
| `*.jsonl`, `*.ndjson` | a JSON object a line |
| `*.csv` | a header line, then records; quoted as RFC 4180 says |
| `*.tsv` | the same with tabs and no quotes; without a header `id<TAB>text`, or from 0 on `number<TAB>text<TAB>title` |
| `*.parquet` | a row a passage (extra `parquet`) |
| `*.txt`, `*.md` | one passage |
| a folder | BEIR (`corpus.jsonl`), TREC (`collection.tsv`), else every `.txt` and `.md` file below it |

All but Parquet may be gzipped (`.gz`). In a folder, hidden files and what links to other folders are passed over;
of files that may be corpora of their own a warning says that they were left out.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hybrid_retrieval.corpus.lines import decode, open_bytes, parse_object, read_lines
from hybrid_retrieval.corpus.records import (
    ID_KEYS,
    TEXT_KEYS,
    header_columns,
    to_identifier,
    to_passage,
    to_text,
)
from hybrid_retrieval.errors import CorpusError, OptionalDependencyError
from hybrid_retrieval.types import Passage, check_path

logger = logging.getLogger(__name__)

_TEXT_SUFFIXES = (".txt", ".md")
_RECORD_SUFFIXES = (".csv", ".tsv", ".parquet")
_TABLE_SUFFIXES = (".jsonl", ".ndjson", *_RECORD_SUFFIXES)
_LAYOUTS = ".jsonl, .ndjson, .csv, .tsv, .txt, .md (each also with .gz), .parquet, or a folder"
_BOM = b"\xef\xbb\xbf"
# csv refuses fields beyond 128 KiB by default; a passage may be a whole book.
_CSV_FIELD_LIMIT = 2**31 - 1


def read_corpus(path: str | Path) -> Iterator[Passage]:
    """Passages in the order of the file (a folder's files by name), ids unique and texts not empty.

    A path that is no corpus is refused at once. While reading, `CorpusError` names file and line (for Parquet
    the row) of what is wrong: malformed JSON or CSV, a missing id or text, an id that came before, bytes that
    are not UTF-8, NUL; and a corpus without passages. `OptionalDependencyError` where pyarrow is needed and
    missing.
    """
    path = check_path("a corpus", path)
    try:
        records = _reader_of(path)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror or error})") from None
    return _checked(path, records)


def read_passage_list(path: str | Path) -> Iterator[Passage]:
    """A list of passages for stage 2 alone: a table (`.csv`, `.tsv`, `.parquet`) as `read_corpus` reads it; in any
    other file on each line a JSON object or a text as it stands, blank lines passed over.

    In lines, ids are optional: a line without one has its position, counted from "0", so mixed with ids of your own
    these must not be such numbers. Raises `CorpusError` as `read_corpus` does.
    """
    path = Path(path)
    if Path(path.name.lower().removesuffix(".gz")).suffix in _RECORD_SUFFIXES:
        return read_corpus(path)

    def records() -> Iterator[tuple[str, Passage]]:
        position = 0
        for number, line in read_lines(path):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            if line.lstrip().startswith("{"):
                yield where, to_passage(parse_object(line, where), where, position)
            else:
                yield where, Passage(str(position), to_text(line.strip(), "text", where))
            position += 1

    return _checked(path, records())


def _checked(path: Path, records: Iterator[tuple[str, Passage]]) -> Iterator[Passage]:
    """Refuse duplicate ids and an empty corpus. Only ids and places stay in memory."""
    places: dict[str, str] = {}
    for where, passage in records:
        first = places.setdefault(passage.passage_id, where)
        if first is not where:
            raise CorpusError(f"{where}: the id '{passage.passage_id}' came before, at {first}; ids must be unique")
        yield passage
    if not places:
        raise CorpusError(f"{path}: holds no passages; expected at least one")


def _reader_of(path: Path) -> Iterator[tuple[str, Passage]]:
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise CorpusError(f"{path}: no such file or folder")
    name = path.name.lower().removesuffix(".gz")
    readers: dict[str, Callable[[Path], Iterator[tuple[str, Passage]]]] = {
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".csv": _read_csv,
        ".tsv": _read_tsv,
        ".txt": _read_text,
        ".md": _read_text,
    }
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    suffix = Path(name).suffix
    if suffix not in readers:
        raise CorpusError(f"{path}: unknown kind of corpus '{suffix}'; expected {_LAYOUTS}")
    return readers[suffix](path)


def _read_folder(folder: Path) -> Iterator[tuple[str, Passage]]:
    for name in ("corpus.jsonl", "corpus.jsonl.gz", "collection.tsv", "collection.tsv.gz"):
        if (folder / name).is_file():
            return _reader_of(folder / name)
    below = sorted(
        (
            Path(root) / name
            for root, _, names in os.walk(folder, onerror=_unreadable)
            for name in names
            if not _hidden(Path(root, name).relative_to(folder))
        ),
        key=lambda file: file.relative_to(folder).as_posix(),
    )
    files, tables = (
        [file for file in below if file.name.lower().removesuffix(".gz").endswith(suffixes)]
        for suffixes in (_TEXT_SUFFIXES, _TABLE_SUFFIXES)
    )
    if files and tables:
        logger.warning(
            "%s: only its %d .txt and .md files are read as passages; %d files of records are left out, first %s: "
            "name one to read it",
            folder,
            len(files),
            len(tables),
            tables[0].relative_to(folder),
        )
    if not files:
        raise CorpusError(
            f"{folder}: not a corpus: expected corpus.jsonl (BEIR), collection.tsv (id<TAB>text), or .txt and .md files"
        )
    return (record for file in files for record in _read_text(file, file.relative_to(folder).as_posix()))


def _unreadable(error: OSError) -> None:
    raise CorpusError(f"{error.filename}: cannot be read ({error.strerror})")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read_jsonl(path: Path) -> Iterator[tuple[str, Passage]]:
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}:{number}"
            yield where, to_passage(parse_object(line, where), where)


def _read_csv(path: Path) -> Iterator[tuple[str, Passage]]:
    csv.field_size_limit(max(csv.field_size_limit(), _CSV_FIELD_LIMIT))
    reader = csv.reader((line for _, line in read_lines(path)), strict=True)
    columns: list[str] | None = None
    start = 1
    try:
        for fields in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if not fields:
                continue
            if columns is None:
                columns = header_columns(fields, ID_KEYS, TEXT_KEYS, where, required=True)
            else:
                yield where, to_passage(_row(columns, fields, where), where)
    except csv.Error as error:
        raise CorpusError(f"{path}:{start}: malformed CSV: {error}") from None


def _read_tsv(path: Path) -> Iterator[tuple[str, Passage]]:
    columns: list[str] | None = None
    first = True
    for number, line in read_lines(path):
        line = line.rstrip("\r\n")
        if not line.strip():
            continue
        where, fields = f"{path}:{number}", line.split("\t")
        if first:
            first = False
            numbered = len(fields) == 3 and fields[0] == "0"  # as colbert-ai's collections are: number, text, title
            columns = header_columns(fields, ID_KEYS, TEXT_KEYS, where, required=len(fields) != 2 and not numbered)
            if columns is not None:
                continue
            columns = ["_id", "text", "title"] if numbered else None
        if columns is not None:
            yield where, to_passage(_row(columns, fields, where), where)
        elif len(fields) != 2:
            raise CorpusError(f"{where}: expected 2 fields, id<TAB>text, got {len(fields)}")
        else:
            passage_id = to_identifier(fields[0], "id", where)
            yield where, Passage(passage_id, to_text(fields[1], "text", f"{where}: passage '{passage_id}'"))


def _row(columns: list[str], fields: list[str], where: str) -> dict[str, str]:
    if len(fields) != len(columns):
        raise CorpusError(f"{where}: expected {len(columns)} fields ({', '.join(columns)}), got {len(fields)}")
    return dict(zip(columns, fields, strict=True))


def _read_text(path: Path, passage_id: str | None = None) -> Iterator[tuple[str, Passage]]:
    with open_bytes(path) as file:
        try:
            raw = file.read()
        except (EOFError, OSError, zlib.error) as error:
            raise CorpusError(f"{path}: cannot be read ({error})") from None
    lines = raw.removeprefix(_BOM).splitlines(keepends=True)
    text = "".join(decode(line, f"{path}:{number}") for number, line in enumerate(lines, 1))
    where = str(path)
    yield (
        where,
        Passage(to_identifier(passage_id or path.name, "file name", where), to_text(text, "text", where)),
    )


def _read_parquet(path: Path) -> Iterator[tuple[str, Passage]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise OptionalDependencyError("pyarrow", "parquet", "Reading Parquet") from None
    return _parquet_rows(path, pyarrow)


def _parquet_rows(path: Path, pyarrow: Any) -> Iterator[tuple[str, Passage]]:
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = header_columns(names, ID_KEYS, TEXT_KEYS, str(path), required=True)
            renamed = dict(zip(names, columns or names, strict=True))
            for batch in file.iter_batches(batch_size=1024):
                for record in _records(batch, f"{path}: after row {row}"):
                    row += 1
                    where = f"{path}: row {row}"
                    passage = to_passage({renamed[key]: value for key, value in record.items()}, where)
                    metadata = {key: _plain(value, f"{where}: '{key}'") for key, value in passage.metadata.items()}
                    yield where, dataclasses.replace(passage, metadata=metadata)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(f"{path}: not a readable Parquet file after row {row} ({reason})") from None


def _records(batch: Any, where: str) -> list[dict[str, Any]]:
    """Parquet does not check that its strings are UTF-8, and knows times that Python's types cannot hold."""
    try:
        records: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(f"{where}: a value cannot be read ({reason}); convert or drop its column") from None
    return records


def _plain(value: Any, where: str) -> Any:
    """A JSON value: dates become ISO 8601 strings; what JSON cannot hold is refused."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CorpusError(f"{where}: metadata must be JSON values ({error}); convert or drop the column") from None
    return value
