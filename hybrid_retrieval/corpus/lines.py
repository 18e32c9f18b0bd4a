"""Text files line by line, decoded strictly, so that every complaint can name its line."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from hybrid_retrieval.errors import CorpusError

_MAX_DEPTH = 100
_BOM = b"\xef\xbb\xbf"


def open_bytes(path: Path) -> IO[bytes]:
    """Open for reading; `.gz` is decompressed. Raises `CorpusError` where there is no readable file."""
    try:
        return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise CorpusError(f"{path}: expected a file, got a folder") from None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers from 1 and lines with their ends. Lines end at \\n alone; a byte-order mark is dropped.

    Raises `CorpusError` naming file and line for bytes that are not UTF-8, NUL bytes, and damaged gzip data.
    """
    number = 0
    with open_bytes(path) as file:
        try:
            for number, raw in enumerate(file, 1):
                yield number, decode(raw.removeprefix(_BOM) if number == 1 else raw, f"{path}:{number}")
        except (EOFError, zlib.error, OSError) as error:
            raise CorpusError(f"{path}:{number + 1}: cannot be read on ({error}); is the file complete?") from None


def decode(raw: bytes, where: str) -> str:
    """Strict UTF-8 without NUL bytes, or a `CorpusError` that starts with `where`."""
    if raw.startswith(b"\x1f\x8b"):
        raise CorpusError(f"{where}: expected text, got gzip data: let the file's name end in .gz")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CorpusError(f"{where}: expected UTF-8, got UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
    if raw.count(b"\0") * 3 > len(raw):  # every other byte of UTF-16 in a European language
        raise CorpusError(f"{where}: expected UTF-8, got a NUL byte; is it UTF-16? iconv -f UTF-16LE -t UTF-8")
    if b"\0" in raw:
        raise CorpusError(f"{where}: a NUL byte at byte {raw.index(0) + 1} of the line; text has none, remove it")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{where}: expected UTF-8, got byte 0x{raw[error.start]:02x} at byte {error.start + 1} "
            "of the line; "
            "convert it, for example: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None


def parse_object(line: str, where: str) -> dict[str, Any]:
    """One JSON object, or a `CorpusError` that starts with `where`.

    Refused besides malformed JSON: NaN and Infinity (no JSON), numbers beyond float64, nesting beyond 100 levels, and
    escapes of NUL or of half a surrogate pair, which no UTF-8 text can hold.
    """
    try:
        value = json.loads(line.rstrip("\r\n"), parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where}: malformed JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise CorpusError(f"{where}: JSON nested deeper than {_MAX_DEPTH} levels; flatten it") from None
    except ValueError as error:  # our own refusal of NaN, and Python's limit on the digits of an integer
        raise CorpusError(f"{where}: malformed JSON: {error}") from None
    if not isinstance(value, dict):
        raise CorpusError(f"{where}: expected a JSON object {{...}} on each line, got {json_type(value)}")
    if line.count("[") + line.count("{") > _MAX_DEPTH and _depth(value) > _MAX_DEPTH:
        raise CorpusError(f"{where}: JSON nested deeper than {_MAX_DEPTH} levels; flatten it")
    if "\\u0000" in line and any("\0" in text for text in _strings(value)):
        raise CorpusError(f"{where}: a NUL character (\\u0000); text has none, remove it")
    if "\\ud" in line or "\\uD" in line:
        for text in _strings(value):
            check_unicode(text, where)
    return value


def check_unicode(text: str, where: str) -> None:
    """Refuse half a surrogate pair, which cannot be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise CorpusError(f"{where}: half a surrogate pair (\\u{code:04x}) is no character; remove it") from None


def json_type(value: Any) -> str:
    """JSON's own name for a parsed value, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value; write null")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits:.40} is too large; write it as a string")
    return value


def _depth(value: Any) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, (dict, list)):
            deepest = max(deepest, depth)
            waiting.extend((child, depth + 1) for child in (item.values() if isinstance(item, dict) else item))
    return deepest


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting.extend(item)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
