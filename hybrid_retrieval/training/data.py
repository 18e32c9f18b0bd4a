"""Training pairs: JSON lines {"query", "positive", "positive_id"}, tokenised and drawn with fixed weights."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

PAD, END, STOP = 1, 2, 5
"""Ids of ``<pad>``, ``</s>`` and the full stop."""
QUERY_PREFIX = [0, 41, 1294, 12]
"""``<s> query :`` as the base was trained."""
PASSAGE_PREFIX = [0, 46692, 12]
"""``<s> passage :``."""

WEIGHTS = {
    "squad_train": 5, "tydiqa-en": 2, "tydiqa-ko": 2, "tydiqa-sw": 1, "jaquad": 2, "iapp-thai": 1,
    "scifact": 1, "fever-sent": 2, "medquad": 1, "php_purpose": 3, "mdn_xling": 2, "heading_mdn-en": 1,
    "heading_windows-driver-docs": 1,
}  # fmt: skip
"""Share of each file in the draw of batches."""


HELD_OUT = 150
"""Passages of each file that no training step sees, nor another passage for one of their questions."""
DRAWN, SPLIT_SEED = 4000, 0
"""Rows that are read of a file, and what shuffles it before: whatever a training's seed, the same rows are held out."""


@dataclass(frozen=True)
class Pair:
    query: list[int]
    """Token ids without special tokens."""
    passage: list[int]
    passage_key: int
    """Equal for equal passages."""


def answers(pairs: Iterable[Pair]) -> dict[tuple[int, ...], set[int]]:
    """The keys of each question's passages: some have several, and none of these is a negative."""
    found: dict[tuple[int, ...], set[int]] = {}
    for pair in pairs:
        found.setdefault(tuple(pair.query), set()).add(pair.passage_key)
    return found


Shares = Mapping[str, tuple[float, int]]
"""Of each file, or of each language's file: its share of the draw, and how many of its pairs are kept."""


def across_file(language: str) -> str:
    """Name of the PHP manual's pairs with questions in a language and English passages."""
    return f"php_{language}-en"


def documentation_file(language: str) -> str:
    """The same of Python's documentation."""
    return f"documentation_{language}-en"


def draw_shares(files: Shares, across: Shares, documentation: Shares, more: Mapping[str, float]) -> dict[str, float]:
    """Share of every file in the draw. across, documentation: by language. more: files that have but a share."""
    named = dict(files)
    named |= {across_file(language): value for language, value in across.items()}
    named |= {documentation_file(language): value for language, value in documentation.items()}
    return {name: share for name, (share, _) in named.items()} | dict(more)


def load_pairs(
    folder: Path, tokenizer: Tokenizer, *, limit: int, seed: int, names: Iterable[str] = tuple(WEIGHTS)
) -> dict[str, list[Pair]]:
    """At most ``limit`` pairs of each file of ``names``, shuffled, without those that tune and check (``held_out``) and
    without all that asks one of their questions or is of one of their functions of the PHP manual."""
    out = {}
    for name in names:
        held, rest = _split(folder / f"{name}.jsonl", tokenizer)
        asked = {row["query"] for row, _ in held}
        functions = {_function(row) for row, _ in held} - {None}
        pairs = [pair for row, pair in rest if row["query"] not in asked and _function(row) not in functions]
        random.Random(seed).shuffle(pairs)
        out[name] = pairs[:limit]
    return out


def held_out(folder: Path, tokenizer: Tokenizer, name: str) -> tuple[list[Pair], dict[tuple[int, ...], set[int]]]:
    """The pairs of the first ``HELD_OUT`` passages of one file, which ``load_pairs`` leaves out; and the ``answers`` of
    all its pairs, held out or not."""
    held, rest = _split(folder / f"{name}.jsonl", tokenizer)
    return [pair for _, pair in held], answers(pair for _, pair in [*held, *rest])


