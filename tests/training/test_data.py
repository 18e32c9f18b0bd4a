"""What is held out, and how questions across languages are made of translations, on a few made-up ones."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tokenizers import Tokenizer

from hybrid_retrieval.model_files import EMBEDDED_FOLDER
from hybrid_retrieval.training import data
from hybrid_retrieval.training.dev_sets import write_dev_set

HOSTS = [[10, 11, data.STOP, 12, 13, data.STOP], [20, 21, 22, data.STOP, *range(30, 200), data.STOP, 23]]


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(gzip.decompress((EMBEDDED_FOLDER / "tokenizer.json.gz").read_bytes()).decode())


def write_pairs(folder: Path, name: str, rows: list[dict[str, str]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("seed", [0, 7])
def test_no_question_is_both_held_out_and_trained_on(tmp_path: Path, seed: int) -> None:
    rows = [{"query": f"question {i % 300}?", "positive": f"passage {i} says so."} for i in range(600)]
    write_pairs(tmp_path, "some", rows)
    held, _ = data.held_out(tmp_path, tokenizer(), "some")
    drawn = data.load_pairs(tmp_path, tokenizer(), limit=1000, seed=seed, names=["some"])["some"]
    assert len({pair.passage_key for pair in held}) == data.HELD_OUT
    assert not {pair.passage_key for pair in held} & {pair.passage_key for pair in drawn}
    asked = {tuple(pair.query) for pair in held}
    assert not asked & {tuple(pair.query) for pair in drawn}
    assert len(held) + len(drawn) < 600, "both passages of a question go"
    assert len({tuple(pair.query) for pair in drawn} | asked) == 300, "and nothing else"


def php(function: int, language: str) -> dict[str, str]:
    texts = {"query": f"{language} purpose of function {function}", "positive": f"{language} entry {function}"}
    return texts | {"positive_id": f"php{language}-{function}", "lang": f"{language}-{language}", "source": "php"}


def test_a_function_is_held_out_in_every_language(tmp_path: Path) -> None:
    write_pairs(tmp_path, "php_purpose", [php(i, language) for i in range(400) for language in ("en", "fr")])
    texts = [tokenizer().decode(pair.query) for pair in data.held_out(tmp_path, tokenizer(), "php_purpose")[0]]
    held = {text.split()[-1] for text in texts}
    assert len(texts) == data.HELD_OUT
    rest = data.load_pairs(tmp_path, tokenizer(), limit=1000, seed=0, names=["php_purpose"])["php_purpose"]
    across = data.load_across(tmp_path, tokenizer(), per_language={"fr": 1000}, seed=0)["fr"]
    for pairs in (rest, across):
        found = {tokenizer().decode(pair.query).split()[-1] for pair in pairs}
        assert found and not found & held
    for pair in across:
        query, passage = tokenizer().decode(pair.query), tokenizer().decode(pair.passage)
        assert (query.split()[0], passage.split()[0]) == ("fr", "en") and query.split()[-1] == passage.split()[-1]


def test_every_passage_of_a_question_is_judged_in_a_held_out_set(tmp_path: Path) -> None:
    held = [data.Pair([10], [20], 0), data.Pair([10], [21], 1), data.Pair([11], [22], 2)]
    others = [data.Pair([12], [23], 3)]
    relevant = {0: {0, 1, 9}, 1: {0, 1, 9}, 2: {2}}  # 9 is not in the pool
    write_dev_set(tmp_path, "some", held, others, relevant, tokenizer(), queries=3, pool=4)
    qrels = (tmp_path / "some" / "qrels" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert qrels == ["q0\t0\t1", "q0\t1\t1", "q1\t0\t1", "q1\t1\t1", "q2\t2\t1"]
    assert len((tmp_path / "some" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def test_answers_are_of_both_sides_of_the_split(tmp_path: Path) -> None:
    rows = [{"query": f"question {i}?", "positive": f"passage {i} says so."} for i in range(400)]
    rows += [{"query": f"question {i}?", "positive": f"passage {i + 1} says so."} for i in range(0, 400, 2)]
    write_pairs(tmp_path, "some", rows)
    held, found = data.held_out(tmp_path, tokenizer(), "some")
    assert sorted(map(len, found.values())) == [1] * 200 + [2] * 200
    across = [pair for pair in held if max(found[tuple(pair.query)]) >= data.HELD_OUT]
    assert across, "held out with one passage, while the other stands in the pool for another question"
    drawn = data.load_pairs(tmp_path, tokenizer(), limit=1000, seed=0, names=["some"])["some"]
    assert {max(found[tuple(pair.query)]) for pair in across} & {pair.passage_key for pair in drawn}


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
    pairs = data.load_documentation(tmp_path, tokenizer(), "fr", limit=9, tokens=100, seed=0)
    assert 2 <= len(pairs) <= 4
    seen: set[int] = set()
    for pair in pairs:
        text, query = tokenizer().decode(pair.passage), tokenizer().decode(pair.query)
        numbers = {int(word) for word in text.split() if word.isdigit()}
        assert pair.passage_key in numbers and f" {pair.passage_key} " in query
        assert 3 not in numbers and numbers <= set(range(pair.passage_key - 1, pair.passage_key + 2))
        assert len({number < 6 for number in numbers}) == 1, "of one document"
        assert not seen & numbers
        seen |= numbers
    (long,) = data.load_documentation(tmp_path, tokenizer(), "fr", limit=1, tokens=9, seed=0)
    assert tokenizer().decode(long.passage) == english[long.passage_key]["text"]
