"""Importing the package is cheap and pulls in nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hybrid_retrieval

HEAVY = (
    "torch",
    "transformers",
    "onnxruntime",
    "faiss",
    "tokenizers",
    "sentence_transformers",
    "ir_measures",
    "pyarrow",
)


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import hybrid_retrieval") == set()


def test_public_names_load_without_torch() -> None:
    names = ", ".join(name for name in hybrid_retrieval.__all__ if name != "__version__")
    assert loaded_after(f"from hybrid_retrieval import {names}") == set()


def test_the_command_line_starts_without_models() -> None:
    assert loaded_after("import hybrid_retrieval.cli") == set()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Searcher'"):
        hybrid_retrieval.Searcher  # noqa: B018
