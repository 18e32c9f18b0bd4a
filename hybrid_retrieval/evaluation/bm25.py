"""BM25, the baseline: Lucene's variant (Robertson and Zaragoza 2009; Kamphuis et al. 2020), no stemming.

Words are lower-cased runs of letters, digits and marks; Han, kana and Thai, which are written without spaces,
are indexed as pairs of neighbouring characters.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.types import best_first

# Vowel signs and other marks are no \w for Python, but part of their word; U+0300-036F and the Indic, Arabic
# and Hebrew blocks hold those that occur in text.
_MARKS = (
    "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0903\u093a-\u094f"
    "\u0951-\u0957\u0962\u0963\u0980-\u0983\u09bc-\u09cd\u0a01-\u0a03\u0a3c-\u0a4d\u0b3c-\u0b4d\u0bbe-\u0bcd"
    "\u0c00-\u0c04\u0c3e-\u0c56\u0cbc-\u0cd6\u0d3e-\u0d4d\u200c\u200d"
)
_WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e01-\u0e5b\U00020000-\U0003ffff"
_LETTER = rf"[^\W_{_WITHOUT_SPACES}]"
_WORD = re.compile(rf"(?P<run>[{_WITHOUT_SPACES}]+)|{_LETTER}(?:{_LETTER}|[{_MARKS}])*")


def tokens(text: str) -> Iterator[str]:
    """The terms of a text, in order."""
    for match in _WORD.finditer(text.lower()):
        word = match.group()
        if match["run"] is None or len(word) == 1:
            yield word
        else:
            yield from (word[i : i + 2] for i in range(len(word) - 1))


class BM25:
    """An inverted index in memory. Build it from texts, then `search`."""

    def __init__(self, texts: Iterable[str], k1: float = 0.9, b: float = 0.4) -> None:
        """texts: one a passage; row i is the i-th."""
        self._terms: dict[str, int] = {}
        terms, rows, counts, lengths = array("q"), array("q"), array("d"), array("q")
        for row, text in enumerate(texts):
            frequencies = Counter(tokens(text))
            lengths.append(sum(frequencies.values()))
            for term, count in frequencies.items():
                terms.append(self._terms.setdefault(term, len(self._terms)))
                rows.append(row)
                counts.append(count)
        self.num_passages = len(lengths)
        term_of = np.frombuffer(terms, np.int64)
        order = np.argsort(term_of, kind="stable")
        frequency = np.bincount(term_of, minlength=len(self._terms))
        self._starts = np.concatenate(([0], np.cumsum(frequency)))
        self._rows = np.frombuffer(rows, np.int64)[order]
        tf = np.frombuffer(counts, np.float64)[order]
        length = np.frombuffer(lengths, np.int64).astype(np.float64)
        norm = k1 * (1 - b + b * length / max(length.mean(), 1.0)) if self.num_passages else length
        idf = np.log1p((self.num_passages - frequency + 0.5) / (frequency + 0.5))
        self._weights = np.repeat(idf, frequency) * tf / (tf + norm[self._rows])

    def scores(self, query: str) -> NDArray[np.float64]:
        """float64 [N]: each passage's score; 0 where no term is shared. A term counts as often as it
        occurs."""
        scores = np.zeros(self.num_passages)
        for term, count in Counter(tokens(query)).items():
            number = self._terms.get(term)
            if number is not None:
                span = slice(self._starts[number], self._starts[number + 1])
                scores[self._rows[span]] += count * self._weights[span]
        return scores

    def search(self, query: str, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The k best rows that share a term with the query, and their scores; best first, ties by row."""
        scores = self.scores(query)
        rows = best_first(scores, k)
        rows = rows[scores[rows] > 0]
        return rows, scores[rows]
