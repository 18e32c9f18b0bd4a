"""Recipe of the embedded cross-encoder. It starts as the trained encoder, reading both texts at once, whose four lower
layers stay and are stored once for both; the eight upper layers and the head learn listwise against negatives that the
encoder mined: the logit alone, and as what is added to the encoder's MaxSim."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hybrid_retrieval.training import data, losses
from hybrid_retrieval.training.data import Pair
from hybrid_retrieval.training.exported import ExportedEncoder
from hybrid_retrieval.training.loop import train
from hybrid_retrieval.training.modules import CrossEncoder

FROZEN = 4
QUERY_TOKENS, PASSAGE_TOKENS = 48, 167
"""Training lengths of the two parts of a pair, markers included; at run time pairs have at most 512 tokens."""
POOL = 1500
"""Passages of a file among which negatives are sought: its pairs are taken in blocks of so many."""
SHORTLIST, DEPTH, NEGATIVES = 80, 14, 4
QUESTIONS = 6
BATCH_TOKENS = 6144
EASY, EASY_KEPT = 1.0, 0.3
"""A question whose own passage leads the others by ``EASY`` standard deviations is kept with this probability."""
SCALE = 30.0
"""Of the encoder's mean MaxSim beside the logit."""
OWN = 0.5
"""Weight of the loss of the logit alone."""
ROWS = 6000
"""Of a file, read."""
FILES: data.Shares = {
    "tydiqa-en": (4, 2000), "tydiqa-sw": (2, 1500), "jaquad": (4, 3000), "iapp-thai": (1, 700),
    "fever-sent": (2, 1800), "medquad": (0.4, 800), "php_purpose": (1, 600), "mdn_xling": (1.5, 900),
    "heading_mdn-en": (0.3, 400), "heading_windows-driver-docs": (0.3, 300), "heading_cpp-docs": (0.3, 300),
}  # fmt: skip
"""Share of each file in the draw of questions, and how many of its pairs are mined: of those that the encoder's layers
have not learned from, or its MaxSim would be surer of itself than it is of other questions."""
ACROSS: data.Shares = {
    "zh": (1, 500), "es": (0.4, 200), "fr": (0.4, 200), "ru": (0.5, 200), "ja": (0.4, 200), "de": (0.4, 200),
}  # fmt: skip
"""The same for questions of the PHP manual in these languages with English passages."""
DOCUMENTATION: data.Shares = {
    "zh": (2, 500), "es": (0.5, 200), "fr": (0.4, 200), "ja": (0.4, 200), "ko": (0.4, 200), "pt": (0.4, 200),
}  # fmt: skip
"""The same for paragraphs of Python's documentation in these languages with English passages."""
STATEMENTS = "statements"
STATEMENTS_SHARE = 4.0
STATEMENTS_EACH, STATEMENTS_MORE = 80, {"ara": 500, "cmn": 500, "rus": 200, "spa": 200}
"""Sentences of each language of the bitext that become questions for English passages (``data.statements``)."""
HOSTS = ("heading_mdn-en", "medquad")
SHARES = data.draw_shares(FILES, ACROSS, DOCUMENTATION, {STATEMENTS: STATEMENTS_SHARE})


@dataclass(frozen=True)
class Lists:
    """Questions and distinct passages as token ids with their markers; of each question its own passage, then the best
    others (numbers of passages), and the encoder's mean MaxSim of each."""

    files: list[str]
    queries: list[list[int]]
    passages: list[list[int]]
    ranked: list[list[int]]
    scores: list[list[float]]


class Found(NamedTuple):
    """A pair, and passages with their mean MaxSim: its own, then the ``DEPTH`` best others, best first."""

    pair: Pair
    passages: list[Pair]
    scores: list[float]


