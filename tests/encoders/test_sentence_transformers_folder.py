"""Folders that sentence-transformers' `MultiVectorEncoder` saved encode as it encodes them itself."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_retrieval import Encoder
from hybrid_retrieval.errors import ModelError
from tests.parity.checkpoints import make_colbert

pytest.importorskip("sentence_transformers")

QUERIES = ["how do vaccines work?", "why", "C++ vs. C#", " ".join(["river"] * 50)]
PASSAGES = ["Vaccines train the immune system; then it's ready.", "A house (old, green) by the river.", "Why not?"]


def save(folder: Path, *, expansion: dict[str, Any] | None, skiplist: list[str], **changes: Any) -> Any:
    """A small random checkpoint, saved by the library itself; returns the library's model."""
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(make_colbert(folder / "base")), device="cpu")
    model[0].query_expansion = expansion
    model[0].document_length = 40
    for name, value in changes.items():
        setattr(model[0], name, value)
    for module in model:
        if type(module).__name__ == "MultiVectorMask":
            module.skiplist_words = skiplist
            module.resolve_with_tokenizer(model.tokenizer)
    model.save(str(folder / "saved"))
    return MultiVectorEncoder(str(folder / "saved"), device="cpu")


CASES = {
    "attend": {"expansion": {"strategy": "fixed", "attend": True, "length": 24}, "skiplist": list(string.punctuation)},
    "no_attention": {"expansion": {"strategy": "fixed", "attend": False, "length": 32}, "skiplist": [",", ";"]},
    "floor": {"expansion": {"strategy": "min", "attend": False, "length": 16}, "skiplist": [], "query_length": 28},
    "none": {"expansion": None, "skiplist": [], "query_length": 20},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_vectors_equal_the_librarys_own(tmp_path: Path, case: dict[str, Any]) -> None:
    model = save(tmp_path, **case)
    encoder = Encoder.load(str(tmp_path / "saved"), device="cpu")
    queries = model.encode_query(QUERIES, convert_to_numpy=True, show_progress_bar=False)
    passages = model.encode_document(PASSAGES, convert_to_numpy=True, show_progress_bar=False)
    for text, expected, found in zip(QUERIES, queries, encoder.encode_queries(QUERIES), strict=True):
        assert found.shape == expected.shape, text
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0, err_msg=text)
    for text, expected, found in zip(PASSAGES, passages, encoder.encode_passages(PASSAGES), strict=True):
        assert found.shape == expected.shape, text
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0, err_msg=text)
    assert encoder.dimensions == 16 and encoder.max_passage_tokens == 40


def test_weights_are_read_as_they_are_whatever_dtype_the_config_names(tmp_path: Path) -> None:
    save(tmp_path, expansion=None, skiplist=[], query_length=20)
    expected = Encoder.load(str(tmp_path / "saved"), device="cpu").encode_passages(PASSAGES)
    config = next((tmp_path / "saved").glob("**/config.json"))
    for path in (tmp_path / "saved").glob("**/config.json"):
        if "hidden_size" in (value := json.loads(path.read_text())):
            config = path
            path.write_text(json.dumps({**value, "dtype": "bfloat16"}))
    assert "bfloat16" in config.read_text()
    found = Encoder.load(str(tmp_path / "saved"), device="cpu").encode_passages(PASSAGES)
    np.testing.assert_array_equal(found.data, expected.data)


def test_no_more_tokens_than_there_are_positions(tmp_path: Path) -> None:
    save(tmp_path, expansion=None, skiplist=[], query_length=20, document_length=4000)
    assert Encoder.load(str(tmp_path / "saved"), device="cpu").max_passage_tokens == 600


def test_settings_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    save(tmp_path, expansion=None, skiplist=[])
    config = next((tmp_path / "saved").glob("*MultiVectorMask/config.json"))
    config.write_text('{"skiplist_words": [], "skiplist_tasks": ["query", "document"], "keep_only_token_ids": null}')
    with pytest.raises(ModelError, match="MultiVectorMask"):
        Encoder.load(str(tmp_path / "saved"))


