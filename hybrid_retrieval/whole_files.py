"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path


def write_whole(path: str | Path, data: bytes) -> None:
    """Put `data` in place of a file in one step: another process sees the old bytes or the new ones. Where a link is
    named, what it leads to is replaced; to a pipe, a device and what else is open already (/dev/stdout) the bytes are
    added. Raises `OSError`.
    """
    path = Path(path)
    if is_stream(path):
        with path.open("ab") as stream:
            stream.write(data)
        return
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
        if path.exists():
            partial.chmod(path.stat().st_mode & 0o7777)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_writable(path: str | Path) -> None:
    """Raise the `OSError` that `write_whole` would end with, as far as it can be known before."""
    path = Path(path)
    if not is_stream(path):
        folder = Path(os.path.realpath(path)).parent
        with tempfile.TemporaryFile(dir=folder):
            pass


def is_stream(path: Path) -> bool:
    """Whether a pipe, a device or a socket is there, or a file that is open already (a path through /proc or /dev):
    nothing that could be replaced."""
    of_the_system = os.path.abspath(path).startswith(("/dev/", "/proc/"))
    return path.exists() and not path.is_dir() and (of_the_system or not path.is_file())
