"""Recipe of the shipped encoder: the base's four lower layers stay; its eight upper layers and the projection learn.

A step sees 30 pairs of one file, in groups of six whose passages are each other's neighbours, and 32 sentences of
28 languages beside their English translations. See ``train_upper`` for the loss.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid_retrieval.training import data, losses
from hybrid_retrieval.training.base_weights import BaseModel
from hybrid_retrieval.training.data import Pair
from hybrid_retrieval.training.loop import Course, train
from hybrid_retrieval.training.modules import Encoder, Trunk
from hybrid_retrieval.training.states import States, keep_states

FROZEN = 4
SCALE = 30.0
QUERY_TOKENS, PASSAGE_TOKENS = 48, 160
PAIRS, GROUP, NEIGHBOURS, SENTENCES = 30, 6, 25, 32
BATCH_TOKENS = 2048
FILES: data.Shares = {
    "squad_train": (6, 3300), "tydiqa-en": (2.5, 1500), "tydiqa-ko": (2.5, 1400), "tydiqa-sw": (1, 700),
    "jaquad": (2, 1200), "iapp-thai": (0.7, 400), "scifact": (2, 750), "fever-sent": (2, 1500), "medquad": (0.6, 400),
    "php_purpose": (1.5, 1000), "mdn_xling": (1.5, 1000),
    "heading_mdn-en": (0.6, 400), "heading_windows-driver-docs": (0.6, 400),
}  # fmt: skip
"""Share of each file in the draw of steps, and how many of its pairs are kept."""
ACROSS: data.Shares = {
    "zh": (1.5, 900), "es": (0.4, 300), "fr": (0.4, 300), "ru": (0.4, 300), "ja": (0.4, 300), "de": (0.4, 300),
}  # fmt: skip
"""The same for questions of the PHP manual in these languages with English passages."""
DOCUMENTATION: data.Shares = {
    "zh": (1.5, 900), "es": (0.3, 300), "fr": (0.3, 300), "ja": (0.3, 300), "ko": (0.3, 300), "pt": (0.3, 300),
}  # fmt: skip
"""The same for paragraphs of Python's documentation in these languages with English passages."""
STATED: data.Shares = {"ara": (2.5, 500), "cmn": (1.5, 500)}
STATED_OTHERS: tuple[float, int] = (2.5, 1300)
"""The same for sentences of the bitext with English passages that state them (``data.statements``): Arabic and
Chinese, and the other languages together."""
HOSTS = ("squad_train", "tydiqa-en")
PER_LANGUAGE = {"ara": 1000, "cmn": 1000}
OTHER_LANGUAGES = 220
"""Sentences of each language that are read: every other one is shown beside its translation, the rest ``stated``."""
SENTENCE_SHARE = {"ara": 4, "cmn": 4}
SHARES = data.draw_shares(
    FILES,
    ACROSS,
    DOCUMENTATION,
    {"stated": STATED_OTHERS[0], **{f"stated_{language}": share for language, (share, _) in STATED.items()}},
)
NO_TEACHER = ("mdn_xling", *sorted(set(SHARES) - set(FILES)))
"""Files across languages: the base is no teacher for them."""


@dataclass(frozen=True)
class Material:
    """files: for each pair its file. passage_of: for each pair its passage's number. answers: for each pair the numbers
    of all passages that answer its question. languages: of each sentence.
    States hold, in this order: the pairs' queries, the distinct passages, and for each sentence four texts: itself as
    a query and as a passage, its translation as a query and as a passage."""

    states: States
    files: list[str]
    passage_of: NDArray[np.int64]
    answers: list[set[int]]
    passages: int
    languages: list[str]

    def query(self, pair: int) -> int:
        return pair

    def passage(self, pair: int) -> int:
        return len(self.files) + int(self.passage_of[pair])

    def sentence(self, number: int, side: int) -> int:
        return len(self.files) + self.passages + 4 * number + side


def stated(
    bitext: Sequence[tuple[str, list[int], list[int]]], hosts: Sequence[Sequence[int]], *, seed: int
) -> dict[str, list[Pair]]:
    """The pairs of ``STATED`` and ``STATED_OTHERS``, by file. bitext: other sentences than those that steps show beside
    their translations, or a step's own passage might state them."""
    found = {}
    for language, (_, limit) in STATED.items():
        own = [row for row in bitext if row[0] == language]
        found[f"stated_{language}"] = data.statements(own, hosts, seed=seed)[:limit]
    others = [row for row in bitext if row[0] not in STATED]
    return found | {"stated": data.statements(others, hosts, seed=seed)[: STATED_OTHERS[1]]}


