"""Importing the package is cheap and pulls in nothing heavy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hybrid_retrieval
from hybrid_retrieval.kernels import dispatch

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


def test_the_package_runs_as_its_command_line() -> None:
    run = subprocess.run([sys.executable, "-m", "hybrid_retrieval", "--version"], capture_output=True, text=True)
    assert (run.returncode, run.stdout.split()[-1]) == (0, hybrid_retrieval.__version__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Searcher'"):
        hybrid_retrieval.Searcher  # noqa: B018


@pytest.mark.skipif(dispatch.variants() == [dispatch.NUMPY], reason="needs the compiled kernels")
def test_sources_in_front_of_the_installed_package_are_named(tmp_path: Path) -> None:
    """As in a checkout after `pip install .`: Python takes the working directory's package, which has no kernels."""
    sources = Path(hybrid_retrieval.__file__).parent
    shutil.copytree(sources, tmp_path / "hybrid_retrieval", ignore=shutil.ignore_patterns("_native.*", "models"))
    installed = tmp_path / "site"
    compiled = installed / "hybrid_retrieval" / "kernels" / "_native.so"
    compiled.parent.mkdir(parents=True)
    compiled.write_bytes(b"")
    facts = installed / "hybrid_retrieval-9.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: hybrid-retrieval\nVersion: 9\n")
    (facts / "RECORD").write_text("hybrid_retrieval/kernels/_native.so,,\n")
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import importlib.machinery as m\n"  # without the finders of an editable install, which come before any path
        "sys.meta_path[:] = [m.BuiltinImporter, m.FrozenImporter, m.PathFinder]\n"
        "from hybrid_retrieval.kernels import dispatch\n"
        "print(dispatch.variants())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(installed)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "['numpy']\n"
    assert f"the sources in {tmp_path / 'hybrid_retrieval'} are in use, without compiled kernels" in done.stderr
    assert str(installed / "hybrid_retrieval") in done.stderr
