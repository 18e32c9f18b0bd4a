"""Recipe of the projection: the base's 12 layers unchanged; only the projection to D dimensions is trained."""

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
PAIRS_SHARE, BITEXT_SHARE = 1.0, 0.3


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
    base: BaseModel,
    pairs: dict[str, list[Pair]],
    bitext: list[tuple[str, list[int], list[int]]],
    *,
    per_weight: int,
    dimensions: int,
    steps: int,
    seed: int,
) -> Encoder:
    """Bring the base's MaxSim in all its dimensions down to ``dimensions``, and languages closer together on the way.

    ``per_weight`` x the file's weight pairs of each file, and sentences beside their translations, give fixed token
    vectors; principal directions are the start. A step sees 24 pairs of two files and 48 sentence pairs. Its loss: KL
    of in-batch MaxSim to the base's, the squared error of every query token's product with every passage token, and
    contrastive cross-entropy on the pairs (``PAIRS_SHARE``) and on the sentences both ways (``BITEXT_SHARE``).
    """
    encoder = Encoder(Trunk(base), dimensions).eval()
    items, files = [], []
    for name, found in pairs.items():
        chosen = found[: per_weight * data.WEIGHTS[name]]
        items += chosen
        files += [name] * len(chosen)
    # Each side of a translation stands once as a query and once as a passage.
    sides = [[foreign for _, foreign, _ in bitext], [english for _, _, english in bitext]]
    as_queries, as_passages = (
        [features(encoder.trunk, [data.wrap(prefix, ids, QUERY_TOKENS) for ids in side]) for side in sides]
        for prefix in (data.QUERY_PREFIX, data.PASSAGE_PREFIX)
    )
    queries = features(encoder.trunk, [data.wrap(data.QUERY_PREFIX, p.query, QUERY_TOKENS) for p in items])
    passages = features(encoder.trunk, [data.wrap(data.PASSAGE_PREFIX, p.passage, PASSAGE_TOKENS) for p in items])
    print(f"projection: {len(items)} pairs, {len(bitext)} translations", flush=True)
    moment = torch.zeros(base.hidden, base.hidden)
    for vectors in (queries, passages):
        tokens = torch.cat(vectors)
        moment += tokens.T @ tokens / len(tokens)
    projection = encoder.projection
    with torch.no_grad():
        projection.weight.copy_(torch.linalg.eigh(moment)[1].flip(1)[:, :dimensions].T)
    optimizer = torch.optim.Adam(projection.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / steps)
    rng = random.Random(seed)
    by_file = {name: [i for i, file in enumerate(files) if file == name] for name in set(files)}
    names = sorted(by_file)

    def small(vectors: Tensor) -> Tensor:
        return F.normalize(projection(vectors), dim=-1)

    for step in range(steps):
        two = rng.choices(names, [data.WEIGHTS[name] for name in names], k=2)
        rows = [i for name in two for i in rng.sample(by_file[name], min(12, len(by_file[name])))]
        q, q_mask = _padded([queries[i] for i in rows])
        p, p_mask = _padded([passages[i] for i in rows])
        scores = losses.maxsim_matrix(small(q), q_mask, small(p), p_mask)
        kl = losses.score_distillation(scores, losses.maxsim_matrix(q, q_mask, p, p_mask), SCALE)
        keep_q, keep_p = q_mask.bool(), p_mask.bool()
        error = (small(q)[keep_q] @ small(p)[keep_p].T - q[keep_q] @ p[keep_p].T).square().mean()
        keys = [(files[i], items[i].passage_key) for i in rows]
        same = torch.tensor([[i != j and a == b for j, b in enumerate(keys)] for i, a in enumerate(keys)])
        own = losses.contrastive(scores, same, SCALE)
        drawn = rng.sample(range(len(bitext)), 48)
        across = torch.zeros(())
        for one, other in ((0, 1), (1, 0)):
            x, x_mask = _padded([as_queries[one][i] for i in drawn])
            y, y_mask = _padded([as_passages[other][i] for i in drawn])
            found = losses.maxsim_matrix(small(x), x_mask, small(y), y_mask)
            across = across + losses.contrastive(found, torch.zeros(48, 48, dtype=torch.bool), SCALE) / 2
        loss = kl + 100 * error + PAIRS_SHARE * own + BITEXT_SHARE * across
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            parts = {"kl": kl, "error": error, "pairs": own, "bitext": across}
            print(f"projection step {step + 1}/{steps}", {k: round(v.item(), 5) for k, v in parts.items()}, flush=True)
    return encoder
