"""Building from a corpus: what is stored, the same bytes every time, bad input that leaves nothing behind."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval.builder import build_from_vectors, build_index
from hybrid_retrieval.builder.from_corpus import _Build
from hybrid_retrieval.codec import train_codec
from hybrid_retrieval.config import IndexConfig, PipelineConfig
from hybrid_retrieval.errors import (
    ArrayError,
    ConfigError,
    CorpusError,
    IndexDamagedError,
    IndexExistsError,
    IndexNotFoundError,
    ModelError,
    ModelMismatchError,
)
from hybrid_retrieval.ragged import Ragged
from hybrid_retrieval.storage import Snapshot, verify
from hybrid_retrieval.types import Passage
from tests.support import HashEncoder, HashTokenizer, clustered, make_passages, random_unit, tree

ROOT = Path(__file__).parents[1]
CONFIG = PipelineConfig(index=IndexConfig(chunk_passages=16, window_overlap=2))


def build(path: Path, corpus: Any = None, **options: Any) -> None:
    options = {"encoder": HashEncoder(), "reranker_tokenizer": HashTokenizer(), "config": CONFIG, **options}
    build_index(make_passages(50) if corpus is None else corpus, path, **options)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    build(tmp_path / "a")
    build(tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_one_and_two_threads_give_the_same_bytes(tmp_path: Path) -> None:
    for threads in ("1", "2"):
        code = (
            "from pathlib import Path\nfrom tests.test_builder import build, make_passages\n"
            f"build(Path({str(tmp_path / threads)!r}), make_passages(120))"
        )
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert tree(tmp_path / "1") == tree(tmp_path / "2")


def test_the_codec_is_trained_on_so_many_vectors_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "hybrid_retrieval.builder.from_corpus"
    seen: list[tuple[int, int]] = []

    def train(sample: np.ndarray, **options: Any) -> Any:
        seen.append((len(sample), options["num_tokens"]))
        assert np.isfinite(sample).all() and np.allclose(np.linalg.norm(sample, axis=1), 1, atol=1e-3)
        return train_codec(sample, **options)

    monkeypatch.setattr(f"{module}.train_codec", train)
    build(tmp_path / "all", make_passages(120))
    monkeypatch.setattr(f"{module}.MOST_SAMPLE_VECTORS", 300)
    for name in ("a", "b"):
        build(tmp_path / name, make_passages(120))
    (every, tokens), (some, told), again = seen
    assert again == (some, told) and told == tokens, "centroids are counted for the collection"
    assert 290 <= some <= 300 < every
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert verify(tmp_path / "a") == []


@pytest.mark.parametrize("count", [1, 2, 16, 17])
def test_small_collections_build(tmp_path: Path, count: int) -> None:
    build(tmp_path / "x", make_passages(count))
    assert Snapshot.open(tmp_path / "x").num_passages == count
    assert verify(tmp_path / "x") == []


def test_ten_identical_passages_build(tmp_path: Path) -> None:
    build(tmp_path / "x", [Passage(f"p{i}", "word1 word2 word3") for i in range(10)])
    assert verify(tmp_path / "x") == []


def test_a_passage_is_encoded_once(tmp_path: Path) -> None:
    encoder = HashEncoder()
    build(tmp_path / "x", encoder=encoder)
    assert encoder.calls == 4  # 50 passages in chunks of 16: the training sample's vectors are kept


def test_titles_are_read_or_left_out_as_configured(tmp_path: Path) -> None:
    corpus = [Passage("a", "word2 word3", "word1")]
    build(tmp_path / "with", corpus)
    build(
        tmp_path / "without",
        corpus,
        config=dataclasses.replace(CONFIG, index=IndexConfig(include_title=False)),
    )
    assert Snapshot.open(tmp_path / "with").num_tokens == 3
    assert Snapshot.open(tmp_path / "without").num_tokens == 2


def test_a_long_passage_is_split_not_cut(tmp_path: Path) -> None:
    build(tmp_path / "x", [Passage("long", " ".join(f"word{i % 100}" for i in range(1000)))])
    snapshot = Snapshot.open(tmp_path / "x")
    assert snapshot.num_windows > 100
    assert snapshot.num_tokens >= 1000


def test_metadata_titles_and_texts_of_any_script_come_back(tmp_path: Path) -> None:
    corpus = [Passage("ключ", "word1", "", {"a": [1, None, {"b": "日本"}]}), Passage("2", "word2")]
    build(tmp_path / "x", iter(corpus))
    snapshot = Snapshot.open(tmp_path / "x")
    assert [snapshot.passage(row) for row in (0, 1)] == corpus


def test_progress_is_told_and_ends_at_the_total(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    build(tmp_path / "x", progress=lambda *step: told.append(step))
    last = {step: (done, total) for step, done, total in told}
    assert last == {
        "read": (50, 50),
        "sample": (50, 50),
        "train": (1, 1),
        "encode": (50, 50),
        "commit": (1, 1),
    }


NESTED: list[Any] = []
for _ in range(100_000):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Passage("p3", "word1"), "ids must be unique"),
        (Passage("", "word1"), "id is empty"),
        (Passage(" ", "word1"), "id is empty"),
        (Passage("x" * 513, "word1"), "513 bytes"),
        (Passage("a\0b", "word1"), "NUL"),
        (Passage("x", ""), "text is empty"),
        (Passage("x", "", " "), "text is empty"),
        (Passage("x", " \n\t"), "text is empty"),
        (Passage("x", "\u200b\u200f \ufeff"), "text is empty"),
        (Passage("x", "a\0b"), "NUL"),
        (Passage("x", "a\ud800b"), "surrogate"),
        (Passage("x", "word1", "t\0"), "title"),
        (Passage("x", None), "must be a string"),  # type: ignore[arg-type]
        (Passage(7, "word1"), "must be a string"),  # type: ignore[arg-type]
        (Passage("x", "word1", "", {"a": float("nan")}), "metadata"),
        (Passage("x", "word1", "", {"a": {1, 2}}), "metadata"),
        (Passage("x", "word1", "", {"a": NESTED}), "metadata"),
        (Passage("x", "word1", "", {"a": {1: "one", "1": "another"}}), "the key '1' is there twice"),
        ({"_id": "x"}, "expected a Passage"),
    ],
)
def test_a_bad_passage_leaves_nothing_behind(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(CorpusError, match=message) as error:
        build(tmp_path / "x", [*make_passages(5), bad])
    assert "passage 5" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="empty"):
        build(tmp_path / "x", [])
    assert list(tmp_path.iterdir()) == []


def test_an_index_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    build(tmp_path / "x")
    before = tree(tmp_path / "x")
    with pytest.raises(IndexExistsError, match="overwrite"):
        build(tmp_path / "x", make_passages(3))
    assert tree(tmp_path / "x") == before
    with pytest.raises(CorpusError):
        build(tmp_path / "x", [], overwrite=True)
    assert tree(tmp_path / "x") == before
    build(tmp_path / "x", make_passages(3), overwrite=True)
    assert Snapshot.open(tmp_path / "x").num_passages == 3
    assert len(list((tmp_path / "x" / "segments").iterdir())) == 1


class Failing(HashEncoder):
    """Fails at its nth call."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def encode_windows(self, texts: list[str], overlap_tokens: int = 2) -> tuple[Ragged, np.ndarray]:
        if self.calls == self.at:
            raise MemoryError("no more")
        return super().encode_windows(texts, overlap_tokens)


