"""One record, wherever it was read, to one `Passage`."""

from __future__ import annotations

import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hybrid_retrieval.corpus.lines import check_unicode, json_type
from hybrid_retrieval.errors import CorpusError
from hybrid_retrieval.types import Passage, is_blank

ID_KEYS = ("_id", "id", "passage_id", "docid")
TEXT_KEYS = ("text", "contents")
MAX_ID_BYTES = 512
# What files call the column of ids that we would not take for one: a first line that begins so is no record.
_OTHER_ID_NAMES = ("pid", "docno", "doc_id", "document_id", "corpus-id", "corpus_id", "qid", "query_id", "query-id")


def to_passage(record: Mapping[str, Any], where: str, position: int | None = None) -> Passage:
    """A `Passage` from a mapping; `where` (a file and line) starts the message of the `CorpusError` it may
    raise.

    The id is the first of `_id`, `id`, `passage_id`, `docid` (an integer is taken as its digits), the text the first of
    `text`, `contents`, empty only beside a title; `title` may be missing or null. Every other key is metadata; the
    content of BEIR's own `metadata` object is merged into it. position: of a record in a plain list, its id if it has
    none.
    """
    if position is not None and not any(key in record for key in ID_KEYS):
        record = {"_id": str(position), **record}
    id_key = find_key(record, ID_KEYS, "id", where)
    text_key = find_key(record, TEXT_KEYS, "text", where)
    passage_id = to_identifier(record[id_key], id_key, where)
    title = record.get("title")
    if title is None:
        title = ""
    elif not isinstance(title, str):
        raise CorpusError(f"{where}: passage '{passage_id}': expected 'title' to be a string, got {json_type(title)}")
    _check_characters(title, f"{where}: passage '{passage_id}': 'title'")
    text = to_text(record[text_key], text_key, f"{where}: passage '{passage_id}'", may_be_empty=not is_blank(title))
    metadata: dict[str, Any] = {}
    if isinstance(nested := record.get("metadata"), Mapping):
        metadata.update(nested)
    for key, value in record.items():
        if key not in (id_key, text_key, "title") and not (key == "metadata" and isinstance(value, Mapping)):
            metadata[key] = value
    return Passage(passage_id, text, title, metadata)


def header_columns(
    fields: Sequence[str], id_keys: tuple[str, ...], text_keys: tuple[str, ...], where: str, *, required: bool
) -> list[str] | None:
    """The columns that a table's first line names, known names in lower case.

    None where it may be a record already: where no header is `required`, it names no id and text, and does not begin
    with an id's name. Raises `CorpusError` for a header without an id's or a text's name, or with a name twice.
    """
    known = {*id_keys, *text_keys, "title"}
    stripped = [field.strip() for field in fields]
    columns = [name.lower() if name.lower() in known - {*stripped} else name for name in stripped]
    named = any(key in columns for key in id_keys) and any(key in columns for key in text_keys)
    if not named and not required and columns[0].lower() not in {*id_keys, *_OTHER_ID_NAMES}:
        return None
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise CorpusError(f"{where}: the column '{twice}' is there twice; rename one")
    find_key(columns, id_keys, "id column in the header", where)
    find_key(columns, text_keys, "text column in the header", where)
    return columns


def find_key(record: Collection[str], keys: tuple[str, ...], what: str, where: str) -> str:
    """The first of `keys` that the record has."""
    for key in keys:
        if key in record:
            return key
    found = ", ".join(f"'{key}'" for key in list(record)[:10]) or "none"
    raise CorpusError(f"{where}: no {what}: expected one of the keys {', '.join(keys)}; found {found}")


def to_identifier(value: Any, key: str, where: str) -> str:
    """A non-empty string of at most 512 bytes; integers become their digits."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):  # NumPy's too
        value = str(value)
    if not isinstance(value, str):
        raise CorpusError(f"{where}: expected '{key}' to be a string or an integer, got {json_type(value)}")
    if not value.strip():
        raise CorpusError(f"{where}: '{key}' is empty; every record needs an identifier")
    _check_characters(value, f"{where}: '{key}'")
    if len(value.encode()) > MAX_ID_BYTES:
        raise CorpusError(f"{where}: '{key}' has {len(value.encode())} bytes; at most {MAX_ID_BYTES} are allowed")
    return value


def to_text(value: Any, key: str, where: str, *, may_be_empty: bool = False) -> str:
    """A string with at least one character that can be seen, if it may not be empty."""
    if not isinstance(value, str):
        raise CorpusError(f"{where}: expected '{key}' to be a string, got {json_type(value)}")
    if is_blank(value) and not may_be_empty:
        raise CorpusError(f"{where}: '{key}' is empty; remove the record or give it a text")
    _check_characters(value, f"{where}: '{key}'")
    return value


def _check_characters(text: str, where: str) -> None:
    if "\0" in text:
        raise CorpusError(f"{where}: a NUL character; text has none, remove it")
    check_unicode(text, where)
