"""BM25 equals its formula; terms are what a reader of the language would take for them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_retrieval.corpus.readers import read_corpus
from hybrid_retrieval.evaluation.bm25 import BM25, tokens
from hybrid_retrieval.evaluation.demo_data import demo_corpus, demo_qrels, demo_queries
from hybrid_retrieval.evaluation.measures import evaluate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The CAT's 3.5 naïve_x", ["the", "cat", "s", "3", "5", "naïve", "x"]),
        ("Straße ÉCOLE Ёлка", ["straße", "école", "ёлка"]),
        ("如何种植番茄?", ["如何", "何种", "种植", "植番", "番茄"]),
        ("第5号 abc中", ["第", "5", "号", "abc", "中"]),
        ("カタカナ", ["カタ", "タカ", "カナ"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("ไทย", ["ไท", "ทย"]),
        ("किताबें हैं।", ["किताबें", "हैं"]),
        ("తెలుగు పుస్తకం", ["తెలుగు", "పుస్తకం"]),
        ("العَرَبِيّة لغة؟", ["العَرَبِيّة", "لغة"]),
        ("", []),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    assert list(tokens(text)) == expected


def bm25_by_formula(texts: list[str], query: str, k1: float, b: float) -> list[float]:
    documents = [list(tokens(text)) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for term in tokens(query):
            df = sum(term in other for other in documents)
            tf = document.count(term)
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean)) if tf else 0.0
        scores.append(score)
    return scores


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "番茄"]), max_size=8).map(" ".join)


@given(texts=st.lists(WORDS.filter(bool), min_size=1, max_size=8), query=WORDS)
@settings(max_examples=100, deadline=None)
def test_scores_equal_the_formula(texts: list[str], query: str) -> None:
    index = BM25(texts, k1=0.9, b=0.4)
    np.testing.assert_allclose(index.scores(query), bm25_by_formula(texts, query, 0.9, 0.4), atol=1e-12)


def test_search_gives_matches_only_best_first_ties_by_row() -> None:
    index = BM25(["x", "cat dog", "cat", "cat", "dog dog cat"])
    rows, scores = index.search("CAT", 10)
    assert rows.tolist() == [2, 3, 1, 4] and np.all(np.diff(scores) <= 0)
    assert index.search("cat", 2)[0].tolist() == [2, 3]
    assert len(index.search("zebra", 3)[0]) == 0


def test_no_passages_and_passages_without_words() -> None:
    assert len(BM25([]).search("a", 3)[0]) == 0
    assert len(BM25(["...", "!"]).search("a", 3)[0]) == 0


def test_quality_on_the_demonstration_collection() -> None:
    passages = list(read_corpus(demo_corpus()))
    index = BM25(passage.text for passage in passages)
    run = {}
    for query in demo_queries("en")[::4]:
        rows, scores = index.search(query.text, 100)
        run[query.query_id] = {passages[row].passage_id: float(s) for row, s in zip(rows, scores, strict=True)}
    qrels = demo_qrels()
    found = evaluate(run, {query_id: qrels[query_id] for query_id in run}, "nDCG@10 R@100")
    # Published figures for BM25 on these paragraphs lie about .85; a broken index falls far below.
    assert found["nDCG@10"] > 0.80 and found["R@100"] > 0.96
