"""English questions with their words put into other languages, so that a model cannot rely on words shared with the
passage: artificial code-switching, as in "Boosting zero-shot cross-lingual retrieval by training on artificially
code-switched data" (Litschko, Artemova and Plank 2023), which took bilingual lexicons.

Here the lexicons are learned: words of translated sentences are aligned by the trained encoder's token vectors (a
word's vector is the mean of its pieces', words that are each other's best are a pair, as SimAlign does, Jalili Sabet
et al. 2020, arXiv 2004.08728); and a single word of the vocabulary, in a script of its own, is taken for the English
word whose vector alone is its nearest, each being the other's best after hubs are discounted (CSLS, Conneau et al.
2018, arXiv 1710.04087).
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from hybrid_retrieval.training import data
from hybrid_retrieval.training.exported import ExportedEncoder

Lexicon = dict[str, list[tuple[str, float]]]
"""Of each English word in lower case: words of one language and how much they weigh in the draw."""

LANGUAGES: Mapping[str, float] = {
    "ara": 4, "cmn": 4, "spa": 3, "rus": 2.5, "hin": 2, "deu": 1.5, "ell": 1.5, "kor": 1.5, "vie": 1.5, "fra": 1,
    "heb": 1, "jpn": 1, "ron": 1, "tha": 1, "tur": 1, "ben": 0.5, "ces": 0.5, "fin": 0.5, "hun": 0.5, "ind": 0.5,
    "ita": 0.5, "pol": 0.5, "por": 0.5, "swh": 0.5, "tel": 0.5, "ukr": 0.5, "nld": 0.3, "swe": 0.3,
}  # fmt: skip
"""Share of each language in the draw: those of ``data.BITEXT_LANGUAGES``."""
SCRIPTS = {
    "ARABIC": "ara", "CJK": "cmn", "CYRILLIC": "rus", "DEVANAGARI": "hin", "GREEK": "ell", "HEBREW": "heb",
    "HANGUL": "kor", "THAI": "tha", "KATAKANA": "jpn", "HIRAGANA": "jpn", "BENGALI": "ben", "TELUGU": "tel",
}  # fmt: skip
"""First word of a character's Unicode name: the language that its words are taken for. Some are of a neighbour (Urdu,
Kazakh), which does no harm to what the models learn."""
UNSPACED = ("cmn", "jpn", "tha")
"""Languages without spaces between words: there a vocabulary piece is a word."""
ALIGNED, ALIKE = 0.3, 0.82
"""Least cosine of a pair of words in two sentences, and of two words alone."""
BEST, RARELY = 3, 0.3
"""Words kept for an English one, and the least weight beside the heaviest."""
KEPT = 0.08
"""Chance of a word that could be put into the language to stay."""
SWITCHED = 0.35
"""Least share of a question's words that are put into the other language."""
WORD = re.compile(r"[\w']+")


def _spans(text: str, encoding: Encoding, language: str) -> list[tuple[int, int]]:
    """Where the words are."""
    if language in UNSPACED:
        return [(start, end) for start, end in encoding.offsets if WORD.search(text[start:end])]
    return [match.span() for match in WORD.finditer(text)]


def _word_vectors(
    encoder: ExportedEncoder, tokenizer: Tokenizer, texts: Sequence[str], language: str
) -> list[tuple[list[str], NDArray[np.float32]]]:
    """Of each text its words and their unit vectors float32 [words, D]."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    prefix = data.PASSAGE_PREFIX
    found = []
    for text, encoding, rows in zip(
        texts, encodings, encoder.vectors(prefix, [e.ids for e in encodings], 512), strict=True
    ):
        own = rows[len(prefix) : -1]
        offsets = encoding.offsets[: len(own)]
        words: list[str] = []
        vectors = [np.zeros((0, rows.shape[1]), np.float32)]
        for start, end in _spans(text, encoding, language):
            pieces = [i for i, (a, b) in enumerate(offsets) if a < end and start < b and a < b]
            if pieces:
                mean = own[pieces].mean(axis=0, keepdims=True)
                vectors.append(mean / np.linalg.norm(mean))
                words.append(text[start:end].strip())
        found.append((words, np.concatenate(vectors)))
    return found


def _aligned(encoder: ExportedEncoder, tokenizer: Tokenizer, path: Path, language: str) -> Lexicon:
    """From a file of translated sentences, ``foreign<tab>English`` lines."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if len(row) == 2]
    foreign = _word_vectors(encoder, tokenizer, [row[0] for row in rows], language)
    english = _word_vectors(encoder, tokenizer, [row[1] for row in rows], "eng")
    weights: dict[str, dict[str, float]] = {}
    for (theirs, their_vectors), (ours, our_vectors) in zip(foreign, english, strict=True):
        if theirs and ours:
            cosines = our_vectors @ their_vectors.T
            best, back = cosines.argmax(axis=1), cosines.argmax(axis=0)
            for i, j in enumerate(best):
                if back[j] == i and cosines[i, j] > ALIGNED:
                    known = weights.setdefault(ours[i].lower(), {})
                    known[theirs[j]] = known.get(theirs[j], 0.0) + float(cosines[i, j])
    lexicon = {}
    for word, known in weights.items():
        top = sorted(known.items(), key=lambda item: -item[1])[:BEST]
        lexicon[word] = [(theirs, weight) for theirs, weight in top if weight >= RARELY * top[0][1]]
    return lexicon


