"""Windows over token spans: nothing lost, nothing too long, cut where a reader would cut."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_retrieval.corpus.chunker import split_windows
from hybrid_retrieval.errors import ArrayError, ConfigError

PIECES = re.compile(r"\w{1,3}|[^\w\s]")


def pieces(text: str) -> list[tuple[int, int]]:
    """A stand-in for a tokenizer: pieces of at most three characters, punctuation alone."""
    return [match.span() for match in PIECES.finditer(text)]


def characters(text: str) -> list[tuple[int, int]]:
    return [(i, i + 1) for i, character in enumerate(text) if not character.isspace()]


def window_texts(text: str, spans: list[tuple[int, int]], max_tokens: int, overlap: int) -> list[str]:
    windows = split_windows(text, spans, max_tokens, overlap)
    return [text[spans[start][0] : spans[end - 1][1]] for start, end in windows]


def check_cover(windows: list[tuple[int, int]], count: int, max_tokens: int, overlap: int) -> None:
    assert windows[0][0] == 0 and windows[-1][1] == count
    assert all(0 < end - start <= max_tokens for start, end in windows)
    for (start, end), (next_start, next_end) in itertools.pairwise(windows):
        assert start < next_start <= end < next_end
        assert end - next_start <= min(overlap, max_tokens // 2)
        if overlap and max_tokens >= 2:
            assert next_start < end


@given(
    text=st.text(alphabet="ab .。\n!?가नि的؟éA1'\U0001f600", max_size=400),
    max_tokens=st.integers(1, 40),
    overlap=st.integers(0, 60),
)
@settings(max_examples=300, deadline=None)
def test_covers_every_token_for_any_text(text: str, max_tokens: int, overlap: int) -> None:
    spans = pieces(text)
    windows = split_windows(text, spans, max_tokens, overlap)
    if not spans:
        assert windows == [(0, 0)]
    else:
        check_cover(windows, len(spans), max_tokens, overlap)


@given(data=st.data(), max_tokens=st.integers(1, 12), overlap=st.integers(0, 12))
@settings(max_examples=200, deadline=None)
def test_covers_every_token_for_any_spans(data: st.DataObject, max_tokens: int, overlap: int) -> None:
    text = data.draw(st.text(max_size=60))
    point = st.integers(0, len(text))
    spans = data.draw(st.lists(st.tuples(point, point).map(lambda pair: tuple(sorted(pair))), min_size=1))
    check_cover(split_windows(text, spans, max_tokens, overlap), len(spans), max_tokens, overlap)


def test_a_text_that_fits_is_one_window() -> None:
    assert split_windows("one two", [(0, 3), (4, 7)], 2, 1) == [(0, 2)]
    assert split_windows("", [], 8, 2) == [(0, 0)]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("The pumps failed at noon. Nobody came until the next evening.", "The pumps failed at noon."),
        ('He said "it is over." Then he went away and was never heard of again.', 'He said "it is over."'),
        ("Es war spät am Abend! Niemand kam bis zum nächsten Morgen wieder vorbei.", "Es war spät am Abend!"),
        ("مضخات المدينة تعطلت؟ لم يأت أحد حتى مساء اليوم التالي من المدينة", "مضخات المدينة تعطلت؟"),
        ("शहर के पंप बंद हो गए। अगले दिन शाम तक कोई नहीं आया और पानी नहीं था", "शहर के पंप बंद हो गए।"),
        ("First line of the note\n\nsecond part of the note that goes on for long", "First line of the note"),
    ],
)
def test_ends_after_a_sentence(text: str, first: str) -> None:
    spans = characters(text)
    limit = len(characters(first)) + 6
    assert window_texts(text, spans, limit, 0)[0] == first


def test_ends_after_a_cjk_sentence_without_spaces() -> None:
    text = "城市的水泵在中午坏了。直到第二天晚上才有人来修理它们。"
    assert window_texts(text, characters(text), 15, 0)[0] == "城市的水泵在中午坏了。"


@pytest.mark.parametrize(
    "text",
    [
        "They met Dr. Smith and Mr. J. Watson near the old river bridge then",
        "It rose by 3.14 percent at example.org as e.g. the others had before it did",
    ],
)
def test_abbreviations_initials_and_numbers_end_no_sentence(text: str) -> None:
    first = window_texts(text, characters(text), 30, 0)[0]
    word_ends = [end for end, character in enumerate(text) if character == " "]
    assert first == text[: max(end for end in word_ends if len(characters(text[:end])) <= 30)]


def test_cuts_between_words_where_no_sentence_ends() -> None:
    text = "alphabetical beginnings considered dangerous everywhere"
    for window in window_texts(text, pieces(text), 9, 4):
        assert all(word in text.split() for word in window.split())


def test_vowel_signs_and_joiners_stay_in_their_word() -> None:
    text = "किताबें " * 6
    for window in window_texts(text, characters(text), 10, 0):
        assert set(window.split()) == {"किताबें"}


def test_cuts_between_tokens_where_there_is_no_word_bound() -> None:
    text = "a" * 100
    assert split_windows(text, [(i, i + 1) for i in range(100)], 40, 10) == [(0, 40), (30, 70), (60, 100)]


def test_bytes_of_one_character_stay_together() -> None:
    text = "\U0001f600" * 10
    spans = [(i, i + 1) for i in range(10) for _ in range(4)]
    for start, end in split_windows(text, spans, 10, 4):
        assert start % 4 == 0 and (end % 4 == 0 or end == 40)


def test_overlap_starts_at_a_sentence_or_word() -> None:
    text = "One two three. Four five six. Seven eight nine ten. Eleven twelve thirteen fourteen. The end."
    starts = [window.split()[0] for window in window_texts(text, pieces(text), 20, 9)[1:]]
    assert starts == ["Seven", "twelve"]  # the second has no sentence in reach


def test_a_hundred_thousand_words_take_linear_time() -> None:
    text = "word " * 100_000
    spans = np.arange(100_000)[:, None] * 5 + np.array([0, 4])
    windows = split_windows(text, spans, 256, 32)
    check_cover(windows, 100_000, 256, 32)
    assert len(windows) < 500


def test_full_stops_without_spaces_take_linear_time() -> None:
    text = ". " * 100_000
    spans = [(2 * i, 2 * i + 1) for i in range(100_000)]
    check_cover(split_windows(text, spans, 64, 16), 100_000, 64, 16)


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_tokens of a window must be at least 1, got 0"):
        split_windows("a b", [(0, 1), (2, 3)], 0, 0)
    with pytest.raises(ConfigError, match="overlap_tokens must be 0 or more, got -1"):
        split_windows("a b", [(0, 1), (2, 3)], 1, -1)
    with pytest.raises(ArrayError, match="token_spans must be integers"):
        split_windows("a b", np.zeros((3, 2)), 1, 0)
