"""Losses of the encoder and the cross-encoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def maxsim_matrix(queries: Tensor, query_mask: Tensor, passages: Tensor, passage_mask: Tensor) -> Tensor:
    """Mean MaxSim of every query with every passage: [Q, Lq, D], [Q, Lq], [P, Lp, D], [P, Lp] -> float32 [Q, P]."""
    q, lq, d = queries.shape
    p, lp, _ = passages.shape
    scores = (queries.reshape(q * lq, d) @ passages.reshape(p * lp, d).T).view(q * lq, p, lp)
    scores = scores.masked_fill(~passage_mask.bool()[None], -1e4)
    best = scores.amax(-1).view(q, lq, p) * query_mask[..., None]
    return best.sum(1) / query_mask.sum(1, keepdim=True)


def contrastive(scores: Tensor, same: Tensor, scale: float) -> Tensor:
    """Softmax cross-entropy of query i against passage i: scores [Q, P], P >= Q. ``same`` bool [Q, P] marks
    other columns that
    hold the query's own passage; they are left out."""
    target = torch.arange(len(scores))
    return F.cross_entropy((scores * scale).masked_fill(same, -1e4), target)


def score_distillation(student: Tensor, teacher: Tensor, scale: float) -> Tensor:
    """KL divergence of the student's softmax over passages from the teacher's, both [Q, P]."""
    return F.kl_div((student * scale).log_softmax(-1), (teacher * scale).softmax(-1), reduction="batchmean")


def listwise(logits: Tensor, group: int) -> Tensor:
    """Softmax cross-entropy over groups of ``group`` pairs whose first is the positive: logits [N * group]."""
    rows = logits.view(-1, group)
    return F.cross_entropy(rows, torch.zeros(len(rows), dtype=torch.long))