BITEXT_LANGUAGES = (
    "ara", "cmn", "spa", "rus", "deu", "fra", "ell", "hin", "tha", "tur",
    "vie", "ron", "jpn", "kor", "fin", "tel", "swh", "por", "ita", "nld",
    "pol", "ukr", "ben", "ind", "heb", "swe", "hun", "ces",
)  # fmt: skip


def load_bitext(
    folder: Path, tokenizer: Tokenizer, *, per_language: int, more: Mapping[str, int] | None = None, seed: int
) -> list[tuple[str, list[int], list[int]]]:
    """(language, sentence, English translation) of ``BITEXT_LANGUAGES`` as token ids (Tatoeba, ``xxx-eng.tsv``).

    ``more`` names languages that give another number. Very short sentences say too little to be told apart and are
    left out.
    """
    rng = random.Random(seed)
    chosen: list[list[str]] = []
    languages: list[str] = []
    for language in BITEXT_LANGUAGES:
        lines = (folder / f"{language}-eng.tsv").read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines]
        # In bytes: a sign of Chinese says as much as several letters.
        rows = [row for row in rows if len(row) == 2 and len(row[0].encode()) > 12 and len(row[1]) > 20]
        rng.shuffle(rows)
        taken = rows[: (more or {}).get(language, per_language)]
        chosen += taken
        languages += [language] * len(taken)
    sides = [tokenizer.encode_batch([row[i] for row in chosen], add_special_tokens=False) for i in (0, 1)]
    return [(language, foreign.ids, english.ids) for language, foreign, english in zip(languages, *sides, strict=True)]


def load_across(
    folder: Path, tokenizer: Tokenizer, *, per_language: Mapping[str, int], seed: int
) -> dict[str, list[Pair]]:
    """For each language, its purposes of PHP functions as queries and the English manual's entries as passages.

    Functions that ``held_out`` keeps back are left out, in whatever language, and so is what has a text of theirs.
    """
    path = folder / "php_purpose.jsonl"
    held_rows = [row for row, key in _keyed(_drawn(path)) if key < HELD_OUT]
    functions = {_function(row) for row in held_rows}
    texts = {row[side] for row in held_rows for side in ("query", "positive")}
    rows = [row for row in _rows(path) if _function(row) not in functions]
    english = {_function(row): row for row in rows if row["lang"] == "en-en"}
    rng = random.Random(seed)
    out: dict[str, list[Pair]] = {}
    for language, wanted in per_language.items():
        found = [row for row in rows if row["lang"] == f"{language}-{language}" and _function(row) in english]
        rng.shuffle(found)
        out[language] = []
        for row in found:
            target = english[_function(row)]
            if len(out[language]) == wanted:
                break
            if not texts.isdisjoint([row["query"], row["positive"], target["query"], target["positive"]]):
                continue
            sides = [row["query"][:1000], target["positive"][:3000]]
            query, passage = (side.ids for side in tokenizer.encode_batch(sides, add_special_tokens=False))
            if len(query) >= 4:
                out[language].append(Pair(query, passage, len(out[language])))
    return out


def statements(
    bitext: Sequence[tuple[str, list[int], list[int]]], hosts: Sequence[Sequence[int]], *, seed: int
) -> list[Pair]:
    """Sentences as queries, each for an English passage that states it: its translation set between two sentences of
    one of ``hosts`` (token ids of English passages), among the first 100 tokens. One pair an English sentence, so that
    no passage states another's query."""
    rng = random.Random(seed)
    order = list(range(len(bitext)))
    rng.shuffle(order)
    pairs: dict[tuple[int, ...], Pair] = {}
    for number in order:
        _, foreign, english = bitext[number]
        if tuple(english) not in pairs:
            host = rng.choice(hosts)
            at = rng.choice([0, *(i + 1 for i, token in enumerate(host[:100]) if token == STOP)])
            pairs[tuple(english)] = Pair(foreign, [*host[:at], *english, *host[at:]], len(pairs))
    return list(pairs.values())


