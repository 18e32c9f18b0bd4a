"""Files that survive a crash: synced writes, atomic replacement, checksums."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import IndexDamagedError
from hybrid_retrieval.storage.layout import ArrayFile

READ_BLOCK = 1 << 22


def canonical_json(value: Any) -> bytes:
    """One spelling for one value."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")


def sync_folder(folder: Path) -> None:
    """Make names created in or removed from a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and bring it to the disk; its name is durable only after `sync_folder`."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_synced(path: Path, data: bytes) -> None:
    """Write or replace a file such that a crash leaves the old content or the new."""
    temporary = path.with_name(path.name + ".tmp")
    write_synced(temporary, data)
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_files(folder: Path) -> None:
    """Bring every file of a folder, and its names, to the disk."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    digest: str = hash_start(path, sys.maxsize).hexdigest()
    return digest


def hash_start(path: Path, size: int) -> Any:
    """A SHA-256 object that has read the first `size` bytes of a file, or all where it is shorter, block by block."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while size > 0 and (block := file.read(min(size, READ_BLOCK))):
            digest.update(block)
            size -= len(block)
    return digest


def checksum(body: dict[str, Any]) -> str:
    """SHA-256 (hex) of a JSON object's one spelling."""
    return hashlib.sha256(canonical_json(body)).hexdigest()


def check_content(path: Path, facts: Mapping[str, Any]) -> None:
    """Raise `IndexDamagedError` for a file that is not the one described: {bytes, sha256}."""
    check_size(path, facts["bytes"])
    if sha256_of(path) != facts["sha256"]:
        raise IndexDamagedError(f"{path}: the content was changed (its SHA-256 is wrong)")


def describe(folder: Path) -> dict[str, dict[str, Any]]:
    """{file name: {bytes, sha256}} of a folder, by name."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir(), key=lambda path: path.name)
    }


def check_size(path: Path, expected: int) -> None:
    """Raise `IndexDamagedError` for a file that is missing or has another size."""
    try:
        size = path.stat().st_size
    except OSError:
        raise IndexDamagedError(f"{path}: missing") from None
    if size != expected:
        raise IndexDamagedError(f"{path}: {expected} bytes expected, {size} found (truncated or foreign)")


def map_array(folder: Path, file: ArrayFile, *, width: int | None = None) -> NDArray[Any]:
    """The array of a file, memory-mapped read-only: [n], or [n, width]. Raises `IndexDamagedError`."""
    path = folder / file.name
    row = file.dtype.itemsize * (width or 1)
    try:
        size = path.stat().st_size
        if size % row:
            raise IndexDamagedError(f"{path}: {size} bytes are not a whole number of {row}-byte rows")
        # A mapping of nothing is an error to the operating system.
        flat = np.memmap(path, file.dtype, "r") if size else np.empty(0, file.dtype)
    except (OSError, ValueError) as error:
        raise IndexDamagedError(f"{path}: cannot be read ({error})") from None
    array: NDArray[Any] = np.asarray(flat) if width is None else np.asarray(flat).reshape(-1, width)
    return array
