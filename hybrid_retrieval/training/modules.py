"""The trunk (BERT layers, post-LayerNorm) and the two heads, in plain torch; parameter names follow
``base_weights``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid_retrieval.training.base_weights import BaseModel


class Layer(nn.Module):
    """One post-LayerNorm transformer layer: x float32 [B, L, H], mask bool [B, 1, 1, L] -> [B, L, H]."""

    def __init__(self, hidden: int, head_size: int, heads: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.heads, self.head_size = heads, head_size
        self.qkv = nn.Linear(hidden, 3 * heads * head_size)
        self.ao = nn.Linear(heads * head_size, hidden)
        self.aln = nn.LayerNorm(hidden, eps=epsilon)
        self.fi = nn.Linear(hidden, inner)
        self.fo = nn.Linear(inner, hidden)
        self.oln = nn.LayerNorm(hidden, eps=epsilon)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.aln(x + self.ao(self.attend(x, mask)))
        return self.oln(x + self.fo(F.gelu(self.fi(x))))

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Heads' outputs side by side: [B, L, H] -> [B, L, heads * head_size]."""
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, self.head_size).permute(2, 0, 3, 1, 4)
        # Written out: in bfloat16 on a CPU, torch's fused attention takes five times as long at these lengths.
        scores = (q * self.head_size**-0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores + torch.where(mask, 0.0, -1e4).to(scores.dtype)
        a = scores.softmax(-1).to(v.dtype) @ v
        return a.transpose(1, 2).reshape(batch, length, self.heads * self.head_size)


class Trunk(nn.Module):
    """The base's embeddings (frozen) and layers: ids int64 [B, L], mask int64 [B, L] -> states float32 [B, L, H]."""

    table: Tensor

    def __init__(self, base: BaseModel) -> None:
        super().__init__()
        self.register_buffer("table", torch.from_numpy(base.embedding_table()), persistent=False)
        t = base.tensors
        self.pos = nn.Parameter(torch.from_numpy(t["emb.pos"] + t["emb.type"]), requires_grad=False)
        self.ln = nn.LayerNorm(base.hidden, eps=base.epsilon)
        size = base.hidden // base.heads
        self.layers = nn.ModuleList(
            Layer(base.hidden, size, base.heads, base.inner, base.epsilon) for _ in range(base.layers)
        )
        with torch.no_grad():
            self.ln.weight.copy_(torch.from_numpy(t["emb.ln.w"]))
            self.ln.bias.copy_(torch.from_numpy(t["emb.ln.b"]))
            for i, layer in enumerate(self.layers):
                _load_layer(layer, t, i)
        self.ln.requires_grad_(False)

    def embed(self, ids: Tensor) -> Tensor:
        return self.ln(F.embedding(ids, self.table) + self.pos[: ids.shape[1]])

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids)
        bias = None if bool(mask.all()) else mask.bool()[:, None, None, :]
        for layer in self.layers:
            x = layer(x, bias)
        return x


def _load_layer(layer: nn.Module, tensors: dict[str, np.ndarray], i: int) -> None:
    def get(name: str) -> Tensor:
        return torch.from_numpy(tensors[f"l{i}.{name}"])

    state = {
        "qkv.weight": torch.cat([get("q.w"), get("k.w"), get("v.w")]),
        "qkv.bias": torch.cat([get("q.b"), get("k.b"), get("v.b")]),
    }
    for name in ("ao", "fi", "fo", "aln", "oln"):
        state[f"{name}.weight"] = get(f"{name}.w")
        state[f"{name}.bias"] = get(f"{name}.b")
    layer.load_state_dict(state)


class Encoder(nn.Module):
    """ColBERT encoder: unit token vectors float32 [B, L, D] (padding positions hold vectors to be ignored)."""

    def __init__(self, trunk: Trunk, dimensions: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection = nn.Linear(trunk.table.shape[1], dimensions, bias=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return F.normalize(self.projection(self.trunk(ids, mask)), dim=-1)


class CrossEncoder(nn.Module):
    """Cross-encoder over ``<s> query </s></s> passage </s>``; returns one logit a pair, float32 [B].

    Query and passage attend to each other in every layer. The logit is a scaled MaxSim of the query's final states
    with the passage's (so that training starts from a working ranking), the mean weighted by what ``gate`` reads in
    each query token (evenly at first), plus first token -> dense -> tanh -> 1.
    """

    END = 2

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        hidden = trunk.table.shape[1]
        self.trunk = trunk
        self.dense = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 1)
        self.gate = nn.Linear(hidden, 1)
        self.scale = nn.Parameter(torch.tensor(30.0))
        with torch.no_grad():  # starts as the identity on the first token's state, without influence
            self.dense.weight.copy_(torch.eye(hidden))
            self.dense.bias.zero_()
            for linear in (self.out, self.gate):
                linear.weight.zero_()
                linear.bias.zero_()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.logits(self.trunk(ids, mask), ids)

    def logits(self, x: Tensor, ids: Tensor) -> Tensor:
        """From the trunk's final states [B, L, H]."""
        part = (ids == self.END).cumsum(1)  # 0: query, 2: passage, 3: after it
        is_query = ((part == 0) & (ids != 0)).float()
        is_passage = (part == 2) & (ids != self.END)
        unit = F.normalize(x, dim=-1)
        best = (unit @ unit.transpose(1, 2)).masked_fill(~is_passage[:, None], -1.0).amax(-1)
        weights = torch.sigmoid(self.gate(x)[..., 0]) * is_query
        maxsim = (best * weights).sum(1) / weights.sum(1)
        return self.scale * maxsim + self.out(torch.tanh(self.dense(x[:, 0])))[:, 0]
