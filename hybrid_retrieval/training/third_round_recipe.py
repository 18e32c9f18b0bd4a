"""Recipe of the cross-encoder's third round: on the second round's lists what learns is the order that both stages make
together, by the very sum of standardised scores that the pipeline ranks by."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid_retrieval.training import losses
from hybrid_retrieval.training.loop import Course, train
from hybrid_retrieval.training.modules import CrossEncoder
from hybrid_retrieval.training.reranker_recipe import freeze_lower_layers
from hybrid_retrieval.training.second_round_recipe import FILES, Lists, by_file, drawn, logits

QUESTIONS, GROUP = 6, 6
"""Of a step, and passages of each."""
EASY = 0.35
"""Of the questions that the encoder answers with a lead, the share that is kept."""
SHARPNESS = 4.0
"""Of the fused scores in the loss."""
OWN = 0.4
"""Weight of the logit's own loss beside that of the fused scores."""
DRAW = 11
"""Makes another draw than the second round's."""


def standardised(scores: Tensor) -> Tensor:
    """Zero mean and unit deviation of each row of [Q, N], as `fusion.standardise` has it."""
    centred = scores - scores.mean(-1, keepdim=True)
    return centred / (scores.std(-1, unbiased=False, keepdim=True) + 1e-3)


def train_third_round(model: CrossEncoder, lists: Lists, course: Course) -> bool:
    """Listwise softmax over ``GROUP`` passages of ``QUESTIONS`` questions a step: of the mean of standardised logit and
    MaxSim (weight 1), for questions that the encoder never saw, or saw in another language; and of the logit (``OWN``).
    ``model`` holds the second round's weights. False when a signal stopped it."""
    freeze_lower_layers(model)
    asked = by_file(lists, random.Random(course.seed + DRAW + 7), EASY)
    # What is no file of FILES is questions put into other languages.
    fresh = [unseen or name not in FILES for name, unseen in zip(lists.files, lists.unseen, strict=True)]

    def step(i: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random((course.seed + DRAW) * 1_000_003 + i)
        questions, pairs, maxsim = drawn(lists, asked, rng, questions=QUESTIONS, group=GROUP)
        found = logits(model, pairs, half=course.half).view(-1, GROUP)
        fused = SHARPNESS * 0.5 * (standardised(found) + standardised(maxsim))
        counts = torch.tensor([fresh[question] for question in questions]).float()
        missed = F.cross_entropy(fused, torch.zeros(len(fused), dtype=torch.long), reduction="none")
        together = (missed * counts).sum() / counts.sum().clamp(min=1)
        own = losses.listwise(found, GROUP)
        hit = (fused.argmax(-1) == 0).float().mean()
        return together + OWN * own, {"own": own.item(), "fused": together.item(), "hit": hit.item()}

    return train(model, step, course, rate=8e-5, head_rate=1.6e-4, warmup=60)