def blocks(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The pairs in their order, cut where the next passage would be one too many; a rest too small for negatives is in
    the last block. None where there are no pairs."""
    out: list[list[Pair]] = [[]] if pairs else []
    keys: set[int] = set()
    for pair in pairs:
        if len(keys) == POOL and pair.passage_key not in keys:
            out.append([])
            keys = set()
        keys.add(pair.passage_key)
        out[-1].append(pair)
    if len(out) > 1 and len(keys) < POOL // 2:
        out[-2:] = [out[-2] + out[-1]]
    return out


def answers(pairs: Sequence[Pair]) -> dict[tuple[int, ...], set[int]]:
    """The passages of each question: some have several, and none of these is a negative."""
    found: dict[tuple[int, ...], set[int]] = {}
    for pair in pairs:
        found.setdefault(tuple(pair.query), set()).add(pair.passage_key)
    return found


def mine(encoder: ExportedEncoder, pairs: Sequence[Pair], relevant: Mapping[tuple[int, ...], set[int]]) -> list[Found]:
    """For each pair of one block, by mean token vectors first to shorten the list; without those that have too few
    other passages. relevant: see ``answers``."""
    held: dict[int, Pair] = {}
    for pair in pairs:
        held.setdefault(pair.passage_key, pair)
    pool, number = list(held.values()), {key: i for i, key in enumerate(held)}
    vectors = encoder.vectors(data.PASSAGE_PREFIX, [pair.passage for pair in pool], PASSAGE_TOKENS)
    means = np.stack([v.mean(axis=0) for v in vectors])
    found = []
    for pair, query in zip(pairs, encoder.queries([pair.query for pair in pairs], QUERY_TOKENS), strict=True):
        own = number[pair.passage_key]
        near = np.argsort(-(means @ query.mean(axis=0)), kind="stable")[:SHORTLIST].tolist()
        scores = {j: float((query @ vectors[j].T).max(axis=1).mean()) for j in {own, *near}}
        theirs, read = relevant[tuple(pair.query)], pair.passage[:PASSAGE_TOKENS]
        others = (j for j in near if pool[j].passage_key not in theirs and pool[j].passage[:PASSAGE_TOKENS] != read)
        best = sorted(others, key=lambda j: -scores[j])[:DEPTH]
        if len(best) > NEGATIVES:
            found.append(Found(pair, [pool[j] for j in [own, *best]], [scores[j] for j in [own, *best]]))
    return found


def gather(encoder: Path, sources: Mapping[str, list[Pair]], *, seed: int, threads: int) -> Lists:
    """Mine with an exported encoder and thin out what is easy. sources: pairs of each file."""
    rng = random.Random(seed)
    runs = ExportedEncoder(encoder, threads=threads)
    lists = Lists([], [], [], [], [])
    numbers: dict[tuple[int, ...], int] = {}
    for name, items in sources.items():
        mined, kept = 0, 0
        relevant = answers(items)
        for found in (one for block in blocks(items) for one in mine(runs, block, relevant)):
            mined += 1
            raw = np.array(found.scores)
            lead = (raw[0] - raw[1:].max()) / max(float(raw.std()), 1e-6)
            if lead > EASY and rng.random() > EASY_KEPT:
                continue
            kept += 1
            lists.files.append(name)
            lists.queries.append(data.wrap(data.QUERY_PREFIX, found.pair.query, QUERY_TOKENS))
            rows = [tuple(data.wrap(data.PASSAGE_PREFIX, p.passage, PASSAGE_TOKENS)) for p in found.passages]
            lists.ranked.append([numbers.setdefault(row, len(numbers)) for row in rows])
            lists.scores.append([round(score, 5) for score in found.scores])
        print(f"mined {name}: {kept} of {mined} questions", flush=True)
    lists.passages.extend(list(row) for row in numbers)
    return lists


def train_reranker(
    model: CrossEncoder,
    lists: Lists,
    *,
    steps: int,
    checkpoint: Path,
    resume: bool,
    half: bool,
    made_of: str = "",
    seed: int = 0,
) -> bool:
    """Listwise softmax over the passages of ``QUESTIONS`` questions a step: of the mean of logit and scaled MaxSim, and
    of the logit (``OWN``); False when a signal stopped it.
    half: the layers compute in bfloat16 (weights stay float32). made_of: see ``loop.train``."""
    for layer in list(model.trunk.layers)[:FROZEN]:
        layer.requires_grad_(False)
    by_file: dict[str, list[int]] = {}
    for question, name in enumerate(lists.files):
        by_file.setdefault(name, []).append(question)
    names = sorted(by_file)
    weights = [SHARES[name] for name in names]
    group = 1 + NEGATIVES

    def step(i: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(seed * 1_000_003 + i)
        rows, retrieved = [], []
        for name in rng.choices(names, weights, k=QUESTIONS):
            question = rng.choice(by_file[name])
            others = rng.sample(range(2, len(lists.ranked[question])), NEGATIVES - 1)
            for place in [0, 1, *others]:  # its own, the best other, and some more
                rows.append(lists.queries[question] + lists.passages[lists.ranked[question][place]])
                retrieved.append(lists.scores[question][place])
        logits = torch.zeros(len(rows))
        for members in data.bucketed([len(row) for row in rows], BATCH_TOKENS):
            ids, mask = data.pad([rows[j] for j in members])
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                states = model.trunk(ids, mask)
            logits = logits.index_put((torch.tensor(members),), model.logits(states.float(), ids))
        own = losses.listwise(logits, group)
        fused = losses.listwise((logits + SCALE * torch.tensor(retrieved)) / 2, group)
        hit = (logits.view(-1, group).argmax(-1) == 0).float().mean()
        return fused + OWN * own, {"own": own.item(), "fused": fused.item(), "hit": hit.item()}

    return train(
        model, step, steps=steps, rate=1e-4, head_rate=3e-4, checkpoint=checkpoint, resume=resume, made_of=made_of
    )
