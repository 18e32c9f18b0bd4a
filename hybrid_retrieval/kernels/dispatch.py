"""Which kernels run here: compiled ones for what the processor can do, or the NumPy reference.

The environment variable HYBRID_RETRIEVAL_KERNELS forces a choice: `auto` (default), `numpy`, or a variant by name.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from hybrid_retrieval.errors import InputError

VARIABLE = "HYBRID_RETRIEVAL_KERNELS"
NUMPY = "numpy"
_LONGEST_VECTOR = 1024  # dimensions that the native kernels take

_native: ModuleType | None
try:
    from hybrid_retrieval.kernels import _native
except ImportError:  # installed without a compiler
    _native = None


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
