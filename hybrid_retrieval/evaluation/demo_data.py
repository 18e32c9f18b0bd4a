"""The collection that the package carries: English paragraphs, and the same questions in five languages."""

from __future__ import annotations

from pathlib import Path

from hybrid_retrieval.corpus.queries import Qrels, read_qrels, read_queries
from hybrid_retrieval.errors import CorpusError
from hybrid_retrieval.types import Query

LANGUAGES = {"en": "English", "zh": "Chinese", "ar": "Arabic", "es": "Spanish", "ru": "Russian"}


def demo_folder() -> Path:
    """Where the collection is installed."""
    return Path(__file__).parent.parent / "demo_data"


def demo_corpus() -> Path:
    """The corpus file, for `Index.build` and `read_corpus`."""
    return demo_folder() / "corpus.jsonl.gz"


def demo_queries(language: str) -> list[Query]:
    """XQuAD's questions in one language, aligned: the i-th has the same id in every language."""
    if language not in LANGUAGES:
        raise CorpusError(f"no demonstration queries in '{language}'; expected one of {', '.join(LANGUAGES)}")
    return read_queries(demo_folder() / f"queries.{language}.jsonl.gz")


def demo_qrels() -> Qrels:
    """Which paragraph each question was written for."""
    return read_qrels(demo_folder() / "qrels.tsv")
