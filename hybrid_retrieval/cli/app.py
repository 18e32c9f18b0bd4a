"""The group of commands, and how errors become one line and an exit code.

Exit codes: 0 done, 1 failed, 2 bad usage or input; as a shell counts signals, 130 interrupted and 141 when the
reader of our output left (`| head`).
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import click

from hybrid_retrieval import __version__
from hybrid_retrieval.cli.build import build, info, verify
from hybrid_retrieval.cli.evaluate import evaluate
from hybrid_retrieval.cli.fusion import fit_fusion
from hybrid_retrieval.cli.interchange import export_colbert, import_colbert
from hybrid_retrieval.cli.models import demo, doctor, export_onnx
from hybrid_retrieval.cli.output import os_reason
from hybrid_retrieval.cli.query import query, rerank
from hybrid_retrieval.errors import HybridRetrievalError

# Of every command, those that scripts run alone among them.
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(invoke_without_command=True)
@click.version_option(__version__, prog_name="hybrid-retrieval")
@click.pass_context
def cli(context: click.Context) -> None:
    """Two-stage retrieval: ColBERT finds the candidates, a cross-encoder orders them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


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


def main(arguments: Sequence[str] | None, *, command: click.Command) -> None:
    """As `hybrid_retrieval.cli.main`."""
    output = sys.stdout
    if output is None:
        _complain("standard output is closed: send it to a file, a pipe or /dev/null")
        sys.exit(1)
    for stream in (output, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # passages are in any script, whatever the locale says
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        code = command.main(args=None if arguments is None else list(arguments), standalone_mode=False, **SETTINGS)
    except SystemExit:
        if sys.stdout is output:  # click's own, after shell completion
            raise
        code = _reader_left(output)  # click wraps the streams and exits where the pipe is broken
    except click.ClickException as error:
        usage = f" (see '{error.ctx.command_path} --help')" if isinstance(error, click.UsageError) and error.ctx else ""
        _complain(error.format_message() + usage)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        _complain(str(error) or "interrupted")
        code = 130
    except HybridRetrievalError as error:
        _complain(str(error))
        code = error.exit_code
    except OSError as error:
        _complain(os_reason(error))
        code = 1
    except MemoryError:
        _complain("not enough memory: lower encoder.batch_tokens, reranker.batch_tokens or index.chunk_passages")
        code = 1
    try:
        output.flush()
    except BrokenPipeError:
        code = _reader_left(output)
    except OSError as error:
        _discard(output)  # or the interpreter tries to write it again at exit
        if not code:
            _complain(f"the output cannot be written: {error.strerror}")
            code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _reader_left(output: TextIO) -> int:
    """Say nothing of a pipe that nobody reads, and keep the interpreter from saying it at exit."""
    _discard(output)
    return 128 + signal.SIGPIPE


def _discard(output: TextIO) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, output.fileno())
    os.close(null)


def _complain(message: str) -> None:
    click.echo(f"hybrid-retrieval: error: {' '.join(message.split())}", err=True)
