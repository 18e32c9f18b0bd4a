"""Recipe of the cross-encoder's second round: from the weights of the first, against passages that the finished encoder
ranks best, read in windows as they are at run time, with English questions also put into other languages."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from hybrid_retrieval.encoders.convention import TokenWeights
from hybrid_retrieval.rerankers.pairs import window_spans
from hybrid_retrieval.training import code_switching, data, losses
from hybrid_retrieval.training.code_switching import Lexicon
from hybrid_retrieval.training.data import Pair
from hybrid_retrieval.training.exported import ExportedEncoder
from hybrid_retrieval.training.loop import Course, train
from hybrid_retrieval.training.mining import Pool
from hybrid_retrieval.training.modules import CrossEncoder
from hybrid_retrieval.training.reranker_recipe import freeze_lower_layers, pair_ids, pair_logits

QUERY_TOKENS, PASSAGE_TOKENS = 60, 381
ROOM, OVERLAP, WINDOWS = 216, 32, 2
"""Tokens of a pair, tokens that neighbouring windows of a passage share, and windows of it that are read."""
POOL = 1500
"""Passages of a file that its questions are asked of."""
NEGATIVES, DEPTH, SHORTLIST, FEWEST = 3, 13, 60, 6
"""Of the ``DEPTH`` best other passages (where there are at least ``FEWEST``) the best and two more are drawn each time;
candidates are found by mean vectors first."""
QUESTIONS = 8
LEAD, EASY = 1.0, 0.5
"""Of the questions that the encoder answers with a lead of a standard deviation, the share that is kept."""
SCALE = 30.0
"""Of a MaxSim in the loss, as in the encoder's training."""


@dataclass(frozen=True)
class Use:
    """Of one file: how many questions are asked at most that the encoder never saw, and of those it learned from;
    versions of each in other languages; shares of the draw of the questions as they are and in other languages."""

    unseen: int
    seen: int = 0
    versions: int = 0
    share: float = 1.0
    switched_share: float = 0.0


FILES: Mapping[str, Use] = {
    "squad_train": Use(1000, 3300, 2, 4, 5),
    "tydiqa-en": Use(2200, 1400, 2, 2, 3),
    "scifact": Use(0, 750, 2, 1.5, 0.7),
    "fever-sent": Use(2600, 0, 1, 1, 1.2),
    "medquad": Use(800, 0, 1, 0.3, 0.5),
    "heading_mdn-en": Use(350, 0, 1, 0.2, 0.2),
    "heading_windows-driver-docs": Use(350, 0, 1, 0.2, 0.2),
    "tydiqa-sw": Use(1500, share=1.5),
    "tydiqa-ko": Use(0, 1300, share=1.7),
    "jaquad": Use(2500, share=1.5),
    "iapp-thai": Use(600, share=0.6),
    "mdn_xling": Use(900),
    "php_purpose": Use(600),
    "stated": Use(1100, 1100, share=2.5),
    **{
        data.across_file(language): Use(500 if language == "zh" else 200, share=share)
        for language, share in {"zh": 0.7, "es": 0.3, "fr": 0.3, "ru": 0.4, "ja": 0.3, "de": 0.3}.items()
    },
    **{
        data.documentation_file(language): Use(500 if language == "zh" else 200, share=share)
        for language, share in {"zh": 0.7, "es": 0.3, "fr": 0.2, "ja": 0.3, "ko": 0.3, "pt": 0.2}.items()
    },
}


def switched_file(name: str) -> str:
    """Name of a file's questions put into other languages."""
    return f"{name}, in other languages"


SHARES = {name: use.share for name, use in FILES.items()} | {
    switched_file(name): use.switched_share for name, use in FILES.items() if use.versions
}


@dataclass(frozen=True)
class Lists:
    """For each question its file, its token ids, the numbers of its passages (its own first, then the best others), the
    encoder's mean MaxSim with each, and whether the encoder never saw it. passages: token ids."""

    files: list[str]
    questions: list[list[int]]
    ranked: list[list[int]]
    maxsim: list[list[float]]
    unseen: list[bool]
    passages: list[list[int]]


