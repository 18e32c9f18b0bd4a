"""XLM-R and BERT classifiers over rows laid one below the other: no arithmetic is spent on padding.

In the last layer only what the first token needs is computed, as the head reads nothing else. The twin to compare with
is the transformers model that the weights come from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid_retrieval.errors import ModelSettingsError

ROBERTA = ("xlm-roberta", "roberta", "camembert")
"""Model types whose positions start behind the padding's."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def is_supported(model: Any) -> bool:
    """Whether a transformers classifier has the plain BERT layers that this file computes."""
    config = model.config
    known = config.model_type in ROBERTA or config.model_type == "bert"
    absolute = getattr(config, "position_embedding_type", "absolute") in ("absolute", None)
    return known and absolute and not getattr(config, "is_decoder", False)


def has_varlen_attention(device: Any, dtype: Any, model: Any) -> bool:
    """Whether torch attends over rows of different lengths there: on a CPU row by row, on CUDA by FlashAttention, which
    wants half precision, an Ampere card or a newer one, and heads of at most 256 dimensions in multiples of 8."""
    if device.type == "cpu":
        return True
    size = model.config.hidden_size // model.config.num_attention_heads
    fits = dtype in (torch.float16, torch.bfloat16) and size % 8 == 0 and size <= 256
    return fits and _varlen() is not None and torch.cuda.get_device_capability(device) >= (8, 0)


class UnpaddedClassifier(nn.Module):
    """Takes over the weights of a transformers classifier, which is of no use afterwards."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        body, config = model.base_model, model.config
        self.embeddings = body.embeddings
        *before, last = body.encoder.layer
        self.layers = nn.ModuleList([*(Layer(layer) for layer in before), Layer(last, only_first=True)])
        if config.model_type in ROBERTA:
            self.pad_id: int | None = int(config.pad_token_id)
            self.dense, self.out = model.classifier.dense, model.classifier.out_proj
        else:
            self.pad_id = None
            self.dense, self.out = body.pooler.dense, model.classifier

    @property
    def tables(self) -> tuple[nn.Embedding, nn.Embedding]:
        """Of words and of positions."""
        return self.embeddings.word_embeddings, self.embeddings.position_embeddings

    def to_float8(self) -> None:
        """Lay the layers' weights out in float8; a later `to` must not change the dtype."""
        for layer in self.layers:
            for name, part in list(layer.named_children()):
                if isinstance(part, nn.Linear):
                    setattr(layer, name, Float8Linear(part))

    def positions(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [B, L], as transformers counts them: RoBERTa's kin skip a padding token even inside of a text."""
        if self.pad_id is None:
            return np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        text = (ids != self.pad_id) & (mask != 0)
        counted: NDArray[np.int64] = np.where(text, np.cumsum(text, axis=1) + self.pad_id, self.pad_id)
        return counted

    def forward(self, ids: Tensor, positions: Tensor, types: Tensor | None, starts: Tensor, longest: int) -> Tensor:
        """float32 [B] logits. ids, positions, types: int64 [T], the rows' tokens; starts: int64 [B + 1], where each row
        starts, and T; longest: at least the tokens of every row. On CUDA nothing is read back from the device."""
        table = self.embeddings
        x = table.word_embeddings(ids) + table.position_embeddings(positions)
        x = table.LayerNorm(x + table.token_type_embeddings(torch.zeros_like(ids) if types is None else types))
        attend = _attention(starts, longest, only_first=False)
        for layer in list(self.layers)[:-1]:
            x = layer(x, attend)
        x = self.layers[-1](x, _attention(starts, longest, only_first=True), starts[:-1])
        pooled = torch.tanh(F.linear(x.float(), self.dense.weight.float(), self.dense.bias.float()))
        return F.linear(pooled, self.out.weight.float(), self.out.bias.float())[:, 0]


class Layer(nn.Module):
    """One post-LayerNorm layer; query, key and value in one product. only_first: for the rows' first tokens alone, of
    which queries are made apart."""

    def __init__(self, layer: Any, *, only_first: bool = False) -> None:
        super().__init__()
        attention = layer.attention.self
        self.heads = int(attention.num_attention_heads)
        parts = [attention.query, attention.key, attention.value]
        self.query = parts.pop(0) if only_first else None
        self.inputs = _beside(parts)
        self.attended, self.attended_norm = layer.attention.output.dense, layer.attention.output.LayerNorm
        self.up, self.activation = layer.intermediate.dense, layer.intermediate.intermediate_act_fn
        self.down, self.norm = layer.output.dense, layer.output.LayerNorm

    def forward(self, x: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """x: [T, H]. Returns [T, H], or with `rows`, the first tokens, only theirs."""
        made = self.inputs(x)
        if self.query is None:
            q, k, v = made.view(len(x), 3, self.heads, -1).unbind(1)
        else:
            k, v = made.view(len(x), 2, self.heads, -1).unbind(1)
            x = x[rows]
            q = self.query(x).view(len(x), self.heads, -1)
        x = self.attended_norm(self.attended(attend(q, k, v).flatten(1)) + x)
        result: Tensor = self.norm(self.down(self.activation(self.up(x))) + x)
        return result


def _beside(parts: list[nn.Linear]) -> nn.Linear:
    """Several products of the same numbers as one."""
    joined = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts))
    joined.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]), requires_grad=False)
    return joined