def gather(
    encoder: Path,
    pairs: dict[str, list[Pair]],
    bitext: list[tuple[str, list[int], list[int]]],
    work: Path,
    *,
    threads: int,
) -> Material:
    """Number the texts and run them through the base as exported to ``encoder``. pairs: of each file of ``SHARES``."""
    named = [(name, pair) for name, found in pairs.items() for pair in found]
    queries = [data.wrap(data.QUERY_PREFIX, pair.query, QUERY_TOKENS) for _, pair in named]
    distinct: dict[tuple[int, ...], int] = {}
    passage_of = [
        distinct.setdefault(tuple(data.wrap(data.PASSAGE_PREFIX, pair.passage, PASSAGE_TOKENS)), len(distinct))
        for _, pair in named
    ]
    answers = data.answers(Pair(pair.query, [], number) for (_, pair), number in zip(named, passage_of, strict=True))
    sides = [
        data.wrap(prefix, ids, limit)
        for _, foreign, english in bitext
        for ids in (foreign, english)
        for prefix, limit in ((data.QUERY_PREFIX, QUERY_TOKENS), (data.PASSAGE_PREFIX, PASSAGE_TOKENS))
    ]
    rows = [*queries, *map(list, distinct), *sides]
    print(f"upper layers: {len(named)} pairs, {len(bitext)} translations", flush=True)
    states = keep_states(encoder, rows, FROZEN, work / "encoder-states", threads=threads)
    return Material(
        states,
        [name for name, _ in named],
        np.array(passage_of),
        [answers[tuple(pair.query)] for _, pair in named],
        len(distinct),
        [language for language, _, _ in bitext],
    )


class Upper(nn.Module):
    """The encoder's trunk above ``FROZEN`` and its projection; lower states float32 [B, L, H] to final ones."""

    def __init__(self, encoder: Encoder, half: bool) -> None:
        super().__init__()
        self.trunk = nn.ModuleList(list(encoder.trunk.layers)[FROZEN:])
        self.projection = encoder.projection
        self._half = half

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        bias = None if bool(mask.all()) else mask[:, None, None, :]
        with torch.autocast("cpu", torch.bfloat16, enabled=self._half):
            for layer in self.trunk:
                x = layer(x, bias)
        return x.float()

    def final(self, states: States, texts: Sequence[int]) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
        """Final states of all texts' tokens one below the other, [T, H]; where each text starts, and its length."""
        offsets = states.offsets
        lengths = np.array([offsets[i + 1] - offsets[i] for i in texts])
        starts = np.zeros(len(texts), np.int64)
        parts, position = [], 0
        for group in data.bucketed(lengths.tolist(), BATCH_TOKENS):
            rows = [torch.from_numpy(np.asarray(states.lower_of(texts[j]), np.float32)) for j in group]
            mask = torch.arange(int(lengths[group].max()))[None] < torch.from_numpy(lengths[group])[:, None]
            parts.append(self(nn.utils.rnn.pad_sequence(rows, batch_first=True), mask)[mask])
            for j in group:
                starts[j] = position
                position += lengths[j]
        return torch.cat(parts), starts, lengths


