"""A seeded training loop that can be stopped by SIGTERM or SIGINT and resumed from its checkpoint."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_retrieval.errors import ModelError


@dataclass(frozen=True)
class Course:
    """What every training is told: how many steps, where its checkpoint is and whether to go on from it, whether layers
    compute in bfloat16 (weights stay float32), what the steps are made of (a checkpoint of something else, or of
    another course, is not gone on from), and the seed of their draws."""

    steps: int
    checkpoint: Path
    resume: bool
    half: bool = False
    made_of: str = ""
    seed: int = 0


def parameter_groups(model: nn.Module, rate: float, head_rate: float) -> list[dict[str, Any]]:
    """Trainable parameters: trunk at ``rate``, everything else at ``head_rate``."""
    trunk: list[Any] = []
    head: list[Any] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (trunk if name.startswith("trunk.") else head).append(parameter)
    return [{"params": trunk, "lr": rate}, {"params": head, "lr": head_rate}]


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """`torch.save`, of which another process sees nothing or all."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def train(
    model: nn.Module,
    step: Callable[[int], tuple[Tensor, dict[str, float]]],
    course: Course,
    *,
    rate: float,
    head_rate: float,
    warmup: int = 20,
    log_every: int = 10,
    save_every: int = 50,
) -> bool:
    """Run ``step(i)`` -> (loss, figures to log) for i < ``course.steps`` with AdamW, linear warm-up and linear decay to
    zero. ``step`` must depend on i alone. Returns False when a signal stopped it (the checkpoint is written)."""
    steps, checkpoint = course.steps, course.checkpoint
    optimizer = torch.optim.AdamW(parameter_groups(model, rate, head_rate), betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / warmup, max(0.0, (steps - i) / max(1, steps - warmup)))
    )
    start = 0
    made_of = repr((course.made_of, course.seed, steps, course.half, rate, head_rate, warmup))
    if course.resume and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved.get("made_of", "") == made_of:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])
            start = saved["step"]
        else:
            print(f"{checkpoint} is of other models, questions or settings: beginning anew", flush=True)
    stop = False

    def ask_to_stop(signum: int, frame: object) -> None:
        nonlocal stop
        stop = True

    previous = {s: signal.signal(s, ask_to_stop) for s in (signal.SIGTERM, signal.SIGINT)}

    def save(i: int) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        save_atomically({**state, "step": i, "made_of": made_of}, checkpoint)

    totals: dict[str, float] = {}
    summed = 0
    began = time.monotonic()
    model.train()
    try:
        for i in range(start, steps):
            loss, figures = step(i)
            if not math.isfinite(loss.item()):
                raise ModelError(
                    f"step {i}: the loss is {loss.item()}; another seed, or computing without half, may help"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            for name, value in figures.items():
                totals[name] = totals.get(name, 0.0) + value
            summed += 1
            if (i + 1) % log_every == 0:
                text = " ".join(f"{name} {value / summed:.4f}" for name, value in totals.items())
                print(f"step {i + 1}/{steps} {text} ({time.monotonic() - began:.0f} s)", flush=True)
                totals, summed = {}, 0
            if stop or (i + 1) % save_every == 0 or i + 1 == steps:
                save(i + 1)
            if stop:
                return False
        return True
    finally:
        model.eval()
        for number, handler in previous.items():
            signal.signal(number, handler)
