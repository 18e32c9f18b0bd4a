"""Cutting and joining of pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from hybrid_retrieval.errors import ModelError
from hybrid_retrieval.rerankers.pairs import PairConvention, convention_of, cut, window_spans
from tests.parity.checkpoints import bert_tokenizer_json, xlmr_tokenizer_json


def test_longest_first_cuts_as_the_tokenizers_library_does() -> None:
    tokenizer = Tokenizer.from_str(bert_tokenizer_json())
    tokenizer.no_padding()
    for query, passage, room in itertools.product(range(1, 12), range(1, 12), range(2, 16)):
        tokenizer.enable_truncation(room + 3, strategy="longest_first")
        encoding = tokenizer.encode(" ".join(["house"] * query), " ".join(["river"] * passage))
        expected = (encoding.tokens.count("house"), encoding.tokens.count("river"))
        left, right, was_cut = cut([1] * query, [2] * passage, room, 8, "longest_first")
        assert (len(left), len(right)) == expected, (query, passage, room)
        assert was_cut == (query + passage > room)


@pytest.mark.parametrize(
    ("query", "passage", "kept", "was_cut"),
    [
        (10, 20, (10, 20), False),
        (10, 50, (10, 30), True),
        (24, 16, (24, 16), False),
        (25, 5, (24, 5), True),
        (99, 99, (24, 16), True),
    ],
)
def test_only_second_cuts_the_query_to_its_limit_and_the_passage_to_the_rest(
    query: int, passage: int, kept: tuple[int, int], was_cut: bool
) -> None:
    left, right, found = cut(list(range(query)), list(range(passage)), 40, 24, "only_second")
    assert (len(left), len(right)) == kept and found is was_cut
    assert list(left) == list(range(kept[0])) and list(right) == list(range(kept[1]))


@pytest.mark.parametrize("room", [2, 3, 13])
def test_at_least_one_token_of_the_passage_stays(room: int) -> None:
    left, right, _ = cut([1] * 50, [2] * 50, room, 48, "only_second")
    assert len(left) == room - 1 and len(right) == 1


def test_conventions_come_from_the_tokenizers_own_template() -> None:
    tokenizer = Tokenizer.from_str(bert_tokenizer_json())
    tokenizer.no_padding()
    bert = convention_of(tokenizer, 0, token_types=True)
    assert bert == PairConvention((101,), (102,), (102,), 0, True)
    xlmr = convention_of(Tokenizer.from_str(xlmr_tokenizer_json()), 1, token_types=False)
    assert xlmr == PairConvention((0,), (2, 2), (2,), 1, False)
    assert xlmr.join([7, 8], [9]).tolist() == [0, 7, 8, 2, 2, 9, 2]
    assert xlmr.num_specials == 4 and xlmr.passage_start(2) == 5


def test_a_marker_inside_a_text_is_one_only_where_the_model_says_nothing() -> None:
    values = {"prefix_ids": [0], "middle_ids": [2, 2], "suffix_ids": [2], "pad_id": 1}
    text = np.array([0, 7, 2, 9, 1], np.int32)
    kept = PairConvention.from_dict(values, "reranker.json")
    assert kept.as_text(text).tolist() == [0, 7, 2, 9, 1]
    read = PairConvention.from_dict({**values, "unknown_id": 3}, "reranker.json").as_text(text)
    assert read.tolist() == [3, 7, 3, 9, 1] and read.dtype == np.int32


def test_a_tokenizer_without_a_template_is_refused() -> None:
    from tokenizers import models

    plain = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    with pytest.raises(ModelError, match="pair"):
        convention_of(plain, 0, token_types=False)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ModelError, match="middle_ids"):
        PairConvention.from_dict({"prefix_ids": [0], "suffix_ids": [2], "pad_id": 1}, "reranker.json")


@given(st.integers(0, 3000), st.integers(1, 512), st.integers(0, 600))
def test_windows_cover_every_token_and_are_full(tokens: int, room: int, overlap: int) -> None:
    spans = window_spans(tokens, room, overlap)
    assert spans[0][0] == 0 and spans[-1][1] == tokens
    assert all(stop - start == min(room, tokens) for start, stop in spans)
    shared = [stop - start for (_, stop), (start, _) in itertools.pairwise(spans)]
    assert all(count == min(overlap, room // 2) for count in shared[:-1])
    assert all(count >= min(overlap, room // 2) for count in shared)
    # Never more windows than half of each one being new would make.
    assert len(spans) <= max(1, 2 * tokens // room + 1)
