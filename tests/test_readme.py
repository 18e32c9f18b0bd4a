"""The README's Python runs as it stands, from a clean folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_code_block_runs(number: int, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", BLOCKS[number]], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    expected = ["tomato", "0"][number]
    assert run.stdout.split()[0] == expected


def test_every_command_is_named() -> None:
    from hybrid_retrieval.cli.app import cli

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(name in text for name in cli.commands)
