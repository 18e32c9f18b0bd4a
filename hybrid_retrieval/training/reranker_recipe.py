"""Recipe of the embedded cross-encoder: the pruned base, trained listwise against negatives mined with the encoder."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor

from hybrid_retrieval.training import data, losses
from hybrid_retrieval.training.data import END, Pair
from hybrid_retrieval.training.loop import train
from hybrid_retrieval.training.modules import CrossEncoder, Encoder

QUERY_TOKENS, PASSAGE_TOKENS = 40, 120
"""Training lengths of the two parts of a pair; at run time pairs have at most 512 tokens."""
NEGATIVES = 3


def pair_ids(query: list[int], passage: list[int], query_tokens: int, passage_tokens: int) -> list[int]:
    """``<s> query </s></s> passage </s>``."""
    return [0, *query[:query_tokens], END, END, *passage[:passage_tokens], END]


@torch.no_grad()
def mine(
    encoder: Encoder, pairs: list[Pair], *, questions: int, depth: int = 12, skip: int = 0
) -> list[tuple[Pair, list[Pair]]]:
    """For the first ``questions`` pairs of one file, the ``depth`` best passages of the same questions'
    passages by MaxSim
    (mean of unit token vectors first, to shorten the list), the query's own left out."""
    items = pairs[:questions]
    chosen: dict[int, Pair] = {}
    for item in items:
        chosen.setdefault(item.passage_key, item)
    pool = list(chosen.values())
    texts = [data.wrap(data.PASSAGE_PREFIX, p.passage, PASSAGE_TOKENS) for p in pool]
    queries = [data.wrap(data.QUERY_PREFIX, p.query, QUERY_TOKENS) for p in items]
    pooled = torch.zeros(len(pool), encoder.projection.out_features)
    vectors: dict[int, Tensor] = {}
    for group in data.bucketed([len(t) for t in texts], 4096):
        ids, mask = data.pad([texts[i] for i in group])
        out = encoder(ids, mask)
        for row, i in enumerate(group):
            vectors[i] = out[row, : len(texts[i])]
            pooled[i] = vectors[i].mean(0)
    found: list[tuple[Pair, list[Pair]]] = [(item, []) for item in items]
    for group in data.bucketed([len(t) for t in queries], 4096):
        ids, mask = data.pad([queries[i] for i in group])
        out = encoder(ids, mask)
        for row, i in enumerate(group):
            q = out[row, : len(queries[i])]
            short = (pooled @ q.mean(0)).topk(min(40, len(pool))).indices.tolist()
            short = [j for j in short if pool[j].passage_key != items[i].passage_key]
            scores = [float((q @ vectors[j].T).amax(1).sum()) for j in short]
            ranked = [j for _, j in sorted(zip(scores, short, strict=True), reverse=True)][skip : skip + depth]
            found[i] = (items[i], [pool[j] for j in ranked])
    return [(item, negatives) for item, negatives in found if len(negatives) >= NEGATIVES]


def train_reranker(
    model: CrossEncoder,
    mined: dict[str, list[tuple[Pair, list[Pair]]]],
    *,
    steps: int,
    stop_after: int,
    checkpoint: Path,
    resume: bool,
    questions: int = 8,
    seed: int = 0,
) -> bool:
    """Listwise softmax over the positive and ``NEGATIVES`` mined negatives of ``questions`` questions a step.
    The learning
    rate falls to zero over ``steps``; training ends after ``stop_after`` of them."""
    names = [name for name in data.WEIGHTS if mined.get(name)]
    weights = [data.WEIGHTS[name] for name in names]

    def step(i: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(seed * 1_000_003 + i)
        rows: list[list[int]] = []
        for name in rng.choices(names, weights, k=questions):
            item, negatives = rng.choice(mined[name])
            for passage in [item, *rng.sample(negatives, NEGATIVES)]:
                rows.append(pair_ids(item.query, passage.passage, QUERY_TOKENS, PASSAGE_TOKENS))
        logits = torch.zeros(len(rows))
        for group in data.bucketed([len(r) for r in rows], 2048):
            ids, mask = data.pad([rows[j] for j in group])
            logits = logits.index_put((torch.tensor(group),), model(ids, mask))
        loss = losses.listwise(logits, 1 + NEGATIVES)
        hit = (logits.view(-1, 1 + NEGATIVES).argmax(-1) == 0).float().mean()
        return loss, {"loss": loss.item(), "hit": hit.item()}

    return train(
        model,
        step,
        steps=steps,
        stop_after=stop_after,
        rate=1.5e-4,
        head_rate=5e-4,
        checkpoint=checkpoint,
        resume=resume,
    )
