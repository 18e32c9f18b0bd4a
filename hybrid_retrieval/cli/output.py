"""What the commands share: JSON lines, progress on a terminal, sizes for people."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from hybrid_retrieval.whole_files import check_writable

Progress = Callable[[str, int, int], None]


class NamedPath(click.Path):
    """A path that is not empty: an unset variable of a shell would else be the working directory."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        if not os.fspath(value):
            self.fail("the path is empty; is a variable unset?", param, ctx)
        return super().convert(value, param, ctx)


def echo_json(value: Mapping[str, Any]) -> None:
    """One object on one line. NaN cannot occur in a result, and is an error here."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


class _Console(Console):
    """Leaves it to `cli.app` what happens when the reader of our output has left."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def table_console() -> Console:
    """Where tables go: standard output, as wide as they need when it is not a terminal."""
    console = _Console(highlight=False, soft_wrap=False)
    return console if console.is_terminal else _Console(highlight=False, width=160, color_system=None)


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Progress | None]:
    """A `progress(step, done, total)` callback that draws on stderr, or None where stderr is no terminal.

    total 0 means unknown.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total or None)
            bars.update(tasks[step], completed=done, total=total or None)

        yield report


def check_output(option: str, path: str | None, *, in_place: bool = False) -> None:
    """Raise a usage error for a file that could not be written in the end, before any work is done. in_place: it is
    added to, not replaced."""
    if path is None:
        return
    if not Path(path).absolute().parent.is_dir():
        raise click.UsageError(f"{option} {path}: its folder does not exist")
    if Path(path).is_dir():
        raise click.UsageError(f"{option} {path}: a folder is there; expected the name of a file")
    try:
        if in_place and Path(path).exists():
            with open(path, "ab"):
                pass
        else:
            check_writable(path)
    except OSError as error:
        raise click.UsageError(f"{option} {path}: cannot be written ({error.strerror or error})") from None


def os_reason(error: OSError) -> str:
    """What the system refused, and where it says so, of which file. A write that failed names no file, and one that
    NumPy could not finish has no number either."""
    reason = error.strerror or str(error)
    if error.filename:
        return f"{error.filename}: {reason}"
    unfinished = error.errno is None and "written" in reason
    full = unfinished or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"{reason}: the disk is full, or a limit on the size of files is reached" if full else reason


def human_bytes(count: int) -> str:
    """1,234,567 bytes as '1.2 MB' (powers of ten)."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def echo_made(path: str, info: Mapping[str, Any], seconds: float, as_json: bool) -> None:
    """Say what index was made, and how long that took. info: `Index.info()`."""
    if as_json:
        echo_json({"index": path, "seconds": round(seconds, 3), **info})
        return
    rate = info["passages"] / seconds
    click.echo(
        f"{path}: {info['passages']:,} passages, {info['tokens']:,} token vectors, {human_bytes(info['bytes'])}, "
        f"in {seconds:.1f} s ({rate:.{0 if rate >= 10 else 1}f} passages/s)"
    )