class Float8Linear(nn.Module):
    """A dense layer whose weights and inputs are float8 (e4m3), each row of either on a scale of its own, set by its
    largest number; sums and results are not."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _float8(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, K] in half precision -> [T, N] in the same."""
        numbers, scale = _float8(x)
        by_row = F.ScalingType.RowWise
        product: Tensor = F.scaled_mm(
            numbers, self.weight.t(), scale, by_row, self.scale.t(), by_row, output_dtype=x.dtype
        )
        return product + self.bias


def _float8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K] as float8 and float32 [N, 1], what each row's numbers are to be multiplied by."""
    kind = torch.float8_e4m3fn
    scale = rows.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / torch.finfo(kind).max
    return (rows / scale).to(kind), scale


def check_float8(devices: Sequence[Any], model: Any) -> None:
    """Raises `ModelSettingsError` where products in float8 cannot run."""
    sizes = model.config.hidden_size, model.config.intermediate_size
    if any(size % 16 for size in sizes):
        raise ModelSettingsError(f"float8 needs layers whose sizes are multiples of 16, got {sizes[0]} and {sizes[1]}")
    if not hasattr(F, "scaled_mm"):
        raise ModelSettingsError(
            f"float8 needs a torch with scaled_mm, got {torch.__version__}: install a newer one or use dtype 'bfloat16'"
        )
    for device in devices:
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
            raise ModelSettingsError(
                f"float8 needs an Ada or Hopper card or a newer one, got {torch.cuda.get_device_name(device)}: use "
                "dtype 'bfloat16' or 'float16'"
            )


def _attention(starts: Tensor, longest: int, *, only_first: bool) -> Attend:
    """Attention of the rows' tokens, or of their first tokens only: q [T, heads, D], k and v [T, heads, D]."""
    if starts.device.type == "cpu":
        bounds = list(itertools.pairwise(starts.tolist()))
        queries = [(i, i + 1) for i in range(len(bounds))] if only_first else bounds

        def by_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            parts = []
            for (a, b), (start, stop) in zip(queries, bounds, strict=True):
                # A batch of one: torch has no fast kernel for three axes.
                row = (part.transpose(0, 1)[None] for part in (q[a:b], k[start:stop], v[start:stop]))
                parts.append(F.scaled_dot_product_attention(*row)[0].transpose(0, 1))
            return torch.cat(parts)

        return by_row
    varlen: Any = _varlen()
    keys = starts.to(torch.int32)
    asking = torch.arange(len(keys), dtype=torch.int32, device=keys.device) if only_first else keys
    return lambda q, k, v: varlen(q, k, v, asking, keys, 1 if only_first else longest, longest)


def _varlen() -> Any:
    """torch's attention over rows of different lengths, or None where this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn
