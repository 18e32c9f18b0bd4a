"""The training loop: a run that a signal stopped and another process resumed ends as one that was never stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from hybrid_retrieval.training.loop import Course, train  # noqa: E402

STEPS = 12


def run(
    checkpoint: Path, *, resume: bool = False, stopped_at: int | None = None, stop_after: int = 0, made_of: str = ""
):  # type: ignore[no-untyped-def]
    """(finished, weights) of a small regression."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)

    def step(i: int):  # type: ignore[no-untyped-def]
        if i == stopped_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.from_numpy(torch.randn(8, 4, generator=torch.Generator().manual_seed(i)).numpy())
        loss = (model(x) - x[:, :2]).square().mean()
        return loss, {"loss": loss.item()}

    finished = train(
        model,
        step,
        Course(STEPS, checkpoint, resume, made_of=made_of),
        rate=0.1,
        head_rate=0.1,
        warmup=3,
        stop_after=stop_after,
    )
    return finished, model.weight.detach().numpy().copy()


@pytest.mark.parametrize("stopped_at", [0, 5, STEPS - 1])
def test_a_stopped_and_resumed_run_ends_as_an_unbroken_one(tmp_path: Path, stopped_at: int) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    finished, expected = run(tmp_path / "whole")
    assert finished
    finished, broken = run(tmp_path / "part", stopped_at=stopped_at)
    assert not finished
    assert (broken != expected).any() == (stopped_at < STEPS - 1)
    finished, resumed = run(tmp_path / "part", resume=True)
    assert finished
    assert (resumed == expected).all()
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_checkpoint_of_something_else_is_not_gone_on_from(tmp_path: Path) -> None:
    _, expected = run(tmp_path / "whole")
    run(tmp_path / "part", stopped_at=5, made_of="other questions")
    for _ in range(2):  # the second time from the end of the first
        finished, found = run(tmp_path / "part", resume=True, made_of="these")
        assert finished and (found == expected).all()


def test_an_early_stop_keeps_the_schedule(tmp_path: Path) -> None:
    _, whole = run(tmp_path / "whole")
    run(tmp_path / "early", stop_after=5)
    _, resumed = run(tmp_path / "early", resume=True)
    assert (resumed == whole).all()
