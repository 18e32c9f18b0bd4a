"""Fixtures that several folders of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_retrieval import Index
from tests.small_corpus import write_corpus


@pytest.fixture(scope="session")
def small_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index over a dozen passages, built with the embedded models. Read-only: tests copy it to change it."""
    folder = tmp_path_factory.mktemp("small")
    Index.build(write_corpus(folder / "corpus.jsonl"), folder / "index", reranker="embedded")
    return folder / "index"
