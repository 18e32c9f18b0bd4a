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
    checkpoint: Path,
    *,
    resume: bool = False,
    stopped_at: int | None = None,
    made_of: str = "",
    steps: int = STEPS,
    seed: int = 0,
):  # type: ignore[no-untyped-def]
    """(finished, weights) of a small regression."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)

    def step(i: int):  # type: ignore[no-untyped-def]
        if i == stopped_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.from_numpy(torch.randn(8, 4, generator=torch.Generator().manual_seed(i)).numpy())
        loss = (model(x) - x[:, :2]).square().mean()
        return loss, {"loss": loss.item(), "one": 1.0}

    finished = train(
        model,
        step,
        Course(steps, checkpoint, resume, made_of=made_of, seed=seed),
        rate=0.1,
        head_rate=0.1,
        warmup=3,
        log_every=4,
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


def test_a_checkpoint_of_another_course_is_not_gone_on_from(tmp_path: Path) -> None:
    _, expected = run(tmp_path / "whole", steps=STEPS - 4)
    run(tmp_path / "part")
    _, found = run(tmp_path / "part", resume=True, steps=STEPS - 4)
    assert (found == expected).all()
    run(tmp_path / "seed", stopped_at=5, seed=1)
    _, found = run(tmp_path / "seed", resume=True, seed=0, steps=STEPS - 4)
    assert (found == expected).all()


def test_figures_after_an_interruption_are_means_of_what_was_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "part", stopped_at=5)
    run(tmp_path / "part", resume=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["4/12", "8/12", "12/12"]
    assert all("one 1.0000" in line for line in lines)
