"""Imports run downwards only: a file imports lower floors, or its own package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hybrid_retrieval

ROOT = Path(hybrid_retrieval.__file__).parent

FLOORS = {
    "errors": 0,
    "optional": 0,
    "ragged": 0,
    "time_limits": 0,
    "types": 0,
    "whole_files": 0,
    "kernels": 0,
    "batching": 1,
    "cache": 1,
    "config": 1,
    "codec": 1,
    "corpus": 1,
    "model_files": 1,
    "checkpoints": 2,
    "fusion": 2,
    "onnx_files": 2,
    "onnx_export": 3,
    "native_trunk": 3,
    "bert_graph": 4,
    "storage": 5,
    "encoders": 5,
    "rerankers": 5,
    "search": 6,
    "builder": 6,
    "rescoring": 6,
    "index": 7,
    "interchange": 7,
    "pipeline": 8,
    "doctor": 9,
    "evaluation": 9,
    "training": 9,
    "cli": 10,
    "__main__": 11,
}

# Inside floor 0 the order is: errors, then ragged, types and others, then kernels.
GROUND = {"errors": 0, "optional": 1, "ragged": 1, "time_limits": 1, "types": 1, "whole_files": 1, "kernels": 2}


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST) -> set[str]:
    rooms = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            names = [node.module]
            if node.module == "hybrid_retrieval":
                names = [f"hybrid_retrieval.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("hybrid_retrieval.")}
    return rooms


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_lower_floors(path: Path) -> None:
    room = room_of(path)
    assert room in FLOORS, f"{room} stands on no floor: add it to FLOORS"
    for other in imported_rooms(ast.parse(path.read_text(encoding="utf-8"))) - {room, "__version__"}:
        lower = FLOORS[other] < FLOORS[room]
        ground = FLOORS[room] == 0 and FLOORS[other] == 0 and GROUND[other] < GROUND[room]
        assert lower or ground, f"{room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})"


def test_every_package_is_on_a_floor() -> None:
    rooms = {room_of(path) for path in FILES}
    assert rooms <= set(FLOORS)


def test_no_cycle_between_files() -> None:
    modules = {
        "hybrid_retrieval." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }
    edges: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = set()
        # Only imports that run when the file is imported can close a cycle.
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                found.add(node.module)
                found |= {f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in modules}
        edges[name] = found - {name}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in modules:
        visit(name, ())
