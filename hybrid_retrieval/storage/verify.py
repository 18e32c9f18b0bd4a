"""`verify`: read all of an index and say what is wrong with it."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import IndexDamagedError
from hybrid_retrieval.ragged import falls
from hybrid_retrieval.storage.files import check_content
from hybrid_retrieval.storage.lists import BLOCK_TOKENS, postings
from hybrid_retrieval.storage.manifest import newest_version, require_version
from hybrid_retrieval.storage.segment import Segment
from hybrid_retrieval.storage.snapshot import Snapshot, read_manifest


def verify(path: str | Path) -> list[str]:
    """Problems of the newest version; none is an empty list. Raises `IndexNotFoundError` where there is no
    index, `IndexVersionError` for one of another format, of which nothing can be said.

    Checks the manifest's own checksum, every file's size and SHA-256, and then what checksums cannot say:
    offsets that never fall, codes below K, lists that hold exactly the windows of each centroid, ids that are
    unique.
    """
    path = Path(path)
    while True:
        version = require_version(path)
        problems = _problems(path, version)
        if not problems or newest_version(path) == version:  # else a writer took files away while they were read
            return problems


def _problems(path: Path, version: int) -> list[str]:
    try:
        manifest = read_manifest(path, version)
    except IndexDamagedError as error:
        return [str(error)]
    problems = []
    for folder, files in manifest.folders(path):
        for name, facts in files.items():
            try:
                check_content(folder / name, facts)
            except (IndexDamagedError, OSError) as error:
                problems.append(str(error))
    try:
        snapshot = Snapshot.open(path)
        if snapshot.codec.codec_id != manifest.codec["id"]:
            problems.append(f"{path}: the codec's id is not the one in the manifest")
        for entry, segment in zip(manifest.segments, snapshot.segments, strict=True):
            problems += [
                f"segment {entry['id']}: {problem}"
                for problem in _segment_problems(segment, snapshot.codec.num_centroids)
            ]
        problems += _id_problems(snapshot)
    except IndexDamagedError as error:
        if str(error) not in problems:
            problems.append(str(error))
    return problems


def _segment_problems(segment: Segment, num_centroids: int) -> list[str]:
    offsets = {
        "token offsets": segment.token_offsets,
        "window offsets": segment.window_offsets,
        "list offsets": segment.list_offsets,
        "id offsets": segment.ids.offsets,
        "title offsets": segment.titles.offsets,
        "text offsets": segment.texts.offsets,
        "metadata offsets": segment.metadata.offsets,
    }
    if segment.reranker is not None:
        offsets["reranker offsets"] = segment.reranker.offsets
    problems = [f"{name} fall" for name, values in offsets.items() if falls(values)]
    for start in range(0, len(segment.codes), BLOCK_TOKENS):
        if int(segment.codes[start : start + BLOCK_TOKENS].max()) >= num_centroids:
            problems.append(f"codes are not all below {num_centroids}")
            break
    # Lists are read by the offsets and codes: only sound ones can say anything.
    if not problems and not _lists_agree(segment, num_centroids):
        problems.append("the inverted lists do not agree with the codes")
    return problems


def _lists_agree(segment: Segment, num_centroids: int) -> bool:
    ends: NDArray[np.int64] = segment.list_offsets[:-1].copy()
    for centroids, windows in postings(segment.codes, segment.token_offsets):
        in_block = np.bincount(centroids, minlength=num_centroids)
        rank = np.arange(len(centroids)) - np.repeat(np.cumsum(in_block) - in_block, in_block)
        places = ends[centroids] + rank
        if np.any(places >= segment.list_offsets[centroids + 1]) or np.any(segment.lists[places] != windows):
            return False
        ends += in_block
    return bool(np.array_equal(ends, segment.list_offsets[1:]))


def _id_problems(snapshot: Snapshot) -> list[str]:
    problems = []
    rows: dict[str, int] = {}
    for segment in snapshot.segments:
        for local, deleted in zip_longest(range(segment.num_passages), segment.deleted.tolist()):
            if deleted:
                continue
            row = segment.row_base + local
            first = rows.setdefault(segment.passage_id(local), row)
            if first != row:
                problems.append(f"rows {first} and {row} have the same id")
            segment.passage(local)  # raises for text or metadata that cannot be read
    return problems