def _padded(flat: Tensor, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Texts [B, L, D] and their mask [B, L] from rows one below the other."""
    position = np.arange(int(lengths.max()))
    mask = position[None] < lengths[:, None]
    rows = np.where(mask, starts[:, None] + position[None], 0)
    return flat[torch.from_numpy(rows)], torch.from_numpy(mask).long()


class Draws:
    """What each step sees; depends on the step's number alone."""

    def __init__(self, material: Material, seed: int) -> None:
        self._material, self._seed = material, seed
        self._by_file: dict[str, list[int]] = {}
        for pair, name in enumerate(material.files):
            self._by_file.setdefault(name, []).append(pair)
        self._names = sorted(self._by_file)
        self._weights = [SHARES[name] for name in self._names]
        self._near = {name: self._neighbours(self._by_file[name]) for name in self._names}
        self._by_language: dict[str, list[int]] = {}
        for number, language in enumerate(material.languages):
            self._by_language.setdefault(language, []).append(number)
        self._languages = sorted(self._by_language)
        self._language_weights = [SENTENCE_SHARE.get(language, 1) for language in self._languages]

    def _neighbours(self, pairs: list[int]) -> NDArray[np.int64]:
        """For each of the pairs the positions of those whose passages lie nearest by mean state, itself first."""
        states = self._material.states
        means = np.stack(
            [np.asarray(states.final_of(self._material.passage(pair)), np.float32).mean(axis=0) for pair in pairs]
        )
        means -= means.mean(axis=0)
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
        blocks = [
            np.argsort(-(means[start : start + 1000] @ means.T), axis=1, kind="stable")[:, :NEIGHBOURS]
            for start in range(0, len(means), 1000)
        ]
        return np.concatenate(blocks)

    def step(self, i: int) -> tuple[str, list[int], list[int]]:
        """(file, pairs of which no passage answers another's question, sentences)."""
        rng = random.Random(self._seed * 1_000_003 + i)
        name = rng.choices(self._names, self._weights)[0]
        pairs = self._by_file[name]
        chosen: list[int] = []
        passages: set[int] = set()
        answers: set[int] = set()
        for anchor in rng.sample(range(len(pairs)), min(len(pairs), PAIRS)):
            near = [int(j) for j in self._near[name][anchor] if j != anchor]
            taken = 0
            for j in [anchor, *rng.sample(near, min(GROUP + 3, len(near)))]:
                passage, own = int(self._material.passage_of[pairs[j]]), self._material.answers[pairs[j]]
                apart = passage not in answers and own.isdisjoint(passages)
                if apart and taken < GROUP and len(chosen) < PAIRS:
                    passages.add(passage)
                    answers |= own
                    chosen.append(pairs[j])
                    taken += 1
        languages = rng.choices(self._languages, self._language_weights, k=SENTENCES)
        return name, chosen, sorted({rng.choice(self._by_language[language]) for language in languages})


def train_upper(encoder: Encoder, material: Material, course: Course) -> bool:
    """Train the encoder's upper layers and projection in place; False when a signal stopped it.

    The loss: contrastive cross-entropy over the pairs (1) and KL of their scores to the base's 384-dimension MaxSim
    (.5); for a sentence as a query, over the pairs' passages and the sentences' translations, cross-entropy (.5) and
    KL to what the base gives its translation as the query (.5); the other way round, cross-entropy (.25); and the
    cosine distance of every final state from the base's (2), which keeps languages without training data in place.
    """
    upper, draws, states = Upper(encoder, course.half), Draws(material, course.seed), material.states

    def step(i: int) -> tuple[Tensor, dict[str, float]]:
        name, pairs, sentences = draws.step(i)
        parts = [[material.query(j) for j in pairs], [material.passage(j) for j in pairs]]
        parts += [[material.sentence(j, side) for j in sentences] for side in range(4)]
        texts = [text for part in parts for text in part]
        flat, starts, lengths = upper.final(states, texts)
        target = torch.empty_like(flat)
        for text, start, length in zip(texts, starts, lengths, strict=True):
            target[start : start + length] = torch.from_numpy(states.final_of(text).astype(np.float32))
        bounds = np.cumsum([0, *map(len, parts)])
        where = [(starts[a:b], lengths[a:b]) for a, b in itertools.pairwise(bounds.tolist())]
        kept = (1 - (F.normalize(flat, dim=-1) * target).sum(-1)).mean()
        query, passage, foreign_query, foreign_passage, english_query, english_passage = (
            _padded(F.normalize(upper.projection(flat), dim=-1), *part) for part in where
        )
        with torch.no_grad():
            old = [_padded(target, *part) for part in where]
            teacher = losses.maxsim_matrix(*old[0], *old[1])
            translated = torch.cat(
                [losses.maxsim_matrix(*old[4], *old[1]), losses.maxsim_matrix(*old[4], *old[5])], dim=1
            )
        scores = losses.maxsim_matrix(*query, *passage)
        own = losses.contrastive(scores, torch.zeros_like(scores, dtype=torch.bool), SCALE)
        kl = torch.zeros(()) if name in NO_TEACHER else losses.score_distillation(scores, teacher, SCALE)
        across = torch.cat(
            [losses.maxsim_matrix(*foreign_query, *passage), losses.maxsim_matrix(*foreign_query, *english_passage)],
            dim=1,
        )
        right = torch.arange(len(sentences)) + len(pairs)
        to_english = F.cross_entropy(across * SCALE, right)
        across_kl = losses.score_distillation(across, translated, SCALE)
        back = losses.maxsim_matrix(*english_query, *foreign_passage)
        to_foreign = losses.contrastive(back, torch.zeros_like(back, dtype=torch.bool), SCALE)
        loss = own + 0.5 * kl + 0.5 * to_english + 0.5 * across_kl + 0.25 * to_foreign + 2 * kept
        figures = {"pairs": own, "kl": kl, "sentences": to_english, "sentences_kl": across_kl, "kept": kept}
        return loss, {key: value.item() for key, value in figures.items()}

    return train(upper, step, course, rate=6e-5, head_rate=3e-4)


def rotated(encoder: Encoder, seed: int) -> Encoder:
    """Turn the projection by a random rotation: MaxSim stays as it is, but variance spreads evenly over the dimensions,
    which one scalar quantiser for all of them needs (a sixth less error at 2 bits)."""
    dimensions = encoder.projection.weight.shape[0]
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((dimensions, dimensions)))
    with torch.no_grad():
        encoder.projection.weight.copy_(torch.from_numpy(q.T.astype(np.float32)) @ encoder.projection.weight)
    return encoder


def untrained(base: BaseModel, projection: Tensor) -> Encoder:
    """The base with a trained projection."""
    encoder = Encoder(Trunk(base), projection.shape[0])
    with torch.no_grad():
        encoder.projection.weight.copy_(projection)
    return encoder
