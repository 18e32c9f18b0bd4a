"""Which kernels run here: compiled ones for what the processor can do, or the NumPy reference.

The environment variable HYBRID_RETRIEVAL_KERNELS forces a choice: `auto` (default), `numpy`, or a variant by name.
"""

from __future__ import annotations

import importlib
import logging
import os
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from hybrid_retrieval.errors import InputError

logger = logging.getLogger(__name__)

VARIABLE = "HYBRID_RETRIEVAL_KERNELS"
NUMPY = "numpy"
_LONGEST_VECTOR = 1024  # dimensions that the native kernels take


def _hidden() -> Path | None:
    """Where the installed package is, with compiled kernels, if it is not the one that was imported: Python takes a
    checkout in the working directory first."""
    here = Path(__file__).parents[1]
    try:
        files = metadata.files("hybrid-retrieval") or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        compiled = Path(str(file.locate()))
        if file.name.startswith("_native.") and file.suffix != ".pyi" and compiled.exists():
            return None if compiled.parents[1] == here else compiled.parents[1]
    return None


_native: ModuleType | None = None
# The installed package that these sources stand in front of.
hidden: Path | None = None
try:
    _native = importlib.import_module("hybrid_retrieval.kernels._native")
except ModuleNotFoundError:  # installed without a compiler, or hidden by a checkout
    hidden = _hidden()
    if hidden is not None:
        logger.warning(
            "the sources in %s are in use, without compiled kernels, and not the package installed in %s: run Python "
            "from another folder",
            Path(__file__).parents[1],
            hidden,
        )
except ImportError as error:
    logger.warning("the compiled kernels cannot be loaded (%s): NumPy and onnxruntime do their work, slower", error)


def module() -> Any:
    """The compiled module; only where `variant` is not `numpy`."""
    assert _native is not None
    return _native


def variants() -> list[str]:
    """What can run here, best first; `numpy` always can."""
    return [*(_native.variants() if _native is not None else []), NUMPY]


def variant() -> str:
    """The kernels in use. Raises `InputError` where the environment asks for some that cannot run here."""
    asked = os.environ.get(VARIABLE) or "auto"
    known = variants()
    if asked == "auto":
        return known[0]
    if asked not in known:
        raise InputError(f"{VARIABLE} must be auto or one of {', '.join(known)} on this machine, got {asked!r}")
    return asked


def takes(dimensions: int) -> bool:
    """Whether the kernels in use are native ones, and vectors of so many dimensions are theirs."""
    return variant() != NUMPY and dimensions <= _LONGEST_VECTOR


def finds_nearest(variant: str) -> bool:
    """Whether a native variant finds nearest centroids itself, quicker than faiss does."""
    return bool(module().finds_nearest(variant))
