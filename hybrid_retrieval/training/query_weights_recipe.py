"""Recipe of the query tokens' weights: a logistic unit over a token's vector, learned on pairs that the encoder never
saw, against the best passages that the encoder finds for them. See ``TokenWeights`` for the formula."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hybrid_retrieval.training import data
from hybrid_retrieval.training.data import Pair
from hybrid_retrieval.training.exported import ExportedEncoder

QUERY_TOKENS, PASSAGE_TOKENS = 64, 256
QUESTIONS, POOL, HARDEST = 500, 900, 40
"""Questions of a file; passages they are asked of; the best of these that a question's own is told from."""
FEWEST = 60
"""A file with fewer unseen questions is left out."""
SENTENCES_EACH, SENTENCES_MORE = 60, {"ara": 400, "cmn": 400, "spa": 200, "rus": 200}
SCALE, BATCH, STEPS = 30.0, 32, 1500
STIFFNESS = 4.0
"""Of the logit: what makes one learning rate fit direction and bias."""


@dataclass(frozen=True)
class Asked:
    """A question's token vectors float32 [L, D], and each token's best product with each of some passages,
    float32 [L, P], of which the first is its own."""

    vectors: NDArray[np.float32]
    best: NDArray[np.float32]


def gather(encoder: ExportedEncoder, unseen: Sequence[Pair], pool: Sequence[Pair]) -> list[Asked]:
    """Ask one question a passage of ``unseen`` of their passages and of ``pool``'s, without others that answer it."""
    own = list({pair.passage_key: pair for pair in reversed(unseen)}.values())[::-1][:QUESTIONS]
    if len(own) < FEWEST:
        return []
    held = {pair.passage_key: pair for pair in own}
    for pair in pool:
        if len(held) == POOL:
            break
        held.setdefault(pair.passage_key, pair)
    passages = encoder.vectors(data.PASSAGE_PREFIX, [pair.passage for pair in held.values()], PASSAGE_TOKENS)
    tokens = np.concatenate(passages).T
    starts = np.cumsum([0, *map(len, passages)])[:-1]
    relevant, number = data.answers([*unseen, *pool]), {key: j for j, key in enumerate(held)}
    found = []
    for i, query in enumerate(encoder.vectors(data.QUERY_PREFIX, [pair.query for pair in own], QUERY_TOKENS)):
        best = np.maximum.reduceat(query @ tokens, starts, axis=1)
        answering = [number[key] for key in relevant[tuple(own[i].query)] if key in number]
        order = np.argsort(-best.sum(axis=0), kind="stable")
        wrong = order[~np.isin(order, answering)]
        found.append(Asked(query, best[:, [i, *wrong[: HARDEST - 1]]]))
    return found


def train_query_weights(asked: Mapping[str, Sequence[Asked]], *, seed: int) -> tuple[NDArray[np.float32], float]:
    """(direction float32 [D], bias) of ``TokenWeights``.

    Cross-entropy of a question's own passage among ``HARDEST`` by the weighted mean MaxSim, files drawn evenly. What it
    finds is too sharp for questions of other kinds, hence the square root in ``TokenWeights``, outside of the training.
    """
    names = sorted(name for name, questions in asked.items() if questions)
    dimensions = asked[names[0]][0].vectors.shape[1]
    unit = nn.Linear(dimensions, 1)
    nn.init.zeros_(unit.weight)
    nn.init.zeros_(unit.bias)
    optimizer = torch.optim.AdamW(unit.parameters(), lr=2e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / STEPS)
    rng = random.Random(seed)
    for _ in range(STEPS):
        losses = []
        for _ in range(BATCH):
            one = rng.choice(asked[rng.choice(names)])
            logits = STIFFNESS * (torch.from_numpy(one.vectors) @ unit.weight[0]) + unit.bias / STIFFNESS
            weights = torch.sigmoid(logits)
            scores = (weights[:, None] * torch.from_numpy(one.best)).sum(0) / weights.sum()
            losses.append(-(scores * SCALE).log_softmax(0)[0])
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        schedule.step()
    direction = STIFFNESS * unit.weight.detach()[0].numpy()
    return direction, unit.bias.item() / STIFFNESS


def learn(
    encoder: Path, sources: Mapping[str, tuple[Sequence[Pair], Sequence[Pair]]], *, seed: int, threads: int
) -> dict[str, object]:
    """The ``weights`` entry of an exported encoder's query convention. sources: of each file the unseen pairs, and
    those whose passages fill the pool."""
    runs = ExportedEncoder(encoder, threads=threads)
    asked = {}
    for name, (unseen, pool) in sources.items():
        asked[name] = gather(runs, unseen, pool)
        print(f"query weights: {len(asked[name])} questions of {name}", flush=True)
    direction, bias = train_query_weights(asked, seed=seed)
    return {"direction": [round(float(value), 4) for value in direction], "bias": round(bias, 4)}
