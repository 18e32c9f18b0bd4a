"""Lexicons learned from a few translated sentences, and questions put into other languages with them."""

from __future__ import annotations

import gzip
import random

import numpy as np
import pytest

pytest.importorskip("torch")

from tokenizers import Tokenizer

from hybrid_retrieval.kernels import dispatch
from hybrid_retrieval.model_files import EMBEDDED_FOLDER
from hybrid_retrieval.training import code_switching as cs
from hybrid_retrieval.training import data

native = pytest.mark.skipif(dispatch.variant() == dispatch.NUMPY, reason="needs the compiled kernels")
SENTENCES = {
    "spa": [
        ("La ciudad es muy grande.", "The city is very big."),
        ("Mi hermano vive en una ciudad pequeña.", "My brother lives in a small city."),
        ("¿Dónde vive tu hermano?", "Where does your brother live?"),
    ],
    "cmn": [("这座城市很大。", "This city is very big."), ("我的钱在哪里？", "Where is my money?")],
    "kor": [("도시가 아주 크다.", "The city is very big.")],
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(gzip.decompress((EMBEDDED_FOLDER / "tokenizer.json.gz").read_bytes()).decode())


@pytest.fixture(scope="module")
def lexicons(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, cs.Lexicon]:
    folder = tmp_path_factory.mktemp("sentences")
    for name, rows in SENTENCES.items():
        lines = ["\t".join(row) for row in rows]
        (folder / f"{name}-eng.tsv").write_text("\n".join([*lines, "a line without a tab"]) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cs, "LANGUAGES", dict.fromkeys(SENTENCES, 1.0))
        patch.setattr(cs, "SCRIPTS", {"HANGUL": "kor"})
        english = ["Italy and Spain, student and city"] * 2 + ["once"]
        return cs.learn(EMBEDDED_FOLDER, folder, tokenizer, english, threads=1)


@native
def test_words_of_translations_are_aligned(lexicons: dict[str, cs.Lexicon]) -> None:
    assert lexicons["spa"]["city"][0][0] == "ciudad"
    assert lexicons["spa"]["brother"][0][0] == "hermano"
    assert {theirs for theirs, _ in lexicons["spa"]["where"]} == {"Dónde"}
    assert any("城市" in theirs for theirs, _ in lexicons["cmn"]["city"])
    assert any("钱" in theirs for theirs, _ in lexicons["cmn"]["money"])


@native
def test_words_of_no_sentence_are_found_in_the_vocabulary(lexicons: dict[str, cs.Lexicon]) -> None:
    """Of the language whose script tells it; what the sentences taught stays."""
    assert lexicons["kor"]["italy"][0][0] == "이탈리아" and lexicons["kor"]["spain"][0][0] == "스페인"
    assert "italy" not in lexicons["spa"] and "once" not in lexicons["kor"]
    assert lexicons["kor"]["city"][0][0].startswith("도시")


def test_languages_are_those_of_the_sentences() -> None:
    assert set(cs.LANGUAGES) == set(data.BITEXT_LANGUAGES)
    assert {*cs.SCRIPTS.values(), *cs.UNSPACED} <= set(cs.LANGUAGES)


LEXICON: cs.Lexicon = {"where": [("哪里", 1.0)], "is": [("是", 2.0)], "city": [("城市", 1.0), ("城", 1.0)]}


def test_known_words_are_put_into_the_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cs, "KEPT", 0.0)
    rng = random.Random(0)
    versions = {cs.switched("Where is the city of Bronkhorst?", LEXICON, rng, joined=True) for _ in range(50)}
    assert versions == {(f"哪里是 the {city} of Bronkhorst?", 0.5) for city in ("城市", "城")}
    assert cs.switched("Where is it?", LEXICON, rng, joined=False) == ("哪里 是 it?", 2 / 3)
    assert cs.switched("", LEXICON, rng, joined=False) == ("", 0.0)


def test_some_known_words_stay() -> None:
    rng = random.Random(0)
    text, share = cs.switched("city " * 1000, LEXICON, rng, joined=False)
    assert text.count("city") == pytest.approx(1000 * cs.KEPT, abs=40) and share == 1 - text.count("city") / 1000


def test_versions_of_which_too_little_is_known_are_left_out(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cs, "LANGUAGES", {"cmn": 1.0, "spa": 1.0})
    lexicons: dict[str, cs.Lexicon] = {"cmn": LEXICON, "spa": {}}
    query = tokenizer.encode("Where is the city?", add_special_tokens=False).ids
    found = [cs.questions(query, lexicons, tokenizer, random.Random(seed), number=2) for seed in range(30)]
    assert {len(versions) for versions in found} <= {0, 1, 2} and sum(map(len, found)) > 30
    for version in (version for versions in found for version in versions):
        assert "哪里" in tokenizer.decode(version) or "城" in tokenizer.decode(version)
    assert found == [cs.questions(query, lexicons, tokenizer, random.Random(seed), number=2) for seed in range(30)]


def test_words_are_taken_for_each_other_only_where_both_are_best(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = np.array([[1, 0, 0], [0.9, 0.436, 0], [0, 0, 1]], np.float32)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    theirs = np.array([[0.99, 0.141, 0], [0, 1, 0]], np.float32)
    ((i, j, cosine),) = cs._alike(ours, theirs)
    assert (i, j) == (0, 0) and cosine == pytest.approx(0.99)
    monkeypatch.setattr(cs, "ALIKE", 0.999)
    assert cs._alike(ours, theirs) == []
