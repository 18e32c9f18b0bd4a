"""The command line, `hybrid-retrieval`: thin commands over the package."""

from hybrid_retrieval.cli.app import main

__all__ = ["main"]
