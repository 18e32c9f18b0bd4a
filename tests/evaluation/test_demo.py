"""The demonstration's collection, values and tables, with fakes in the models' place."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from evaluation_fakes import WordPipeline
from rich.console import Console

from hybrid_retrieval.corpus.readers import read_corpus
from hybrid_retrieval.errors import ConfigError, CorpusError
from hybrid_retrieval.evaluation import demo, demo_sections, demo_tables
from hybrid_retrieval.evaluation.demo_data import (
    LANGUAGES,
    demo_corpus,
    demo_folder,
    demo_qrels,
    demo_queries,
)
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.types import Passage, Ranking


class LetterEncoder:
    """A one-hot vector for each character, by its code modulo 64."""

    def encode_queries(self, texts: Sequence[str]) -> Ragged:
        return Ragged.from_rows([np.eye(64, dtype=np.float32)[[ord(c) % 64 for c in text]] for text in texts])

    encode_passages = encode_queries


class LengthReranker:
    """The longer the passage, the better."""

    def rank(self, query: str, passages: Sequence[Passage], k: int = 10) -> Ranking:
        ordered = sorted(passages, key=lambda passage: -len(passage.text))[:k]
        lengths = np.array([len(passage.text) for passage in ordered], np.float32)
        return Ranking(tuple(passage.passage_id for passage in ordered), lengths, reranker_scores=lengths)


@pytest.fixture(scope="module")
def pipeline() -> WordPipeline:
    return WordPipeline(list(read_corpus(demo_corpus())))


def test_the_collection_is_whole_and_aligned() -> None:
    ids = {passage.passage_id for passage in read_corpus(demo_corpus())}
    assert len(ids) == 1000
    qrels = demo_qrels()
    english = [query.query_id for query in demo_queries("en")]
    assert len(english) == 1190 and set(english) == set(qrels)
    assert all(passage_id in ids for relevant in qrels.values() for passage_id in relevant)
    for language in LANGUAGES:
        assert [query.query_id for query in demo_queries(language)] == english
    with pytest.raises(CorpusError, match="no demonstration queries in 'fr'; expected one of en, zh"):
        demo_queries("fr")


def test_the_collection_is_small_and_attributed() -> None:
    assert sum(path.stat().st_size for path in demo_folder().iterdir()) < 3_000_000
    readme = (demo_folder() / "README.md").read_text(encoding="utf-8")
    assert "CC BY-SA 4.0" in readme and "SQuAD" in readme and "XQuAD" in readme


def test_draws_are_fixed_and_apart() -> None:
    assert demo_sections.drawn_ids(3) == demo_sections.drawn_ids(5)[:3]
    assert not set(demo_sections.drawn_ids(5)) & set(demo_sections.drawn_ids(100, skip=5))


def test_examples_show_both_stages(pipeline: WordPipeline) -> None:
    examples = demo_sections.ask_examples(pipeline)
    assert [example["language"] for example in examples] == list(LANGUAGES)
    for example in examples:
        assert len(example["hits"]) == 3
        for rank, hit in enumerate(example["hits"], 1):
            assert hit["rank"] == hit["retrieval_rank"] == rank
            assert hit["reranker_score"] == pytest.approx(2 * hit["retrieval_score"])
    assert any(hit["relevant"] for hit in examples[0]["hits"])


def test_figures_by_language(pipeline: WordPipeline) -> None:
    steps: list[tuple[str, int, int]] = []
    figures = demo_sections.measure_languages(pipeline, 4, 10, lambda *step: steps.append(step))
    assert (figures["queries"], figures["wide_queries"]) == (4, 10)
    assert list(figures["languages"]) == list(LANGUAGES)
    english, chinese = figures["languages"]["en"], figures["languages"]["zh"]
    # The fake's stage 1 is BM25 itself, and its stage 2 keeps that order.
    assert english["bm25"] == english["stage1"] == english["both"]
    assert english["bm25_wide"] == english["stage1_wide"] and english["stage1"]["nDCG@10"] > 0.5
    assert chinese["bm25"] is None and chinese["stage1"]["nDCG@10"] < english["stage1"]["nDCG@10"]
    assert chinese["latency_ms"]["rerank"] == {"p50": 10.0, "p95": 10.0}
    assert steps[0] == ("both stages, English queries", 1, 4) and len(steps) == 20


def test_the_tomato_comparison_names_each_stages_order() -> None:
    found = demo_sections.compare_tomato(LetterEncoder(), LengthReranker())
    assert found["query"] == "如何种植番茄?"
    by_id = {passage["passage_id"]: passage for passage in found["passages"]}
    assert list(by_id) == ["english", "unrelated", "chinese"]
    assert sorted(passage["maxsim_rank"] for passage in by_id.values())[0] == 1
    assert by_id["chinese"]["reranker_rank"] == 3 and by_id["chinese"]["reranker_score"] == len(
        by_id["chinese"]["text"]
    )
    query, texts = found["query"], {name: passage["text"] for name, passage in by_id.items()}
    shared = {name: sum(ord(c) % 64 in {ord(d) % 64 for d in text} for c in query) for name, text in texts.items()}
    assert {name: passage["maxsim"] for name, passage in by_id.items()} == pytest.approx(shared)


def test_values_are_json_and_tables_are_readable_without_a_terminal(pipeline: WordPipeline) -> None:
    examples = demo_sections.ask_examples(pipeline)
    figures = demo_sections.measure_languages(pipeline, 2, 3)
    comparison = demo_sections.compare_tomato(LetterEncoder(), LengthReranker())
    json.dumps([examples, figures, comparison], allow_nan=False)
    built = {
        "passages": 1000,
        "tokens": 1000,
        "bytes": 10**7,
        "nbits": 2,
        "seconds": 9.0,
        "passages_per_s": 230.0,
    }
    out = io.StringIO()
    console = Console(file=out, width=160, color_system=None, highlight=False)
    demo_tables.show_build(console, built)
    demo_tables.show_examples(console, examples)
    demo_tables.show_languages(console, figures)
    demo_tables.show_tomato(console, comparison)
    text = out.getvalue()
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 160
    assert "Indexed 1,000 English paragraphs" in text
    for name in LANGUAGES.values():
        assert f"\n{name}" in text
    row = next(line for line in text.splitlines() if line.startswith("English  "))
    bm25 = figures["languages"]["en"]["bm25"]["nDCG@10"]
    assert row.split() == ["English", *[f"{bm25:.3f}"] * 3, *["1.000"] * 3, "3", "10"]
    assert next(line for line in text.splitlines() if line.startswith("Russian  ")).split()[1] == "-"
    assert "如何种植番茄?" in text


class IndexStandIn:
    """In `Index`'s place: notes how it was built."""

    calls: ClassVar[list[tuple[Any, ...]]] = []
    passages = 1000

    @classmethod
    def build(cls, corpus: Path, folder: Path, *, overwrite: bool, **options: Any) -> IndexStandIn:
        cls.calls.append((corpus, folder, overwrite, sorted(options)))
        return cls()

    def info(self) -> dict[str, Any]:
        return {"passages": 1000, "tokens": 1000, "bytes": 10**7, "nbits": 2}


