"""Which pairs each part of the training is given, on made-up files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from tokenizers import Tokenizer

from hybrid_retrieval.model_files import EMBEDDED_FOLDER
from hybrid_retrieval.training import data, reranker_recipe, run, upper_recipe

ROWS, HELD_OUT = 40, 3
LANGUAGES = ("zh", "es", "fr", "ru", "ja", "de", "ko", "pt")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(gzip.decompress((EMBEDDED_FOLDER / "tokenizer.json.gz").read_bytes()).decode())


def write(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training pairs, sentences and documentation, every text of its own."""
    path = tmp_path_factory.mktemp("data")
    for name in {*upper_recipe.FILES, *reranker_recipe.FILES}:
        rows = [{"query": f"question {i} of {name}", "positive": f"passage {i} of {name}"} for i in range(ROWS)]
        write(path / f"{name}.jsonl", rows)
    functions = [
        {
            "query": f"what function {i} does, told in {language}",
            "positive": f"manual of function {i} in {language}",
            "positive_id": f"{language}-{i}",
            "lang": f"{language}-{language}",
        }
        for language in ("en", *LANGUAGES)
        for i in range(ROWS)
    ]
    write(path / "php_purpose.jsonl", functions)
    for language in ("en", *LANGUAGES):
        text = "paragraph {} of the documentation, told in " + language
        write(
            path / f"corpus.{language}.jsonl", [{"_id": str(i), "title": "", "text": text.format(i)} for i in range(99)]
        )
    (path / "parallel_test_ids.json").write_text("[]", encoding="utf-8")
    for language in data.BITEXT_LANGUAGES:
        lines = [f"sentence {i} of {language}\tsentence {i} of {language} in English" for i in range(3)]
        (path / f"{language}-eng.tsv").write_text("\n".join(lines), encoding="utf-8")
    return path


def test_the_cross_encoder_is_asked_what_the_encoder_was_not(
    tokenizer: Tokenizer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "HELD_OUT", HELD_OUT)
    for recipe, limits in ((upper_recipe, (7, 4)), (reranker_recipe, (9, 6))):
        monkeypatch.setattr(recipe, "FILES", {name: (1.0, limits[0]) for name in recipe.FILES})
        for across in ("ACROSS", "DOCUMENTATION"):
            monkeypatch.setattr(recipe, across, {language: (1.0, limits[1]) for language in getattr(recipe, across)})
    drawn = data.load_pairs(folder, tokenizer, seed=0, names=upper_recipe.FILES)
    learned = run._learned_from(tokenizer, drawn, pairs=folder, documentation=folder, seed=0)
    asked = run._reranker_sources(tokenizer, pairs=folder, sentences=folder, documentation=folder, seed=0)
    assert set(asked) == set(reranker_recipe.SHARES)
    for name, pairs in asked.items():
        seen = {tuple(pair.query) for pair in learned.get(name, [])}
        seen |= (
            {tuple(pair.query) for pair in data.held_out(folder, tokenizer, name, seed=0)} if name in drawn else set()
        )
        assert pairs and not seen & {tuple(pair.query) for pair in pairs}
    sizes = {name: len(pairs) for name, pairs in asked.items()}
    assert sizes["tydiqa-en"] == 9 and sizes[data.across_file("zh")] == 6
    assert sizes[data.documentation_file("fr")] == 6


def test_more_rows_add_to_the_end(tokenizer: Tokenizer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "HELD_OUT", HELD_OUT)
    few, many = (
        data.load_pairs(folder, tokenizer, rows=rows, seed=0, names=["tydiqa-en"])["tydiqa-en"] for rows in (20, 30)
    )
    assert len(few) == 20 - HELD_OUT and few == many[: len(few)] and len(many) == 30 - HELD_OUT
