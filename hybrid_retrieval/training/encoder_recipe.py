"""Recipe of the pruned student (trunk of the cross-encoder, miner of negatives): prune the base in width, then
distil it with its own 384-dimension MaxSim as
the teacher."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid_retrieval.training import data, losses
from hybrid_retrieval.training.base_weights import BaseModel
from hybrid_retrieval.training.data import Pair
from hybrid_retrieval.training.loop import train
from hybrid_retrieval.training.modules import Encoder, Trunk
from hybrid_retrieval.training.prune import prune

SCALE = 30.0
"""Inverse temperature of mean MaxSim."""
QUERY_TOKENS, PASSAGE_TOKENS = 40, 128
"""Training lengths; at run time 64 and 256."""


def calibration(pairs: dict[str, list[Pair]], sentences: list[list[int]], per_file: int) -> list[tuple[Tensor, Tensor]]:
    """Batches (ids, mask) of ``per_file`` pairs of each file plus ``sentences`` (token ids) read as queries."""
    rows = []
    for items in pairs.values():
        rows += [data.wrap(data.QUERY_PREFIX, p.query, QUERY_TOKENS) for p in items[:per_file]]
        rows += [data.wrap(data.PASSAGE_PREFIX, p.passage, PASSAGE_TOKENS) for p in items[:per_file]]
    rows += [data.wrap(data.QUERY_PREFIX, ids, QUERY_TOKENS) for ids in sentences]
    return [data.pad([rows[i] for i in group]) for group in data.bucketed([len(r) for r in rows], 4096)]


@torch.no_grad()
def principal_directions(teacher: Trunk, batches: list[tuple[Tensor, Tensor]], dimensions: int) -> Tensor:
    """[dimensions, H]: leading eigenvectors of the uncentred second moment of unit token vectors."""
    hidden = teacher.table.shape[1]
    moment = torch.zeros(hidden, hidden)
    for ids, mask in batches:
        x = F.normalize(teacher(ids, mask)[mask.bool()], dim=-1)
        moment += x.T @ x
    return torch.linalg.eigh(moment)[1].flip(1)[:, :dimensions].T.contiguous()


def start(
    base: BaseModel,
    pairs: dict[str, list[Pair]],
    sentences: list[list[int]],
    *,
    heads: int,
    inner: int,
    dimensions: int,
) -> Encoder:
    """The student before training: the pruned base and principal directions."""
    batches = calibration(pairs, sentences, per_file=14)
    keep = list(range(base.layers))
    model = Encoder(prune(base, keep, heads, inner, batches), dimensions)
    with torch.no_grad():
        model.projection.weight.copy_(principal_directions(Trunk(base, keep).eval(), batches, dimensions))
    return model


def _forward(
    model: nn.Module, rows: list[list[int]], groups: list[list[int]], queries: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run ``model`` over ``groups`` of rows of like length; returns padded vectors of the first ``queries``
    rows and of the
    others, and their masks: [Q, Lq, D], [P, Lp, D], [Q, Lq], [P, Lp]."""
    found: dict[int, Tensor] = {}
    for group in groups:
        out = model(*data.pad([rows[i] for i in group]))
        for row, i in enumerate(group):
            found[i] = out[row, : len(rows[i])]
    parts = [rows[:queries], rows[queries:]]
    q = nn.utils.rnn.pad_sequence([found[i] for i in range(queries)], batch_first=True)
    p = nn.utils.rnn.pad_sequence([found[i] for i in range(queries, len(rows))], batch_first=True)
    return q, p, data.pad(parts[0])[1], data.pad(parts[1])[1]


def train_encoder(
    base: BaseModel,
    model: Encoder,
    pairs: dict[str, list[Pair]],
    sentences: list[list[int]],
    *,
    steps: int,
    checkpoint: Path,
    resume: bool,
    batch: int = 12,
    seed: int = 0,
) -> bool:
    """Distil ``model``. A step sees ``batch`` pairs and 16 sentences; its loss is token distillation to the
    base's vectors on the
    principal directions, KL of in-batch MaxSim to the base's 384-dimension MaxSim, and contrastive cross-entropy."""
    teacher = Trunk(base, list(range(base.layers))).eval()
    directions = model.projection.weight.detach().clone()
    stream = data.batches(pairs, batch, seed)
    drawn: list[list[Pair]] = []

    def step(i: int) -> tuple[Tensor, dict[str, float]]:
        while len(drawn) <= i:
            drawn.append(next(stream)[1])
        items = drawn[i]
        rng = random.Random(seed * 1_000_003 + i)
        queries = [data.wrap(data.QUERY_PREFIX, p.query, QUERY_TOKENS) for p in items]
        extra = rng.sample(sentences, 16) if sentences else []
        queries_all = queries + [data.wrap(data.QUERY_PREFIX, ids, QUERY_TOKENS) for ids in extra[:8]]
        passages = [data.wrap(data.PASSAGE_PREFIX, p.passage, PASSAGE_TOKENS) for p in items]
        passages += [data.wrap(data.PASSAGE_PREFIX, ids, PASSAGE_TOKENS) for ids in extra[8:]]
        rows = queries_all + passages
        groups = data.bucketed([len(r) for r in rows], 1024)
        with torch.no_grad():
            q_teacher, p_teacher, q_mask, p_mask = _forward(teacher, rows, groups, len(queries_all))
        q, p, _, _ = _forward(model, rows, groups, len(queries_all))
        token = losses.token_distillation(p, F.normalize(p_teacher @ directions.T, dim=-1), p_mask)
        token_q = losses.token_distillation(q, F.normalize(q_teacher @ directions.T, dim=-1), q_mask)
        n = len(items)
        with torch.no_grad():
            q_unit, p_unit = F.normalize(q_teacher[:n], dim=-1), F.normalize(p_teacher, dim=-1)
            target = losses.maxsim_matrix(q_unit, q_mask[:n], p_unit, p_mask)
        scores = losses.maxsim_matrix(q[:n], q_mask[:n], p, p_mask)
        same = torch.tensor([[a is not b and a.passage == b.passage for b in items] for a in items])
        same = F.pad(same, (0, scores.shape[1] - n))
        kl = losses.score_distillation(scores, target, SCALE)
        ce = losses.contrastive(scores, same, SCALE)
        loss = 2 * token + 2 * token_q + kl + 0.3 * ce
        hit = (scores.masked_fill(same, -1).argmax(-1) == torch.arange(n)).float().mean()
        return loss, {
            "token": token.item(),
            "query": token_q.item(),
            "kl": kl.item(),
            "ce": ce.item(),
            "hit": hit.item(),
        }

    return train(model, step, steps=steps, rate=2e-4, head_rate=3e-4, checkpoint=checkpoint, resume=resume)
