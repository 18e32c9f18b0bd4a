"""The fused GPU kernels behind `kernels.device`, interpreted on a CPU; plain torch is tested by `tests/search`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("late_interaction_kernels", reason="the extra gpu is not installed")


def test_the_fused_kernels_agree_with_the_reference(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.fused", str(tmp_path / "index")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "agree" in done.stdout
