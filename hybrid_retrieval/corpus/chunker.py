"""Splitting of long passages into windows that fit an encoder. No tokenizer in here: token spans come in.

A window ends after a sentence where one ends in its later half, else between two words, else between two
characters, else between two tokens. No token is ever lost: the windows cover all of them, and neighbours
overlap.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import ArrayError, ConfigError

# Closing marks that belong to the sentence before them.
_CLOSERS = "\"'”’»)\\]」』】》〉）］"
# Marks that end a sentence without a space after them: CJK, Devanagari and its kin, Arabic and Urdu, Burmese,
# Khmer, Ethiopic, Armenian, Tibetan.
_ENDS_ALONE = "。！？｡।॥؟۔၊။។៕።፧፨։།"
# Marks that end a sentence only before white space ("3.14" and "example.org" go on).
_ENDS_BEFORE_SPACE = ".!?…"
_SENTENCE_END = re.compile(
    rf"[{_ENDS_ALONE}]+[{_CLOSERS}]*|(?P<spaced>[{_ENDS_BEFORE_SPACE}]+)[{_CLOSERS}]*(?=\s)|\n[^\S\n]*\n"
)
# Lower-cased, without their last full stop. English, German, Spanish, French, Russian.
_ABBREVIATIONS = frozenset(
    (
        "al",
        "approx",
        "art",
        "av",
        "bd",
        "bzw",
        "ca",
        "capt",
        "cf",
        "co",
        "col",
        "corp",
        "d.h",
        "dept",
        "dr",
        "e.g",
        "ed",
        "eds",
        "etc",
        "fig",
        "figs",
        "gen",
        "hon",
        "i.e",
        "inc",
        "jr",
        "lt",
        "ltd",
        "mlle",
        "mme",
        "mr",
        "mrs",
        "ms",
        "no",
        "nos",
        "nr",
        "núm",
        "p",
        "pp",
        "prof",
        "pág",
        "rev",
        "sgt",
        "sr",
        "sra",
        "st",
        "ud",
        "uds",
        "usw",
        "vol",
        "vs",
        "z.b",
        "г",
        "т.д",
        "т.е",
        "ул",
    )
)
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘«]*\Z")
_FOLLOWING = frozenset({"Mn", "Mc", "Me", "Pe", "Pf", "Po"})


def split_windows(
    text: str,
    token_spans: Sequence[tuple[int, int]] | NDArray[np.integer[Any]],
    max_tokens: int,
    overlap_tokens: int,
) -> list[tuple[int, int]]:
    """Spans of token indices, `[start, end)`, each at most `max_tokens` long, that together cover every
    token.

    text: what was tokenised. token_spans: [T, 2] first character of each token and the one after its last
    (empty and repeated spans are fine: byte pieces of one character share theirs). overlap_tokens: the most
    that two neighbours share, taken back to the start of a sentence or word where one is in reach, and never
    over half a window. A text that fits gives one window, and so does a text without tokens: [(0, 0)].
    Raises `ConfigError` for max_tokens < 1 or overlap_tokens < 0, `ArrayError` for spans of another shape.
    """
    if max_tokens < 1:
        raise ConfigError(f"max_tokens of a window must be at least 1, got {max_tokens}")
    if overlap_tokens < 0:
        raise ConfigError(f"overlap_tokens must be 0 or more, got {overlap_tokens}")
    count = len(token_spans)
    if count <= max_tokens:
        return [(0, count)]
    spans = np.asarray(token_spans)
    if spans.shape != (count, 2) or not np.issubdtype(spans.dtype, np.integer):
        raise ArrayError(f"token_spans must be integers [T, 2], got {spans.dtype} of shape {spans.shape}")
    # Normalisers can move an offset back by a character; running maxima keep the searches below valid.
    starts, ends = np.maximum.accumulate(spans[:, 0]), np.maximum.accumulate(spans[:, 1])
    sentence_starts = _sentence_starts(text, starts, ends)

    overlap = min(overlap_tokens, max_tokens // 2)
    # Every window brings at least a quarter of its length in new tokens, so their number stays linear in T.
    shortest = min(max_tokens, max(max_tokens // 2 + 1, overlap + max(1, max_tokens // 4)))
    windows: list[tuple[int, int]] = []
    start = 0
    while count - start > max_tokens:
        end = _last_bound(text, starts, ends, sentence_starts, start + shortest, start + max_tokens)
        windows.append((start, end))
        start = _first_bound(text, starts, ends, sentence_starts, end - overlap, end)
    windows.append((start, count))
    return windows


def _last_bound(
    text: str,
    starts: NDArray[Any],
    ends: NDArray[Any],
    sentence_starts: NDArray[np.int64],
    low: int,
    high: int,
) -> int:
    """The best place in [low, high] to end a window: the last sentence start, else word start, else
    character."""
    at = int(np.searchsorted(sentence_starts, high, side="right")) - 1
    if at >= 0 and sentence_starts[at] >= low:
        return int(sentence_starts[at])
    return _best_cut(text, starts, ends, range(high, low - 1, -1))


def _first_bound(
    text: str,
    starts: NDArray[Any],
    ends: NDArray[Any],
    sentence_starts: NDArray[np.int64],
    low: int,
    end: int,
) -> int:
    """Where in [low, end) the window after `end` starts: the first sentence, else word, else character."""
    at = int(np.searchsorted(sentence_starts, low))
    if at < len(sentence_starts) and sentence_starts[at] < end:
        return int(sentence_starts[at])
    return _best_cut(text, starts, ends, range(low, end)) if low < end else end


def _best_cut(text: str, starts: NDArray[Any], ends: NDArray[Any], tokens: range) -> int:
    """The first of `tokens` that starts a word, else the first that starts a character, else the first."""
    fallback: int | None = None
    for token in tokens:
        if int(starts[token]) >= int(ends[token - 1]):  # not a further piece of one character
            if _is_word_bound(text, starts, ends, token):
                return token
            fallback = token if fallback is None else fallback
    return tokens[0] if fallback is None else fallback


def _sentence_starts(text: str, starts: NDArray[Any], ends: NDArray[Any]) -> NDArray[np.int64]:
    """Indices of the tokens that begin a sentence (not the first one), rising. int64 [S]."""
    found: list[int] = []
    for match in _SENTENCE_END.finditer(text):
        stop = match.end()
        if match["spaced"] is not None and not _ends_sentence(text, match.start(), match["spaced"], stop):
            continue
        token = int(np.searchsorted(starts, stop))
        following = stop
        while following < len(text) and text[following].isspace():
            following += 1
        # A token that runs across the bound leaves no place to cut.
        if 0 < token < len(starts) and ends[token - 1] <= following and (not found or token > found[-1]):
            found.append(token)
    return np.asarray(found, np.int64)


def _ends_sentence(text: str, dot: int, mark: str, stop: int) -> bool:
    """Whether a full stop before white space ends its sentence: not after an abbreviation or initial, and not
    before a small letter (scripts without case have none)."""
    following = stop
    while following < len(text) and text[following].isspace():
        following += 1
    if following < len(text) and text[following].islower():
        return False
    if mark != ".":
        return True
    found = _LAST_WORD.search(text, max(0, dot - 16), dot)
    word = found.group() if found else ""
    return word.lower() not in _ABBREVIATIONS and not (len(word) == 1 and word.isupper())


def _is_word_bound(text: str, starts: NDArray[Any], ends: NDArray[Any], token: int) -> bool:
    """Whether no word runs from token - 1 into `token`, which starts where the other ends, or later."""
    left_end, right_start = int(ends[token - 1]), int(starts[token])
    if right_start > left_end or right_start == 0 or right_start >= len(text):
        return True
    left, right = text[right_start - 1], text[right_start]
    if left.isspace() or right.isspace():
        return True
    # Closing marks and vowel signs stay with what they follow.
    return (_stands_alone(left) or _stands_alone(right)) and unicodedata.category(right) not in _FOLLOWING


def _stands_alone(character: str) -> bool:
    """Han, kana and their punctuation: written without spaces, each character a fair place to cut."""
    code = ord(character)
    return (
        0x3000 <= code <= 0x30FF
        or 0x3400 <= code <= 0x9FFF
        or 0xF900 <= code <= 0xFAFF
        or 0xFF00 <= code <= 0xFF0F
        or 0x20000 <= code <= 0x3FFFF
    )
