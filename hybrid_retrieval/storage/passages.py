"""Passages as the bytes that an index stores, checked on the way in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hybrid_retrieval.storage.layout as layout
from hybrid_retrieval.corpus.records import MAX_ID_BYTES
from hybrid_retrieval.errors import CorpusError
from hybrid_retrieval.storage.files import map_array
from hybrid_retrieval.types import Passage, is_blank


@dataclass(slots=True)
class PassageEncoder:
    """Checks passages one after the other and gives their bytes. Holds every id, to find repeats.

    `fingerprint` identifies all passages so far: a resumed build compares it. include_title: whether the models read
    titles, so that a passage may have that alone.
    """

    include_title: bool = True
    _rows: dict[str, int] = field(default_factory=dict)
    _digest: Any = field(default_factory=hashlib.sha256)

    def encode(self, passage: Passage) -> tuple[bytes, bytes, bytes, bytes]:
        """(id, title, text, metadata JSON). Raises `CorpusError` that names the passage."""
        row = len(self._rows)
        if not isinstance(passage, Passage):
            raise CorpusError(f"passage {row}: expected a Passage, got {type(passage).__name__}")
        where = f"passage {row}"
        passage_id = encode_id(passage.passage_id, where)
        where = f"passage {row} ('{passage.passage_id}')"
        first = self._rows.setdefault(passage.passage_id, row)
        if first != row:
            raise CorpusError(f"{where}: the id is that of passage {first} already; ids must be unique")
        title = _text_bytes(passage.title, f"{where}: title")
        text = _text_bytes(passage.text, f"{where}: text")
        if is_blank(passage.content(self.include_title)):
            has_title = not is_blank(passage.title)
            raise CorpusError(f"{where}: text is empty{', and titles are left out' if has_title else ''}")
        encoded = (passage_id, title, text, _metadata_bytes(passage, where))
        for part in encoded:
            self._digest.update(len(part).to_bytes(8, "little"))
            self._digest.update(part)
        return encoded

    @property
    def count(self) -> int:
        """Passages so far."""
        return len(self._rows)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over all passages so far, in order."""
        return str(self._digest.hexdigest())


def encode_id(passage_id: str, where: str) -> bytes:
    """UTF-8 of a passage id. Raises `CorpusError` for one that is empty, too long or not text."""
    data = _text_bytes(passage_id, f"{where}: id")
    if not passage_id.strip():
        raise CorpusError(f"{where}: id is empty")
    if len(data) > MAX_ID_BYTES:
        raise CorpusError(f"{where}: id has {len(data)} bytes; at most {MAX_ID_BYTES} are allowed")
    return data


def _text_bytes(text: str, where: str) -> bytes:
    if not isinstance(text, str):
        raise CorpusError(f"{where} must be a string, got {type(text).__name__}")
    if "\0" in text:
        raise CorpusError(f"{where} holds a NUL character")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CorpusError(f"{where} is not valid Unicode at character {error.start} (a lone surrogate)") from None


def _metadata_bytes(passage: Passage, where: str) -> bytes:
    if not passage.metadata:
        return b""
    try:
        text = json.dumps(dict(passage.metadata), ensure_ascii=False, allow_nan=False)
        json.loads(text, object_pairs_hook=_distinct)  # as it will be read
    except (TypeError, ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: metadata must be a JSON object ({error})") from None
    return _text_bytes(text, f"{where}: metadata")


def _distinct(pairs: list[tuple[str, Any]]) -> None:
    """Refuse keys that are one string in JSON, as 1 and "1" are: one value would be lost."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")


class StoredPassages:
    """The passages of a segment that is being built, read back in order."""

    def __init__(self, folder: Path) -> None:
        self._columns = [
            (map_array(folder, data), map_array(folder, offsets))
            for data, offsets in (
                (layout.IDS, layout.IDS_OFFSETS),
                (layout.TITLES, layout.TITLES_OFFSETS),
                (layout.TEXTS, layout.TEXTS_OFFSETS),
            )
        ]

    @property
    def count(self) -> int:
        """Passages."""
        return len(self._columns[0][1]) - 1

    def read(self, rows: range) -> list[Passage]:
        """Passages without their metadata."""
        columns = [
            [data[offsets[row] : offsets[row + 1]].tobytes().decode("utf-8") for row in rows]
            for data, offsets in self._columns
        ]
        return [Passage(passage_id, text, title) for passage_id, title, text in zip(*columns, strict=True)]
