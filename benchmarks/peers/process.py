"""What the benchmarks beside peers share: a system in a process of its own, and what machine it ran on."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any


class PeerProcess:
    """A worker that answers a JSON line with a JSON line; its first line says what it is (``facts``)."""

    def __init__(self, system: str, command: list[str], log: Path) -> None:
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True
            )
        self.system, self._log = system, log
        self.facts = self._read()

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.system} ended early: see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def machine_facts() -> dict[str, str]:
    """The processor by its own name, and the kernels in use."""
    from hybrid_retrieval.kernels import dispatch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
        "cpu": names[0] if names else "",
        "kernels": dispatch.variant(),
    }
