"""Recipe of the encoder: prune the base in width, then train trunk and projection together.

The teacher is the base itself: MaxSim over its 384-dimension token vectors. Its vectors of a fixed pool of pairs and
translations are computed once and kept in memory (float16), so that a step costs the student's work alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
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
QUERY_TOKENS, PASSAGE_TOKENS = 40, 144
"""Training lengths; at run time 64 and 256."""
GROUP, TRANSLATIONS, NEIGHBOURS = 8, 32, 15
"""Pairs of each of the two files of a step; translations of a step; nearest passages that a group is drawn from."""
TOKEN_SHARE, PAIR_SHARE, BITEXT_SHARE = 2.0, 0.5, 0.3
"""Weights of the losses beside the KL divergence."""


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


@torch.no_grad()
def teacher_states(teacher: Trunk, rows: list[list[int]]) -> list[Tensor]:
    """Unit final states float16 [L, H] of each row of token ids."""
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for group in data.bucketed([len(row) for row in rows], 4096):
        out = F.normalize(teacher(*data.pad([rows[i] for i in group])), dim=-1).half()
        for row, i in enumerate(group):
            found[i] = out[row, : len(rows[i])].clone()
    return found


@dataclass
class Side:
    """Token ids of texts as the encoder reads them, beside the teacher's states."""

    rows: list[list[int]]
    states: list[Tensor]


def _side(teacher: Trunk, prefix: list[int], texts: list[list[int]], limit: int) -> Side:
    rows = [data.wrap(prefix, ids, limit) for ids in texts]
    return Side(rows, teacher_states(teacher, rows))


@dataclass
class Pool:
    """What a training run sees: pairs of each file, and translations (either language as the query)."""

    queries: Side
    passages: Side
    passage_of: list[int]
    """Position in ``passages`` of each query's own passage."""
    groups: dict[str, dict[int, list[int]]]
    """File -> a query of each passage -> queries of the passages nearest to it (one each)."""
    foreign: Side
    english: Side


def build_pool(
    base: BaseModel, pairs: dict[str, list[Pair]], bitext: list[tuple[list[int], list[int]]], per_weight: int
) -> Pool:
    """``per_weight`` x the file's weight pairs of each file. Nearness: mean of the teacher's states of a passage."""
    teacher = Trunk(base, list(range(base.layers))).eval()
    items: list[list[int]] = []
    texts: list[list[int]] = []
    own: list[int] = []
    members: dict[str, list[int]] = {}
    for name, found in pairs.items():
        where: dict[int, int] = {}
        for pair in found[: per_weight * data.WEIGHTS[name]]:
            if pair.passage_key not in where:
                where[pair.passage_key] = len(texts)
                texts.append(pair.passage)
            members.setdefault(name, []).append(len(items))
            items.append(pair.query)
            own.append(where[pair.passage_key])
    queries = _side(teacher, data.QUERY_PREFIX, items, QUERY_TOKENS)
    passages = _side(teacher, data.PASSAGE_PREFIX, texts, PASSAGE_TOKENS)
    means = F.normalize(torch.stack([states.float().mean(0) for states in passages.states]), dim=-1)
    groups: dict[str, dict[int, list[int]]] = {}
    for name, chosen in members.items():
        asked: dict[int, list[int]] = {}
        for query in chosen:
            asked.setdefault(own[query], []).append(query)
        rows = torch.tensor(list(asked))
        near = (means[rows] @ means[rows].T).topk(min(NEIGHBOURS + 1, len(rows))).indices
        groups[name] = {}
        for i, row in enumerate(rows.tolist()):
            others = [asked[int(rows[j])] for j in near[i].tolist() if j != i]
            for turn, query in enumerate(asked[row]):
                groups[name][query] = [some[turn % len(some)] for some in others]
    # Odd translations ask in English, even ones in the other language.
    foreign = [pair[i % 2] for i, pair in enumerate(bitext)]
    english = [pair[1 - i % 2] for i, pair in enumerate(bitext)]
    return Pool(
        queries,
        passages,
        own,
        groups,
        _side(teacher, data.QUERY_PREFIX, foreign, QUERY_TOKENS),
        _side(teacher, data.PASSAGE_PREFIX, english, QUERY_TOKENS),
    )


