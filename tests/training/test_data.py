"""How questions across languages are made of translations, on a few made-up ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tokenizers import Tokenizer

from hybrid_retrieval.model_files import EMBEDDED_FOLDER
from hybrid_retrieval.training import data

HOSTS = [[10, 11, data.STOP, 12, 13, data.STOP], [20, 21, 22, data.STOP, *range(30, 200), data.STOP, 23]]


def test_each_english_sentence_is_stated_in_one_passage_between_sentences() -> None:
    bitext = [
        ("ara", [101], [1001, 1002]),
        ("cmn", [102], [1001, 1002]),
        ("spa", [103], [1003]),
        ("fra", [104], [1004]),
    ]
    pairs = data.statements(bitext, HOSTS, seed=0)
    assert [pair.passage_key for pair in pairs] == [0, 1, 2]
    translations = {foreign[0]: english for _, foreign, english in bitext}
    assert len({tuple(translations[pair.query[0]]) for pair in pairs}) == 3
    for pair in pairs:
        english = translations[pair.query[0]]
        at = pair.passage.index(english[0])
        assert pair.passage[at : at + len(english)] == english
        assert pair.passage[:at] + pair.passage[at + len(english) :] in HOSTS
        assert at <= 100 and (at == 0 or pair.passage[at - 1] == data.STOP)
    assert data.statements(bitext, HOSTS, seed=0) == pairs


def test_documentation_passages_share_no_paragraph_and_hold_no_test_paragraph(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(gzip.decompress((EMBEDDED_FOLDER / "tokenizer.json.gz").read_bytes()).decode())
    english = [
        {"_id": f"p{i}", "title": "one" if i < 6 else "two", "text": f"Paragraph number {i} tells of something."}
        for i in range(12)
    ]
    foreign = [{"_id": f"p{i}", "text": f"Le paragraphe numéro {i} parle de quelque chose."} for i in range(12)]
    foreign += [{"_id": "gone", "text": "Ce paragraphe n'existe plus dans la version anglaise."}]
    for name, rows in (("en", english), ("fr", foreign)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"corpus.{name}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "parallel_test_ids.json").write_text(json.dumps(["p3"]), encoding="utf-8")
    pairs = data.load_documentation(tmp_path, tokenizer, "fr", limit=9, tokens=100, seed=0)
    assert 2 <= len(pairs) <= 4
    seen: set[int] = set()
    for pair in pairs:
        text, query = tokenizer.decode(pair.passage), tokenizer.decode(pair.query)
        numbers = {int(word) for word in text.split() if word.isdigit()}
        assert pair.passage_key in numbers and f" {pair.passage_key} " in query
        assert 3 not in numbers and numbers <= set(range(pair.passage_key - 1, pair.passage_key + 2))
        assert len({number < 6 for number in numbers}) == 1, "of one document"
        assert not seen & numbers
        seen |= numbers
    (long,) = data.load_documentation(tmp_path, tokenizer, "fr", limit=1, tokens=9, seed=0)
    assert tokenizer.decode(long.passage) == english[long.passage_key]["text"]
