"""Packages of extras: imported where they are needed, with an error that names the extra."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from hybrid_retrieval.errors import OptionalDependencyError


def require(module: str, purpose: str, extra: str = "torch") -> Any:
    """Import a module of an optional package. Raises `OptionalDependencyError` where the package is not installed."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise OptionalDependencyError(package, extra, purpose)
    return importlib.import_module(module)
