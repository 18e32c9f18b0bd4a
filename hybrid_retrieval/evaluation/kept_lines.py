"""What was found for each question, kept in a file on request: a run that was interrupted goes on from it.

The file has a line for all that the others depend on (models, index, settings), then a line a question. One of anything
else is refused, and left as it is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_retrieval.errors import ConfigError, CorpusError
from hybrid_retrieval.pipeline import Pipeline
from hybrid_retrieval.types import is_number

# What of a configuration decides which candidates are scored and how; of devices and backends, how it rounds.
DECIDE_SCORES = (
    *(("encoder", key) for key in ("backend", "device", "dtype")),
    *(("search", key) for key in ("device", "exact", "nprobe")),
    *(("reranker", key) for key in ("backend", "device", "dtype", "truncation", "max_tokens")),
    *(("reranker", key) for key in ("long_passages", "window_overlap", "max_passage_tokens")),
)
# Less than the largest float32; NaN is not less.
_MOST_SCORE = 1e38


@dataclass(frozen=True, slots=True)
class KeptLines:
    """header: what the lines depend on. what: what they are, in errors: "scores". keys: of each line, `query_id` and
    `query` among them. sound: whether a line with these keys has values that can be; expected: which, in errors."""

    path: Path
    header: Mapping[str, Any]
    what: str
    keys: frozenset[str]
    sound: Callable[[Mapping[str, Any]], bool]
    expected: str

    def read(self) -> dict[str, dict[str, Any]]:
        """query id -> line. Makes the file where there is none; cuts a last line that an interruption left torn.

        Raises `CorpusError` for a file of anything else, `ConfigError` where it cannot be read or written.
        """
        begin = json.dumps(self.header).encode() + b"\n"
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            if begin.startswith(content):
                self.path.write_bytes(begin)
                return {}
            whole = content[: content.rfind(b"\n") + 1]
            found = self._lines(whole)
            if len(whole) < len(content):
                self.path.write_bytes(whole)
        except OSError as error:
            raise self._unwritable(error) from None
        return found

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Raises `ConfigError` where they cannot be written."""
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self.path}: {self.what} cannot be kept there ({error.strerror or error})")

    def _lines(self, content: bytes) -> dict[str, dict[str, Any]]:
        path = self.path
        try:
            lines = [json.loads(line) for line in content.split(b"\n")[:-1]]
        except ValueError as error:
            raise CorpusError(f"{path}: not a file of {self.what} ({error})") from None
        if not lines or not all(isinstance(line, dict) for line in lines):
            raise CorpusError(f"{path}: not a file of {self.what} (a line is no JSON object)")
        if lines[0] != self.header:
            header = self.header
            differing = sorted(key for key in {*header, *lines[0]} if lines[0].get(key) != header.get(key))
            raise CorpusError(
                f"{path}: these {self.what} come from another run (it differs in {', '.join(differing)}): name another "
                "file, or remove this one"
            )
        for number, line in enumerate(lines[1:], 2):
            if set(line) != self.keys:
                raise CorpusError(f"{path}:{number}: expected the keys {', '.join(sorted(self.keys))}")
            named = isinstance(line["query_id"], str) and isinstance(line["query"], str)
            if not named or not self.sound(line):
                raise CorpusError(
                    f"{path}:{number}: expected a question's id and text, {self.expected}: remove the line, and the "
                    "question is asked anew"
                )
        return {line["query_id"]: line for line in lines[1:]}


def models_and_settings(pipeline: Pipeline) -> dict[str, Any]:
    """What a pipeline's scores depend on, for a header."""
    settings, reranker = pipeline.config.to_dict(), pipeline.reranker
    return {
        "encoder": pipeline.encoder.identity,
        "reranker": None if reranker is None else reranker.identity,
        "index": pipeline.index.identity,
        **{f"{section}.{key}": settings[section][key] for section, key in DECIDE_SCORES},
    }


def ordering(pipeline: Pipeline) -> dict[str, Any]:
    """What the order that a pipeline gives depends on beyond those scores, for a header."""
    search = dataclasses.asdict(pipeline.config.search)
    names = ("early_stop", "early_stop_top", "early_stop_bound")
    fused = {"fusion.weight": pipeline.fusion.weight, "fusion.rerank": pipeline.fusion.rerank}
    return fused | {f"search.{name}": search[name] for name in names}


def are_ids(values: Any) -> bool:
    """Whether a value read from a line is a list of strings, none of which is there twice."""
    strings = isinstance(values, list) and all(isinstance(value, str) for value in values)
    return strings and len(set(values)) == len(values)


def are_scores(values: Any) -> bool:
    """The same of a list of finite numbers."""
    return isinstance(values, list) and all(is_number(value) and abs(value) < _MOST_SCORE for value in values)
