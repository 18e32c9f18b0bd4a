"""One-shot width pruning of the trunk: fewer attention heads and fewer inner neurons, output matrices refitted.

Layer by layer, on calibration text: heads or neurons whose removal costs the least squared error are removed
in small groups
(optimal brain surgeon: cost w_j' (Ginv_jj)^-1 w_j, Hassibi & Stork 1993), then the output matrix and bias are
refitted by ridge
regression so that the layer's sum before its LayerNorm is the unpruned model's, errors of the layers below included.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid_retrieval.training.base_weights import BaseModel
from hybrid_retrieval.training.modules import Layer, Trunk

RIDGE = 1e-3


def _gram(x: Tensor) -> Tensor:
    gram = x.T @ x / len(x)
    return gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram))


def select(x: Tensor, weight: Tensor, group: int, keep: int, step: int) -> Tensor:
    """Indices [keep * group] of the inputs to keep: x float32 [T, n * group], weight [out, n * group]; the
    cheapest ``step``
    groups go at a time."""
    inverse = torch.linalg.inv(_gram(x).double()).float()
    w = weight.T.clone()
    alive = torch.arange(x.shape[1] // group)
    while len(alive) > keep:
        rows = (alive[:, None] * group + torch.arange(group)).reshape(-1)
        if group == 1:
            cost = w[rows].square().sum(1) / inverse[rows, rows]
        else:
            blocks = [inverse[r][:, r] for r in rows.view(-1, group)]
            cost = torch.stack(
                [(w[r] * torch.linalg.solve(b, w[r])).sum() for r, b in zip(rows.view(-1, group), blocks, strict=True)]
            )
        drop = cost.argsort()[: min(step, len(alive) - keep)]
        gone = (alive[drop][:, None] * group + torch.arange(group)).reshape(-1)
        update = torch.linalg.solve(inverse[gone][:, gone], torch.cat([w[gone], inverse[gone]], dim=1))
        change = inverse[:, gone] @ update
        w -= change[:, : w.shape[1]]
        inverse -= change[:, w.shape[1] :]
        mask = torch.ones(len(alive), dtype=torch.bool)
        mask[drop] = False
        alive = alive[mask]
    return (alive[:, None] * group + torch.arange(group)).reshape(-1)


def refit(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression target [T, out] ~ x [T, n] @ weight.T + bias: (weight [out, n], bias [out])."""
    mean_x, mean_y = x.mean(0), target.mean(0)
    weight = torch.linalg.solve(_gram(x - mean_x), (x - mean_x).T @ (target - mean_y) / len(x)).T
    return weight.contiguous(), mean_y - weight @ mean_x


@torch.no_grad()
def prune(base: BaseModel, keep: list[int], heads: int, inner: int, batches: list[tuple[Tensor, Tensor]]) -> Trunk:
    """A trunk of the base's layers ``keep`` with ``heads`` heads and ``inner`` neurons each, fitted on
    ``batches`` of (ids
    [B, L], mask [B, L])."""
    full = Trunk(base, keep).eval()
    small = Trunk(base, keep, [(heads, inner)] * len(keep)).eval()
    masks = [None if bool(m.all()) else m.bool()[:, None, None, :] for _, m in batches]
    rows = [m.bool() for _, m in batches]
    xs = [full.embed(ids) for ids, _ in batches]
    ys = [x.clone() for x in xs]
    for big, little in zip(full.layers, small.layers, strict=True):
        assert isinstance(big, Layer) and isinstance(little, Layer)
        sums = [x + big.ao(big.attend(x, m)) for x, m in zip(xs, masks, strict=True)]
        attended = torch.cat([big.attend(y, m)[r] for y, m, r in zip(ys, masks, rows, strict=True)])
        inputs = torch.cat([y[r] for y, r in zip(ys, rows, strict=True)])
        target = torch.cat([s[r] for s, r in zip(sums, rows, strict=True)]) - inputs
        kept = select(attended, big.ao.weight, big.head_size, heads, 1)
        full_rows = big.ao.weight.shape[1]
        qkv = torch.cat([kept + n * full_rows for n in range(3)])
        little.qkv.weight.copy_(big.qkv.weight[qkv])
        little.qkv.bias.copy_(big.qkv.bias[qkv])
        weight, bias = refit(attended[:, kept], target)
        little.ao.weight.copy_(weight)
        little.ao.bias.copy_(bias)
        little.aln.load_state_dict(big.aln.state_dict())
        xs = [big.aln(s) for s in sums]
        ys = [little.aln(y + little.ao(little.attend(y, m))) for y, m in zip(ys, masks, strict=True)]

        sums = [x + big.fo(F.gelu(big.fi(x))) for x in xs]
        inputs = torch.cat([y[r] for y, r in zip(ys, rows, strict=True)])
        target = torch.cat([s[r] for s, r in zip(sums, rows, strict=True)]) - inputs
        active = F.gelu(big.fi(inputs))
        kept = select(active, big.fo.weight, 1, inner, 16)
        little.fi.weight.copy_(big.fi.weight[kept])
        little.fi.bias.copy_(big.fi.bias[kept])
        weight, bias = refit(active[:, kept], target)
        little.fo.weight.copy_(weight)
        little.fo.bias.copy_(bias)
        little.oln.load_state_dict(big.oln.state_dict())
        xs = [big.oln(s) for s in sums]
        ys = [little.oln(y + little.fo(F.gelu(little.fi(y)))) for y in ys]
    return small
