"""Queries and relevance judgements (qrels)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid_retrieval.corpus.lines import parse_object, read_lines
from hybrid_retrieval.corpus.records import find_key, header_columns, to_identifier, to_text
from hybrid_retrieval.errors import CorpusError
from hybrid_retrieval.types import Query

Qrels = dict[str, dict[str, int]]

_ID_KEYS = ("_id", "id", "query_id", "qid")
_TEXT_KEYS = ("text", "query")
_RELEVANCE = re.compile(r"[+-]?[0-9]{1,20}(\.0*)?")
MOST_RELEVANCE = 1_000_000
"""Implementations of measures hold 32 bits, and wrap around without a word."""


def read_queries(path: str | Path) -> list[Query]:
    """Queries in file order: JSON objects a line (BEIR's `queries.jsonl`), or TSV: `id<TAB>text`, or with a header that
    names its columns; `.gz` too. Raises `CorpusError` naming file and line, also for an empty text or an id that came
    before.
    """
    path = Path(path)
    queries: list[Query] = []
    lines_by_id: dict[str, int] = {}
    as_json: bool | None = None
    columns: list[str] | None = None
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        if as_json is None:
            as_json = _is_json(path, line)
            if not as_json:
                fields = line.rstrip("\r\n").split("\t")
                columns = header_columns(fields, _ID_KEYS, _TEXT_KEYS, where, required=False)
                if columns is not None:
                    continue
        query = _query(parse_object(line, where), where) if as_json else _tsv_query(line, columns, where)
        first = lines_by_id.setdefault(query.query_id, number)
        if first != number:
            raise CorpusError(
                f"{where}: the query id '{query.query_id}' came before, at line {first}; ids must be unique"
            )
        queries.append(query)
    if not queries:
        raise CorpusError(f"{path}: holds no queries; expected at least one")
    return queries


def read_qrels(path: str | Path) -> Qrels:
    """query id -> passage id -> relevance. BEIR: tab-separated `query-id corpus-id score` with or without its
    header; TREC: `query_id iteration passage_id relevance` between any white space; `.gz` too.

    Raises `CorpusError` naming file and line; a pair may be repeated only with the same relevance.
    """
    path = Path(path)
    qrels: Qrels = {}
    width = 0
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        fields = line.rstrip("\r\n").split("\t")
        if len(fields) != 3:
            fields = line.split()
        if width == 0:
            width = len(fields)
            if width not in (3, 4):
                raise CorpusError(f"{where}: expected 3 columns (query-id, corpus-id, score) or TREC's 4, got {width}")
            if width == 3 and fields[0].lower().replace("_", "-") in ("query-id", "qid"):
                continue
        if len(fields) != width:
            raise CorpusError(f"{where}: expected {width} columns as above, got {len(fields)}")
        query_id, passage_id, relevance = fields[0], fields[-2], _relevance(fields[-1], where)
        if not query_id.strip() or not passage_id.strip():
            raise CorpusError(f"{where}: an empty {'passage' if query_id.strip() else 'query'} id")
        judged = qrels.setdefault(query_id, {})
        if judged.setdefault(passage_id, relevance) != relevance:
            raise CorpusError(
                f"{where}: query '{query_id}', passage '{passage_id}': judged {relevance} here and "
                f"{judged[passage_id]} before"
            )
    if not qrels:
        raise CorpusError(f"{path}: holds no judgements; expected at least one")
    return qrels


def _relevance(field: str, where: str) -> int:
    if not _RELEVANCE.fullmatch(field.strip()):
        raise CorpusError(f"{where}: expected an integer relevance, got '{field.strip():.40}'")
    value = int(field.strip().partition(".")[0])
    if abs(value) > MOST_RELEVANCE:
        raise CorpusError(f"{where}: expected a relevance of at most {MOST_RELEVANCE:,}, got '{field.strip()}'")
    return value


def _is_json(path: Path, line: str) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return name.endswith((".jsonl", ".ndjson")) or (not name.endswith(".tsv") and line.lstrip().startswith("{"))


def _query(record: Mapping[str, Any], where: str) -> Query:
    id_key = find_key(record, _ID_KEYS, "query id", where)
    text_key = find_key(record, _TEXT_KEYS, "text", where)
    query_id = to_identifier(record[id_key], id_key, where)
    return Query(query_id, to_text(record[text_key], text_key, where))


def _tsv_query(line: str, columns: list[str] | None, where: str) -> Query:
    line = line.rstrip("\r\n")
    if columns is not None:
        fields = line.split("\t", len(columns) - 1 if columns[-1] in _TEXT_KEYS else -1)
        if len(fields) != len(columns):
            raise CorpusError(f"{where}: expected {len(columns)} fields ({', '.join(columns)}), got {len(fields)}")
        return _query(dict(zip(columns, fields, strict=True)), where)
    query_id, tab, text = line.partition("\t")
    if not tab:
        raise CorpusError(f"{where}: expected id<TAB>text, got no tab")
    return Query(to_identifier(query_id, "id", where), to_text(text, "text", where))
