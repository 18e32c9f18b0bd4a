"""Token vectors equal colbert-ai's, for a Stanford checkpoint read by the torch backend in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval import Encoder
from tests.parity.checkpoints import HERE, METADATA, make_colbert, texts, weights_digest

pytest.importorskip("torch")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(HERE / "colbert.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory, recorded: dict[str, Any]) -> Callable[[bool], Encoder]:
    made: dict[bool, Encoder] = {}

    def get(attend: bool) -> Encoder:
        if attend not in made:
            folder: Path = make_colbert(tmp_path_factory.mktemp("colbert"), attend=attend)
            assert weights_digest(folder) == str(recorded["weights"]), (
                "other weights than the fixture was recorded with"
            )
            made[attend] = Encoder.load(str(folder), device="cpu", dtype="float32")
        return made[attend]

    return get


@pytest.mark.parametrize("attend", [False, True])
def test_query_vectors_with_their_mask_filling(
    load: Callable[[bool], Encoder], recorded: dict[str, Any], attend: bool
) -> None:
    expected = recorded[f"queries_attend_{attend}"]
    found = load(attend).encode_queries(texts()["colbert_queries"])
    assert found.lengths.tolist() == [32] * len(expected)
    np.testing.assert_allclose(found.data.reshape(expected.shape), expected, atol=TOLERANCE, rtol=0)


def test_attention_to_the_filling_matters_to_the_fixture(recorded: dict[str, Any]) -> None:
    difference = np.abs(recorded["queries_attend_False"] - recorded["queries_attend_True"])
    assert difference.max() > 0.1


def test_passage_vectors_without_punctuation(load: Callable[[bool], Encoder], recorded: dict[str, Any]) -> None:
    passages, lengths = texts()["colbert_passages"], recorded["passage_lengths"].tolist()
    windows, offsets = load(False).encode_windows(passages)
    ends = np.cumsum(lengths)
    for i, passage in enumerate(passages):
        expected = recorded["passages"][ends[i] - lengths[i] : ends[i]]
        # Where colbert-ai cuts a passage, this library goes on in further windows; the first is what colbert-ai kept.
        np.testing.assert_allclose(windows[int(offsets[i])], expected, atol=TOLERANCE, rtol=0, err_msg=passage)


def test_only_the_long_passage_has_more_than_one_window(load: Callable[[bool], Encoder]) -> None:
    _, offsets = load(False).encode_windows(texts()["colbert_passages"])
    counts = np.diff(offsets).tolist()
    assert counts[:-1] == [1] * (len(counts) - 1)
    assert counts[-1] > 1


def test_a_full_window_has_doc_maxlen_tokens(load: Callable[[bool], Encoder], recorded: dict[str, Any]) -> None:
    assert recorded["passage_lengths"][-1] == METADATA["doc_maxlen"] == load(False).max_passage_tokens


def test_the_long_query_is_cut_as_colbert_cuts_it(load: Callable[[bool], Encoder]) -> None:
    pieces = load(False).tokens(texts()["colbert_queries"][-1], "query")
    assert len(pieces) == 32
    assert pieces[:2] == ["[CLS]", "[unused0]"] and pieces[-1] == "[SEP]" and "[MASK]" not in pieces


def test_punctuation_is_skipped_in_passages_only(load: Callable[[bool], Encoder]) -> None:
    encoder = load(False)
    assert encoder.window_tokens("yes, no; (why?)") == [["[CLS]", "[unused1]", "yes", "no", "why", "[SEP]"]]
    assert encoder.tokens("yes, no?", "query")[:7] == ["[CLS]", "[unused0]", "yes", ",", "no", "?", "[SEP]"]
