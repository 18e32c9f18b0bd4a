"""Recipe of the cross-encoder's second round: it goes on from the exported first round, on more questions, and learns
what stage 1 gets wrong: its logit is trained alone and as what is added to the standardised MaxSim of the encoder."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hybrid_retrieval.training import data, losses, reranker_recipe
from hybrid_retrieval.training.data import Pair
from hybrid_retrieval.training.exported import ExportedEncoder
from hybrid_retrieval.training.loop import train
from hybrid_retrieval.training.modules import CrossEncoder
from hybrid_retrieval.training.reranker_recipe import (
    BATCH_TOKENS,
    NEGATIVES,
    PASSAGE_TOKENS,
    QUERY_TOKENS,
    QUESTIONS,
    mine,
    pair_ids,
)

POOL = 1500
"""Passages of a file among which negatives are sought at most: its pairs, no more than are asked, go in blocks of so
many."""
FILES: data.Shares = {
    "squad_train": (3.5, 4000), "tydiqa-en": (3.5, 4000), "tydiqa-ko": (2, 4000), "tydiqa-sw": (2.5, 4000),
    "jaquad": (4, 4000), "iapp-thai": (1, 1000), "scifact": (1.2, 750), "fever-sent": (2, 2500), "medquad": (0.3, 300),
    "php_purpose": (1, 800), "mdn_xling": (1, 900),
    "heading_mdn-en": (0.3, 300), "heading_windows-driver-docs": (0.3, 300),
}  # fmt: skip
"""Share of each file in the draw of questions, and how many of its questions are kept."""
ACROSS: data.Shares = {
    "zh": (1.2, 900), "es": (0.4, 300), "fr": (0.4, 300), "ru": (0.6, 400), "ja": (0.4, 300), "de": (0.4, 300),
}  # fmt: skip
DOCUMENTATION: data.Shares = {
    "zh": (2, 1500), "es": (0.5, 400), "fr": (0.4, 300), "ja": (0.4, 400), "ko": (0.4, 400), "pt": (0.4, 300),
}  # fmt: skip
HOSTS = reranker_recipe.HOSTS
STATEMENTS, STATEMENTS_SHARE = reranker_recipe.STATEMENTS, 4.5
STATEMENTS_EACH, STATEMENTS_MORE = 120, {"ara": 950, "cmn": 800, "rus": 300, "spa": 300}
SHARES = data.draw_shares(FILES, ACROSS, DOCUMENTATION, {STATEMENTS: STATEMENTS_SHARE})
MIX, SHRUNK = 0.7, 0.35
"""Of the standardised MaxSim beside the logit, and how much of its size the first round's logit keeps: about what
likelihood asks for on these lists (the first round is too sure of itself)."""
EASY, EASY_KEPT = 1.0, 0.35
"""A question whose own passage leads the others by ``EASY`` standard deviations is kept with this probability."""


@dataclass(frozen=True)
class Lists:
    """Questions, the distinct passages, and of each question its own passage and the best others (numbers of
    passages) with their MaxSim, standardised over them."""

    files: list[str]
    queries: list[list[int]]
    passages: list[list[int]]
    ranked: list[list[int]]
    scores: list[list[float]]


def blocks(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The pairs in their order, cut where the next passage would be one too many; a last block of less than half joins
    the one before."""
    out: list[list[Pair]] = [[]]
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


def gather(encoder: Path, sources: Mapping[str, tuple[list[Pair], int]], *, seed: int, threads: int) -> Lists:
    """Mine with an exported encoder and thin out what is easy. sources: as ``reranker_recipe.gather`` takes them."""
    rng = random.Random(seed)
    runs = ExportedEncoder(encoder, threads=threads)
    mined = Lists([], [], [], [], [])
    numbers: dict[tuple[int, ...], int] = {}
    for name, (items, limit) in sources.items():
        found = [one for block in blocks(items[:limit]) for one in mine(runs, block, questions=len(block))]
        kept, first = 0, 0
        for pair, passages, raw in found:
            z = (np.array(raw) - np.mean(raw)) / max(float(np.std(raw)), 1e-6)
            lead = z[0] - z[1:].max()
            first += lead > 0
            if lead > EASY and rng.random() > EASY_KEPT:
                continue
            kept += 1
            mined.files.append(name)
            mined.queries.append(pair.query[:QUERY_TOKENS])
            cut = [tuple(passage.passage[:PASSAGE_TOKENS]) for passage in passages]
            mined.ranked.append([numbers.setdefault(passage, len(numbers)) for passage in cut])
            mined.scores.append([round(float(value), 4) for value in z])
        print(
            f"mined {name}: {kept} of {len(found)} questions, own passage first {first / max(len(found), 1):.3f}",
            flush=True,
        )
    mined.passages.extend(list(passage) for passage in numbers)
    return mined


def train_second_round(
    model: CrossEncoder,
    mined: Lists,
    *,
    steps: int,
    checkpoint: Path,
    resume: bool,
    half: bool,
    made_of: str = "",
    seed: int = 0,
) -> bool:
    """Two listwise softmaxes over a question's own passage, the best other and two drawn ones: of the logit, and of
    ``MIX`` times the standardised MaxSim plus the logit. False when a signal stopped it."""
    for layer in list(model.trunk.layers)[: reranker_recipe.FROZEN]:
        layer.requires_grad_(False)
    with torch.no_grad():
        for part in (model.scale, model.out.weight, model.out.bias):
            part *= SHRUNK
    by_file: dict[str, list[int]] = {}
    for question, name in enumerate(mined.files):
        by_file.setdefault(name, []).append(question)
    names = sorted(by_file)
    weights = [SHARES[name] for name in names]
    group = 1 + NEGATIVES
    # Every question of a file once before any twice.
    turns = {
        name: itertools.cycle(random.Random(f"{seed}-{name}").sample(numbers, len(numbers)))
        for name, numbers in by_file.items()
    }
    draw = random.Random(seed + 1)
    plan = [[next(turns[name]) for name in draw.choices(names, weights, k=QUESTIONS)] for _ in range(steps)]

    def step(i: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(seed * 1_000_003 + i)
        rows: list[list[int]] = []
        first_stage: list[float] = []
        for question in plan[i]:
            ranked = mined.ranked[question]
            for j in (0, 1, *rng.sample(range(2, len(ranked)), group - 2)):
                rows.append(pair_ids(mined.queries[question], mined.passages[ranked[j]], QUERY_TOKENS, PASSAGE_TOKENS))
                first_stage.append(mined.scores[question][j])
        logits = torch.zeros(len(rows))
        for members in data.bucketed([len(row) for row in rows], BATCH_TOKENS):
            ids, mask = data.pad([rows[j] for j in members])
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                states = model.trunk(ids, mask)
            logits = logits.index_put((torch.tensor(members),), model.logits(states.float(), ids))
        prior = MIX * torch.tensor(first_stage)
        alone, fused = losses.listwise(logits, group), losses.listwise(prior + logits, group)

        def hit(values: Tensor) -> float:
            return (values.view(-1, group).argmax(-1) == 0).float().mean().item()

        figures = {
            "alone": alone.item(), "fused": fused.item(), "prior": losses.listwise(prior, group).item(),
            "hit": hit(logits), "fused_hit": hit(prior + logits), "prior_hit": hit(prior),
        }  # fmt: skip
        return 0.5 * alone + fused, figures

    return train(
        model, step, steps=steps, rate=7e-5, head_rate=3e-4, checkpoint=checkpoint, resume=resume, made_of=made_of,
        warmup=50, log_every=25, save_every=200,
    )  # fmt: skip
