"""Runs: what a system answered, in TREC's form `query_id Q0 passage_id rank score tag`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.corpus.lines import read_lines
from hybrid_retrieval.errors import CorpusError, InputError
from hybrid_retrieval.whole_files import write_whole

Run = dict[str, dict[str, float]]


def trec_lines(
    query_id: str, ids: Sequence[str], scores: Sequence[float] | NDArray[np.floating[Any]], tag: str
) -> Iterator[str]:
    """One query's lines, without line ends, in the given order, best first. Scores keep all of float32's
    digits.

    Raises `InputError` for an id or tag that is empty or has white space (the columns could not be told
    apart), and for a score that is not finite.
    """
    check_word(tag, "tag")
    check_word(query_id, "query id")
    for rank, (passage_id, score) in enumerate(zip(ids, scores, strict=True), 1):
        check_word(passage_id, "passage id")
        if not math.isfinite(score):
            raise InputError(f"query '{query_id}', passage '{passage_id}': the score is {score}, not finite")
        yield f"{query_id} Q0 {passage_id} {rank} {score:.9g} {tag}"


def write_run(path: str | Path, run: Mapping[str, Mapping[str, float]], tag: str = "hybrid_retrieval") -> None:
    """Write the run, best first for each query, ties in the given order (`whole_files.write_whole`).

    Raises `InputError` as `trec_lines` does, and where the file cannot be written.
    """
    lines: list[str] = []
    for query_id, scores in run.items():
        ids = sorted(scores, key=lambda passage_id: -scores[passage_id])
        lines.extend(trec_lines(query_id, ids, [scores[passage_id] for passage_id in ids], tag))
    text = "".join(f"{line}\n" for line in lines)
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise InputError(f"{path}: the run cannot be written ({error.strerror or error})") from None


def read_run(path: str | Path) -> Run:
    """query id -> passage id -> score, in file order. Raises `CorpusError` naming file and line."""
    path = Path(path)
    run: Run = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where, fields = f"{path}:{number}", line.split()
        if len(fields) != 6:
            raise CorpusError(f"{where}: expected 6 columns (query_id Q0 passage_id rank score tag), got {len(fields)}")
        query_id, _, passage_id, _, score_field, _ = fields
        try:
            score = float(score_field)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise CorpusError(f"{where}: expected a finite score in column 5, got '{score_field}'")
        scores = run.setdefault(query_id, {})
        if passage_id in scores:
            raise CorpusError(f"{where}: query '{query_id}' has the passage '{passage_id}' twice")
        scores[passage_id] = score
    return run


def check_word(value: str, what: str) -> None:
    """Raise `InputError` for what a column of a run cannot hold."""
    if not value or value.split() != [value]:
        raise InputError(f"a run's {what} must be one word without white space, got '{value}'")