def _vocabulary(tokenizer: Tokenizer) -> dict[str, list[str]]:
    """Whole words among the tokenizer's pieces, of each language that ``SCRIPTS`` tells by its script."""
    found: dict[str, set[str]] = {}
    for piece in tokenizer.get_vocab():
        word = piece.lstrip("▁")
        scripts = {unicodedata.name(c, "?").split(" ")[0].split("-")[0] for c in word} if word.isalpha() else set()
        language = SCRIPTS.get(scripts.pop(), "") if len(scripts) == 1 else ""
        whole = len(word) >= 2 if language in UNSPACED else piece.startswith("▁") and len(word) >= 3
        if language and whole:
            found.setdefault(language, set()).add(word)
    return {language: sorted(words) for language, words in sorted(found.items())}


def _alike(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """(row, row, cosine) of unit vectors [N, D] and [M, D] that are each other's best by CSLS with ten neighbours."""
    cosines = ours @ theirs.T
    near = min(10, *cosines.shape)
    hub = np.sort(cosines, axis=1)[:, -near:].mean(axis=1)[:, None] + np.sort(cosines, axis=0)[-near:].mean(axis=0)
    scores = 2 * cosines - hub
    best, back = scores.argmax(axis=1), scores.argmax(axis=0)
    return [(i, int(j), float(cosines[i, j])) for i, j in enumerate(best) if back[j] == i and cosines[i, j] >= ALIKE]


def learn(
    folder: Path, sentences: Path, tokenizer: Tokenizer, english: Iterable[str], *, threads: int
) -> dict[str, Lexicon]:
    """A lexicon of each of ``LANGUAGES``. folder: of an exported encoder. sentences: folder of Tatoeba files,
    ``xxx-eng.tsv``. english: texts whose words, where they come at least twice, are looked up in the vocabulary."""
    encoder = ExportedEncoder(folder, threads=threads)
    lexicons = {name: _aligned(encoder, tokenizer, sentences / f"{name}-eng.tsv", name) for name in LANGUAGES}
    counted = Counter(word.lower() for text in english for word in re.findall("[A-Za-z]{3,}", text))
    ours = sorted(word for word, times in counted.items() if times >= 2)

    def alone(words: list[str]) -> NDArray[np.float32]:
        rows = encoder.vectors(
            data.PASSAGE_PREFIX, [e.ids for e in tokenizer.encode_batch(words, add_special_tokens=False)], 32
        )
        means = np.stack([row[len(data.PASSAGE_PREFIX) : -1].mean(axis=0) for row in rows])
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    if ours:
        vectors = alone(ours)
        for name, theirs in _vocabulary(tokenizer).items():
            for i, j, cosine in _alike(vectors, alone(theirs)):
                lexicons[name].setdefault(ours[i], [(theirs[j], cosine)])
    return lexicons


def switched(text: str, lexicon: Lexicon, rng: random.Random, *, joined: bool) -> tuple[str, float]:
    """``text`` with the words that ``lexicon`` knows put into its language, and what share of all words that is.
    joined: without spaces between neighbours of the language."""
    parts: list[str] = []
    done = words = end = 0
    before = False
    for match in WORD.finditer(text):
        gap, word = text[end : match.start()], match.group()
        end, words = match.end(), words + 1
        known = lexicon.get(word.lower())
        put = known is not None and rng.random() > KEPT
        if known is not None and put:
            word = rng.choices([theirs for theirs, _ in known], [weight for _, weight in known])[0]
            gap = gap.strip() if before and joined else gap
            done += 1
        parts += [gap, word]
        before = put
    return "".join([*parts, text[end:]]), done / max(words, 1)


def questions(
    query: list[int], lexicons: Mapping[str, Lexicon], tokenizer: Tokenizer, rng: random.Random, *, number: int
) -> list[list[int]]:
    """Up to ``number`` versions of a question (token ids), each in a language drawn by its share; versions of which too
    little could be put into the language are left out."""
    text = tokenizer.decode(query)
    found: list[list[int]] = []
    for language in rng.choices(list(LANGUAGES), list(LANGUAGES.values()), k=3 * number):
        version, share = switched(text, lexicons[language], rng, joined=language in UNSPACED)
        if share >= SWITCHED and len(found) < number:
            found.append(tokenizer.encode(version, add_special_tokens=False).ids)
    return found
