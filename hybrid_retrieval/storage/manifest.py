"""The manifest: everything that one version of an index consists of, with a checksum of itself."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval import __version__
from hybrid_retrieval.errors import IndexDamagedError, IndexNotFoundError, IndexVersionError
from hybrid_retrieval.storage.files import canonical_json, checksum
from hybrid_retrieval.storage.layout import BUILDING, CODEC, FORMAT_VERSION, JOURNAL, SEGMENTS, VERSIONS

_FOLDER = re.compile(r"[0-9a-f-]+")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked manifest. `body` holds its keys; the properties name what readers need.

    Keys: format_version, created_by, version, codec {id, folder, nbits, dimensions, num_centroids, files},
    segments [{id, passages, windows, tokens, deleted, files}], encoder and reranker {name, identity} or null,
    config, corpus (SHA-256 of the passages as stored), checksum. files: {name: {bytes, sha256}}. deleted:
    base64 of a bit a row (first row in the low bit), or null. There are no times in it: the same input gives
    the same bytes.
    """

    body: dict[str, Any]

    @classmethod
    def create(cls, **keys: Any) -> Manifest:
        """Add the format version and the checksum."""
        body = {"format_version": FORMAT_VERSION, "created_by": f"hybrid-retrieval {__version__}", **keys}
        return cls({**body, "checksum": checksum(body)})

    @classmethod
    def parse(cls, data: bytes, source: Path) -> Manifest:
        """Check bytes. Raises `IndexVersionError` for another format, `IndexDamagedError` for damage."""
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            raise IndexDamagedError(f"{source}: the manifest is damaged (not JSON)") from None
        if not isinstance(body, dict) or not isinstance(body.get("format_version"), int):
            raise IndexDamagedError(f"{source}: the manifest is damaged (no format version)")
        if body["format_version"] != FORMAT_VERSION:
            raise IndexVersionError(
                f"{source}: written in format {body['format_version']}; this release reads "
                f"format {FORMAT_VERSION}: "
                "use the release that wrote it, or build the index anew"
            )
        stated = body.get("checksum")
        unsigned = {key: value for key, value in body.items() if key != "checksum"}
        try:
            sound = stated == checksum(unsigned) and canonical_json(body) == data
        except (ValueError, RecursionError):  # NaN, half a surrogate pair: JSON of someone else's making
            sound = False
        if not sound:
            raise IndexDamagedError(
                f"{source}: the manifest is damaged (its checksum is wrong); an older version "
                "is not used in its place, since that would drop a commit"
            )
        manifest = cls(body)
        try:
            _check_parts(manifest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IndexDamagedError(f"{source}: the manifest lacks a part ({error})") from None
        for folder in [manifest.codec["folder"], *(segment["id"] for segment in manifest.segments)]:
            if not _FOLDER.fullmatch(str(folder)):
                raise IndexDamagedError(f"{source}: impossible folder name {folder!r}")
        return manifest

    def to_bytes(self) -> bytes:
        """What lies on the disk."""
        return canonical_json(self.body)

    @property
    def version(self) -> int:
        return int(self.body["version"])

    @property
    def codec(self) -> dict[str, Any]:
        codec: dict[str, Any] = self.body["codec"]
        return codec

    @property
    def segments(self) -> list[dict[str, Any]]:
        segments: list[dict[str, Any]] = self.body["segments"]
        return segments

    def folders(self, path: Path) -> list[tuple[Path, dict[str, dict[str, Any]]]]:
        """(folder, {file name: {bytes, sha256}}) of everything that this version consists of."""
        parts = [(path / CODEC / self.codec["folder"], self.codec["files"])]
        return parts + [(path / SEGMENTS / segment["id"], segment["files"]) for segment in self.segments]

    @property
    def num_bytes(self) -> int:
        """Bytes of all its files and of the manifest itself."""
        parts = [self.codec, *self.segments]
        parts_bytes: int = sum(file["bytes"] for part in parts for file in part["files"].values())
        return len(self.to_bytes()) + parts_bytes


def _check_parts(manifest: Manifest) -> None:
    """Raise KeyError, TypeError or ValueError unless everything is there that readers take for granted."""
    body = manifest.body
    if type(body["version"]) is not int or body["version"] < 1:
        raise ValueError("version")
    for part in (manifest.codec, *manifest.segments):
        for name, facts in part["files"].items():
            if "/" in name or type(facts["bytes"]) is not int or not isinstance(facts["sha256"], str):
                raise ValueError(f"file {name}")
    numbers = [manifest.codec[key] for key in ("nbits", "dimensions", "num_centroids")]
    for segment in manifest.segments:
        numbers += [segment[key] for key in ("passages", "windows", "tokens")]
        if not (segment["deleted"] is None or isinstance(segment["deleted"], str)):
            raise ValueError("deleted")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"counts {numbers}")
    names = [manifest.codec["id"], manifest.codec["folder"], *(segment["id"] for segment in manifest.segments)]
    for key in ("encoder", "reranker"):
        if body[key] is not None:
            names += [body[key]["name"], body[key]["identity"]]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("names")
    settings = body["config"]["index"]
    if type(settings["include_title"]) is not bool or type(settings["window_overlap"]) is not int:
        raise ValueError("config")
    if not (body["corpus"] is None or isinstance(body["corpus"], str)):
        raise ValueError("corpus")


def pack_deleted(deleted: NDArray[np.bool_]) -> str | None:
    """A bit a row as base64; None where nothing is deleted."""
    return base64.b64encode(np.packbits(deleted, bitorder="little").tobytes()).decode() if deleted.any() else None


def unpack_deleted(text: str | None, num_rows: int) -> NDArray[np.bool_]:
    """The inverse of `pack_deleted`: bool [N]. Raises `IndexDamagedError`."""
    if text is None:
        return np.zeros(num_rows, np.bool_)
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (binascii.Error, TypeError, ValueError):
        raise IndexDamagedError("a delete bitmap is not base64") from None
    if len(packed) != (num_rows + 7) // 8:
        raise IndexDamagedError(f"a delete bitmap of {len(packed)} bytes does not fit {num_rows} rows")
    return np.unpackbits(packed, count=num_rows, bitorder="little").astype(np.bool_)


def newest_version(path: Path) -> int | None:
    """The highest version number under an index folder, or None."""
    folder = path / VERSIONS
    if not folder.is_dir():
        return None
    numbers = [int(file.stem) for file in folder.iterdir() if re.fullmatch(r"\d{20}\.json", file.name)]
    return max(numbers, default=None)


def require_version(path: Path) -> int:
    """The newest version. Raises `IndexNotFoundError` that says what is there instead, and what to do."""
    version = newest_version(path)
    if version is not None:
        return version
    if (path / BUILDING / JOURNAL).exists():
        raise IndexNotFoundError(
            f"{path}: no index yet: a build of it is under way or was interrupted; wait for it, or run the same build "
            "again with --resume (resume=True)"
        )
    if not path.exists():
        raise IndexNotFoundError(f"{path}: no index there; make one with: hybrid-retrieval build CORPUS {path}")
    raise IndexNotFoundError(f"{path}: not an index ({'no versions in it' if path.is_dir() else 'a file'})")
