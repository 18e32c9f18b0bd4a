"""The group of commands, and how errors become one line and an exit code.

Exit codes: 0 done, 1 failed, 2 bad usage or input, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import click

from hybrid_retrieval import __version__
from hybrid_retrieval.cli.build import build, info, verify
from hybrid_retrieval.cli.evaluate import evaluate
from hybrid_retrieval.cli.fusion import fit_fusion
from hybrid_retrieval.cli.interchange import export_colbert, import_colbert
from hybrid_retrieval.cli.models import demo, doctor, export_onnx
from hybrid_retrieval.cli.query import query, rerank
from hybrid_retrieval.errors import HybridRetrievalError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="hybrid-retrieval")
def cli() -> None:
    """Two-stage retrieval: ColBERT finds the candidates, a cross-encoder orders them."""


for command in (
    build,
    query,
    rerank,
    evaluate,
    fit_fusion,
    info,
    verify,
    import_colbert,
    export_colbert,
    export_onnx,
    doctor,
    demo,
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None, *, command: click.Command = cli) -> None:
    """Run the command line and leave the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # passages are in any script, whatever the locale says
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        code = command.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.ClickException as error:
        usage = f" (see '{error.ctx.command_path} --help')" if isinstance(error, click.UsageError) and error.ctx else ""
        _complain(error.format_message() + usage)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        code = 130
    except HybridRetrievalError as error:
        _complain(str(error))
        code = error.exit_code
    except BrokenPipeError:
        # The reader of our output left (`| head`): say nothing, and keep the interpreter from saying it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        code = 1
    except MemoryError:
        _complain("not enough memory: lower encoder.batch_tokens, reranker.batch_tokens or index.chunk_passages")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str) -> None:
    click.echo(f"hybrid-retrieval: error: {' '.join(message.split())}", err=True)
