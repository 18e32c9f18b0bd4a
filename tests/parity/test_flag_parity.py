"""Pair token ids and logits equal FlagReranker's, for XLM-R and BERT cross-encoders read by the torch backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval import Reranker
from tests.parity.checkpoints import HERE, make_bert_reranker, make_xlmr_reranker, texts, weights_digest

pytest.importorskip("torch")
MAKERS = {"xlmr": make_xlmr_reranker, "bert": make_bert_reranker}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(HERE / "flag.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory, recorded: dict[str, Any]) -> Callable[[str], Reranker]:
    made: dict[str, Reranker] = {}

    def get(name: str) -> Reranker:
        if name not in made:
            folder = MAKERS[name](tmp_path_factory.mktemp(name))
            assert weights_digest(folder) == str(recorded[f"{name}_weights"]), "other weights than the fixture's"
            options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "long_passages": "cut", "cached_pairs": 0}
            made[name] = Reranker.load(str(folder), **options)
        return made[name]

    return get


def recorded_rows(recorded: dict[str, Any], name: str, kind: str = "ids") -> Iterator[list[int]]:
    ends = np.cumsum(recorded[f"{name}_lengths"].astype(np.int64))
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield recorded[f"{name}_{kind}"][start:end].tolist()


def sent_rows(
    reranker: Reranker, pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[list[int], list[int] | None]]:
    """Ids (and types) of each pair as the model receives them, in input order."""
    rows: list[tuple[list[int], list[int] | None]] = []

    def forward(ids: Any, mask: Any, types: Any, ends: float) -> Any:
        assert len(ids) == 1
        length = int(mask.sum())
        assert mask[0, :length].all()
        rows.append((ids[0, :length].tolist(), None if types is None else types[0, :length].tolist()))
        return np.zeros(1, np.float32)

    monkeypatch.setattr(reranker.scorer.backend, "forward", forward)
    for pair in pairs:
        reranker.score([pair])
    return rows


@pytest.mark.parametrize("name", ["xlmr", "bert"])
def test_pair_ids(
    load: Callable[[str], Reranker], recorded: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(recorded_rows(recorded, name))
    pairs = [tuple(pair) for pair in texts()["pairs"]][: len(expected)]
    found = sent_rows(load(name), pairs, monkeypatch)
    assert len(found) == len(expected) == {"xlmr": 500, "bert": 50}[name]
    for position, ((ids, _), wanted) in enumerate(zip(found, expected, strict=True)):
        assert ids == wanted, f"pair {position}"
    if name == "bert":
        assert [types for _, types in found] == list(recorded_rows(recorded, name, "types"))


def test_the_pairs_reach_every_case_of_truncation(recorded: dict[str, Any]) -> None:
    rows = list(recorded_rows(recorded, "xlmr"))
    full = [row for row in rows if len(row) == 512]
    query_lengths = {row.index(2) - 1 for row in full}
    assert len(full) >= 100, "passages that are cut"
    assert 384 in query_lengths, "queries that are cut"
    assert min(len(row) for row in rows) < 200


@pytest.mark.parametrize("name", ["xlmr", "bert"])
def test_logits(load: Callable[[str], Reranker], recorded: dict[str, Any], name: str) -> None:
    pairs = [tuple(pair) for pair in texts()["pairs"]]
    expected = recorded[f"{name}_logits"]
    found = load(name).score([pairs[i] for i in recorded[f"{name}_scored"]])
    assert expected.std() > 0.05, "logits that are all alike would prove nothing"
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
