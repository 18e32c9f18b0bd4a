"""`Encoder` over a graph that can be computed by hand."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval import Encoder
from hybrid_retrieval.errors import InputError, ModelError, QueryError
from tests.encoders.tiny_encoder import (
    CLS,
    DIMENSIONS,
    MASK,
    NAN_WORD,
    PASSAGE,
    QUERY,
    SEP,
    description,
    table,
    write_tiny_encoder,
)

THE, HOUSE, RIVER = 1996, 2160, 2314
LONG = " ".join(f"the house {i} is near the river." for i in range(12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def encoder(folder: Path) -> Encoder:
    return Encoder.load(str(folder), threads=1)


def test_a_query_is_marked_and_filled_with_masks(encoder: Encoder) -> None:
    ids = [CLS, QUERY, THE, HOUSE, SEP, *[MASK] * 7]
    np.testing.assert_array_equal(encoder.encode_query("The house"), table()[ids])
    assert encoder.tokens("The house", "query") == ["[CLS]", "[unused0]", "the", "house", "[SEP]", *["[MASK]"] * 7]


def test_a_model_may_weigh_the_tokens_of_a_query(encoder: Encoder, tmp_path: Path) -> None:
    weights = {"direction": np.linspace(-3, 3, DIMENSIONS).tolist(), "bias": 0.5}
    folder = write_tiny_encoder(tmp_path, query=description()["query"] | {"weights": weights})
    weighing = Encoder.load(str(folder), threads=1)
    texts = ["The house", "a river near the house"]
    for unit, found in zip(encoder.encode_queries(texts), weighing.encode_queries(texts), strict=True):
        g = np.sqrt(2 / (1 + np.exp(-(unit @ np.array(weights["direction"]) + weights["bias"]))))
        np.testing.assert_allclose(found, unit * (g / g.mean())[:, None], rtol=1e-5, atol=1e-6)
        assert np.ptp(np.linalg.norm(found, axis=1)) > 0.1
    np.testing.assert_array_equal(weighing.encode_query(texts[1]), weighing.encode_queries(texts)[1])
    np.testing.assert_array_equal(weighing.encode_passages(texts).data, encoder.encode_passages(texts).data)
    assert weighing.identity != encoder.identity


@pytest.mark.parametrize("attend", [False, True])
def test_attention_reaches_the_filling_only_where_the_convention_says(
    folder: Path, tmp_path: Path, attend: bool
) -> None:
    query = description()["query"]
    query["expansion"]["attend"] = attend
    encoder = Encoder.load(str(write_tiny_encoder(tmp_path, query=query)))
    seen: list[np.ndarray[Any, Any]] = []
    forward = encoder._backend.forward

    def spy(ids: Any, mask: Any) -> Any:
        seen.append(mask.copy())
        return forward(ids, mask)

    encoder._backend.forward = spy  # type: ignore[method-assign]
    encoder.encode_query("the house")
    assert seen[0].tolist() == [[1] * 12 if attend else [1] * 5 + [0] * 7]


def test_a_query_over_the_limit_is_cut_with_one_warning(encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        vectors = encoder.encode_query(" ".join(["river"] * 40))
        encoder.encode_query(" ".join(["house"] * 40))
    np.testing.assert_array_equal(vectors, table()[[CLS, QUERY, *[RIVER] * 9, SEP]])
    assert [record.message for record in caplog.records if "cut to the 9" in record.message] == [caplog.messages[0]]


def test_a_passage_loses_the_vectors_of_its_skipped_tokens(encoder: Encoder) -> None:
    found = encoder.encode_passages(["the house, the river."])
    np.testing.assert_array_equal(found.data, table()[[CLS, PASSAGE, THE, HOUSE, THE, RIVER, SEP]])


def test_a_long_passage_becomes_windows_that_lose_no_token(encoder: Encoder) -> None:
    windows, offsets = encoder.encode_windows([LONG, "the house"], overlap_tokens=0)
    pieces = encoder.window_tokens(LONG, overlap_tokens=0)
    assert offsets.tolist() == [0, len(pieces), len(pieces) + 1] and len(pieces) > 5
    assert windows.lengths.tolist() == [*map(len, pieces), 5]
    kept = [piece for window in pieces for piece in window[2:-1]]
    whole = encoder._tokenizer.encode(LONG, add_special_tokens=False).tokens
    assert kept == [piece for piece in whole if piece not in ",."]
    assert all(len(window) <= 16 for window in pieces)


def test_overlap_repeats_tokens(encoder: Encoder) -> None:
    apart, sharing = (sum(map(len, encoder.window_tokens(LONG, overlap))) for overlap in (0, 4))
    assert sharing > apart


def test_a_passages_row_holds_all_its_windows(encoder: Encoder) -> None:
    windows, offsets = encoder.encode_windows([LONG, "the house", LONG])
    rows = encoder.encode_passages([LONG, "the house", LONG])
    assert len(rows) == 3
    np.testing.assert_array_equal(rows.data, windows.data)
    np.testing.assert_array_equal(rows.offsets, windows.offsets[offsets])
    assert encoder.tokens(LONG, "passage") == [piece for window in encoder.window_tokens(LONG) for piece in window]
    assert len(encoder.tokens(LONG, "passage")) == len(rows[0])


@pytest.mark.parametrize("batch_tokens", [1, 16, 40, 100_000])
def test_the_batch_budget_changes_nothing(folder: Path, encoder: Encoder, batch_tokens: int) -> None:
    texts = ["the house", LONG, "river", "the river, the house.", LONG[:50]]
    found = Encoder.load(str(folder), batch_tokens=batch_tokens).encode_passages(texts)
    expected = encoder.encode_passages(texts)
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_array_equal(found.offsets, expected.offsets)


def test_no_texts_give_no_rows(encoder: Encoder) -> None:
    assert encoder.encode_queries([]).data.shape == encoder.encode_passages([]).data.shape == (0, DIMENSIONS)
    windows, offsets = encoder.encode_windows([])
    assert len(windows) == 0 and offsets.tolist() == [0]


def test_a_nan_names_the_text(encoder: Encoder) -> None:
    with pytest.raises(ModelError, match=r"NaN.*query 1 of 2"):
        encoder.encode_queries(["the house", NAN_WORD])
    with pytest.raises(ModelError, match=r"NaN.*passage 2 of 3"):
        encoder.encode_passages([LONG, "the house", f"a {NAN_WORD} house"])


@pytest.mark.parametrize(
    ("query", "message"), [("", "empty"), ("  \n", "empty"), ("a" * 10_001, "10,001"), (3, "string")]
)
def test_an_impossible_query_is_refused(encoder: Encoder, query: Any, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        encoder.encode_query(query)


@pytest.mark.parametrize("passage", ["", " \t", "\u200b", None])
def test_a_passage_without_text_is_refused_by_its_position(encoder: Encoder, passage: Any) -> None:
    with pytest.raises(InputError, match="passage 1 of 2 has no text"):
        encoder.encode_passages(["the house", passage])


def test_a_single_string_is_not_taken_for_many_texts(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="one string"):
        encoder.encode_passages("the house")
    with pytest.raises(InputError, match="one string"):
        encoder.encode_queries("the house")


def test_query_vectors_are_remembered_and_cannot_be_changed(encoder: Encoder) -> None:
    first = encoder.encode_query("the house")
    assert encoder.encode_query("the house") is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1
    capacity = encoder.cache_info().capacity
    for i in range(capacity):
        encoder.encode_query(f"house {i}")
    again = encoder.encode_query("the house")
    assert again is not first
    np.testing.assert_array_equal(again, first)
    assert encoder.cache_info().entries == capacity == 1024
    assert encoder.cache_info().hits == 1


def test_a_cache_of_queries_can_be_turned_off(folder: Path) -> None:
    plain = Encoder.load(str(folder), cached_queries=0)
    np.testing.assert_array_equal(plain.encode_query("the house"), plain.encode_query("the house"))
    assert plain.encode_query("the house") is not plain.encode_query("the house")
    assert plain.cache_info() == (0, 0, 0, 0)


class OutOfMemoryError(RuntimeError):
    """Named as torch's is."""