def test_the_whole_demonstration(monkeypatch: pytest.MonkeyPatch, pipeline: WordPipeline, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "load_encoder", lambda settings: LetterEncoder())
    monkeypatch.setattr(demo, "load_reranker", lambda settings: LengthReranker())
    monkeypatch.setattr(demo, "Index", IndexStandIn)
    monkeypatch.setattr(demo, "Pipeline", lambda *parts: pipeline)
    out = io.StringIO()
    found = demo.run_demo(tmp_path, sample=2, wide_sample=3, console=Console(file=out, width=160))
    assert IndexStandIn.calls == [(demo_corpus(), tmp_path, False, ["config", "encoder", "progress", "reranker"])]
    assert set(found) == {"index", "examples", "figures", "comparison", "seconds"}
    assert found["index"]["passages"] == 1000 and found["figures"]["queries"] == 2
    json.dumps(found, allow_nan=False)
    assert "All of it took" in out.getvalue()
    assert demo.run_demo(tmp_path, sample=2, wide_sample=3)["figures"]["wide_queries"] == 3


def test_the_demonstration_needs_both_stages_and_a_sample(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "load_encoder", lambda settings: LetterEncoder())
    monkeypatch.setattr(demo, "load_reranker", lambda settings: None)
    with pytest.raises(ConfigError, match=r"reranker\.model must not be 'none'"):
        demo.run_demo(tmp_path)
    with pytest.raises(ConfigError, match="samples must be at least 1, got 0 and 100"):
        demo.run_demo(tmp_path, sample=0)
    assert list(tmp_path.iterdir()) == []