def test_a_title_is_text_enough_where_titles_are_read(tmp_path: Path) -> None:
    corpus = [Passage("a", "", "word1 word2"), Passage("b", "word3")]
    build(tmp_path / "x", corpus=corpus)
    assert verify(tmp_path / "x") == []
    config = dataclasses.replace(CONFIG, index=dataclasses.replace(CONFIG.index, include_title=False))
    with pytest.raises(CorpusError, match=r"passage 0 \('a'\): text is empty, and titles are left out"):
        build(tmp_path / "y", corpus=corpus, config=config)


def test_a_build_that_fails_before_it_has_encoded_anything_leaves_nothing(tmp_path: Path) -> None:
    for overwrite in (False, True):
        with pytest.raises(MemoryError):
            build(tmp_path / "x", encoder=Failing(0), overwrite=overwrite)
        assert not (tmp_path / "x").exists()
    build(tmp_path / "x")
    before = tree(tmp_path / "x")
    with pytest.raises(MemoryError):
        build(tmp_path / "x", encoder=Failing(0), overwrite=True)
    assert tree(tmp_path / "x") == before


@pytest.mark.parametrize("at", [1, 3])
def test_a_failed_build_is_no_index_and_resumes_to_the_same_bytes(tmp_path: Path, at: int) -> None:
    build(tmp_path / "whole")
    with pytest.raises(MemoryError):
        build(tmp_path / "x", encoder=Failing(at))
    with pytest.raises(IndexNotFoundError, match="--resume"):
        Snapshot.open(tmp_path / "x")
    with pytest.raises(IndexExistsError, match="--resume"):
        build(tmp_path / "x")
    build(tmp_path / "x", resume=True)
    assert tree(tmp_path / "x") == tree(tmp_path / "whole")