def test_out_of_memory_halves_the_batch_and_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["the house", "the river runs", LONG] * 4
    expected = Encoder.load(str(folder)).encode_passages(texts)
    small = Encoder.load(str(folder))
    forward = small._backend.forward

    def limited(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        if len(ids) > 2:
            raise OutOfMemoryError("CUDA out of memory")
        return forward(ids, mask)

    monkeypatch.setattr(small._backend, "forward", limited)
    np.testing.assert_allclose(small.encode_passages(texts).data, expected.data, atol=1e-6)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_threads_share_an_encoder(encoder: Encoder) -> None:
    expected = encoder.encode_passages([LONG]).data
    problems: list[object] = []

    def work(number: int) -> None:
        try:
            for i in range(20):
                np.testing.assert_array_equal(encoder.encode_passages([LONG]).data, expected)
                assert encoder.encode_query(f"river {number} {i}").shape == (12, DIMENSIONS)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_identity_follows_weights_tokenizer_and_convention_only(folder: Path, tmp_path: Path) -> None:
    same = write_tiny_encoder(tmp_path / "same", name="other name")
    other = write_tiny_encoder(tmp_path / "other", passage=description()["passage"] | {"max_tokens": 20})
    identity = Encoder.load(str(folder)).identity
    assert Encoder.load(str(same), threads=1, batch_tokens=7).identity == identity
    assert Encoder.load(str(other)).identity != identity
    tokenizer = same / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text("utf-8").replace('"house"', '"xhousex"'), encoding="utf-8")
    assert Encoder.load(str(same)).identity != identity
    assert len(identity) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "exported in float32"),
        ({"dtype": "int8"}, "exported in float32"),
        ({"backend": "torch"}, "use backend 'onnx'"),
        ({"device": "cuda"}, "cuda"),
    ],
)
def test_what_a_backend_cannot_do_is_an_error(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Encoder.load(str(folder), **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"kind": "reranker"}, "kind 'encoder'"),
        ({"query": {}}, "incomplete"),
        ({"query": description()["query"] | {"weights": {"direction": [1.0], "bias": 0}}}, "1 dimensions, the encoder"),
        ({"query": description()["query"] | {"weights": {"bias": 0}}}, "incomplete"),
        ({"query": description()["query"] | {"weights": {"direction": [np.nan] * 8, "bias": 0}}}, "finite"),
        (
            {"passage": description()["passage"] | {"weights": {"direction": [1.0] * 8, "bias": 0}}},
            "only the tokens",
        ),
        ({"pad_id": "x"}, "must be a whole number"),
        ({"graph": 5}, "'graph' must be a string, got 5"),
        ({"identity": 5}, "'identity' must be a string, got 5"),
        ({"trunk": []}, "'trunk' must be an object"),
        ({"query": []}, "incomplete"),
        ({"passage": description()["passage"] | {"max_tokens": 3}}, "leaves no room"),
    ],
)
def test_a_wrong_description_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Encoder.load(str(write_tiny_encoder(tmp_path, **changes)))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = write_tiny_encoder(tmp_path)
    (folder / "encoder.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"encoder\.onnx"):
        Encoder.load(str(folder))
    write_tiny_encoder(tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Encoder.load(str(folder))
    (folder / "encoder.json").write_text("[")
    with pytest.raises(ModelError, match=r"encoder\.json"):
        Encoder.load(str(folder))
    (folder / "encoder.json").write_text(json.dumps({"format": 1, "kind": "encoder", "name": "x"}))
    with pytest.raises(ModelError, match="'graph' is missing"):
        Encoder.load(str(folder))