def _forward(model: Encoder, rows: list[list[int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Final states [L, H] and token vectors [L, D] of each row, rows of like length run together."""
    states: list[Tensor] = [torch.empty(0)] * len(rows)
    vectors = list(states)
    for group in data.bucketed([len(row) for row in rows], 1024):
        hidden = model.trunk(*data.pad([rows[i] for i in group]))
        out = F.normalize(model.projection(hidden), dim=-1)
        for row, i in enumerate(group):
            states[i], vectors[i] = hidden[row, : len(rows[i])], out[row, : len(rows[i])]
    return states, vectors


def _padded(vectors: list[Tensor]) -> tuple[Tensor, Tensor]:
    padded = nn.utils.rnn.pad_sequence(vectors, batch_first=True)
    lengths = torch.tensor([len(v) for v in vectors])
    return padded, (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()


def train_encoder(
    model: Encoder, pool: Pool, *, steps: int, checkpoint: Path, resume: bool, rate: float = 1.5e-4, seed: int = 0
) -> bool:
    """Train on ``pool``; False when a signal stopped it.

    A step sees 2 x ``GROUP`` pairs (two files; one question and questions of the passages nearest to its own, so that
    the batch holds hard negatives) and ``TRANSLATIONS`` translations. Loss: KL divergence of in-batch MaxSim from the
    teacher's 384-dimension MaxSim, cosine distance of every final state from the teacher's, and contrastive
    cross-entropy on pairs and on translations.
    """
    names = sorted(pool.groups)
    weights = [data.WEIGHTS[name] for name in names]
    keys = {name: list(pool.groups[name]) for name in names}

    def step(i: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(seed * 1_000_003 + i)
        drawn: list[int] = []
        for name in rng.choices(names, weights, k=2):
            first = rng.choice(keys[name])
            near = pool.groups[name][first]
            drawn += [first, *rng.sample(near, min(GROUP - 1, len(near)))]
        own = [pool.passage_of[q] for q in drawn]
        across = rng.sample(range(len(pool.foreign.rows)), TRANSLATIONS)
        sides = ((pool.queries, drawn), (pool.passages, own), (pool.foreign, across), (pool.english, across))
        states, vectors = _forward(model, [side.rows[j] for side, chosen in sides for j in chosen])
        taught = [side.states[j].float() for side, chosen in sides for j in chosen]
        n, m = len(drawn), 2 * len(drawn) + TRANSLATIONS
        token = (1 - F.cosine_similarity(torch.cat(states), torch.cat(taught), dim=-1)).mean()
        scores = losses.maxsim_matrix(*_padded(vectors[:n]), *_padded(vectors[n : 2 * n]))
        with torch.no_grad():
            target = losses.maxsim_matrix(*_padded(taught[:n]), *_padded(taught[n : 2 * n]))
        same = torch.tensor([[a != b and own[a] == own[b] for b in range(n)] for a in range(n)])
        kl = losses.score_distillation(scores, target, SCALE)
        pair = losses.contrastive(scores, same, SCALE)
        found = losses.maxsim_matrix(*_padded(vectors[2 * n : m]), *_padded(vectors[m:]))
        none = torch.zeros_like(found, dtype=torch.bool)
        bitext = (losses.contrastive(found, none, SCALE) + losses.contrastive(found.T, none, SCALE)) / 2
        loss = kl + TOKEN_SHARE * token + PAIR_SHARE * pair + BITEXT_SHARE * bitext
        hit = (scores.masked_fill(same, -1).argmax(-1) == torch.arange(n)).float().mean()
        figures = {"kl": kl, "token": token, "pair": pair, "bitext": bitext, "hit": hit}
        return loss, {name: value.item() for name, value in figures.items()}

    return train(model, step, steps=steps, rate=rate, head_rate=2 * rate, checkpoint=checkpoint, resume=resume)
