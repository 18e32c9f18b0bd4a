"""The command line, `hybrid-retrieval`: thin commands over the package."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import click

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None, *, command: click.Command | None = None) -> None:
    """Run the command line and leave the process with its exit code. command: one of its commands alone."""
    try:
        from hybrid_retrieval.cli import app
    except KeyboardInterrupt:  # importing takes a moment, which can be interrupted too
        sys.stderr.write("hybrid-retrieval: error: interrupted\n")
        sys.exit(130)
    app.main(arguments, command=command or app.cli)