def test_a_dense_with_a_residual_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save(tmp_path, expansion=None, skiplist=[])
    file = next((tmp_path / "saved").glob("*_Dense/config.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_residual": True}))
    weights = load_file(file.with_name("model.safetensors"))
    save_file({**weights, "residual.weight": weights["linear.weight"].clone()}, file.with_name("model.safetensors"))
    with pytest.raises(ModelError, match="adds its input to its output"):
        Encoder.load(str(tmp_path / "saved"))


def test_a_weight_that_is_missing_is_named(tmp_path: Path) -> None:
    """The library draws it at random, other ones at every load."""
    from safetensors.torch import load_file, save_file

    save(tmp_path, expansion=None, skiplist=[])
    file = tmp_path / "saved" / "model.safetensors"
    lost = "encoder.layer.1.output.dense.weight"
    weights = load_file(file)
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith(lost)}
    assert len(kept) == len(weights) - 1
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"1 weights are missing, first {re.escape(lost)}"):
        Encoder.load(str(tmp_path / "saved"))


def test_parts_lie_where_modules_json_says(tmp_path: Path) -> None:
    """The transformer in a folder of its own, the projection under another name: read, and part of the identity."""
    from safetensors.torch import load_file, save_file

    save(tmp_path, expansion=None, skiplist=[])
    saved, own = tmp_path / "saved", tmp_path / "saved" / "0_Transformer"
    expected = Encoder.load(str(saved), device="cpu").encode_query("why")
    modules = json.loads((saved / "modules.json").read_text())
    own.mkdir()
    for path in saved.iterdir():
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(own / path.name)
    modules[0]["path"] = "0_Transformer"
    (dense,) = (part for part in modules if part["type"].endswith(".Dense"))
    (saved / dense["path"]).rename(saved / "projection")
    dense["path"] = "projection"
    (saved / "modules.json").write_text(json.dumps(modules))
    encoder = Encoder.load(str(saved), device="cpu")
    np.testing.assert_allclose(encoder.encode_query("why"), expected, atol=1e-6)
    file = saved / "projection" / "model.safetensors"
    save_file({name: -tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    assert Encoder.load(str(saved), device="cpu").identity != encoder.identity


@pytest.mark.parametrize(
    ("left_out", "message"), [("Normalize", "unit length"), ("MultiVectorMask", "expands queries")]
)
def test_what_the_library_would_score_otherwise_is_refused(tmp_path: Path, left_out: str, message: str) -> None:
    save(tmp_path, expansion={"strategy": "fixed", "attend": False, "length": 32}, skiplist=[])
    file = tmp_path / "saved" / "modules.json"
    modules = json.loads(file.read_text())
    kept = [part for part in modules if not part["type"].endswith(f".{left_out}")]
    assert len(kept) == len(modules) - 1
    file.write_text(json.dumps(kept))
    with pytest.raises(ModelError, match=message):
        Encoder.load(str(tmp_path / "saved"))


def test_a_model_of_one_vector_a_text_is_refused(tmp_path: Path) -> None:
    """The library would give it a projection drawn at random."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(make_colbert(tmp_path / "base")), device="cpu").save(str(tmp_path / "saved"))
    with pytest.raises(ModelError, match="one vector a text"):
        Encoder.load(str(tmp_path / "saved"))


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    """transformers would make one up to which every word is unknown."""
    save(tmp_path, expansion=None, skiplist=[])
    for path in (tmp_path / "saved").glob("*token*.json"):
        path.unlink()
    with pytest.raises(ModelError, match="no tokenizer here"):
        Encoder.load(str(tmp_path / "saved"))


def test_a_folder_without_its_weights_is_named(tmp_path: Path) -> None:
    save(tmp_path, expansion=None, skiplist=[])
    (tmp_path / "saved" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="saved"):
        Encoder.load(str(tmp_path / "saved"))
