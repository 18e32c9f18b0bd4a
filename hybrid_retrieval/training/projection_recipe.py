"""Recipe of the shipped encoder: the base's 12 layers unchanged; only the projection to D dimensions is trained."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid_retrieval.training import data, losses
from hybrid_retrieval.training.base_weights import BaseModel
from hybrid_retrieval.training.data import Pair
from hybrid_retrieval.training.modules import Encoder, Trunk

SCALE = 30.0
QUERY_TOKENS, PASSAGE_TOKENS = 40, 128


@torch.no_grad()
def features(trunk: Trunk, rows: list[list[int]]) -> list[Tensor]:
    """Unit final states [L, H] of each row of token ids."""
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for group in data.bucketed([len(row) for row in rows], 4096):
        out = F.normalize(trunk(*data.pad([rows[i] for i in group])), dim=-1)
        for row, i in enumerate(group):
            found[i] = out[row, : len(rows[i])].clone()
    return found


def _padded(vectors: list[Tensor]) -> tuple[Tensor, Tensor]:
    padded = torch.nn.utils.rnn.pad_sequence(vectors, batch_first=True)
    lengths = torch.tensor([len(v) for v in vectors])
    return padded, (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()


def train_projection(
    base: BaseModel, pairs: dict[str, list[Pair]], *, per_weight: int, dimensions: int, steps: int, seed: int
) -> Encoder:
    """Distil the base's MaxSim in all its dimensions into ``dimensions``.

    ``per_weight`` x the file's weight pairs of each file give fixed token vectors, principal directions the
    start. A step
    sees 24 pairs of two files: KL of in-batch MaxSim plus the squared error of every query token's products with every
    passage token.
    """
    encoder = Encoder(Trunk(base, list(range(base.layers))), dimensions).eval()
    items, files = [], []
    for name, found in pairs.items():
        chosen = found[: per_weight * data.WEIGHTS[name]]
        items += chosen
        files += [name] * len(chosen)
    queries = features(encoder.trunk, [data.wrap(data.QUERY_PREFIX, p.query, QUERY_TOKENS) for p in items])
    passages = features(encoder.trunk, [data.wrap(data.PASSAGE_PREFIX, p.passage, PASSAGE_TOKENS) for p in items])
    print(f"projection: {len(items)} pairs, {sum(map(len, queries)) + sum(map(len, passages))} tokens", flush=True)
    moment = torch.zeros(base.hidden, base.hidden)
    for side in (queries, passages):
        tokens = torch.cat(side)
        moment += tokens.T @ tokens / len(tokens)
    projection = encoder.projection
    with torch.no_grad():
        projection.weight.copy_(torch.linalg.eigh(moment)[1].flip(1)[:, :dimensions].T)
    optimizer = torch.optim.Adam(projection.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / steps)
    rng = random.Random(seed)
    by_file = {name: [i for i, file in enumerate(files) if file == name] for name in set(files)}
    names = sorted(by_file)
    totals = [0.0, 0.0]
    for step in range(steps):
        two = rng.choices(names, [data.WEIGHTS[name] for name in names], k=2)
        chosen_rows = [i for name in two for i in rng.sample(by_file[name], min(12, len(by_file[name])))]
        q, q_mask = _padded([queries[i] for i in chosen_rows])
        p, p_mask = _padded([passages[i] for i in chosen_rows])
        small_q, small_p = F.normalize(projection(q), dim=-1), F.normalize(projection(p), dim=-1)
        target = losses.maxsim_matrix(q, q_mask, p, p_mask)
        kl = losses.score_distillation(losses.maxsim_matrix(small_q, q_mask, small_p, p_mask), target, SCALE)
        keep_q, keep_p = q_mask.bool(), p_mask.bool()
        error = (small_q[keep_q] @ small_p[keep_p].T - q[keep_q] @ p[keep_p].T).square().mean()
        loss = kl + 100 * error
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        totals = [totals[0] + kl.item() / 50, totals[1] + error.item() / 50]
        if (step + 1) % 50 == 0:
            print(f"projection step {step + 1}/{steps} kl {totals[0]:.4f} error {totals[1]:.6f}", flush=True)
            totals = [0.0, 0.0]
    return encoder