def load_documentation(
    folder: Path, tokenizer: Tokenizer, language: str, *, limit: int, tokens: int, seed: int
) -> list[Pair]:
    """Translated paragraphs of Python's documentation as queries, each for the English paragraph with those around it,
    up to ``tokens`` (``corpus.xx.jsonl``, paragraphs aligned by ``_id``, in the documents' order). No two passages
    share a paragraph, and none holds one of ``parallel_test_ids.json``."""
    held = set(json.loads((folder / "parallel_test_ids.json").read_text(encoding="utf-8")))
    lines = (folder / "corpus.en.jsonl").read_text(encoding="utf-8").splitlines()
    english = [json.loads(line) for line in lines]
    number = {row["_id"]: i for i, row in enumerate(english)}
    lines = (folder / f"corpus.{language}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["_id"] not in held and row["_id"] in number]
    random.Random(seed).shuffle(rows)
    pairs: list[Pair] = []
    taken: set[int] = set()
    for row in rows:
        query = tokenizer.encode(row["text"][:600], add_special_tokens=False).ids
        if not 8 <= len(query) <= 60:
            continue
        at = number[row["_id"]]
        around = range(max(at - 1, 0), min(at + 2, len(english)))
        if taken.intersection(around):
            continue
        taken.update(around)
        near = [english[i] for i in around if english[i]["title"] == english[at]["title"]]
        texts = [part["text"] for part in near if part["_id"] not in held]
        passage = tokenizer.encode(" ".join(texts)[:2000], add_special_tokens=False).ids
        if len(passage) > tokens:
            passage = tokenizer.encode(english[at]["text"], add_special_tokens=False).ids
        pairs.append(Pair(query, passage, at))
        if len(pairs) == limit:
            break
    return pairs


Row = dict[str, Any]


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _drawn(path: Path) -> list[Row]:
    rows = _rows(path)
    random.Random(SPLIT_SEED).shuffle(rows)
    return rows[:DRAWN]


def _keyed(rows: Iterable[Row]) -> list[tuple[Row, int]]:
    """Each row with its passage's number, by first occurrence."""
    keys: dict[str, int] = {}
    return [(row, keys.setdefault(row["positive"], len(keys))) for row in rows]


def _function(row: Row) -> str | None:
    """The function that an entry of the PHP manual is of, whose purpose is told in several languages."""
    return str(row["positive_id"]).split("-", 1)[1] if row.get("source") == "php" else None


def _split(path: Path, tokenizer: Tokenizer) -> tuple[list[tuple[Row, Pair]], list[tuple[Row, Pair]]]:
    """(held out, the rest), each pair with its row."""
    rows = _keyed(_drawn(path))
    queries = tokenizer.encode_batch([row["query"][:1000] for row, _ in rows], add_special_tokens=False)
    passages = tokenizer.encode_batch([row["positive"][:3000] for row, _ in rows], add_special_tokens=False)
    sides: tuple[list[tuple[Row, Pair]], list[tuple[Row, Pair]]] = ([], [])
    for query, passage, (row, key) in zip(queries, passages, rows, strict=True):
        if query.ids and passage.ids:
            sides[key >= HELD_OUT].append((row, Pair(query.ids, passage.ids, key)))
    return sides


def wrap(prefix: Sequence[int], ids: Sequence[int], limit: int) -> list[int]:
    """prefix + ids + </s>, at most ``limit`` ids."""
    return [*[*prefix, *ids][: limit - 1], END]


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids, mask), both int64 [B, L], padded on the right."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), PAD, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def bucketed(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped by length so that rows x longest <= ``budget`` tokens."""
    groups: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups[-1] and (len(groups[-1]) + 1) * lengths[i] > budget:
            groups.append([])
        groups[-1].append(i)
    return groups