def _blocks(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """``pairs`` in runs of at most ``POOL`` distinct passages; a last run of less than half of that joins the one
    before."""
    blocks: list[list[Pair]] = []
    keys: set[int] = set()
    for pair in pairs:
        if not blocks or (len(keys) == POOL and pair.passage_key not in keys):
            blocks.append([])
            keys = set()
        keys.add(pair.passage_key)
        blocks[-1].append(pair)
    if len(blocks) > 1 and len(keys) < POOL // 2:
        blocks[-2:] = [blocks[-2] + blocks[-1]]
    return iter(blocks)


class _Gathering:
    """Fills ``Lists`` file by file."""

    def __init__(
        self,
        encoder: ExportedEncoder,
        weights: TokenWeights,
        lexicons: Mapping[str, Lexicon],
        tokenizer: Tokenizer,
        rng: random.Random,
    ) -> None:
        self.encoder, self.weights, self.lexicons, self.tokenizer, self.rng = encoder, weights, lexicons, tokenizer, rng
        self.lists = Lists([], [], [], [], [], [])

    def ask(self, name: str, pairs: Sequence[Pair], versions: int, *, unseen: bool) -> None:
        """Every question of ``pairs``, and its versions in other languages, of the passages of ``pairs``."""
        answers = data.answers(pairs)
        for block in _blocks(pairs):
            held: dict[int, list[int]] = {}
            for pair in block:
                held.setdefault(pair.passage_key, pair.passage[:PASSAGE_TOKENS])
            asked = []
            for pair in block:
                asked.append((name, pair, pair.query))
                for ids in code_switching.questions(
                    pair.query, self.lexicons, self.tokenizer, self.rng, number=versions
                ):
                    asked.append((switched_file(name), pair, ids))
            self._rank(asked, held, answers, unseen=unseen)

    def _rank(
        self,
        asked: Sequence[tuple[str, Pair, list[int]]],
        held: Mapping[int, list[int]],
        answers: Mapping[tuple[int, ...], set[int]],
        *,
        unseen: bool,
    ) -> None:
        keys, texts = list(held), list(held.values())
        number = {key: j for j, key in enumerate(keys)}
        pool = Pool(self.encoder, texts, PASSAGE_TOKENS + 4)
        queries = self.encoder.vectors(data.QUERY_PREFIX, [ids for *_, ids in asked], QUERY_TOKENS + 5)
        first = len(self.lists.passages)
        self.lists.passages.extend(texts)
        for (name, pair, ids), vectors in zip(asked, queries, strict=True):
            own, theirs = number[pair.passage_key], answers[tuple(pair.query)]
            scores = dict(pool.ranked(self.weights.scaled(vectors), SHORTLIST, own=own))
            others = [j for j in scores if keys[j] not in theirs and texts[j] != texts[own]][:DEPTH]
            if len(others) >= FEWEST:
                ranked = [own, *others]
                self.lists.files.append(name)
                self.lists.questions.append(ids[:QUERY_TOKENS])
                self.lists.ranked.append([first + j for j in ranked])
                self.lists.maxsim.append([scores[j] for j in ranked])
                self.lists.unseen.append(unseen)


def gather(
    encoder: Path,
    weights: TokenWeights,
    sources: Mapping[str, tuple[Sequence[Pair], Sequence[Pair]]],
    lexicons: Mapping[str, Lexicon],
    tokenizer: Tokenizer,
    *,
    seed: int,
    threads: int,
) -> Lists:
    """Rank passages for every question with an exported encoder and the weights of its query tokens. sources: of each
    of ``FILES`` the pairs that the encoder never saw and those that it learned from; where there are fewer than asked
    for, all of them are taken."""
    runs = ExportedEncoder(encoder, threads=threads)
    gathering = _Gathering(runs, weights, lexicons, tokenizer, random.Random(seed))
    for name, (unseen, seen) in sources.items():
        use = FILES[name]
        for pairs, is_unseen in ((unseen[: use.unseen], True), (seen[: use.seen], False)):
            gathering.ask(name, pairs, use.versions, unseen=is_unseen)
        print(
            f"second round: {name}: {min(len(unseen), use.unseen)} of {use.unseen} unseen questions, "
            f"{min(len(seen), use.seen)} of {use.seen} seen ones; {len(gathering.lists.files)} lists so far",
            flush=True,
        )
    return gathering.lists


def _by_file(lists: Lists, rng: random.Random) -> dict[str, list[int]]:
    """The questions that are drawn from, by file: without some of those that are easy for the encoder."""
    found: dict[str, list[int]] = {}
    for question, (name, scores) in enumerate(zip(lists.files, lists.maxsim, strict=True)):
        lead = (scores[0] - max(scores[1:11])) / max(float(np.std(scores[:11])), 1e-6)
        if lead <= LEAD or rng.random() < EASY:
            found.setdefault(name, []).append(question)
    return found


def windows(query: list[int], passage: list[int]) -> list[list[int]]:
    """Rows of token ids ``<s> query </s></s> part </s>`` of a passage, its first ``WINDOWS`` parts."""
    room = ROOM - len(pair_ids(query, [], QUERY_TOKENS, 0))
    spans = window_spans(len(passage), room, OVERLAP)[:WINDOWS]
    return [pair_ids(query, passage[start:end], QUERY_TOKENS, room) for start, end in spans]


def logits(model: CrossEncoder, pairs: Sequence[tuple[list[int], list[int]]], *, half: bool) -> Tensor:
    """Of each pair its best window's, float32 [N]."""
    rows = [windows(query, passage) for query, passage in pairs]
    found = pair_logits(model, [row for group in rows for row in group], half=half)
    return torch.stack([part.max() for part in found.split([len(group) for group in rows])])


def train_second_round(model: CrossEncoder, lists: Lists, course: Course) -> bool:
    """Listwise softmax over the passages of ``QUESTIONS`` questions a step, of the logit (weight 1) and, of questions
    that the encoder never saw, of its mean with ``SCALE`` times the encoder's MaxSim (.5), so that what the first stage
    gets wrong weighs most. ``model`` holds the first round's weights. False when a signal stopped it."""
    freeze_lower_layers(model)
    by_file = _by_file(lists, random.Random(course.seed + 7))
    names = sorted(by_file)
    shares = [SHARES[name] for name in names]
    group = 1 + NEGATIVES

    def step(i: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(course.seed * 1_000_003 + i)
        questions = [rng.choice(by_file[name]) for name in rng.choices(names, shares, k=QUESTIONS)]
        pairs, maxsim = [], []
        for question in questions:
            ranked, scores = lists.ranked[question], lists.maxsim[question]
            picked = [0, 1, *(2 + j for j in rng.sample(range(len(ranked) - 2), NEGATIVES - 1))]
            pairs += [(lists.questions[question], lists.passages[ranked[j]]) for j in picked]
            maxsim.append([scores[j] for j in picked])
        found = logits(model, pairs, half=course.half)
        own = losses.listwise(found, group)
        fused = 0.5 * (found.view(-1, group) + SCALE * torch.tensor(maxsim))
        unseen = torch.tensor([lists.unseen[question] for question in questions]).float()
        missed = F.cross_entropy(fused, torch.zeros(len(fused), dtype=torch.long), reduction="none")
        with_encoder = (missed * unseen).sum() / unseen.sum().clamp(min=1)
        hit = (found.view(-1, group).argmax(-1) == 0).float().mean()
        return own + 0.5 * with_encoder, {"own": own.item(), "fused": with_encoder.item(), "hit": hit.item()}

    return train(model, step, course, rate=6e-5, head_rate=1.2e-4, warmup=40)
