"""The cross-encoder's training: how negatives are mined, what learns, and what its export shares with the encoder's."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from tokenizers import Tokenizer  # noqa: E402

from hybrid_retrieval import Reranker  # noqa: E402
from hybrid_retrieval.corpus.readers import read_corpus  # noqa: E402
from hybrid_retrieval.errors import ModelError  # noqa: E402
from hybrid_retrieval.evaluation.demo_data import demo_corpus  # noqa: E402
from hybrid_retrieval.kernels import dispatch  # noqa: E402
from hybrid_retrieval.model_files import EMBEDDED_FOLDER  # noqa: E402
from hybrid_retrieval.training import reranker_recipe as recipe  # noqa: E402
from hybrid_retrieval.training import run  # noqa: E402
from hybrid_retrieval.training.base_weights import BaseModel  # noqa: E402
from hybrid_retrieval.training.data import END, Pair  # noqa: E402
from hybrid_retrieval.training.export import write_encoder, write_reranker  # noqa: E402
from hybrid_retrieval.training.loop import Course  # noqa: E402
from hybrid_retrieval.training.modules import CrossEncoder, Encoder, Trunk  # noqa: E402
from hybrid_retrieval.training.run import ENCODER, RERANKER, arrays  # noqa: E402

native = pytest.mark.skipif(dispatch.variant() == dispatch.NUMPY, reason="needs the compiled kernels")
GROUP = 1 + recipe.NEGATIVES


def test_a_pair_is_cut_apart_and_marked() -> None:
    assert recipe.pair_ids([5] * 9, [6] * 9, 3, 4) == [0, 5, 5, 5, END, END, 6, 6, 6, 6, END]


@pytest.fixture(scope="module")
def asked() -> list[Pair]:
    """The demo's first passages, each with its own beginning as a question."""
    tokenizer = Tokenizer.from_str(gzip.decompress((EMBEDDED_FOLDER / "tokenizer.json.gz").read_bytes()).decode())
    texts = [passage.text for passage in itertools.islice(read_corpus(demo_corpus()), 24)]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    return [Pair(row[:12], row, key) for key, row in enumerate(ids)]


@native
def test_no_other_answer_is_a_negative(asked: list[Pair]) -> None:
    """Nor a passage that reads the same once it is cut."""
    question, longer = asked[0].query, asked[0].passage * 9
    pairs = [
        Pair(question, longer, 0),
        Pair(question, asked[1].passage, 1),
        Pair([9, 9], [*longer, 5], 50),
        *asked[2:],
    ]
    mined = recipe.mine(EMBEDDED_FOLDER, pairs, questions=2, threads=1)
    for item, negatives in mined:
        keys = {negative.passage_key for negative in negatives}
        assert not {0, 1} & keys
        assert (50 in keys) == (item.passage_key != 0)


@native
def test_negatives_are_other_passages_near_the_question(asked: list[Pair]) -> None:
    mined = recipe.mine(EMBEDDED_FOLDER, asked, questions=6, threads=1)
    assert [item.passage_key for item, _ in mined] == list(range(6))
    for item, negatives in mined:
        keys = [negative.passage_key for negative in negatives]
        assert len(set(keys)) == len(keys) == recipe.DEPTH and item.passage_key not in keys


@pytest.mark.parametrize("half", [False, True])
def test_only_the_upper_layers_and_the_head_learn(
    half: bool, base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "FROZEN", 2)
    random = np.random.default_rng(1)
    rows = [
        recipe.pair_ids(random.integers(4, 50, 3).tolist(), random.integers(4, 50, 9).tolist(), 5, 9)
        for _ in range(6 * GROUP)
    ]
    lists = recipe.Lists(["squad_train"] * 4 + ["medquad"] * 2, rows)
    torch.manual_seed(0)
    model = CrossEncoder(Trunk(base))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert recipe.train_reranker(model, lists, Course(3, tmp_path / "ckpt", resume=False, half=half))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("trunk.layers.2.", "dense.", "out.", "gate.", "scale")) for name in changed)
    assert {"scale", "trunk.layers.2.fo.weight", "out.weight", "gate.weight"} <= changed


def test_layers_that_both_models_have_in_common_are_stored_once(base: BaseModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder, model = Encoder(Trunk(base), 32), CrossEncoder(Trunk(base))
    torch.nn.init.normal_(model.out.weight)
    torch.nn.init.normal_(model.gate.weight)
    with torch.no_grad():
        model.trunk.layers[2].fi.weight += 0.1
        encoder.trunk.layers[2].fi.weight -= 0.1
    write_reranker(base, arrays(model), tmp_path / "alone", RERANKER)
    write_encoder(base, arrays(encoder), tmp_path / "both", ENCODER)
    write_reranker(base, arrays(model), tmp_path / "both", RERANKER)
    sizes = [(tmp_path / name / "reranker.safetensors").stat().st_size for name in ("alone", "both")]
    assert sizes[1] < 0.6 * sizes[0]
    trunk = json.loads((tmp_path / "both" / "reranker.json").read_text(encoding="utf-8"))["trunk"]
    assert trunk["shared"] == "encoder.safetensors"
    backends = ["onnx", *(["native"] if dispatch.variant() != dispatch.NUMPY else [])]
    for backend in backends:
        alone, both = (Reranker.load(str(tmp_path / name), backend=backend) for name in ("alone", "both"))
        pairs = [("abc", "abd xyz"), ("hello", "hello there")]
        np.testing.assert_array_equal(alone.score(pairs), both.score(pairs))


@native
def test_a_head_that_does_not_fit_is_refused(base: BaseModel, tmp_path: Path) -> None:
    state = arrays(CrossEncoder(Trunk(base)))
    write_reranker(base, {**state, "gate.weight": np.zeros((1, 32), np.float32)}, tmp_path, RERANKER)
    with pytest.raises(ModelError, match=r"gate.weight must be \[1, 64\].*got \[1, 32\]"):
        Reranker.load(str(tmp_path), backend="native")


def test_what_was_mined_is_kept_for_the_same_encoder_recipe_and_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mined: list[str] = []
    for seed, weights, depth, count in (
        (0, b"weights", 12, 1),
        (0, b"weights", 12, 1),
        (1, b"weights", 12, 2),
        (1, b"others", 12, 3),
        (1, b"others", 9, 4),
    ):
        (tmp_path / "encoder.safetensors").write_bytes(weights)
        monkeypatch.setattr(recipe, "DEPTH", depth)
        made_of = run._made_of(tmp_path, recipe, seed)

        def gather(made_of: str = made_of) -> dict[str, object]:
            mined.append(made_of)
            return {"files": ["squad_train"], "rows": [[0, 5, END, END, 6, END]] * GROUP}

        lists = recipe.Lists(**run._kept(tmp_path / "lists.json", made_of, gather))
        assert lists == recipe.Lists(["squad_train"], [[0, 5, END, END, 6, END]] * GROUP)
        assert len(mined) == len(set(mined)) == count


def test_a_recipes_numbers_are_the_same_in_every_process() -> None:
    told = (
        "from hybrid_retrieval.training import run, upper_recipe as u, reranker_recipe as r, second_round_recipe as s, "
    )
    told += "query_weights_recipe as q, projection_recipe as p; print([run._numbers(m) for m in (u, r, s, q, p)])"
    found = {
        subprocess.run(
            [sys.executable, "-c", told], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1 and b"object at" not in next(iter(found)) and b"module" not in next(iter(found))
