"""Recipe of the embedded cross-encoder: the base's four lower layers stay, as they do in the encoder, which shares
them; the eight upper layers and the head learn listwise against negatives that the trained encoder mined."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hybrid_retrieval.training import data, losses
from hybrid_retrieval.training.data import END, Pair
from hybrid_retrieval.training.exported import ExportedEncoder
from hybrid_retrieval.training.loop import Course, train
from hybrid_retrieval.training.mining import Pool
from hybrid_retrieval.training.modules import CrossEncoder

FROZEN = 4
QUERY_TOKENS, PASSAGE_TOKENS = 48, 176
"""Training lengths of the two parts of a pair; at run time passages are read in windows of such a length."""
POOL = 1000
"""Pairs of a file among whose passages negatives are sought, where no more of its questions are kept."""
NEGATIVES, DEPTH, SHORTLIST = 3, 12, 40
QUESTIONS = 8
BATCH_TOKENS = 4096
FILES: data.Shares = {
    "squad_train": (6, 3300), "tydiqa-en": (2.5, 2000), "tydiqa-ko": (2, 1300), "tydiqa-sw": (1.5, 1500),
    "jaquad": (2, 1500), "iapp-thai": (0.5, 300), "scifact": (2, 750), "fever-sent": (2, 1500), "medquad": (0.5, 300),
    "php_purpose": (1, 600), "mdn_xling": (1.5, 900),
    "heading_mdn-en": (0.3, 200), "heading_windows-driver-docs": (0.3, 200),
}  # fmt: skip
"""Share of each file in the draw of questions, and how many of its questions are kept."""
ACROSS: data.Shares = {
    "zh": (1.2, 700), "es": (0.4, 250), "fr": (0.4, 250), "ru": (0.4, 250), "ja": (0.4, 250), "de": (0.4, 250),
}  # fmt: skip
"""The same for questions of the PHP manual in these languages with English passages."""
DOCUMENTATION: data.Shares = {
    "zh": (2, 1200), "es": (0.4, 300), "fr": (0.4, 300), "ja": (0.4, 300), "ko": (0.4, 300), "pt": (0.4, 300),
}  # fmt: skip
"""The same for paragraphs of Python's documentation in these languages with English passages."""
STATEMENTS = "statements"
STATEMENTS_SHARE = 4.0
STATEMENTS_EACH, STATEMENTS_MORE = 100, {"ara": 700, "cmn": 500}
"""Sentences of each language of the bitext that become questions for English passages (``data.statements``)."""
HOSTS = ("squad_train", "tydiqa-en")
SHARES = data.draw_shares(FILES, ACROSS, DOCUMENTATION, {STATEMENTS: STATEMENTS_SHARE})


@dataclass(frozen=True)
class Lists:
    """Questions with one positive and ``NEGATIVES`` negatives each: pair ``4 i`` is question ``i``'s positive.
    files: of each question. rows: token ids of each pair."""

    files: list[str]
    rows: list[list[int]]


def pair_ids(query: list[int], passage: list[int], query_tokens: int, passage_tokens: int) -> list[int]:
    """``<s> query </s></s> passage </s>``."""
    return [0, *query[:query_tokens], END, END, *passage[:passage_tokens], END]


def mine(encoder: Path, pairs: Sequence[Pair], *, questions: int, threads: int) -> list[tuple[Pair, list[Pair]]]:
    """For the first ``questions`` pairs of one file, the ``DEPTH`` best of the file's passages by MaxSim under an
    exported encoder (by mean unit token vectors first, to shorten the list) that do not answer the same question, nor
    read the same once they are cut."""
    chosen: dict[int, Pair] = {}
    for pair in pairs:
        chosen.setdefault(pair.passage_key, pair)
    pool = list(chosen.values())
    items = list(pairs[:questions])
    runs = ExportedEncoder(encoder, threads=threads)
    passages = Pool(runs, [pair.passage for pair in pool], PASSAGE_TOKENS)
    queries = runs.vectors(data.QUERY_PREFIX, [pair.query for pair in items], QUERY_TOKENS)
    relevant, number = data.answers(pairs), {pair.passage_key: j for j, pair in enumerate(pool)}
    found = []
    for item, query in zip(items, queries, strict=True):
        theirs, read = relevant[tuple(item.query)], item.passage[:PASSAGE_TOKENS]
        ranked = [pool[j] for j, _ in passages.ranked(query, SHORTLIST, own=number[item.passage_key])]
        wrong = [pair for pair in ranked if pair.passage_key not in theirs and pair.passage[:PASSAGE_TOKENS] != read]
        if len(wrong) >= NEGATIVES:
            found.append((item, wrong[:DEPTH]))
    return found


def gather(encoder: Path, sources: dict[str, tuple[list[Pair], int]], *, seed: int, threads: int) -> Lists:
    """Mine with an exported encoder and draw each question's negatives. sources: pairs of each file, and of how many of
    them the questions are kept."""
    rng = random.Random(seed)
    files: list[str] = []
    rows: list[list[int]] = []
    for name, (items, limit) in sources.items():
        mined = mine(encoder, items[: max(limit, POOL)], questions=limit, threads=threads)
        print(f"mined {name}: {len(mined)} questions", flush=True)
        for item, negatives in mined:
            files.append(name)
            for passage in [item, *rng.sample(negatives, NEGATIVES)]:
                rows.append(pair_ids(item.query, passage.passage, QUERY_TOKENS, PASSAGE_TOKENS))
    return Lists(files, rows)


def pair_logits(model: CrossEncoder, rows: Sequence[list[int]], *, half: bool) -> Tensor:
    """Logits float32 [N] of rows of token ids. half: the layers compute in bfloat16."""
    logits = torch.zeros(len(rows))
    for members in data.bucketed([len(row) for row in rows], BATCH_TOKENS):
        ids, mask = data.pad([rows[j] for j in members])
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            states = model.trunk(ids, mask)
        logits = logits.index_put((torch.tensor(members),), model.logits(states.float(), ids))
    return logits


def freeze_lower_layers(model: CrossEncoder) -> None:
    """The ``FROZEN`` lower layers do not learn."""
    for layer in list(model.trunk.layers)[:FROZEN]:
        layer.requires_grad_(False)


def train_reranker(model: CrossEncoder, lists: Lists, course: Course) -> bool:
    """Listwise softmax over the pairs of ``QUESTIONS`` questions a step; False when a signal stopped it."""
    freeze_lower_layers(model)
    by_file: dict[str, list[int]] = {}
    for question, name in enumerate(lists.files):
        by_file.setdefault(name, []).append(question)
    names = sorted(by_file)
    weights = [SHARES[name] for name in names]
    group = 1 + NEGATIVES

    def step(i: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(course.seed * 1_000_003 + i)
        questions = [rng.choice(by_file[name]) for name in rng.choices(names, weights, k=QUESTIONS)]
        rows = [lists.rows[group * question + j] for question in questions for j in range(group)]
        logits = pair_logits(model, rows, half=course.half)
        loss = losses.listwise(logits, group)
        hit = (logits.view(-1, group).argmax(-1) == 0).float().mean()
        return loss, {"loss": loss.item(), "hit": hit.item()}

    return train(model, step, course, rate=1e-4, head_rate=5e-4)
