"""Where everything lies in an index folder, under which name, in which dtype.

    <index>/
      lock                      held (flock) by the one writer; empty
      versions/<20 digits>.json one manifest a commit; the highest number is the index
      codec/<id>/               centroids.npy, cutoffs.npy, weights.npy
      segments/<id>/            the files below: plain little-endian arrays, memory-mapped
      building/                 an unfinished build (journal.json, segment/, codec/, sample/)

A window is a stretch of a passage that fits the encoder; a passage has one or more, and its score is its best
window's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

FORMAT_VERSION = 1

LOCK = "lock"
VERSIONS = "versions"
CODEC = "codec"
SEGMENTS = "segments"
BUILDING = "building"
JOURNAL = "journal.json"
PENDING_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """One array of a segment. `name` is the file's name; it ends in the dtype."""

    name: str
    dtype: np.dtype[np.generic]


def _array(stem: str, dtype: str) -> ArrayFile:
    return ArrayFile(f"{stem}.{dtype}", np.dtype(dtype).newbyteorder("<"))


CODES = _array("codes", "uint32")  # [T] centroid of each token
RESIDUALS = _array("residuals", "uint8")  # [T, D * nbits / 8]
TOKEN_OFFSETS = _array("token_offsets", "int64")  # [W + 1] tokens of each window
WINDOW_OFFSETS = _array("window_offsets", "int64")  # [N + 1] windows of each passage
LISTS = _array("lists", "uint32")  # windows that hold a token of each centroid, rising, without repeats
LIST_OFFSETS = _array("list_offsets", "int64")  # [K + 1] list of each centroid

# Ragged bytes and tokens: data and int64 [N + 1] offsets, one row a passage.
IDS, IDS_OFFSETS = _array("ids", "uint8"), _array("ids_offsets", "int64")
TITLES, TITLES_OFFSETS = _array("titles", "uint8"), _array("titles_offsets", "int64")
TEXTS, TEXTS_OFFSETS = _array("texts", "uint8"), _array("texts_offsets", "int64")
METADATA, METADATA_OFFSETS = (
    _array("metadata", "uint8"),
    _array("metadata_offsets", "int64"),
)  # JSON; empty for {}
RERANKER, RERANKER_OFFSETS = _array("reranker_tokens", "int32"), _array("reranker_offsets", "int64")

# Written while passages are read, while vectors are appended, and once at the end.
PASSAGE_FILES = (
    *(IDS, IDS_OFFSETS, TITLES, TITLES_OFFSETS),
    *(TEXTS, TEXTS_OFFSETS, METADATA, METADATA_OFFSETS),
)
VECTOR_FILES = (CODES, RESIDUALS, TOKEN_OFFSETS, WINDOW_OFFSETS)
RERANKER_FILES = (RERANKER, RERANKER_OFFSETS)
LIST_FILES = (LISTS, LIST_OFFSETS)


# Every path below an index folder, as regular expressions of its parts: what is none of these is not ours to remove.
_ID, _CODEC_FILE = "[0-9a-f-]+", r"(centroids|cutoffs|weights)\.npy"
_SEGMENT_FILE = "|".join(re.escape(file.name) for file in (*PASSAGE_FILES, *VECTOR_FILES, *RERANKER_FILES, *LIST_FILES))
OUR_FOLDERS = (
    *((name,) for name in (VERSIONS, CODEC, SEGMENTS, BUILDING)),
    *((CODEC, _ID), (SEGMENTS, _ID)),
    *((BUILDING, name) for name in ("segment", "sample", r"codec(\.tmp)?")),
)
OUR_FILES = (
    *((LOCK,), (VERSIONS, r"\d{20}\.json"), (CODEC, _ID, _CODEC_FILE), (SEGMENTS, _ID, _SEGMENT_FILE)),
    *((BUILDING, r"(journal|manifest)\.json(\.tmp)?|commit\.json|pooled"), (BUILDING, "segment", _SEGMENT_FILE)),
    *((BUILDING, "sample", r"\d+\.(npz|tmp)"), (BUILDING, r"codec(\.tmp)?", _CODEC_FILE)),
)


def manifest_name(version: int) -> str:
    """The file name of a version's manifest."""
    return f"{version:020d}.json"