@pytest.mark.parametrize(("name", "content"), [("journal.json", b"{}"), ("journal.json", b"]"), ("sample", b"PK")])
def test_a_damaged_unfinished_build_says_to_start_over(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(MemoryError):
        build(tmp_path / "x", encoder=Failing(1))
    building = tmp_path / "x" / "building"
    file = next((building / "sample").iterdir()) if name == "sample" else building / name
    file.write_bytes(content)
    with pytest.raises(IndexDamagedError, match=r"damaged.*start over with overwrite"):
        build(tmp_path / "x", resume=True)
    build(tmp_path / "x", overwrite=True)
    assert verify(tmp_path / "x") == []


class FailingTokenizer(HashTokenizer):
    """Fails at its nth call."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def tokenize(self, texts: list[str]) -> Ragged:
        self.at -= 1
        if self.at < 0:
            raise MemoryError("no more")
        return super().tokenize(texts)


def test_a_resumed_build_trusts_no_file(tmp_path: Path) -> None:
    """Whatever is damaged is found before anything is published or replaced, or is made anew."""
    corpus = make_passages(50)
    for name in ("whole", "stopped"):
        build(tmp_path / name, corpus=make_passages(5, seed=1))
    build(tmp_path / "whole", corpus=corpus, overwrite=True)
    sound = tree(tmp_path / "stopped")
    with pytest.raises(MemoryError):  # with the codec, one chunk, and the others' samples
        build(tmp_path / "stopped", corpus=corpus, overwrite=True, reranker_tokenizer=FailingTokenizer(1))
    building = tmp_path / "stopped" / "building"
    files = sorted(path.relative_to(building) for path in building.rglob("*") if path.is_file())
    assert {path.parts[0] for path in files} == {"codec", "journal.json", "sample", "segment"}
    found = 0
    for name in files:
        content = (building / name).read_bytes()
        for damage in ("first", "middle", "shorter", "gone"):
            if not content and damage != "gone":
                continue
            copy = tmp_path / "copy"
            shutil.copytree(tmp_path / "stopped", copy)
            changed = bytearray(content[:-1] if damage == "shorter" else content)
            if damage in ("first", "middle"):
                changed[0 if damage == "first" else len(changed) // 2] ^= 4
            (copy / "building" / name).write_bytes(changed)
            if damage == "gone":
                (copy / "building" / name).unlink()
            try:
                build(copy, corpus=corpus, overwrite=True, resume=True)
            except IndexDamagedError as error:
                assert "overwrite" in str(error)
                assert {key: value for key, value in tree(copy).items() if not key.startswith("building")} == sound
                found += 1
            else:
                assert tree(copy) == tree(tmp_path / "whole")
            shutil.rmtree(copy)
    assert found > len(files)


def test_a_build_resumes_only_as_what_it_was(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        build(tmp_path / "x", encoder=Failing(2))
    before = tree(tmp_path / "x")
    other = dataclasses.replace(CONFIG, index=dataclasses.replace(CONFIG.index, nbits=4))
    for options, error, message in (
        ({"encoder": HashEncoder(name="other")}, ModelMismatchError, "another encoder"),
        ({"reranker_tokenizer": None}, ModelMismatchError, "another reranker"),
        ({"config": other}, ConfigError, r"index\.nbits"),
        ({"corpus": make_passages(50, seed=1)}, CorpusError, "another corpus"),
        ({"corpus": make_passages(49)}, CorpusError, "another corpus"),
    ):
        with pytest.raises(error, match=message):
            build(tmp_path / "x", resume=True, **options)
        assert tree(tmp_path / "x") == before
    build(tmp_path / "x", resume=True)
    assert verify(tmp_path / "x") == []


def test_a_setting_that_is_newer_than_a_build_had_its_default_there() -> None:
    build = _Build(HashEncoder(), None, CONFIG, lambda *_: None)
    config = CONFIG.to_dict()
    earlier = {**build.keys, "config": {**config, "index": {k: v for k, v in config["index"].items() if k != "device"}}}
    build._check_same(earlier, "the index")
    earlier["config"]["index"]["device"] = "cuda"
    with pytest.raises(ConfigError, match=r"another configuration \(index.device\)"):
        build._check_same(earlier, "the index")


def test_resuming_a_finished_build_changes_nothing(tmp_path: Path) -> None:
    build(tmp_path / "x")
    before = tree(tmp_path / "x")
    build(tmp_path / "x", resume=True)
    assert tree(tmp_path / "x") == before
    with pytest.raises(CorpusError, match="another corpus"):
        build(tmp_path / "x", make_passages(3), resume=True)
    assert tree(tmp_path / "x") == before


def test_resume_and_overwrite_continue_what_was_interrupted_and_else_replace(tmp_path: Path) -> None:
    build(tmp_path / "x", make_passages(3))
    with pytest.raises(MemoryError):
        build(tmp_path / "x", encoder=Failing(2), overwrite=True)
    encoder = HashEncoder()
    build(tmp_path / "x", encoder=encoder, overwrite=True, resume=True)
    assert encoder.calls == 2  # of 4: the other two chunks were there
    assert Snapshot.open(tmp_path / "x").num_passages == 50
    build(tmp_path / "x", make_passages(7), overwrite=True, resume=True)
    assert Snapshot.open(tmp_path / "x").num_passages == 7
    assert verify(tmp_path / "x") == []


def test_resuming_where_nothing_was_begun_builds(tmp_path: Path) -> None:
    build(tmp_path / "x", resume=True)
    assert verify(tmp_path / "x") == []


def test_a_corpus_that_fails_while_it_is_read_leaves_nothing(tmp_path: Path) -> None:
    def corpus() -> Iterator[Passage]:
        yield from make_passages(3)
        raise CorpusError("corpus.jsonl:4: not JSON")

    with pytest.raises(CorpusError, match=r"corpus\.jsonl:4"):
        build(tmp_path / "x", corpus())
    assert list(tmp_path.iterdir()) == []


class Wrong(HashEncoder):
    """Gives what an encoder must not give."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def encode_windows(self, texts: list[str], overlap_tokens: int = 2) -> tuple[Ragged, np.ndarray]:
        vectors, offsets = super().encode_windows(texts, overlap_tokens)
        if self.kind == "nan":
            vectors.data[0, 0] = np.nan
        elif self.kind == "length":
            vectors.data[0] *= 1.02
        elif self.kind == "whole numbers":
            vectors = Ragged(vectors.data.astype(np.int8), vectors.offsets)
        elif self.kind == "dimensions":
            vectors = Ragged(vectors.data[:, :32].copy(), vectors.offsets)
        else:
            offsets = offsets[:-1]
        return vectors, offsets


@pytest.mark.parametrize("kind", ["nan", "length", "whole numbers", "dimensions", "windows"])
def test_impossible_output_of_an_encoder_is_an_error(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ModelError, match="hash gave"):
        build(tmp_path / "x", encoder=Wrong(kind))
    with pytest.raises(IndexNotFoundError):
        Snapshot.open(tmp_path / "x")


VECTORS = clustered([5, 0, 1, 12], 64)
IDS = ["a", "b", "c", "d"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_vectors_of_your_own_build(tmp_path: Path, dtype: Any) -> None:
    build_from_vectors(tmp_path / "x", IDS, VECTORS.data.astype(dtype), VECTORS.offsets)
    snapshot = Snapshot.open(tmp_path / "x")
    assert (snapshot.num_passages, snapshot.num_windows, snapshot.num_tokens) == (4, 4, 18)
    assert [snapshot.passage_id(row) for row in range(4)] == IDS
    assert verify(tmp_path / "x") == []


def test_vectors_built_twice_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        build_from_vectors(tmp_path / name, IDS, VECTORS.data, VECTORS.offsets)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def changed(row: int, value: float) -> np.ndarray:
    data = VECTORS.data.copy()
    data[row] = value
    return data


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": changed(3, np.nan)}, ArrayError, "row 3 has a NaN"),
        ({"data": changed(3, np.inf)}, ArrayError, "row 3 has a NaN or an infinity"),
        ({"data": changed(4, 0.2)}, ArrayError, "row 4 has norm 1.6"),
        ({"data": changed(4, 0)}, ArrayError, "row 4 has norm 0"),
        ({"data": VECTORS.data.astype(np.float64)}, ArrayError, "float16 or float32"),
        ({"data": VECTORS.data.tolist()}, ArrayError, "got list"),
        ({"data": random_unit(18, 60)}, ArrayError, "multiples of 8"),
        ({"data": VECTORS.data[:0], "offsets": np.zeros(5, np.int64)}, ArrayError, "at least one row"),
        ({"offsets": VECTORS.offsets.astype(np.int32)}, ArrayError, "int64"),
        ({"offsets": VECTORS.offsets[:-1]}, ArrayError, "offsets must run"),
        ({"offsets": np.array([0, 9, 5, 6, 18])}, ArrayError, "never fall"),
        # differences of 64 bits that wrap around, so that none is negative
        ({"offsets": np.array([0, 2**63 - 3, -(2**63) + 2, -(2**62), 18])}, ArrayError, "never fall"),
        ({"ids": IDS[:3]}, ArrayError, "4 passages, but there are 3 ids"),
        ({"ids": ["a", "b", "a", "d"]}, CorpusError, "passage 2"),
        ({"ids": ["a", "", "c", "d"]}, CorpusError, "empty"),
        ({"ids": [1, 2, 3, 4]}, CorpusError, "must be a string"),
        ({"ids": "abcd"}, CorpusError, "sequence of strings"),
        ({"ids": None}, CorpusError, "sequence of strings"),
        ({"ids": []}, CorpusError, "no ids"),
        ({"nbits": 3}, ConfigError, "nbits"),
    ],
)
def test_impossible_vectors_leave_nothing_behind(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"ids": IDS, "data": VECTORS.data, "offsets": VECTORS.offsets, **change}
    with pytest.raises(error, match=message):
        build_from_vectors(tmp_path / "x", **arguments)
    assert list(tmp_path.iterdir()) == []
